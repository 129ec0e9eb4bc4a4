"""The note at a destination of what moves have brought there, and the record of it in the cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import msgspec

from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.mounts import drive_of
from vlmcache.cache.moved import (
    FORMAT,
    RECORD_FORMAT,
    MoveRecord,
    Note,
    RepoRecord,
    is_trusted,
    note_path,
    record_path,
)
from vlmcache.change.tree import Tree
from vlmcache.errors import CacheError

_TEMPORARY = ".00000000.tmp"
"""Always the same name, so that the next note replaces one that a kill left behind."""


def write_moves(destination: str, moves: Mapping[str, MoveRecord]) -> None:
    """Note at a destination what moves have brought there; without any, remove the note.

    Raises:
        CacheError: there is a note that is not to be trusted, and so not to be replaced.
        OSError: the system refuses.
    """
    path = note_path(destination)
    if os.path.lexists(path) and not is_trusted(destination):
        raise CacheError(f"another user's: {path}", "move to another folder")
    tree = Tree(destination)
    if not moves:
        with contextlib.suppress(FileNotFoundError):
            tree.unlink(path)
        return
    content = msgspec.json.encode(Note(FORMAT, dict(sorted(moves.items()))))
    tree.write(path, content, 0o644, temporary=path + _TEMPORARY)


def write_record(cache_dir: str, folder: str, destination: str) -> None:
    """Record in a cache to where one of its repos is moved.

    Args:
        cache_dir: the real path of the cache.
        folder: the name of the repo's folder.
        destination: the real path of the folder to which it is moved.

    Raises:
        OSError: the system refuses.
    """
    path = record_path(cache_dir, folder)
    record = RepoRecord(RECORD_FORMAT, cache_dir, destination, drive_of(destination))
    try:
        content = msgspec.json.encode(record)
    except UnicodeEncodeError:
        return  # a name that JSON cannot hold; the link itself still says where the repo is
    tree = Tree(cache_dir)
    tree.make_folders(os.path.dirname(path))
    tree.write(path, content, 0o644, temporary=path + _TEMPORARY)


def remove_record(cache_dir: str, folder: str) -> None:
    """Remove what is recorded of a repo, if anything is.

    Raises:
        OSError: the system refuses.
    """
    path = record_path(cache_dir, folder)
    tree = Tree(cache_dir)
    for name in (path, path + _TEMPORARY):
        with contextlib.suppress(FileNotFoundError):
            tree.unlink(name)


def record_size(cache_dir: str, folder: str) -> int:
    """Return the bytes of disk that the record of a repo and the folder of records occupy."""
    path = record_path(cache_dir, folder)
    size = 0
    for name in (os.path.dirname(path), path, path + _TEMPORARY):
        with contextlib.suppress(OSError):
            size += allocated_bytes(os.lstat(name))
    return size
