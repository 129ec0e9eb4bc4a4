"""Carrying out a planned move, taking an unfinished one back, and the notes of both."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.moved import MoveRecord, leads_back, read_moves
from vlmcache.cache.scan_repo import scan_repo
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.tree import identity_of
from vlmcache.cache.usage import Usage, who_uses
from vlmcache.change import place as change_place
from vlmcache.change.move_results import MovedRepo
from vlmcache.change.moved_note import record_size, remove_record, write_moves, write_record
from vlmcache.change.plan import (
    Action,
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
    in_use_words,
    stamp,
)
from vlmcache.change.remove import execute
from vlmcache.change.space import FreeSpace
from vlmcache.change.tree import Tree
from vlmcache.commands.move.copy import Copier
from vlmcache.commands.move.plan import Destination
from vlmcache.commands.move.values import MoveReport, repo_row
from vlmcache.errors import (
    CacheError,
    ChangedError,
    InUseError,
    SpaceError,
    VlmcacheError,
    reason_of,
)
from vlmcache.progress import FileOf, Progress, files_shown


class MoveNotes:
    """The notes and records of moves from one cache to one destination.

    Args:
        cache_dir: the cache's real path.
        tree: the other cache, opened.
    """

    def __init__(self, cache_dir: str, tree: Tree) -> None:
        self.cache_dir = cache_dir
        self.tree = tree
        self.destination = tree.root
        self.freed = 0
        """Bytes of disk that records gave back, less what they occupy now."""
        self._begun = MoveRecord(cache_dir, finished=False)

    def begin(self, moves: Sequence[Move]) -> set[str]:
        """Note which repos are on their way; return those whose place something else has taken.

        Raises:
            OSError: the system refuses.
        """
        # Read again, now that no other move can change it.
        noted = dict(read_moves(self.tree))
        foreign: set[str] = set()
        for move in moves:
            folder = os.path.basename(move.path)
            linked = leads_back(self.destination, folder, self.cache_dir)
            ours = linked or noted.get(folder) == self._begun
            if os.path.lexists(move.destination) and not ours:
                foreign.add(folder)
            else:
                noted[folder] = self._begun
        if moves:
            write_moves(self.tree, noted)
        return foreign

    def record(self, folder: str) -> None:
        """Record where a repo is moved to, before only a link is left of it here."""
        with self._counted(folder):
            write_record(self.cache_dir, folder, self.destination)

    def forget(self, folder: str) -> None:
        """Remove the record of a repo that stays, as far as the system allows it."""
        with contextlib.suppress(OSError), self._counted(folder):
            remove_record(self.cache_dir, folder)

    @contextlib.contextmanager
    def _counted(self, folder: str) -> Iterator[None]:
        """Count the bytes that a repo's record frees or occupies, whatever happens."""
        before = record_size(self.cache_dir, folder)
        try:
            yield
        finally:
            self.freed += before - record_size(self.cache_dir, folder)

    def finish(self, *, link: bool) -> Outcome | None:
        """Note as finished each repo that has its link now, and forget those that get no link.

        Returns:
            What failed, if anything did.
        """
        before = read_moves(self.tree)
        noted = dict(before)
        for folder, move in before.items():
            path = os.path.join(self.cache_dir, folder)
            if move != self._begun:
                continue
            if os.path.islink(path):
                noted[folder] = MoveRecord(move.cache, finished=True)
            elif not link and not os.path.lexists(path) and not self._has_leftovers(folder):
                del noted[folder]
        try:
            if noted != before:
                write_moves(self.tree, noted)
        except OSError as error:
            detail = f"the note cannot be written: {reason_of(error)}: {self.destination}"
            return Outcome("note", self.destination, "failed", detail=detail)
        return None

    def _has_leftovers(self, folder: str) -> bool:
        top = os.path.join(self.cache_dir, layout.LEFTOVERS)
        jobs = os.listdir(top) if os.path.isdir(top) else []
        return any(os.path.lexists(os.path.join(top, job, folder)) for job in jobs)

    def forget_return(self, returned: Collection[str]) -> None:
        """Forget here that repos had come from the destination, where they are again.

        While leftovers of one are here, its note shows whose they are.
        """
        before = read_moves(self.cache_dir)
        returned = {folder for folder in returned if not self._has_leftovers(folder)}
        for folder in returned:
            if not os.path.islink(os.path.join(self.destination, folder)):
                with contextlib.suppress(OSError):
                    remove_record(self.destination, folder)
        noted = {
            folder: move
            for folder, move in before.items()
            if folder not in returned or move.cache != self.destination
        }
        if noted != before:
            with contextlib.suppress(OSError, CacheError):
                write_moves(self.cache_dir, noted)


def take_moves_back(planned: MoveReport, unfinished: Sequence[str], tree: Tree) -> Receipt:
    """Undo unfinished moves, and return what became of each step.

    Args:
        planned: the answer of a dry run.
        unfinished: folders of the repos.
        tree: the destination, opened.
    """
    place, cache = planned.destination, Tree(planned.cache)
    space = FreeSpace(planned.cache)
    outcomes: list[Outcome] = []
    for action in planned.plan.actions:
        if isinstance(action, PutBack):
            change_place.put_back(cache, action.aside, action.path)
            outcomes.append(Outcome("put-back", action.path, "done"))
    inside = os.path.join(place, "")
    below = (action for action in planned.plan.actions if action.path.startswith(inside))
    receipt = execute(Plan(tuple(below)), tree)
    if receipt.whole:
        for folder in unfinished:
            if not os.path.islink(os.path.join(planned.cache, folder)):
                remove_record(planned.cache, folder)
        ended = {*unfinished} - {os.path.basename(kept.path) for kept in planned.plan.kept}
        noted = read_moves(tree)
        write_moves(tree, {folder: noted[folder] for folder in noted if folder not in ended})
        Copier(cache, tree).finish()
    return space.measured(Receipt((*outcomes, *receipt.outcomes), receipt.freed))


def repos_in_use(state: CacheState, repos: Sequence[Repo], usage: Usage) -> tuple[Kept, ...]:
    """Return the repos that processes use, and who they are."""
    users = ((repo, usage.of_repo(state, repo)) for repo in repos)
    return tuple(
        Kept(repo.path, repo.id, "in use" if who else "in use: a lock of the hub is held", who)
        for repo, who in users
        if who is not None
    )


@contextlib.contextmanager
def refusals(place: str) -> Iterator[None]:
    """Turn the system's refusals to write into errors that say what to do."""
    try:
        yield
    except OSError as error:
        raise _refusal(error, place) from error


def _refusal(error: OSError, place: str) -> VlmcacheError:
    """Return what the system's refusal to write means to a user."""
    where = error.filename if isinstance(error.filename, str) else place
    if change_place.is_full(error):
        return SpaceError(
            change_place.full_words(where, error),
            "make room, then move again: what was copied is kept; --undo takes it back",
        )
    return CacheError(
        f"{reason_of(error)}: {where}", "what was copied is kept: move again, or --undo"
    )


class Mover:
    """Carries a plan out, repo by repo.

    Args:
        state: the cache.
        destination: what was there when the plan was made.
        planned: the answer of a dry run.
        tree: the destination's folder, opened.
    """

    def __init__(
        self, state: CacheState, destination: Destination, planned: MoveReport, tree: Tree
    ) -> None:
        self.state = state
        self.cache = Tree(state.dir)
        self.destination = destination
        self.planned = planned
        self.actions = planned.plan.actions
        self.repos: list[MovedRepo] = []
        self.outcomes: list[Outcome] = []
        self.freed = 0
        self.switched: set[str] = set()
        """Folders of repos that are at the destination only, or linked there."""
        self.returning: set[str] = set()
        """Folders of repos that come back to where they have left a link."""
        self.copier = Copier(self.cache, tree, same_disk=destination.same_disk)
        self.notes = MoveNotes(state.dir, tree)
        self.space = FreeSpace(state.dir)

    def run(self, rest: Sequence[str], progress: Progress) -> MoveReport:
        """Carry the plan out, and return what became of it.

        Args:
            rest: folders of repos that an interrupted move has brought over and not finished.
            progress: shows the progress.
        """
        moves = [action for action in self.actions if isinstance(action, Move)]
        with refusals(self.destination.path):
            foreign = self.notes.begin(moves)
            for link in (action for action in self.actions if isinstance(action, PlaceLink)):
                self.notes.record(os.path.basename(link.path))
                self.cache.symlink(link.destination, link.path)
                self.outcomes.append(Outcome("place-link", link.path, "done"))
                self.repos.append(repo_row(link.path, link.destination, "linked"))
        files: dict[str, FileOf] = {}
        for move in moves:
            # What several have in the shared store is copied with the first.
            files = self._files(move) | files
        with files_shown(progress, "copied", files) as self.copier.on_progress:
            for move in moves:
                error = self._move(move, is_foreign=os.path.basename(move.path) in foreign)
                self.repos.append(
                    repo_row(move.path, move.destination, "moved", size=move.size, error=error)
                )
                if isinstance(error, SpaceError):
                    break
            self._finish(moves, rest)
        return msgspec.structs.replace(
            self.planned,
            repos=tuple(self.repos),
            receipt=self.space.measured(
                Receipt(tuple(self.outcomes), self.freed + self.notes.freed)
            ),
            copied=self.copier.copied,
        )

    def _move(self, move: Move, *, is_foreign: bool) -> VlmcacheError | None:
        """Move one repo; whatever fails, it is complete at its old place or at the new one."""
        folder = os.path.basename(move.path)
        repo = self._repo(move)
        try:
            with refusals(self.destination.path):
                if is_foreign:
                    raise ChangedError(
                        f"something else was put there meanwhile: {move.destination}", "move again"
                    )
                self._check_destination()
                self._check_unchanged(repo)
                self.copier.stage(repo, self.state.shared)
                self._check_unchanged(repo)
                self._check_unused(repo)
                if leads_back(self.destination.path, folder, self.state.dir):
                    self.returning.add(folder)
                self.copier.place(repo)
                self._check_destination()
        except VlmcacheError as error:
            self.outcomes.append(Outcome("move", move.path, "failed", detail=error.message))
            self._link_again(folder)
            return error
        self.outcomes.append(Outcome("move", move.path, "done"))
        return self._switch(folder)

    def _check_destination(self) -> None:
        """Make sure that the destination is still at its path, to which the link will lead.

        Raises:
            CacheError: its drive was unmounted meanwhile, or another folder is in its place.
        """
        place = self.destination.path
        if identity_of(place) != self.copier.target.identity:
            raise CacheError(
                f"its drive was unmounted meanwhile: {place}", "mount it, then move again"
            )

    def _repo(self, move: Move) -> Repo:
        folder = os.path.basename(move.path)
        return next(repo for repo in self.state.repos if repo.folder == folder)

    def _files(self, move: Move) -> dict[str, FileOf]:
        """Return path of each blob -> a file that has it."""
        repo = self._repo(move)
        users = repo.blob_users()
        files: dict[str, FileOf] = {}
        for blob in repo.blobs.values():
            shared = self.state.shared.get(blob.shared or "")
            path = repo.blob_path(blob.name) if shared is None else shared.path
            name = min((file for _, file in users[blob.name]), default=blob.name)
            files[path] = FileOf(move.repo, name, blob.size)
        return files

    def _check_unchanged(self, repo: Repo) -> None:
        """Make sure that the source did not change since the plan was made.

        Raises:
            ChangedError: it was written to meanwhile, or was removed.
        """
        now = scan_repo(self.state.dir, repo.folder)
        if now is None or now.linked_to is not None or stamp(now) != stamp(repo):
            raise ChangedError(f"{repo.id} changed while it was to be copied", "move again")

    def _check_unused(self, repo: Repo) -> None:
        """Make sure that nobody uses the source.

        Raises:
            InUseError: a process uses it now.
        """
        self.usage = who_uses(self.state, {repo.folder})
        in_use = repos_in_use(self.state, [repo], self.usage)
        if in_use:
            raise InUseError(in_use_words(in_use), "what was copied is kept: move again later")

    def _switch(self, folder: str) -> VlmcacheError | None:
        """Put the link in the place of the source, and free what the source occupies."""
        without = {*self.switched, folder}
        tree: RemoveTree | None = None
        actions: list[Action] = []
        for action in self.actions:
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
                    last = action.last and users <= without
                    frees = action.frees if last else 0
                    actions.append(msgspec.structs.replace(action, last=last, frees=frees))
        assert tree is not None
        try:
            if tree.link is not None:
                self.notes.record(folder)
            receipt = execute(Plan(tuple(actions)), self.cache, in_use=self.usage.files)
        except OSError as error:
            return self._refused(folder, _refusal(error, self.state.dir))
        self.outcomes += receipt.outcomes
        self.freed += receipt.freed
        first = next(outcome for outcome in receipt.outcomes if outcome.path == tree.path)
        if os.path.islink(tree.path) if tree.link is not None else not os.path.lexists(tree.path):
            self.switched.add(folder)
            return None
        words = first.detail or f"it could not be switched: {tree.path}"
        if first.result == "busy":
            return self._refused(folder, InUseError(words, "move again later"))
        if first.result == "stale":
            return self._refused(folder, ChangedError(words, "move again"))
        return self._refused(folder, CacheError(words, "'vlmcache doctor' checks permissions"))

    def _refused(self, folder: str, error: VlmcacheError) -> VlmcacheError:
        """Take a copy that was placed back, since its source stays; return why it stays."""
        path = os.path.join(self.state.dir, folder)
        if os.path.isdir(path) and not os.path.islink(path):
            with contextlib.suppress(OSError):
                self.copier.unplace(folder)
            self._link_again(folder)
            self.notes.forget(folder)
        return error

    def _link_again(self, folder: str) -> None:
        """Leave a link again where a repo would have come back to, since it stays where it is."""
        place = self.destination.place(folder)
        if folder in self.returning and not os.path.lexists(place):
            with contextlib.suppress(OSError):
                self.copier.target.symlink(os.path.join(self.state.dir, folder), place)

    def _finish(self, moves: Sequence[Move], rest: Sequence[str]) -> None:
        """Remove what interrupted moves have left here, now that all is at the destination."""
        moved = {os.path.basename(move.path) for move in moves}
        leftovers = tuple(
            action
            for action in self.actions
            if (isinstance(action, RemoveTree) and action.kind == "leftover")
            or (isinstance(action, ReleaseShared) and not action.references)
            or (
                isinstance(action, RemoveTree | Remove)
                and action.kind in ("lock", "locks")
                and moved.isdisjoint(action.path.split(os.sep))
            )
        )
        receipt = execute(Plan(leftovers), self.cache)
        self.outcomes += receipt.outcomes
        self.freed += receipt.freed
        reported = {os.path.basename(row.path) for row in self.repos}
        for folder in rest:
            if folder not in reported:
                path = os.path.join(self.state.dir, folder)
                self.repos.append(repo_row(path, self.destination.place(folder), "finished"))
        failure = self.notes.finish(link=self.planned.link)
        if failure is None:
            self.notes.forget_return(
                {os.path.basename(row.path) for row in self.repos if row.error is None}
            )
        else:
            self.outcomes.append(failure)
        self.copier.finish()
