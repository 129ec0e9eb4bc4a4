"""A move carried out, and an unfinished one taken back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.moved import MoveRecord, leads_back, read_moves
from vlmcache.cache.scan_repo import scan_repo
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.usage import Usage, who_uses
from vlmcache.change import place as change_place
from vlmcache.change.in_use import InUseError, in_use_words
from vlmcache.change.moved_note import record_size, remove_record, write_moves, write_record
from vlmcache.change.plan import (
    Action,
    Failure,
    Kept,
    Move,
    Outcome,
    PlaceLink,
    Plan,
    PutBack,
    Receipt,
    ReleaseShared,
    Remove,
    RemoveTree,
    stamp,
)
from vlmcache.change.remove import execute
from vlmcache.commands.move.copy import Copier
from vlmcache.commands.move.plan import Destination
from vlmcache.commands.move.values import Moved, MovedRepo, planned_repo
from vlmcache.errors import CacheError, ChangedError, SpaceError, VlmcacheError
from vlmcache.progress import Watcher

_LONG = 16 << 20
"""Length in bytes from which on a file's progress is told."""


def take_back(value: Moved, unfinished: Sequence[str]) -> Receipt:
    """Undo unfinished moves, and return what became of each step."""
    place = value.destination
    outcomes: list[Outcome] = []
    for action in value.plan.actions:
        if isinstance(action, PutBack):
            change_place.put_back(action.aside, action.path)
            outcomes.append(Outcome("put-back", action.path, "done"))
    receipt = execute(removals_below(value.plan.actions, place), place)
    if receipt.whole:
        for folder in unfinished:
            if not os.path.islink(os.path.join(value.cache, folder)):
                remove_record(value.cache, folder)
        stays = {os.path.basename(one.path) for one in value.plan.kept}
        noted = {
            folder: one
            for folder, one in read_moves(place).items()
            if folder not in unfinished or folder in stays
        }
        write_moves(place, noted)
        Copier(value.cache, place, _silent).finish()
    return Receipt((*outcomes, *receipt.outcomes), receipt.freed)


def _silent(_path: str, _position: int) -> None:
    pass


def repos_in_use(state: CacheState, repos: Sequence[Repo], usage: Usage) -> tuple[Kept, ...]:
    """Return the repos that processes use, and who they are."""
    found: list[Kept] = []
    for repo in repos:
        users = usage.of_repo(state, repo)
        if users is not None:
            why = "in use" if users else "in use: a lock of the hub is held"
            found.append(Kept(repo.path, repo.id, why, users))
    return tuple(found)


@contextlib.contextmanager
def refusals(place: str) -> Iterator[None]:
    """Turn the system's refusals to write into errors of ours."""
    try:
        yield
    except OSError as error:
        raise _refusal(error, place) from error


def _refusal(error: OSError, place: str) -> VlmcacheError:
    """Return what the system's refusal to write means to a user."""
    where = error.filename if isinstance(error.filename, str) else place
    reason = error.strerror or str(error)
    if change_place.is_full(error):
        return SpaceError(
            f"the disk is full: {where}",
            "make room, then move again: what was copied is kept; --undo takes it back",
        )
    return CacheError(f"{reason}: {where}", "what was copied is kept: move again, or --undo")


class Run:
    """A plan of a move, carried out repo by repo."""

    def __init__(
        self,
        state: CacheState,
        there: Destination,
        plan: Plan,
        rest: Sequence[str],
        *,
        link: bool,
        watcher: Watcher,
    ) -> None:
        self.state = state
        self.there = there
        self.plan = plan
        self.rest = rest
        self.link = link
        self.watcher = watcher
        self.repos: list[MovedRepo] = []
        self.outcomes: list[Outcome] = []
        self.freed = 0
        self.label = ""
        self.long: dict[str, str] = {}
        self.copier = Copier(state.dir, there.path, self._moved, same_disk=there.same_disk)
        self.noted: dict[str, MoveRecord] = {}
        self.strange: set[str] = set()

    def _moved(self, path: str, position: int) -> None:
        if path in self.long:
            self.watcher.moved(self.label, self.long[path], position)

    def carry_out(self) -> None:
        """Carry the plan out; what became of it is in the attributes."""
        moves = [action for action in self.plan.actions if isinstance(action, Move)]
        links = [action for action in self.plan.actions if isinstance(action, PlaceLink)]
        gone: set[str] = set()
        with refusals(self.there.path):
            # Read again, now that no other move can change it.
            self.noted = dict(read_moves(self.there.path))
            for move in moves:
                folder = os.path.basename(move.path)
                known = self.noted.get(folder)
                ours = known is not None and known.cache == self.state.dir and not known.finished
                linked = leads_back(self.there.path, folder, self.state.dir)
                if os.path.lexists(move.destination) and not ours and not linked:
                    self.strange.add(folder)
                    continue
                self.noted[folder] = MoveRecord(self.state.dir, finished=False)
            if moves:
                write_moves(self.there.path, self.noted)
            for link in links:
                self._record(os.path.basename(link.path))
                change_place.place_repo_link(link.path, link.destination)
                self.outcomes.append(Outcome("place-link", link.path, "done"))
                row = planned_repo(link.path, link.repo, link.destination)
                self.repos.append(msgspec.structs.replace(row, state="linked"))
        for move in moves:
            row = planned_repo(move.path, move.repo, move.destination, move.size)
            error = self._one(move, gone)
            failure = None
            if error is not None:
                hint = error.hint
                failure = Failure(error.code, error.message, hint, int(error.exit_code))
            self.repos.append(
                msgspec.structs.replace(row, state="failed" if failure else "moved", error=failure)
            )
            if isinstance(error, SpaceError):
                break
        self._finish_rest()

    def _one(self, move: Move, gone: set[str]) -> VlmcacheError | None:
        """Move one repo; whatever fails, it is whole at its old place or at the new one."""
        folder = os.path.basename(move.path)
        repo = next(one for one in self.state.repos if one.folder == folder)
        self.label = move.repo
        self.watcher.started(move.repo, self._long_files(repo), 0)
        try:
            if folder in self.strange:
                raise ChangedError(f"it came there meanwhile: {move.destination}", "move again")
            self._check_unchanged(repo)
            self.copier.gather(repo, self.state.shared)
            self._check_unchanged(repo)
            self._check_unused(repo)
            self.copier.place(repo)
        except VlmcacheError as error:
            self._failed(move, error)
            return error
        except OSError as error:
            refusal = _refusal(error, self.there.path)
            self._failed(move, refusal)
            return refusal
        finally:
            self.watcher.ended(move.repo)
        self.outcomes.append(Outcome("move", move.path, "done"))
        return self._switch(folder, gone)

    def _long_files(self, repo: Repo) -> dict[str, int]:
        """Return name -> length of the files whose progress is told, and note their paths."""
        users = repo.blob_users()
        found: dict[str, int] = {}
        self.long = {}
        for blob in repo.blobs.values():
            if blob.size < _LONG:
                continue
            shared = self.state.shared.get(blob.shared or "")
            path = repo.blob_path(blob.name)
            name = min((file for _, file in users[blob.name]), default=blob.name)
            if name in found:
                name = blob.name  # the file of another revision has the same name
            self.long[path if shared is None else shared.path] = name
            found[name] = blob.size
        return found

    def _failed(self, move: Move, error: VlmcacheError) -> None:
        self.outcomes.append(Outcome("move", move.path, "failed", detail=error.message))

    def _check_unchanged(self, repo: Repo) -> None:
        """See that the source is what was planned, and so what is copied.

        Raises:
            ChangedError: it was written to meanwhile, or has gone.
        """
        now = scan_repo(self.state.dir, repo.folder)
        if now is None or now.linked_to is not None or stamp(now) != stamp(repo):
            raise ChangedError(f"{repo.id} changed while it was to be copied", "move again")

    def _check_unused(self, repo: Repo) -> None:
        """See that nobody uses the source.

        Raises:
            InUseError: a process uses it by now.
        """
        self.usage = who_uses(self.state, {repo.folder})
        in_use = repos_in_use(self.state, [repo], self.usage)
        if in_use:
            raise InUseError(
                f"not moved: {in_use_words(in_use)}", "what was copied is kept: move again later"
            )

    def _switch(self, folder: str, gone: set[str]) -> VlmcacheError | None:
        """Let the source give way to the link, and free what it occupies."""
        before = {*gone, folder}
        tree: RemoveTree | None = None
        actions: list[Action] = []
        for action in self.plan.actions:
            if isinstance(action, RemoveTree) and action.kind == "repo":
                if os.path.basename(action.path) == folder:
                    tree = action
                    actions.append(action)
            elif isinstance(action, RemoveTree | Remove) and action.kind in ("lock", "locks"):
                if folder in action.path.split(os.sep):
                    actions.append(action)
            elif isinstance(action, ReleaseShared):
                users = {name.partition("/")[0] for name in action.references}
                if folder in users:
                    last = action.last and users <= before
                    frees = action.frees if last else 0
                    actions.append(msgspec.structs.replace(action, last=last, frees=frees))
        assert tree is not None
        try:
            if tree.link is not None:
                self._record(folder)
            receipt = execute(Plan(tuple(actions)), self.state.dir, in_use=self.usage.files)
        except OSError as error:
            return self._refused(folder, _refusal(error, self.state.dir))
        self.outcomes += receipt.outcomes
        self.freed += receipt.freed
        first = next(one for one in receipt.outcomes if one.path == tree.path)
        if self._has_given_way(tree):
            gone.add(folder)
            return None
        words = first.detail or f"it could not be switched: {tree.path}"
        if first.result == "busy":
            return self._refused(folder, InUseError(words, "move again later"))
        if first.result == "stale":
            return self._refused(folder, ChangedError(words, "move again"))
        return self._refused(folder, CacheError(words, "'vlmcache doctor' may tell why"))

    def _has_given_way(self, tree: RemoveTree) -> bool:
        if tree.link is None:
            return not os.path.lexists(tree.path)
        return os.path.islink(tree.path)

    def _refused(self, folder: str, error: VlmcacheError) -> VlmcacheError:
        if os.path.isdir(os.path.join(self.state.dir, folder)):
            with contextlib.suppress(OSError):
                self.copier.take_away(folder)
            with contextlib.suppress(OSError), self._counted(folder):
                remove_record(self.state.dir, folder)
        return error

    def _record(self, folder: str) -> None:
        """Record where a repo goes, before its link is all that there is of it here."""
        with self._counted(folder):
            write_record(self.state.dir, folder, self.there.path)

    @contextlib.contextmanager
    def _counted(self, folder: str) -> Iterator[None]:
        """Let the bytes of a repo's record count as what they free or occupy, whatever happens."""
        before = record_size(self.state.dir, folder)
        try:
            yield
        finally:
            self.freed += before - record_size(self.state.dir, folder)

    def _finish_rest(self) -> None:
        """Remove what interrupted moves have left here, now that all of it is there."""
        rest = [
            action
            for action in self.plan.actions
            if (isinstance(action, RemoveTree) and action.kind == "leftover")
            or (isinstance(action, ReleaseShared) and not action.references)
            or (
                isinstance(action, RemoveTree | Remove)
                and action.kind in ("lock", "locks")
                and not any(name in action.path.split(os.sep) for name in self._folders())
            )
        ]
        receipt = execute(Plan(tuple(rest)), self.state.dir)
        self.outcomes += receipt.outcomes
        self.freed += receipt.freed
        known = {os.path.basename(row.path) for row in self.repos}
        for folder in self.rest:
            if folder not in known:
                parsed = layout.parse_repo_folder(folder)
                path = os.path.join(self.state.dir, folder)
                row = planned_repo(path, parsed[1] if parsed else folder, self.there.place(folder))
                self.repos.append(msgspec.structs.replace(row, state="finished"))
        self._note_ends()
        self._forget_coming()
        self.copier.finish()

    def _folders(self) -> set[str]:
        return {
            os.path.basename(action.path)
            for action in self.plan.actions
            if isinstance(action, Move)
        }

    def _note_ends(self) -> None:
        """Note as finished whatever has its link by now, and forget what is to have none."""
        before = read_moves(self.there.path)
        noted = dict(before)
        for folder, one in before.items():
            path = os.path.join(self.state.dir, folder)
            if one.cache != self.state.dir or one.finished:
                continue
            if os.path.islink(path):
                noted[folder] = MoveRecord(one.cache, finished=True)
            elif not self.link and not os.path.lexists(path) and not self._has_waste(folder):
                del noted[folder]
        if noted == before:
            return
        try:
            write_moves(self.there.path, noted)
        except OSError as error:
            detail = f"it could not be noted: {error.strerror}: {self.there.path}"
            self.outcomes.append(Outcome("note", self.there.path, "failed", detail=detail))

    def _forget_coming(self) -> None:
        """Forget here that repos had come from the destination, to which they are back."""
        before = read_moves(self.state.dir)
        back = {os.path.basename(row.path) for row in self.repos if row.error is None}
        for folder in back:
            if not os.path.islink(self.there.place(folder)):
                with contextlib.suppress(OSError):
                    remove_record(self.there.path, folder)
        noted = {
            folder: one
            for folder, one in before.items()
            if folder not in back or one.cache != self.there.path
        }
        if noted != before:
            with contextlib.suppress(OSError, CacheError):
                write_moves(self.state.dir, noted)

    def _has_waste(self, folder: str) -> bool:
        """Whether something of a repo is still in the leftovers."""
        top = os.path.join(self.state.dir, layout.LEFTOVERS)
        jobs = os.listdir(top) if os.path.isdir(top) else []
        return any(os.path.lexists(os.path.join(top, job, folder)) for job in jobs)


def removals_below(actions: Sequence[Action], root: str) -> Plan:
    """Return the removals below a folder as a plan of their own."""
    inside = root.rstrip(os.sep) + os.sep
    found = [
        action
        for action in actions
        if isinstance(action, Remove | RemoveTree | ReleaseShared)
        and action.path.startswith(inside)
    ]
    return Plan(tuple(found))
