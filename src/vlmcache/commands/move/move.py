"""`move`: models to another drive, copied and hashed there, then switched by rename."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.completeness import judge_repo
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.moved import (
    away_error,
    away_words,
    can_relink,
    leads_back,
    linked_destination,
    read_moves,
    read_record,
)
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.usage import who_uses
from vlmcache.change import place as change_place
from vlmcache.change.moved_note import write_record
from vlmcache.change.names import find_targets
from vlmcache.change.plan import (
    Failure,
    Kept,
    Move,
    Outcome,
    PlaceLink,
    Plan,
    PutBack,
    Receipt,
    RemoveTree,
)
from vlmcache.commands.move.apply import Run, refusals, repos_in_use, take_back
from vlmcache.commands.move.plan import Destination, plan_move, plan_undo
from vlmcache.commands.move.values import (
    BusyError,
    Moved,
    MovedRepo,
    NotMovedError,
    SourceDamagedError,
    planned_repo,
)
from vlmcache.commands.remove.values import UnconfirmedError
from vlmcache.config import CacheLocation, Config
from vlmcache.errors import ChangedError, UnknownModelError, UsageError, VlmcacheError
from vlmcache.progress import Watcher


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
        AwayError: a name, or what was moved to the destination before, is on a drive that is not
            mounted.
    """
    begun = time.monotonic()
    place = _check_places(location.dir, destination)
    state = scan(os.path.realpath(location.dir))
    for repo in state.repos:
        if repo.away is not None and os.path.realpath(repo.away.destination) == place:
            # Below the mount point is the system's own disk, which the mounted drive would hide.
            raise away_error(repo, repo.away)
    there = _look(state, place)
    folders, rest, kept = _choose(state, config, there, names)
    repos = {repo.folder: repo for repo in state.repos}
    chosen = [repos[folder] for folder in folders]
    _check_sources(chosen, there)
    plan = plan_move(state, there, folders, link=link, rest=rest, kept=kept)
    usage = who_uses(state, set(folders))
    in_use = repos_in_use(state, chosen, usage)
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
    change_place.check_room(place, plan.needs, "make room there, or name fewer models")
    begun_before = os.path.lexists(there.gathered_at(""))
    if dry_run or in_use or not (plan.actions or rest or begun_before):
        return value if dry_run or in_use else msgspec.structs.replace(value, receipt=Receipt(()))
    with _interruption(destination, names), _sole(place):
        run = Run(state, there, plan, rest, link=link, watcher=watcher or Watcher())
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
        stack.enter_context(refusals(place))
        receipt = take_back(value, unfinished) if there_is_one else Receipt(())
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
            Kept(repo.path, repo.id, _lies(repo, repo.linked_to, there))
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
        elif repo.away is not None:
            raise away_error(repo, repo.away)
        elif repo.linked_to is not None:
            if os.path.dirname(repo.linked_to) != there.path:
                raise UsageError(
                    f"{name} lies elsewhere already: {repo.linked_to}",
                    f"move it from there: --cache-dir {os.path.dirname(repo.linked_to)}",
                )
            kept.append(Kept(repo.path, repo.id, _lies(repo, repo.linked_to, there)))
        else:
            folders.append(folder)
    return list(dict.fromkeys(folders)), list(dict.fromkeys(ends)), kept


def _lies(repo: Repo, path: str, there: Destination) -> str:
    if repo.away is not None:
        return away_words(repo.away)
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


def _described(plan: Plan) -> tuple[MovedRepo, ...]:
    found: dict[str, MovedRepo] = {}
    for action in plan.actions:
        if isinstance(action, Move):
            row = planned_repo(action.path, action.repo, action.destination, action.size)
        elif isinstance(action, PlaceLink):
            row = planned_repo(action.path, action.repo, action.destination)
        elif isinstance(action, PutBack):
            row = planned_repo(action.path, action.repo, "")
        elif isinstance(action, RemoveTree) and action.kind in ("leftover", "repo"):
            if action.repo is None:
                continue
            row = planned_repo(action.path, action.repo, "")
        else:
            continue
        found.setdefault(os.path.basename(row.path), row)
    return tuple(found.values())


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
def _sole(place: str) -> Iterator[None]:
    """Keep other moves to the same destination away."""
    import filelock

    with refusals(place):
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


# Links that lead to where a drive is mounted no more.


def relink(
    location: CacheLocation,
    folder: str,
    *,
    dry_run: bool = False,
    confirm: Callable[[Moved], bool] | None = None,
) -> Moved:
    """Let the links of repos that were moved lead to where they are now: nothing else changes.

    Each link that leads nowhere is rewritten if a repo of its name is at the folder, and the note
    there says that it came out of this cache.

    Args:
        location: the hub cache.
        folder: where the repos are now.
        dry_run: only plan.
        confirm: is shown the plan, and says whether to go on; without it nobody is asked.

    Raises:
        UsageError: the folder cannot be one.
        UnknownModelError: none of these repos is there.
        NotMovedError: they did not come out of this cache, as far as can be trusted.
        UnconfirmedError: `confirm` said no.
        CacheError: the cache cannot be written.
    """
    begun = time.monotonic()
    place = _check_places(location.dir, folder)
    state = scan(os.path.realpath(location.dir))
    lost: list[Repo] = []
    same: list[Repo] = []
    for repo in state.repos:
        if linked_destination(state.dir, repo.folder) is None:
            continue
        if repo.moved_to == place and os.path.isdir(repo.path):
            same.append(repo)
        elif not os.path.isdir(repo.path):
            lost.append(repo)
    ours = [repo for repo in lost if can_relink(state.dir, repo.folder, place)]
    if not ours and not same:
        raise _nothing_to_relink(lost, place)
    reason = "its drive is mounted elsewhere now"
    actions = tuple(
        PlaceLink(repo.id, repo.path, os.path.join(place, repo.folder), reason) for repo in ours
    )
    plan = Plan(
        actions,
        kept=tuple(Kept(repo.path, repo.id, "its link leads there already") for repo in same),
    )
    value = Moved(
        state.dir, place, True, f"export HF_HUB_CACHE={shlex.quote(place)}", _described(plan), plan
    )
    if dry_run:
        return value
    if actions and confirm is not None and not confirm(value):
        raise UnconfirmedError("not confirmed: nothing was changed")
    rows: list[MovedRepo] = []
    outcomes: list[Outcome] = []
    try:
        for row, repo in zip(value.repos, ours, strict=True):
            if os.path.isdir(repo.path) or not os.path.islink(repo.path):
                changed = ChangedError(f"it is there by now: {repo.path}", "run it again")
                failure = Failure(changed.code, changed.message, changed.hint, changed.exit_code)
                rows.append(msgspec.structs.replace(row, state="failed", error=failure))
                outcomes.append(Outcome("place-link", repo.path, "stale", detail=changed.message))
                continue
            change_place.replace_repo_link(repo.path, row.destination)
            write_record(state.dir, repo.folder, place)
            rows.append(msgspec.structs.replace(row, state="relinked"))
            outcomes.append(Outcome("place-link", repo.path, "done"))
        for repo in same:
            # A run that was interrupted may have left the record as it was.
            if read_record(state.dir, repo.folder) is None:
                write_record(state.dir, repo.folder, place)
    except OSError as error:
        raise change_place.disk_failure(error, state.dir) from error
    return msgspec.structs.replace(
        value, repos=tuple(rows), receipt=Receipt(tuple(outcomes)), seconds=time.monotonic() - begun
    )


def _nothing_to_relink(lost: Sequence[Repo], place: str) -> VlmcacheError:
    """Return why no link can be rewritten."""
    if not lost:
        return UnknownModelError("every link of this cache leads to its model: nothing to relink")
    there = [repo for repo in lost if os.path.isdir(os.path.join(place, repo.folder))]
    if there:
        return NotMovedError(
            f"{there[0].id} is at {place}, but no note there that can be trusted says that it was "
            "moved from this cache",
            "the note is .vlmcache-moved.json; 'vlmcache rm' removes the link",
        )
    names = ", ".join(repo.id for repo in lost[:5])
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    return UnknownModelError(
        f"{place} holds none of the models that are away: {names}{more}",
        "name the folder that has their models--… folders in it",
    )
