"""What is at both ends of a move, and which of it is meant."""

from __future__ import annotations

import contextlib
import os
import stat as modes
from collections.abc import Callable, Iterator, Sequence

from vlmcache.cache import layout
from vlmcache.cache.case import paths_of, refuse_clash
from vlmcache.cache.completeness import judge_repo
from vlmcache.cache.mounts import mount_of, nearest_folder
from vlmcache.cache.moved import MoveRecord, away_error, away_words, leads_back, read_moves
from vlmcache.cache.owners import denial, owners_of
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.tree import CacheTree, identity_of, is_root
from vlmcache.change.names import find_targets
from vlmcache.change.plan import Kept
from vlmcache.commands.move.files import walk
from vlmcache.commands.move.plan import Destination, MoveChoice
from vlmcache.commands.move.values import SourceDamagedError
from vlmcache.config import Config
from vlmcache.errors import (
    CacheError,
    ChangedError,
    UnknownModelError,
    UsageError,
    VlmcacheError,
)
from vlmcache.paths import real_path
from vlmcache.units import command, shell_words

_LINKS = 40
"""Links in a path after which the system gives up as well."""


def find_destination(cache_dir: str, destination: str) -> str:
    """Return the destination's real path.

    Raises:
        UsageError: it cannot be one.
    """
    cache, place = real_path(cache_dir), real_path(destination)
    exists, above = os.path.isdir(place), os.path.dirname(place)
    problems = (
        (not destination, "the destination is empty", "name a folder"),
        (
            not os.path.isdir(cache),
            f"there is no cache to move: {cache_dir}",
            "'vlmcache doctor' shows which folder is used",
        ),
        (
            place == cache or (exists and os.path.isdir(cache) and os.path.samefile(place, cache)),
            f"the destination is the cache itself: {destination}",
            "name another",
        ),
        (
            place.startswith(cache.rstrip(os.sep) + os.sep),
            f"the destination is in the cache: {destination}",
            "name another",
        ),
        (
            cache.startswith(place.rstrip(os.sep) + os.sep),
            f"the cache is in the destination: {destination}",
            f"name a folder in it: {os.path.join(destination, 'hub')}",
        ),
        (
            os.path.lexists(place) and not exists,
            f"the destination is not a folder: {destination}",
            "name another",
        ),
        (
            not os.path.isdir(above),
            f"no such folder: {above}",
            "mount the drive, or make the folder",
        ),
    )
    for applies, message, hint in problems:
        if applies:
            raise UsageError(message, hint)
    if is_root():
        _check_links(os.path.abspath(destination), place)
    return place


def _check_links(path: str, place: str) -> None:
    """Make sure that root follows no link of another user to what is not theirs.

    Raises:
        UsageError: a link on the way to the place is one, or changes meanwhile.
    """
    for _ in range(_LINKS):
        parts = path.split(os.sep)
        above = [os.sep.join(parts[:count]) for count in range(2, len(parts) + 1)]
        link = next(filter(os.path.islink, above), None)
        if link is None:
            break
        target = os.path.join(os.path.dirname(link), os.readlink(link))
        if os.lstat(link).st_uid not in (0, os.stat(target).st_uid):
            raise UsageError(f"another user's link leads there: {link}", f"name {place} itself")
        path = os.path.abspath(os.path.join(target, os.path.relpath(path, link)))
    if path != place:
        raise UsageError(f"its links changed meanwhile: {path}", f"name {place} itself")


def read_destination(state: CacheState, place: str) -> Destination:
    """Return what is at the destination, and what earlier moves to it have left here."""
    seen = identity_of(place)
    target, source = CacheTree(place), CacheTree(state.dir)
    top = layout.staged_path(place)
    copied = dict(_files_below(target, top, ""))
    noted = read_moves(place)
    aside: dict[str, str] = {}
    for folder, move in noted.items():
        if move == MoveRecord(state.dir, finished=False):
            # One that was placed before its source was removed is used again.
            placed = dict(_files_below(target, os.path.join(place, folder), folder))
            copied |= placed
            for left in state.leftovers:
                ours = left.repo_folder == folder and left.whole and bool(placed)
                # What it links to in the shared store may have gone since.
                ours = ours and state.shared.keys() >= set(left.shared)
                if ours and dict(_files_below(source, left.path, folder)) == placed:
                    aside[folder] = left.path
    names = frozenset(os.listdir(top)) if os.path.isdir(top) else frozenset()
    same_disk = os.stat(nearest_folder(place)).st_dev == os.stat(state.dir).st_dev
    cache = scan(place)
    links = frozenset(
        repo.folder
        for repo in cache.repos
        if repo.linked_to is not None and leads_back(place, repo.folder, state.dir)
    )
    return Destination(place, cache, noted, names, copied, aside, same_disk, links, seen)


def check_mounted(state: CacheState, place: str) -> None:
    """Refuse a destination below a mount point whose drive, with models of this cache, is away.

    Below the mount point is the system's own disk, which the mounted drive would hide.

    Raises:
        AwayError: it is one.
    """
    for repo in state.repos:
        if repo.away is not None and real_path(repo.away.destination) == place:
            raise away_error(repo, repo.away)


def open_archive(state: CacheState, folder: str) -> Destination:
    """Return what is at a folder on another drive, to which models may be moved to save room here.

    Args:
        state: the cache; its `dir` is a real path.
        folder: the other one; it is made later if the one above it exists.

    Raises:
        UsageError: it cannot be one, or nothing is gained by it.
        AwayError: the drive with the models that were moved there is not mounted.
        CacheError: it cannot be written.
    """
    check_mounted(state, real_path(folder))
    place = find_destination(state.dir, folder)
    near = nearest_folder(place)
    if os.stat(near).st_dev == os.stat(state.dir).st_dev or _same_filesystem(near, state.dir):
        raise UsageError(
            f"{place} is on the same filesystem as the cache: nothing would be gained",
            "mount the drive that belongs there, or name a folder on another one; "
            f"'{command('move', folder)}' moves there all the same",
        )
    root = os.path.ismount(os.sep) and os.stat(near).st_dev == os.stat(os.sep).st_dev
    if near != place and root and not os.listdir(near):
        raise UsageError(
            f"{place} does not exist, and {near} is empty, as a mount point without its drive is",
            f"mount the drive, or make the folder: {shell_words('mkdir', place)}",
        )
    check_writable(place, "mount it so that it can be, or name a folder of yours with --to")
    return read_destination(state, place)


def check_writable(place: str, hint: str) -> None:
    """Make sure that models can be put to a folder, which need not exist.

    Args:
        place: the folder.
        hint: what to do otherwise.

    Raises:
        CacheError: this user may not write there.
    """
    near = nearest_folder(place)
    if not os.access(near, os.W_OK | os.X_OK):
        owners = owners_of(near)
        mine = hasattr(os, "geteuid") and os.stat(near).st_uid == os.geteuid()
        whose = f" (it belongs to {owners})" if owners and not (mine or is_root()) else ""
        raise CacheError(f"nothing can be moved to {place}: {near} cannot be written{whose}", hint)


def _same_filesystem(place: str, cache_dir: str) -> bool:
    """Return whether two folders share one disk: subvolumes have a device number each."""
    target, source = mount_of(place), mount_of(cache_dir)
    return (
        target is not None
        and source is not None
        and target.source.startswith(os.sep)
        and (target.source, target.type) == (source.source, source.type)
    )


def check_same(destination: Destination, opened: CacheTree) -> None:
    """Make sure that the folder that was opened is the one that was read.

    Raises:
        ChangedError: another one has its name by now.
    """
    if destination.seen not in (None, opened.identity):
        raise ChangedError(
            f"another folder is in its place by now: {destination.path}", "run it again"
        )


def _files_below(tree: CacheTree, top: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield path below a folder and length of each file, 0 for a link."""
    with contextlib.suppress(OSError):
        for name, status in walk(tree, top).items():
            if not modes.S_ISDIR(status.st_mode):
                size = 0 if modes.S_ISLNK(status.st_mode) else status.st_size
                yield os.path.join(prefix, name), size


def choose_repos(
    state: CacheState, config: Config, destination: Destination, names: Sequence[str]
) -> MoveChoice:
    """Return which repos are to be moved, which interrupted moves to finish, and what stays."""
    repos = {repo.folder: repo for repo in state.repos}
    ended = [
        folder
        for folder, noted in destination.noted.items()
        if noted.cache == state.dir and destination.holds(folder)
    ]
    leftovers = {left.repo_folder for left in state.leftovers if left.whole}
    rest = [
        folder
        for folder in ended
        if folder not in repos
        or (repos[folder].linked_to is not None and folder in leftovers)
        # It has its link, and only the note that says so is missing.
        or (repos[folder].moved_to == destination.path and not destination.noted[folder].finished)
    ]
    if not names:
        kept = [
            Kept(repo.path, repo.id, _where_it_is(repo, repo.linked_to, destination))
            for repo in state.repos
            if repo.linked_to is not None and repo.folder not in rest
        ]
        kept += (
            Kept(repo.path, repo.id, attached_words(repo))
            for repo in state.repos
            if repo.attached_to
        )
        folders = [
            repo.folder for repo in state.repos if repo.linked_to is None and not repo.attached_to
        ]
        return MoveChoice(folders, rest, kept)
    folders, ends, kept = [], [], []
    known = {*repos, *ended, *leftovers}
    for name in names:
        folder = folder_named(
            state,
            config,
            name,
            lambda folder: folder in ended or destination.holds(folder),
            "moved",
        )
        repo = repos.get(folder)
        if folder not in known:
            # Without a link nothing here shows a move that has ended.
            kept.append(Kept(destination.place(folder), name, "is there already"))
        elif folder in rest:
            ends.append(folder)
        elif repo is None:
            raise UnknownModelError(
                f"{name} is not in the cache: a removal of it was interrupted", "vlmcache clean"
            )
        elif repo.away is not None:
            raise away_error(repo, repo.away)
        elif repo.linked_to is not None:
            if os.path.dirname(repo.linked_to) != destination.path:
                raise UsageError(
                    f"{name} is elsewhere already: {repo.linked_to}",
                    f"move it from there: --cache-dir {os.path.dirname(repo.linked_to)}",
                )
            kept.append(Kept(repo.path, repo.id, _where_it_is(repo, repo.linked_to, destination)))
        else:
            folders.append(folder)
    return MoveChoice(list(dict.fromkeys(folders)), list(dict.fromkeys(ends)), kept)


def attached_words(repo: Repo) -> str:
    """Return why a repo with links into a base stays: they lead there from this cache only."""
    return f"it has links into the base {', '.join(repo.attached_to)}"


def _where_it_is(repo: Repo, path: str, destination: Destination) -> str:
    if repo.away is not None:
        return away_words(repo.away)
    if os.path.dirname(path) == destination.path:
        return "is there already"
    return f"is elsewhere already: {path}"


def folder_named(
    state: CacheState, config: Config, name: str, holds: Callable[[str], bool], verb: str
) -> str:
    """Return the folder of the repo that a name means.

    Args:
        state: the cache.
        config: whose keys count.
        name: a key or a repo id.
        holds: whether another place has the repo of a folder, of which nothing need be here then.
        verb: what is done only with complete models: `moved`.

    Raises:
        UnknownModelError: neither the cache nor the other place has it.
        UsageError: it is a part of a model.
    """
    try:
        target = find_targets(state, config, [name])[0]
    except UnknownModelError:
        model = config.models.get(name)
        folder = layout.folder_of(name if model is None else model.repo)
        if holds(folder):
            return folder
        raise
    if target.folder is None or target.commit is not None or target.ref is not None:
        raise UsageError(f"{name} is not a complete model: only complete models can be {verb}")
    return target.folder


def check_sources(repos: Sequence[Repo], destination: Destination) -> None:
    """Refuse what would not be the same elsewhere.

    Raises:
        VlmcacheError: as of `refusal_of`; nothing was moved.
    """
    for repo in repos:
        error = refusal_of(repo, destination)
        if isinstance(error, CacheError):
            raise error
        if error is not None:
            raise error.saying(f"nothing was moved: {error.message}", error.hint)


def refusal_of(repo: Repo, destination: Destination) -> VlmcacheError | None:
    """Return why a repo would not be the same elsewhere, `None` if it would.

    It is damaged (`SourceDamagedError`), has links into a base or out of the cache or a namesake at
    the destination (`UsageError`), or names in it differ only by case, and the destination ignores
    that (`CacheError`).
    """
    if repo.attached_to:
        return UsageError(
            f"{repo.id} is not moved: {attached_words(repo)}",
            command("detach", repo.attached_to[0]),
        )
    cache_dir = os.path.dirname(repo.path)
    for finding in repo.findings:
        denied = denial(finding.path, cache_dir) if finding.code.startswith("unreadable-") else None
        if denied is not None:
            return CacheError(f"{repo.id} cannot be read by you: {denied.words}", denied.remedy)
    for finding in repo.findings:
        if finding.severity == "error" and judge_repo(repo) == "damaged":
            return SourceDamagedError(
                f"{repo.id} is damaged: {finding.path}: {finding.detail}",
                command("verify", layout.typed_name(repo.type, repo.id), "--repair"),
            )
    for finding in repo.findings:
        if finding.code == "outside-link":
            return UsageError(f"{repo.id} has a link out of the cache: {finding.path}")
    if destination.holds(repo.folder) and not destination.begun(cache_dir, repo.folder):
        return UsageError(
            f"the destination has {repo.id} already: {destination.place(repo.folder)}",
            "move to another folder, or choose other models",
        )
    snapshots = {
        revision.commit: [file.name for file in revision.files] for revision in repo.revisions
    }
    try:
        refuse_clash(paths_of(repo.folder, snapshots, repo.refs), destination.path)
    except CacheError as error:
        return error
    return None
