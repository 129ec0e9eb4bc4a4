"""The notes at a destination of what moves have brought there, and the records in the cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.mounts import drive_of
from vlmcache.cache.moved import (
    FORMAT,
    RECORD_FORMAT,
    MoveRecord,
    Note,
    RepoRecord,
    move_record_path,
    note_owners,
    note_path,
    read_moves,
)
from vlmcache.cache.tree import CacheTree, trusted_owners
from vlmcache.change.tree import Tree
from vlmcache.errors import CacheError

_TEMPORARY = ".00000000.tmp"
"""Always the same name, so that the next note replaces one that a kill left behind."""


def write_note(tree: Tree, path: str, note: msgspec.Struct) -> None:
    """Put a note or a record in its place, for all to read.

    Raises:
        CacheError: a path in it is not valid UTF-8, which JSON cannot hold.
        OSError: the system refuses; what was at the path is untouched.
    """
    try:
        content = msgspec.json.encode(note)
    except UnicodeEncodeError:
        raise CacheError(
            f"the name of a folder is not valid UTF-8, and cannot be recorded: {path}",
            "rename that folder",
        ) from None
    tree.make_folders(os.path.dirname(path))
    tree.write(path, content, 0o644, temporary=path + _TEMPORARY)


def write_moves(place: str | CacheTree, moves: Mapping[str, MoveRecord]) -> None:
    """Note at a destination what moves have brought there, each repo in a file of its own.

    Args:
        place: the destination, or a tree that has it open.
        moves: all that is to be noted there; what else was noted is forgotten.

    Raises:
        CacheError: there is a note that is not to be trusted, and so not to be replaced; or a path
            is not valid UTF-8.
        OSError: the system refuses.
    """
    tree = Tree(place)
    if moves:
        # The folder is the cache's, so that its users take and remove their locks there.
        tree.make_folders(os.path.join(tree.root, layout.LOCKS))
    # Who owns a note decides what it is worth: root's stays root's.
    tree.gives = False
    before = read_moves(tree)
    older = os.path.join(tree.root, layout.MOVES)
    # Of another user's, not all may count here; it stays for those for whom it does.
    is_older = tree.exists(older) and tree.stat(older).st_uid in trusted_owners()
    for folder in sorted({*before, *moves}):
        path, move = note_path(tree.root, folder), moves.get(folder)
        if move is None:
            with contextlib.suppress(FileNotFoundError):
                tree.unlink(path)
        elif is_older or move != before.get(folder):
            if tree.exists(path) and tree.stat(path).st_uid not in note_owners(tree, folder):
                raise CacheError(
                    f"the note of an earlier move belongs to another user: {path}",
                    "move to another folder",
                )
            write_note(tree, path, Note(FORMAT, {folder: move}))
    if is_older:
        tree.discard(older)


def write_record(cache_dir: str, folder: str, destination: str) -> None:
    """Record in a cache to where one of its repos is moved.

    Args:
        cache_dir: the real path of the cache.
        folder: the name of the repo's folder.
        destination: the real path of the folder to which it is moved.

    Raises:
        OSError: the system refuses.
    """
    record = RepoRecord(RECORD_FORMAT, cache_dir, destination, drive_of(destination))
    # If JSON cannot hold a name, the link itself still says where the repo is.
    with contextlib.suppress(CacheError):
        write_note(Tree(cache_dir), move_record_path(cache_dir, folder), record)


def remove_record(cache_dir: str, folder: str) -> None:
    """Remove what is recorded of a repo, if anything is.

    Raises:
        OSError: the system refuses.
    """
    path = move_record_path(cache_dir, folder)
    tree = Tree(cache_dir)
    for name in (path, path + _TEMPORARY):
        with contextlib.suppress(FileNotFoundError):
            tree.unlink(name)


def record_size(cache_dir: str, folder: str) -> int:
    """Return the bytes of disk that the record of a repo and the folder of records occupy."""
    path = move_record_path(cache_dir, folder)
    size = 0
    for name in (os.path.dirname(path), path, path + _TEMPORARY):
        with contextlib.suppress(OSError):
            size += allocated_bytes(os.lstat(name))
    return size
