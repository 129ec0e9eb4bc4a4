"""`move`: models to another drive, copied and hashed there, then switched by rename."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.completeness import judge_repo
from vlmcache.cache.moves import Move as Noted
from vlmcache.cache.moves import leads_back, read_moves
from vlmcache.cache.scan import scan, scan_repo
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.usage import Usage, nearest_folder, who_uses
from vlmcache.change import placing
from vlmcache.change.copying import Copier, SourceDamagedError, write_moves
from vlmcache.change.execute import execute
from vlmcache.change.moving import Destination, plan_move, plan_undo
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
)
from vlmcache.change.planning import stamp
from vlmcache.change.targets import find_targets
from vlmcache.config import CacheLocation, Config
from vlmcache.errors import (
    CacheError,
    ChangedError,
    ExitCode,
    PartlyError,
    SpaceError,
    UnknownModelError,
    UsageError,
    VlmcacheError,
)
from vlmcache.hub.progress import Watcher
from vlmcache.removal import InUseError, in_use_words

MoveState = Literal["planned", "moved", "linked", "finished", "taken-back", "failed"]
_LONG = 16 << 20
"""Length in bytes from which on a file's progress is told."""


class BusyError(VlmcacheError):
    """Another process moves something to the same place."""

    code = "busy"
    exit_code = ExitCode.BUSY


class NotMovedError(VlmcacheError):
    """None of it was done."""

    code = "not-moved"
    exit_code = ExitCode.FAILED


class MovedRepo(msgspec.Struct, frozen=True):
    """What became of one repo.

    state: `planned` (`--dry-run`); `moved` now; `linked` where an interrupted move lacked but the
    link; `finished` where it lacked but the removal of what it had set aside; `taken-back` by
    `--undo`; `failed`. path is its place in the cache, destination the new one, size its length in
    bytes, shared blobs included.
    """

    repo: str
    type: str
    path: str
    destination: str
    state: MoveState
    size: int = 0
    error: Failure | None = None


class Moved(msgspec.Struct, frozen=True):
    """What `vlmcache move` answers.

    link: whether links are left in the cache. setting: the line that makes the destination the
    cache, for new downloads or, without links, for all. copied: bytes written at the destination.
    in_use: what processes use, and who they are; then nothing is moved. hidden_processes: processes
    of other users that could not be looked into. receipt is absent where nothing was carried out.
    """

    cache: str
    destination: str
    link: bool
    setting: str
    repos: tuple[MovedRepo, ...]
    plan: Plan
    receipt: Receipt | None = None
    in_use: tuple[Kept, ...] = ()
    hidden_processes: int = 0
    copied: int = 0
    seconds: float = 0.0


def move(
    config: Config,
    location: CacheLocation,
    destination: str,
    names: Sequence[str] = (),
    *,
    link: bool = True,
    dry_run: bool = False,
    watcher: Watcher | None = None,
) -> Moved:
    """Move models to another folder, which becomes a hub cache of its own.

    Each repo is copied and hashed there first, and appears by one rename; then its folder here
    gives way to a link, and its bytes go. Interrupted anywhere, it is whole in one of the places,
    and the same call goes on from there.

    Args:
        config: whose keys and limits count.
        location: the hub cache.
        destination: a folder; it is made if the one above it is there.
        names: keys or repo ids, `datasets/owner/name`; every repo if none.
        link: leave links in the cache.
        dry_run: only plan.
        watcher: is told of the progress.

    Returns:
        What was planned and done. `problem` tells whether all went well.

    Raises:
        UsageError: the destination cannot be one, or a name is no whole repo.
        UnknownModelError: nothing of a name is in the cache.
        SourceDamagedError: something of it is damaged; nothing is moved.
        SpaceError: the destination has too little room.
        BusyError: another process moves to the same place.
        CacheError: the destination cannot be written.
    """
    begun = time.monotonic()
    place = _check_places(location.dir, destination)
    state = scan(os.path.realpath(location.dir))
    there = _look(state, place)
    folders, rest, kept = _choose(state, config, there, names)
    repos = {repo.folder: repo for repo in state.repos}
    chosen = [repos[folder] for folder in folders]
    _check_sources(chosen, there)
    plan = plan_move(state, there, folders, link=link, rest=rest, kept=kept)
    usage = who_uses(state, set(folders))
    in_use = _in_use(state, chosen, usage)
    value = Moved(
        state.dir,
        place,
        link,
        f"export HF_HUB_CACHE={shlex.quote(place)}",
        _described(plan),
        plan,
        in_use=in_use,
        hidden_processes=usage.hidden,
        seconds=time.monotonic() - begun,
    )
    placing.check_room(place, plan.needs, "make room there, or name fewer models")
    begun_before = os.path.lexists(there.gathered_at(""))
    if dry_run or in_use or not (plan.actions or rest or begun_before):
        return value if dry_run or in_use else msgspec.structs.replace(value, receipt=Receipt(()))
    with _interruption(destination, names), _sole(place):
        run = _Run(state, there, plan, rest, link=link, watcher=watcher or Watcher())
        run.carry_out()
    return msgspec.structs.replace(
        value,
        repos=tuple(run.repos),
        receipt=Receipt(tuple(run.outcomes), run.freed),
        copied=run.copier.copied,
        seconds=time.monotonic() - begun,
    )


def undo(location: CacheLocation, destination: str, *, dry_run: bool = False) -> Moved:
    """Take every unfinished move of this cache to a destination back.

    Args:
        location: the hub cache.
        destination: where it was moved to.
        dry_run: only plan.

    Raises:
        UsageError: the destination cannot be one.
        BusyError: the move is going on.
        CacheError: something cannot be written.
    """
    begun = time.monotonic()
    place = _check_places(location.dir, destination)
    # Planned under the lock: a move that ends meanwhile must not be taken for an unfinished one.
    there_is_one = os.path.lexists(os.path.join(place, layout.MOVING)) or bool(read_moves(place))
    with contextlib.ExitStack() as stack:
        if there_is_one and not dry_run:
            stack.enter_context(_sole(place))
        value, unfinished = _plan_undo(os.path.realpath(location.dir), place)
        if dry_run:
            return value
        stack.enter_context(_refusals(place))
        receipt = _take_back(value, unfinished) if there_is_one else Receipt(())
    repos = tuple(msgspec.structs.replace(repo, state="taken-back") for repo in value.repos)
    return msgspec.structs.replace(
        value, repos=repos, receipt=receipt, seconds=time.monotonic() - begun
    )


def _plan_undo(cache_dir: str, place: str) -> tuple[Moved, list[str]]:
    """Return the answer with the plan, and the folders of the moves that are unfinished."""
    state = scan(cache_dir)
    there = _look(state, place)
    plan = plan_undo(state, there)
    setting = f"export HF_HUB_CACHE={shlex.quote(place)}"
    unfinished = [
        folder
        for folder, noted in there.noted.items()
        if noted.cache == state.dir and not noted.finished
    ]
    return Moved(state.dir, place, True, setting, _described(plan), plan), unfinished


def _take_back(value: Moved, unfinished: Sequence[str]) -> Receipt:
    place = value.destination
    outcomes: list[Outcome] = []
    for action in value.plan.actions:
        if isinstance(action, PutBack):
            placing.put_back(action.aside, action.path)
            outcomes.append(Outcome("put-back", action.path, "done"))
    receipt = execute(_only(value.plan.actions, place), place)
    if receipt.whole:
        stays = {os.path.basename(one.path) for one in value.plan.kept}
        noted = {
            folder: one
            for folder, one in read_moves(place).items()
            if folder not in unfinished or folder in stays
        }
        write_moves(place, noted)
        Copier(value.cache, place, _silent).finish()
    return Receipt((*outcomes, *receipt.outcomes), receipt.freed)


def problem(value: Moved) -> VlmcacheError | None:
    """Return the failure that a move has to tell of, or `None` if all went as asked."""
    if value.receipt is None:
        if value.in_use:
            return InUseError(
                f"nothing was moved: {in_use_words(value.in_use)}", "end it first, then move"
            )
        return None
    failed = [repo for repo in value.repos if repo.error is not None]
    rest = [one for one in value.receipt.outcomes if one.result not in ("done", "absent")]
    if failed:
        first = failed[0].error
        assert first is not None
        if len(failed) < len(value.repos):
            more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
            return PartlyError(f"not moved: {failed[0].repo}{more}: {first.message}", first.hint)
        for kind in (SpaceError, SourceDamagedError, InUseError, ChangedError, CacheError):
            if kind.code == first.code:
                return kind(first.message, first.hint)
        return NotMovedError(first.message, first.hint)
    if rest:
        done = "moved" if any(repo.state != "taken-back" for repo in value.repos) else "taken back"
        return PartlyError(
            f"{done}, but {len(rest)} of {len(value.receipt.outcomes)} steps failed: "
            f"{rest[0].detail or rest[0].path}",
            "run it again, or 'vlmcache clean'",
        )
    return None


def ids(value: Moved) -> list[str]:
    """Return the repos that are or would be elsewhere now, for `--quiet`."""
    return [repo.repo for repo in value.repos if repo.error is None]


def _silent(_path: str, _position: int) -> None:
    pass


# What is there, and what is meant.


def _check_places(cache_dir: str, destination: str) -> str:
    """Return the destination's real path.

    Raises:
        UsageError: it cannot be one.
    """
    if not destination:
        raise UsageError("the destination is empty", "name a folder")
    cache, place = os.path.realpath(cache_dir), os.path.realpath(destination)
    if not os.path.isdir(cache):
        raise UsageError(f"there is no cache to move: {cache_dir}", "'vlmcache doctor' tells which")
    if place == cache or (os.path.isdir(place) and os.path.samefile(place, cache)):
        raise UsageError(f"the destination is the cache itself: {destination}")
    if place.startswith(cache.rstrip(os.sep) + os.sep):
        raise UsageError(f"the destination lies in the cache: {destination}", "name another")
    if cache.startswith(place.rstrip(os.sep) + os.sep):
        raise UsageError(
            f"the cache lies in the destination: {destination}",
            f"name a folder in it: {os.path.join(destination, 'hub')}",
        )
    if os.path.lexists(place) and not os.path.isdir(place):
        raise UsageError(f"the destination is no folder: {destination}")
    if not os.path.isdir(os.path.dirname(place)):
        raise UsageError(
            f"no such folder: {os.path.dirname(place)}", "is the drive mounted? Or make it"
        )
    return place


def _look(state: CacheState, place: str) -> Destination:
    top = os.path.join(place, layout.MOVING)
    copied = dict(_files_below(top, ""))
    noted = read_moves(place)
    aside: dict[str, str] = {}
    for folder, one in noted.items():
        if one.cache == state.dir and not one.finished:
            # One that was placed before its source gave way is taken up again.
            placed = dict(_files_below(os.path.join(place, folder), folder + "/"))
            copied |= placed
            for left in state.leftovers:
                ours = left.repo_folder == folder and left.whole and bool(placed)
                # What it links to in the shared store may have gone since.
                ours = ours and all(shared in state.shared for shared in left.shared)
                if ours and dict(_files_below(left.path, folder + "/")) == placed:
                    aside[folder] = left.path
    names = frozenset(os.listdir(top)) if os.path.isdir(top) else frozenset()
    device = os.stat(nearest_folder(place)).st_dev
    same_disk = device == os.stat(state.dir).st_dev
    found = scan(place)
    links = frozenset(
        repo.folder
        for repo in found.repos
        if repo.linked_to is not None and leads_back(place, repo.folder, state.dir)
    )
    return Destination(place, found, noted, names, copied, aside, same_disk, links)


def _files_below(top: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield path below a folder and length of each file; a link counts as one without length."""
    for folder, _, files in os.walk(top):
        for name in files:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                size = 0 if os.path.islink(path) else os.stat(path).st_size
                yield prefix + os.path.relpath(path, top).replace(os.sep, "/"), size


def _choose(
    state: CacheState, config: Config, there: Destination, names: Sequence[str]
) -> tuple[list[str], list[str], list[Kept]]:
    """Return the folders to move, those of interrupted moves to end, and what stays."""
    repos = {repo.folder: repo for repo in state.repos}
    ended = [folder for folder in there.noted if there.came_from(state.dir, folder)]
    waste = {one.repo_folder for one in state.leftovers if one.whole}
    rest = [
        folder
        for folder in ended
        if folder not in repos
        or (repos[folder].linked_to is not None and folder in waste)
        or _lacks_end(there, repos[folder])
    ]
    if not names:
        kept = [
            Kept(repo.path, repo.id, _lies(repo.linked_to, there))
            for repo in state.repos
            if repo.linked_to is not None and repo.folder not in rest
        ]
        return [repo.folder for repo in state.repos if repo.linked_to is None], rest, kept
    folders: list[str] = []
    ends: list[str] = []
    kept = []
    for name in names:
        folder, is_here = _folder_named(state, config, name, there, ended)
        repo = repos.get(folder)
        if not is_here:
            # Without a link nothing here tells of a move that has ended.
            kept.append(Kept(there.place(folder), name, "lies there already"))
        elif folder in rest:
            ends.append(folder)
        elif repo is None:
            raise UnknownModelError(
                f"{name} is not in the cache: a removal of it was interrupted", "vlmcache clean"
            )
        elif repo.linked_to is not None:
            if os.path.dirname(repo.linked_to) != there.path:
                raise UsageError(
                    f"{name} lies elsewhere already: {repo.linked_to}",
                    f"move it from there: --cache-dir {os.path.dirname(repo.linked_to)}",
                )
            kept.append(Kept(repo.path, repo.id, _lies(repo.linked_to, there)))
        else:
            folders.append(folder)
    return list(dict.fromkeys(folders)), list(dict.fromkeys(ends)), kept


def _lies(path: str, there: Destination) -> str:
    if os.path.dirname(path) == there.path:
        return "lies there already"
    return f"lies elsewhere already: {path}"


def _lacks_end(there: Destination, repo: Repo) -> bool:
    """Whether a repo has its link, and only the note of that is missing."""
    noted = there.noted[repo.folder]
    return repo.moved_to == there.path and not noted.finished


def _folder_named(
    state: CacheState, config: Config, name: str, there: Destination, ended: Collection[str]
) -> tuple[str, bool]:
    """Return the repo folder that a name means, and whether anything of it is here."""
    try:
        target = find_targets(state, config, [name])[0]
    except UnknownModelError:
        model = config.models.get(name)
        folder = layout.repo_folder("model", name)
        if model is not None and folder not in ended and not there.holds(folder):
            folder = layout.repo_folder("model", model.repo)
        if folder not in ended and not there.holds(folder):
            raise
        return folder, folder in ended
    if target.folder is None or target.commit is not None or target.ref is not None:
        raise UsageError(f"{name} is no whole model: only such can be moved")
    return target.folder, True


def _check_sources(repos: Sequence[Repo], there: Destination) -> None:
    """Refuse what would not be the same elsewhere.

    Raises:
        SourceDamagedError: a repo is damaged.
        UsageError: a repo has links out of the cache, or the destination has a repo of the name.
    """
    cache_dir = os.path.dirname(repos[0].path) if repos else ""
    for repo in repos:
        broken = [one for one in repo.findings if one.severity == "error"]
        if broken and judge_repo(repo) == "damaged":
            raise SourceDamagedError(
                f"nothing was moved: {repo.id} is damaged: {broken[0].path}: {broken[0].detail}",
                f"'vlmcache verify --repair {repo.id}' mends it",
            )
        outside = [one for one in repo.findings if one.code == "outside-link"]
        if outside:
            raise UsageError(
                f"nothing was moved: {repo.id} has a link out of the cache: {outside[0].path}"
            )
        if there.holds(repo.folder) and not there.begun(cache_dir, repo.folder):
            raise UsageError(
                f"nothing was moved: the destination has {repo.id} already: "
                f"{there.place(repo.folder)}",
                "'vlmcache rm' it on one side, or move to another folder",
            )


def _in_use(state: CacheState, repos: Sequence[Repo], usage: Usage) -> tuple[Kept, ...]:
    found: list[Kept] = []
    for repo in repos:
        users = usage.of_repo(state, repo)
        if users is not None:
            why = "in use" if users else "in use: a lock of the hub is held"
            found.append(Kept(repo.path, repo.id, why, users))
    return tuple(found)


def _described(plan: Plan) -> tuple[MovedRepo, ...]:
    found: dict[str, MovedRepo] = {}
    for action in plan.actions:
        if isinstance(action, Move):
            row = _row(action.path, action.repo, action.destination, action.size)
        elif isinstance(action, PlaceLink):
            row = _row(action.path, action.repo, action.destination)
        elif isinstance(action, PutBack):
            row = _row(action.path, action.repo, "")
        elif isinstance(action, RemoveTree) and action.kind in ("leftover", "repo"):
            if action.repo is None:
                continue
            row = _row(action.path, action.repo, "")
        else:
            continue
        found.setdefault(os.path.basename(row.path), row)
    return tuple(found.values())


def _row(path: str, repo: str, destination: str, size: int = 0) -> MovedRepo:
    parsed = layout.parse_repo_folder(os.path.basename(path))
    return MovedRepo(repo, parsed[0] if parsed else "model", path, destination, "planned", size)


# Doing it.


@contextlib.contextmanager
def _interruption(destination: str, names: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except BaseException as interruption:
        if not isinstance(interruption, Exception):
            # The one place that shows failures takes what an interruption carries as its hint.
            again = shlex.join(["vlmcache", "move", destination, *names])
            back = shlex.join(["vlmcache", "move", destination, "--undo"])
            interruption.args = (f"'{again}' goes on from here, '{back}' takes it back",)
        raise


@contextlib.contextmanager
def _refusals(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refusal(error, place) from error


def _refusal(error: OSError, place: str) -> VlmcacheError:
    """Return what the system's refusal to write means to a user."""
    where = error.filename if isinstance(error.filename, str) else place
    reason = error.strerror or str(error)
    if placing.is_full(error):
        return SpaceError(
            f"the disk is full: {where}",
            "make room, then move again: what was copied is kept; --undo takes it back",
        )
    return CacheError(f"{reason}: {where}", "what was copied is kept: move again, or --undo")


@contextlib.contextmanager
def _sole(place: str) -> Iterator[None]:
    """Keep other moves to the same destination away."""
    import filelock

    with _refusals(place):
        os.makedirs(os.path.join(place, layout.MOVING), mode=0o700, exist_ok=True)
        path = os.path.join(place, layout.MOVING, layout.LOCK_SUFFIX)
        lock = filelock.FileLock(path, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise BusyError(f"another process moves to {place}", "wait for its end") from None
        except NotImplementedError:
            pass  # a filesystem without locks
    try:
        yield
    finally:
        # Unlinked while it is held, so that nobody locks a file that is about to go; Windows
        # unlinks no open file, and there the lock has to be given back first.
        if sys.platform == "win32":
            lock.release()
        with contextlib.suppress(OSError):
            os.unlink(path)
            os.rmdir(os.path.dirname(path))
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                lock.release()


class _Run:
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
        self.noted: dict[str, Noted] = {}
        self.strange: set[str] = set()

    def _moved(self, path: str, position: int) -> None:
        if path in self.long:
            self.watcher.moved(self.label, self.long[path], position)

    def carry_out(self) -> None:
        moves = [action for action in self.plan.actions if isinstance(action, Move)]
        links = [action for action in self.plan.actions if isinstance(action, PlaceLink)]
        gone: set[str] = set()
        with _refusals(self.there.path):
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
                self.noted[folder] = Noted(self.state.dir, finished=False)
            if moves:
                write_moves(self.there.path, self.noted)
            for link in links:
                placing.place_repo_link(link.path, link.destination)
                self.outcomes.append(Outcome("place-link", link.path, "done"))
                row = _row(link.path, link.repo, link.destination)
                self.repos.append(msgspec.structs.replace(row, state="linked"))
        for move in moves:
            row = _row(move.path, move.repo, move.destination, move.size)
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
            path = os.path.join(repo.path, layout.BLOBS, blob.name)
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
        in_use = _in_use(self.state, [repo], self.usage)
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
        return error

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
                row = _row(path, parsed[1] if parsed else folder, self.there.place(folder))
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
                noted[folder] = Noted(one.cache, finished=True)
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


def _only(actions: Sequence[Action], root: str) -> Plan:
    """Return the removals below a folder as a plan of their own."""
    inside = root.rstrip(os.sep) + os.sep
    found = [
        action
        for action in actions
        if isinstance(action, Remove | RemoveTree | ReleaseShared)
        and action.path.startswith(inside)
    ]
    return Plan(tuple(found))
