"""What `move` notes at its destination: which repos it brings there, and out of which cache.

The note lies at the top of the destination, in no repo's folder. It alone tells a link that
vlmcache has left from any other, and so where a removal may follow one.
"""

from __future__ import annotations

import os
import stat

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.reading import JSON_ERRORS, read_bytes

FORMAT = "vlmcache.moved/1"
_LIMIT = 16_000_000


class Move(msgspec.Struct, frozen=True):
    """A repo that was brought to a destination, or is on its way.

    cache: the real path of the cache that it comes from. finished: whether its folder there has
    given way to a link, or to nothing.
    """

    cache: str
    finished: bool


class Note(msgspec.Struct, frozen=True):
    """The content of the file: name of the repo's folder -> its move."""

    format: str
    repos: dict[str, Move]


_DECODER = msgspec.json.Decoder(Note)


def note_path(destination: str) -> str:
    """Return where the note of a destination is."""
    return os.path.join(destination, layout.MOVES)


def is_trusted(destination: str) -> bool:
    """Return whether the note is a plain file of this user, of root or of the folder's owner."""
    try:
        status = os.lstat(note_path(destination))
        folder = os.stat(destination)
    except OSError:
        return False
    own = getattr(os, "geteuid", lambda: status.st_uid)()
    return stat.S_ISREG(status.st_mode) and status.st_uid in (0, own, folder.st_uid)


def read_moves(destination: str) -> dict[str, Move]:
    """Return folder -> move, of all that is noted at a destination; nothing that is not trusted."""
    if not is_trusted(destination):
        return {}
    try:
        note = _DECODER.decode(read_bytes(note_path(destination), _LIMIT))
    except (OSError, *JSON_ERRORS):
        return {}
    return note.repos if note.format == FORMAT else {}


def destination_of(cache_dir: str, folder: str) -> str | None:
    """Return where `move` has brought a repo of a cache, `None` where that is not proven.

    Args:
        cache_dir: the cache that holds a link in the place of the repo's folder.
        folder: the name of the repo's folder.
    """
    try:
        target = os.readlink(os.path.join(cache_dir, folder))
    except OSError:
        return None
    destination, name = os.path.split(target)
    if name != folder or not os.path.isabs(target) or os.path.islink(target):
        return None
    move = read_moves(destination).get(folder)
    return destination if move is not None and move.cache == os.path.realpath(cache_dir) else None


def leads_back(destination: str, folder: str, cache_dir: str) -> bool:
    """Return whether a link at a destination leads to the very repo that is to be moved there.

    Args:
        destination: the other cache.
        folder: the name of the repo's folder.
        cache_dir: the real path of the cache that holds it.
    """
    path = os.path.join(cache_dir, folder)
    return not os.path.islink(path) and os.path.realpath(os.path.join(destination, folder)) == path
