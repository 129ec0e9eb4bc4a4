"""What `move` notes at its destination: which repos it brings there, and out of which cache.

The notes, one for each repo, lie at the destination, in no repo's folder. They alone tell a link
that vlmcache has left from any other, and so where a removal may follow one; each counts only if it
is root's, this user's or of the owner of the repo itself. A record in the cache says of each repo
where it went; it is there while that drive is away, and proves nothing to a removal.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.mounts import mount_of, mount_points, nearest_folder
from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.cache.state import Away, Drive, Repo
from vlmcache.cache.tree import CacheTree
from vlmcache.errors import AwayError

FORMAT = "vlmcache.moved/1"
RECORD_FORMAT = "vlmcache.move-record/1"
DRIVE_AWAY = "drive-away"
"""The code of the finding that says: this repo is on a drive that is not mounted."""
_LIMIT = 16_000_000
_RECORD_LIMIT = 64_000
_IN_MEMORY = ("tmpfs", "autofs")


class MoveRecord(msgspec.Struct, frozen=True):
    """A repo that was brought to a destination, or is on its way."""

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
    """The filesystem that it is on; `None` if the system does not say."""


_DECODER = msgspec.json.Decoder(Note)
_RECORD_DECODER = msgspec.json.Decoder(RepoRecord)


class MovedTo(NamedTuple):
    """Where a repo was brought, and the device and inode of that folder when its note was read."""

    destination: str
    identity: tuple[int, int]


def note_path(destination: str, folder: str) -> str:
    """Return where the note of a repo at a destination is."""
    return os.path.join(destination, layout.LOCKS, folder + layout.NOTE_SUFFIX)


def recorded_path(path: str) -> str:
    """Return the path of the repo that a record or a note, by its path, speaks of."""
    locks, name = os.path.split(path)
    for suffix in (layout.NOTE_SUFFIX, layout.RECORD_SUFFIX, layout.BASE_SUFFIX):
        name = name.removesuffix(suffix)
    return os.path.join(os.path.dirname(locks), name)


def trusted_owners() -> set[int]:
    """Return the users whose notes count in any case: root and this user."""
    return {0, getattr(os, "geteuid", lambda: 0)()}


def owners_of(tree: CacheTree, folder: str) -> set[int]:
    """Return whose note of a repo counts: root's, this user's and those of the repo's owner."""
    owners = trusted_owners()
    with contextlib.suppress(OSError):
        owners.add(tree.stat(os.path.join(tree.root, folder)).st_uid)
    return owners


def read_moves(place: str | CacheTree, only: str | None = None) -> dict[str, MoveRecord]:
    """Return folder -> move, of all that is noted at a destination; nothing that is not trusted.

    Args:
        place: the destination, or a tree that has it open.
        only: the one folder that is asked for.
    """
    try:
        tree = CacheTree(place)
        found = _read_note(tree, os.path.join(tree.root, layout.MOVES), only)
        folders = [only] if only is not None else _noted(tree)
    except OSError:
        return {}
    for folder in folders:
        found |= _read_note(tree, note_path(tree.root, folder), folder)
    return found


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
        if note.format == FORMAT and only in (None, folder) and owner in owners_of(tree, folder)
    }


def destination_of(cache_dir: str, folder: str) -> MovedTo | None:
    """Return where `move` has brought a repo of a cache, `None` if that is not proven.

    Args:
        cache_dir: the cache that holds a link in the place of the repo's folder.
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
        pass  # It was removed there, or a way back has begun.
    return MovedTo(destination, tree.identity) if names_cache(tree, folder, cache_dir) else None


def names_cache(place: str | CacheTree, folder: str, cache_dir: str) -> bool:
    """Return whether the note at a destination says that a repo there came out of a cache."""
    move = read_moves(place, folder).get(folder)
    return move is not None and move.cache == os.path.realpath(cache_dir)


def linked_destination(cache_dir: str, folder: str) -> str | None:
    """Return the folder that a link names in the form in which `move` leaves links, else `None`."""
    try:
        target = os.readlink(os.path.join(cache_dir, folder))
    except OSError:
        return None
    destination, name = os.path.split(target)
    return destination if name == folder and os.path.isabs(target) else None


def record_path(cache_dir: str, folder: str) -> str:
    """Return where it is recorded to which place a repo of a cache went."""
    return os.path.join(cache_dir, layout.LOCKS, folder + layout.RECORD_SUFFIX)


def read_record(cache_dir: str, folder: str) -> RepoRecord | None:
    """Return what is recorded of a link in the place of a repo's folder, if it can be trusted.

    It has to be a plain file of this user, of root, of the cache folder's owner or of the link's,
    and to say what the link itself says: nobody's record speaks of another's link.
    """
    destination = linked_destination(cache_dir, folder)
    if destination is None:
        return None
    try:
        owners = {
            *trusted_owners(),
            os.stat(cache_dir).st_uid,
            os.lstat(os.path.join(cache_dir, folder)).st_uid,
        }
        record = _RECORD_DECODER.decode(
            read_bytes(record_path(cache_dir, folder), _RECORD_LIMIT, owners=owners)
        )
    except (OSError, *JSON_ERRORS):
        return None
    if record.format != RECORD_FORMAT or record.destination != destination:
        return None
    point = record.drive.mount_point if record.drive is not None else None
    inside = point is None or f"{destination}/".startswith(point.rstrip("/") + "/")
    return record if inside else None


def find_away(cache_dir: str, folder: str) -> Away | None:
    """Return where a repo is whose link leads nowhere, if that is because a drive is not mounted.

    A drive that is mounted and does not hold the repo is not an excuse: then the repo is damaged.

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
    drive = record.drive
    points = list(mount_points(drive))
    if drive.mount_point in points:
        return None
    below = os.path.relpath(destination, drive.mount_point)
    places = (os.path.normpath(os.path.join(point, below)) for point in points)
    relinkable = (place for place in places if can_relink(cache_dir, folder, place))
    return Away(destination, drive, next(relinkable, None))


def can_relink(cache_dir: str, folder: str, place: str | CacheTree) -> bool:
    """Return whether a folder holds a repo that `move` has brought out of a cache."""
    try:
        tree = CacheTree(place)
        is_there = stat.S_ISDIR(tree.stat(os.path.join(tree.root, folder)).st_mode)
    except OSError:
        return False
    return is_there and names_cache(tree, folder, cache_dir)


def looks_unmounted(destination: str, cache_dir: str) -> bool:
    """Return whether a folder that is not there seems to be on a drive that is not mounted.

    Nothing is recorded of it. An unmounted drive leaves an empty folder, or none at all, on the
    system's own disk; one whose folder was removed is a mount of its own, or has other content.
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
    """Return the one sentence that says where a repo is, next to its name or with it."""
    subject = "away" if name is None else f"{name} is away"
    if away.base:
        where = "not there" if away.drive is None else "on a drive that is not mounted"
        return f"{subject}: its base {away.destination} is {where}"
    return f"{subject}: it is at {away.destination}, on a drive that is not mounted"


def away_remedy(away: Away) -> str:
    """Return what to do so that a repo is there again."""
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
    """Return the refusal of a command that needs what is away."""
    return AwayError(away_words(away, repo.id), away_remedy(away))


def leads_back(destination: str, folder: str, cache_dir: str) -> bool:
    """Return whether a link at a destination leads to the very repo that is to be moved there.

    Args:
        destination: the other cache.
        folder: the name of the repo's folder.
        cache_dir: the real path of the cache that holds it.
    """
    path = os.path.join(cache_dir, folder)
    return not os.path.islink(path) and os.path.realpath(os.path.join(destination, folder)) == path
