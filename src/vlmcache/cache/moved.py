"""What `move` notes at its destination: which repos it brings there, and out of which cache.

The notes, one for each repo, are at the destination, outside the repos' folders. Only they prove
that vlmcache left a link, so that a removal may follow it; a note counts only if it belongs to
root, to this user or to the owner of the repo itself. A record in the cache says where each repo
went. It can be read while that drive is away, but proves nothing to a removal.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.mounts import mount_of, nearest_folder, paths_now
from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.cache.state import Away, Drive, Repo
from vlmcache.cache.tree import CacheTree, trusted_owners
from vlmcache.errors import AwayError
from vlmcache.paths import real_path

FORMAT = "vlmcache.moved/1"
RECORD_FORMAT = "vlmcache.move-record/1"
DRIVE_AWAY = "drive-away"
"""The code of the finding that a repo is on a drive that is not mounted."""
_LIMIT = 16_000_000
_RECORD_LIMIT = 64_000
_IN_MEMORY = ("tmpfs", "autofs")


class MoveRecord(msgspec.Struct, frozen=True):
    """A repo that was moved to a destination, or is being moved there."""

    cache: str
    """The real path of the cache that it comes from."""
    finished: bool
    """Whether its folder there was replaced by a link, or removed."""


class Note(msgspec.Struct, frozen=True):
    """The content of a note: of one repo, or of several in the one file of older versions."""

    format: str
    repos: dict[str, MoveRecord]
    """Name of a repo's folder -> its move."""


class RepoRecord(msgspec.Struct, frozen=True):
    """The content of a record: where `move` has brought one repo of a cache."""

    format: str
    cache: str
    """The real path of the cache."""
    destination: str
    """The folder of the other cache."""
    drive: Drive | None
    """The filesystem that this folder is on; `None` if the system does not say."""


_DECODER = msgspec.json.Decoder(Note)
_RECORD_DECODER = msgspec.json.Decoder(RepoRecord)


class MovedTo(NamedTuple):
    """Where a repo was moved, and the device and inode of that folder when its note was read."""

    destination: str
    identity: tuple[int, int]


def note_path(destination: str, folder: str) -> str:
    """Return the path of the note of a repo at a destination."""
    return os.path.join(destination, layout.LOCKS, folder + layout.NOTE_SUFFIX)


def recorded_path(path: str) -> str:
    """Return the path of the repo that the record or note at a path is about."""
    locks, name = os.path.split(path)
    for suffix in (layout.NOTE_SUFFIX, layout.RECORD_SUFFIX, layout.BASE_SUFFIX):
        name = name.removesuffix(suffix)
    return os.path.join(os.path.dirname(locks), name)


def note_owners(tree: CacheTree, folder: str) -> set[int]:
    """Return the users whose note of a repo counts: root, this user and the repo's owner."""
    owners = trusted_owners()
    with contextlib.suppress(OSError):
        owners.add(tree.stat(os.path.join(tree.root, folder)).st_uid)
    return owners


def read_moves(place: str | CacheTree, only: str | None = None) -> dict[str, MoveRecord]:
    """Return repo folder -> move, for the trusted notes at a destination.

    Args:
        place: the destination, or a tree that has it open.
        only: the one repo folder that is asked for.
    """
    try:
        tree = CacheTree(place)
        moves = _read_note(tree, os.path.join(tree.root, layout.MOVES), only)
        folders = [only] if only is not None else _noted(tree)
    except OSError:
        return {}
    for folder in folders:
        moves |= _read_note(tree, note_path(tree.root, folder), folder)
    return moves


def _noted(tree: CacheTree) -> list[str]:
    """Return the folders of repos that have a note of their own."""
    try:
        names = tree.names(os.path.join(tree.root, layout.LOCKS))
    except FileNotFoundError:
        return []
    suffix = layout.NOTE_SUFFIX
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def _read_note(tree: CacheTree, path: str, only: str | None) -> dict[str, MoveRecord]:
    try:
        descriptor = tree.open(path)
        owner = os.fstat(descriptor).st_uid
        note = _DECODER.decode(read_bytes(descriptor, _LIMIT))
    except (OSError, *JSON_ERRORS):
        return {}
    return {
        folder: move
        for folder, move in note.repos.items()
        if note.format == FORMAT and only in (None, folder) and owner in note_owners(tree, folder)
    }


def destination_of(cache_dir: str, folder: str) -> MovedTo | None:
    """Return where `move` took a repo of a cache; `None` if that is not proven.

    Args:
        cache_dir: the cache that holds a link in place of the repo's folder.
        folder: the name of the repo's folder.
    """
    destination = linked_destination(cache_dir, folder)
    if destination is None:
        return None
    tree = CacheTree(destination)
    try:
        if stat.S_ISLNK(tree.stat(os.path.join(destination, folder)).st_mode):
            return None
    except OSError:
        pass  # It was removed there, or is being moved back.
    return MovedTo(destination, tree.identity) if names_cache(tree, folder, cache_dir) else None


def names_cache(place: str | CacheTree, folder: str, cache_dir: str) -> bool:
    """Return whether the note of a repo at a destination names a cache as where it came from."""
    move = read_moves(place, folder).get(folder)
    return move is not None and move.cache == real_path(cache_dir)


def linked_destination(cache_dir: str, folder: str) -> str | None:
    """Return the destination named by a link in the form that `move` writes; `None` for others."""
    try:
        target = os.readlink(os.path.join(cache_dir, folder))
    except OSError:
        return None
    destination, name = os.path.split(target)
    return destination if name == folder and os.path.isabs(target) else None


def move_record_path(cache_dir: str, folder: str) -> str:
    """Return the path of the record of where a repo of a cache was moved to."""
    return os.path.join(cache_dir, layout.LOCKS, folder + layout.RECORD_SUFFIX)


def read_record(cache_dir: str, folder: str) -> RepoRecord | None:
    """Return the record of a link in place of a repo's folder; `None` if it cannot be trusted.

    It has to be a plain file that belongs to this user, to root, or to the owner of the cache
    folder or the link, and has to name the same destination as the link.
    """
    destination = linked_destination(cache_dir, folder)
    if destination is None:
        return None
    try:
        link = os.lstat(os.path.join(cache_dir, folder))
        owners = trusted_owners(os.stat(cache_dir).st_uid, link.st_uid)
        path = move_record_path(cache_dir, folder)
        record = _RECORD_DECODER.decode(read_bytes(path, _RECORD_LIMIT, owners=owners))
    except (OSError, *JSON_ERRORS):
        return None
    if record.format != RECORD_FORMAT or record.destination != destination:
        return None
    point = record.drive.mount_point if record.drive is not None else None
    inside = point is None or f"{destination}/".startswith(point.rstrip("/") + "/")
    return record if inside else None


def find_away(cache_dir: str, folder: str) -> Away | None:
    """Return where a repo is, if its link leads nowhere because a drive is not mounted.

    If the drive is mounted and does not hold the repo, the repo is damaged.

    Args:
        cache_dir: the cache that holds the link.
        folder: the name of the repo's folder.
    """
    destination = linked_destination(cache_dir, folder)
    if destination is None:
        return None
    record = read_record(cache_dir, folder)
    if record is None or record.drive is None:
        return Away(destination) if looks_unmounted(destination, cache_dir) else None
    places = paths_now(record.drive, destination)
    if record.drive.mount_point in places:
        return None
    relinkable = (place for place in places.values() if can_relink(cache_dir, folder, place))
    return Away(destination, record.drive, next(relinkable, None))


def can_relink(cache_dir: str, folder: str, place: str | CacheTree) -> bool:
    """Return whether a folder holds a repo that `move` took out of a cache."""
    try:
        tree = CacheTree(place)
        exists = stat.S_ISDIR(tree.stat(os.path.join(tree.root, folder)).st_mode)
    except OSError:
        return False
    return exists and names_cache(tree, folder, cache_dir)


def looks_unmounted(destination: str, cache_dir: str) -> bool:
    """Return whether a folder seems to be missing because its drive is not mounted.

    It is a guess, for folders without a record of their drive. An unmounted drive leaves an empty
    folder, or none, on the system's own disk. If only the folder was removed, the drive is still a
    mount of its own, or holds other things.
    """
    nearest = nearest_folder(destination)
    try:
        ours = {os.stat(path).st_dev for path in (os.sep, cache_dir)}
        mount = mount_of(nearest)
        if os.stat(nearest).st_dev not in ours and not (mount and mount.type in _IN_MEMORY):
            return False
        if nearest not in (destination, os.path.dirname(destination)):
            return True
        return not os.listdir(nearest)
    except OSError:
        return True


def away_words(away: Away, name: str | None = None) -> str:
    """Return the sentence that says where a repo is.

    Args:
        away: where it is.
        name: the repo's name, if the sentence does not stand next to it.
    """
    subject = "away" if name is None else f"{name} is away"
    if away.base:
        where = "missing" if away.drive is None else "on a drive that is not mounted"
        return f"{subject}: its base {away.destination} is {where}"
    return f"{subject}: it is at {away.destination}, on a drive that is not mounted"


def away_remedy(away: Away) -> str:
    """Return what to do to have a repo back."""
    if away.found_at is not None and away.base:
        return f"the base is mounted elsewhere now: {units.command('attach', away.found_at)}"
    if away.found_at is not None:
        relink = units.command("move", "--relink", away.found_at)
        return f"its drive is mounted elsewhere now: {relink}"
    if away.base and away.drive is None:
        return f"mount the base, or attach it where it is now: {units.command('attach', 'FOLDER')}"
    if away.drive is None:
        return f"mount the drive that belongs at {away.destination}"
    if away.drive.uuid is not None:
        return f"mount the drive with UUID {away.drive.uuid} at {away.drive.mount_point}"
    return f"mount {away.drive.source} ({away.drive.type}) at {away.drive.mount_point}"


def away_error(repo: Repo, away: Away) -> AwayError:
    """Return the refusal of a command that needs a repo which is away."""
    return AwayError(away_words(away, repo.id), away_remedy(away))


def leads_back(destination: str, folder: str, cache_dir: str) -> bool:
    """Return whether a link at a destination leads back to the repo that is to be moved there.

    Args:
        destination: the other cache.
        folder: the name of the repo's folder.
        cache_dir: the real path of the cache that holds it.
    """
    path = os.path.join(cache_dir, folder)
    return not os.path.islink(path) and real_path(os.path.join(destination, folder)) == path
