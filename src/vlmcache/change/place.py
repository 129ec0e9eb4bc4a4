"""Adding to a cache as the hub's client does: trees, blobs, links, refs.

Every file gets to its place by one rename, with its bytes on the disk before: a crash leaves a
temporary, never half a file under a good name.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Mapping

from vlmcache.cache import formats, layout
from vlmcache.cache.hashing import BLOCK
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.owners import cache_of, denial
from vlmcache.cache.state import TreeFile
from vlmcache.cache.tree import StaleError
from vlmcache.change import abilities
from vlmcache.change.tree import Tree
from vlmcache.errors import CacheError, ChangedError, SpaceError, VlmcacheError, reason_of
from vlmcache.paths import real_path
from vlmcache.units import size_text

# huggingface_hub's `_local_folder.py`, word for word.
_CACHE_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This file is a cache directory tag created by huggingface_hub.
# For information about cache directory tags, see:
#	https://bford.info/cachedir/
"""

_BY_ANOTHER = "who else changes this cache? run it again"
_NOT_PERMITTED = "another user's? 'vlmcache doctor' shows the permissions"
_WRITE_HINTS = {
    errno.EROFS: "the cache is read-only here; name another with --cache-dir",
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
    errno.ENOENT: "removed by another process? pull again",
    **dict.fromkeys(
        (errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENXIO),
        _BY_ANOTHER,
    ),
}
_QUOTA = getattr(errno, "EDQUOT", None)
_FULL = frozenset({errno.ENOSPC, _QUOTA})


def disk_failure(error: OSError, path: str) -> VlmcacheError:
    """Return what the system's refusal to write means to a user."""
    where = error.filename if isinstance(error.filename, str) else path
    if isinstance(error, StaleError):
        return ChangedError(f"{reason_of(error)}: {where}", _BY_ANOTHER)
    if is_full(error):
        return SpaceError(full_words(where, error), "'vlmcache status' shows what makes room")
    words = f"the cache cannot be written: {reason_of(error)}: {where}"
    hint = _WRITE_HINTS.get(error.errno or 0, "'vlmcache doctor' may show why")
    if error.errno in (errno.EACCES, errno.EPERM):
        denied = denial(where, cache_of(where) or path, to_write=True)
        if denied is not None:
            words, hint = f"{words}: {denied.words}", denied.remedy
    return CacheError(words, hint)


def is_full(error: OSError) -> bool:
    """Return whether the system refused because the disk, or the user's share of it, is full."""
    return error.errno in _FULL


def full_words(path: str, error: OSError) -> str:
    """Return what of a disk has run out, when the system says that it is full.

    Args:
        path: what could not be written.
        error: the refusal.
    """
    if error.errno == _QUOTA:
        return f"your quota on this disk is used up: {path}"
    with contextlib.suppress(OSError, AttributeError):
        disk = os.statvfs(nearest_folder(path))
        if disk.f_files and not disk.f_favail and disk.f_bavail:
            return f"the disk is full, no inode is free: {path}"
    return f"the disk is full: {path}"


def check_room(place: str, needs: int, hint: str, *, in_trash: int = 0) -> None:
    """Make sure that a disk has room, before anything is written to it.

    Args:
        place: a path on it, which need not exist.
        needs: bytes.
        hint: what to do if there is no room.
        in_trash: bytes that emptying the trash would give back.

    Raises:
        SpaceError: there is no room.
    """
    free = shutil.disk_usage(nearest_folder(place)).free
    if needs > free + in_trash:
        raise SpaceError(
            f"not enough space: {size_text(needs)} needed and {size_text(free)} free, "
            f"{size_text(needs - free)} short: {place}",
            hint,
        )


def home_of(cache: Tree, folder: str) -> tuple[Tree, str]:
    """Return the tree that a repo really is in, and the path of its folder there.

    Args:
        cache: the hub cache.
        folder: the path of the repo in it.

    Raises:
        CacheError: it lies on a drive that is not mounted.
        StaleError: it is another user's link.
    """
    if os.path.islink(folder) and not os.path.isdir(folder):
        raise CacheError(
            f"the repo lies at {real_path(folder)}, which does not exist",
            "mount that drive, or remove the link with 'vlmcache rm'",
        )
    tree, path = cache.home(os.path.join(folder, layout.BLOBS))
    return tree, os.path.dirname(path)


def prepare_repo(tree: Tree, folder: str) -> None:
    """Make a cache and a repo's folder in it.

    Args:
        tree: the hub cache that the repo is really in.
        folder: the repo's own folder.

    Raises:
        CacheError: a part of the layout is a link, through which nothing is written.
        OSError: the system refuses.
    """
    tree.make_folders(folder)
    for name in (layout.BLOBS, layout.SNAPSHOTS, layout.REFS, layout.TREES):
        path = os.path.join(folder, name)
        if os.path.islink(path):
            raise _link_in_place_of_a_folder(path)
    tag_cache(tree)


def _link_in_place_of_a_folder(path: str | None) -> CacheError:
    return CacheError(f"a link where a folder belongs: {path}", "remove it, then pull again")


def tag_cache(tree: Tree) -> None:
    """Tell backup programs to skip the cache, as far as the system lets."""
    with contextlib.suppress(OSError):
        descriptor = tree.create(os.path.join(tree.root, layout.CACHE_TAG))
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_CACHE_TAG)


def tree_text(files: Mapping[str, TreeFile]) -> str:
    """Return the hub's listing of a commit in the form of the client's `_tree_cache.py`."""
    entries: dict[str, dict[str, object]] = {}
    for name, file in sorted(files.items()):
        entry: dict[str, object] = {"size": file.size, "blob_id": file.blob_id}
        if file.lfs_sha256 is not None:
            entry |= {"lfs_sha256": file.lfs_sha256, "lfs_size": file.lfs_size}
        if file.xet_hash is not None:
            entry["xet_hash"] = file.xet_hash
        entries[name] = entry
    return json.dumps({"format_version": 1, "files": entries}, indent=1)


def write_tree(
    tree: Tree, folder: str, commit: str, files: Mapping[str, TreeFile], *, complete: bool
) -> None:
    """Keep the hub's listing of a commit.

    Args:
        tree: the cache that the repo is really in.
        folder: the repo's own folder.
        commit: the commit.
        files: the listing.
        complete: whether the snapshot holds or will hold all of it, as the client expects.

    Raises:
        OSError: the system refuses.
    """
    trees = os.path.join(folder, layout.TREES)
    tree.make_folders(trees)
    # The client keeps listings to their user, which would hide them from others in a shared cache.
    both = stat.S_ISGID | stat.S_IWGRP
    mode = 0o666 if tree.stat(trees).st_mode & both == both else 0o600
    path = layout.tree_path(folder, commit, own=not complete)
    tree.write(path, tree_text(files).encode(), mode)
    if complete:
        with contextlib.suppress(FileNotFoundError):
            tree.unlink(layout.tree_path(folder, commit, own=True))


def note_absent(tree: Tree, folder: str, commit: str, file: str) -> None:
    """Keep, as the client does, that a commit does not have a file.

    Raises:
        OSError: the system refuses.
    """
    path = layout.file_path(os.path.join(folder, layout.NO_EXIST, commit), file)
    tree.make_folders(os.path.dirname(path))
    if not tree.exists(path):
        tree.write(path, b"")


def write_absent(tree: Tree, folder: str, commit: str, files: Iterable[str]) -> None:
    """Keep, as the client does, that a commit has no config.json, if a tokenizer would ask for it.

    Without a network, transformers takes a file of which nothing is known for one that could not be
    fetched, and loads neither the tokenizer of an adapter nor one that is a repo of its own.

    Args:
        tree: the cache.
        folder: the repo's own folder.
        commit: the commit.
        files: the names of all its files.

    Raises:
        OSError: the system refuses.
    """
    if formats.CONFIG not in files and not formats.PROCESSOR_FILES.isdisjoint(files):
        note_absent(tree, folder, commit, formats.CONFIG)


def write_ref(tree: Tree, path: str, commit: str) -> None:
    """Let a ref name a commit.

    Raises:
        OSError: the system refuses.
    """
    tree.make_folders(os.path.dirname(path))
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        tree.rmdir(path)
    tree.write(path, commit.encode())


def write_file(path: str, content: bytes, *, temporary: str | None = None) -> None:
    """Put a small file in its place, a folder outside any cache; see `Tree.replacing`.

    Raises:
        OSError: the system refuses; what was at the path is untouched.
    """
    Tree(os.path.dirname(path)).write(path, content, temporary=temporary)


def prepare_snapshot(tree: Tree, folder: str, commit: str, file: str) -> str:
    """Make the folders above a snapshot's file and return its path.

    Raises:
        CacheError: a folder on the way is a link, through which nothing is written.
        OSError: the system refuses.
    """
    snapshot = layout.snapshot_path(folder, commit)
    if os.path.islink(snapshot):
        # A snapshot that is a link is damage; the link is removed, what it leads to stays.
        tree.discard(snapshot)
    path = layout.file_path(snapshot, file)
    try:
        tree.make_folders(os.path.dirname(path))
    except StaleError as error:
        raise _link_in_place_of_a_folder(error.filename) from error
    if os.path.isdir(path) and not os.path.islink(path):
        check_places([path])
        tree.rmdir(path)
    return path


def check_places(paths: Iterable[str]) -> None:
    """Make sure that no folder that holds anything is where a snapshot's file belongs.

    Raises:
        CacheError: one is.
    """
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path) and os.listdir(path):
            raise CacheError(
                f"a folder that holds files is in the place of a file of the model: {path}",
                "move that folder elsewhere, then run this again",
            )


def put_link(tree: Tree, target: str, path: str, blobs: str) -> None:
    """Let a path be a link; whatever is there is replaced, with no instant without it.

    Args:
        tree: the cache.
        target: where the link leads.
        path: its place.
        blobs: the repo's folder of blobs, where the link is made first if something is at the path.

    Raises:
        OSError: the system refuses; what was at the path is untouched.
    """
    with contextlib.suppress(OSError):
        if tree.readlink(path) == target:
            return
    try:
        tree.symlink(target, path)
    except FileExistsError:
        temporary = os.path.join(blobs, f".link.{uuid.uuid4().hex[:8]}.new")
        tree.put(path, temporary, functools.partial(tree.symlink, target))


def place_link(tree: Tree, folder: str, commit: str, file: str, etag: str) -> bool:
    """Link a blob into a snapshot; whatever was at that place is replaced.

    Returns:
        False if the system has no links.

    Raises:
        OSError: the system refuses for another reason.
    """
    path = prepare_snapshot(tree, folder, commit, file)
    target = layout.link_target(etag, file.count("/"))
    try:
        put_link(tree, target, path, os.path.join(folder, layout.BLOBS))
    except OSError as error:
        if abilities.cannot(error):
            return False
        raise
    return True


def place_copy(
    tree: Tree, folder: str, commit: str, file: str, content: str, *, move: bool
) -> None:
    """Put a blob's content itself into a snapshot, for a system without links.

    Args:
        tree: the cache.
        folder: the repo's folder.
        commit: the snapshot's.
        file: the file's name in the repo.
        content: the path of the blob, or of another copy.
        move: whether the blob itself is moved there, as the client does with one that is new.

    Raises:
        OSError: the system refuses.
    """
    path = prepare_snapshot(tree, folder, commit, file)

    def copy(place: str) -> None:
        with (
            os.fdopen(tree.open_content(content), "rb", buffering=0) as source,
            os.fdopen(tree.create(place), "wb", buffering=0) as target,
        ):
            shutil.copyfileobj(source, target, BLOCK)

    if move and not os.path.islink(content):
        tree.rename(content, path)
    else:
        temporary = os.path.join(folder, layout.BLOBS, f".copy.{uuid.uuid4().hex[:8]}.new")
        tree.put(path, temporary, copy)


def replace_repo_link(tree: Tree, path: str, target: str) -> None:
    """Let a link in the place of a repo's folder lead elsewhere, with no instant without one.

    Raises:
        OSError: the system refuses; the link is as it was.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.new")
    tree.put(path, temporary, functools.partial(tree.symlink, target))


def put_back(tree: Tree, aside: str, path: str) -> None:
    """Rename a repo that was set aside back to its place, which is empty.

    Raises:
        OSError: the system refuses, or something is there.
    """
    tree.rename(aside, path)
    with contextlib.suppress(OSError):  # each may hold what other runs have left
        tree.rmdir(os.path.dirname(aside))
        tree.rmdir(os.path.dirname(os.path.dirname(aside)))


def file_size(path: str) -> int | None:
    """Return the length in bytes of the regular file that a path leads to, `None` for others."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
