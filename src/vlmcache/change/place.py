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
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping

from vlmcache import log
from vlmcache.cache import formats, layout
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.state import TreeFile
from vlmcache.change import abilities
from vlmcache.change.partials import write_all
from vlmcache.errors import CacheError, SpaceError, VlmcacheError
from vlmcache.units import size_text

# huggingface_hub's `_local_folder.py`, word for word.
_CACHE_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This file is a cache directory tag created by huggingface_hub.
# For information about cache directory tags, see:
#	https://bford.info/cachedir/
"""

_NOT_PERMITTED = "another user's? 'vlmcache doctor' shows the permissions"
_WRITE_HINTS = {
    errno.EROFS: "the cache is read-only here; name another with --cache-dir",
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
    errno.ENOENT: "removed by another process? pull again",
}
_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


def disk_failure(error: OSError, path: str) -> VlmcacheError:
    """Return what the system's refusal to write means to a user."""
    where = error.filename if isinstance(error.filename, str) else path
    reason = error.strerror or str(error)
    if is_full(error):
        return SpaceError(f"the disk is full: {where}", "'vlmcache status' shows what makes room")
    hint = _WRITE_HINTS.get(error.errno or 0, "'vlmcache doctor' may show why")
    return CacheError(f"the cache cannot be written: {reason}: {where}", hint)


def is_full(error: OSError) -> bool:
    """Return whether the system refused because the disk, or the user's share of it, is full."""
    return error.errno in _FULL


def check_room(place: str, needs: int, hint: str) -> None:
    """Make sure that a disk has room, before anything is written to it.

    Args:
        place: a path on it, which need not exist.
        needs: bytes.
        hint: what to do if there is no room.

    Raises:
        SpaceError: there is no room.
    """
    free = shutil.disk_usage(nearest_folder(place)).free
    if needs > free:
        raise SpaceError(
            f"not enough space: {size_text(needs)} needed and {size_text(free)} free, "
            f"{size_text(needs - free)} short: {place}",
            hint,
        )


def sync_folder(folder: str | int) -> None:
    """Bring the entries of a folder, or of an open one, to the disk, if the system can do it."""
    if sys.platform == "win32":
        return
    descriptor = folder if isinstance(folder, int) else os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network filesystems cannot sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        if descriptor != folder:
            os.close(descriptor)


def prepare_repo(cache_dir: str, folder: str) -> None:
    """Make a cache and a repo's folder in it.

    Args:
        cache_dir: the hub cache.
        folder: the repo's own folder.

    Raises:
        CacheError: a part of the layout is a link, through which nothing is written; or the repo
            lies on a drive that is not mounted.
        OSError: the system refuses.
    """
    if os.path.islink(folder) and not os.path.isdir(folder):
        raise CacheError(
            f"the repo lies at {os.path.realpath(folder)}, which does not exist",
            "mount that drive, or remove the link with 'vlmcache rm'",
        )
    os.makedirs(folder, exist_ok=True)
    for name in (layout.BLOBS, layout.SNAPSHOTS, layout.REFS, layout.TREES):
        path = os.path.join(folder, name)
        if os.path.islink(path):
            raise CacheError(f"a link where a folder belongs: {path}", "remove it, then pull again")
    tag_cache(cache_dir)


def tag_cache(cache_dir: str) -> None:
    """Tell backup programs to skip the cache, as far as the system lets."""
    tag = os.path.join(cache_dir, layout.CACHE_TAG)
    if not os.path.lexists(tag):
        with contextlib.suppress(OSError), open(tag, "x", encoding="utf-8") as file:
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


def write_tree(folder: str, commit: str, files: Mapping[str, TreeFile], *, complete: bool) -> None:
    """Keep the hub's listing of a commit.

    Args:
        folder: the repo's own folder.
        commit: the commit.
        files: the listing.
        complete: whether the snapshot holds or will hold all of it, as the client expects.

    Raises:
        OSError: the system refuses.
    """
    trees = os.path.join(folder, layout.TREES)
    os.makedirs(trees, exist_ok=True)
    # The client keeps listings to their user, which would hide them from others in a shared cache.
    shared = os.stat(trees).st_mode & (stat.S_ISGID | stat.S_IWGRP) == stat.S_ISGID | stat.S_IWGRP
    mode = 0o666 if shared else 0o600
    text = tree_text(files)
    write_file(layout.tree_path(folder, commit, own=not complete), text.encode(), mode)
    if complete:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(layout.tree_path(folder, commit, own=True))


def write_absent(folder: str, commit: str, files: Iterable[str]) -> None:
    """Keep, as the client does, that a commit has no config.json, if a tokenizer would ask for it.

    Without a network, transformers takes a file of which nothing is known for one that could not be
    fetched, and loads neither the tokenizer of an adapter nor one that is a repo of its own.

    Args:
        folder: the repo's own folder.
        commit: the commit.
        files: the names of all its files.

    Raises:
        OSError: the system refuses.
    """
    if formats.CONFIG not in files and not formats.PROCESSOR_FILES.isdisjoint(files):
        path = os.path.join(folder, layout.NO_EXIST, commit, formats.CONFIG)
        if not os.path.lexists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_file(path, b"")


def write_ref(path: str, commit: str) -> None:
    """Let a ref name a commit.

    Raises:
        OSError: the system refuses.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.isdir(path) and not os.path.islink(path):
        os.rmdir(path)
    write_file(path, commit.encode())


@contextlib.contextmanager
def replacing(
    path: str, mode: int = 0o666, *, temporary: str | None = None, folder: int | None = None
) -> Iterator[int]:
    """Yield the descriptor of a new file, which takes a path's place once the block ends well.

    Its bytes are on the disk by then: readers see the old file or the new one.

    Args:
        path: where; whatever has that name is replaced.
        mode: of the new file, before the umask.
        temporary: the path under which it is written, in the same folder; a unique one if not
            given.
        folder: the descriptor of that folder, so that no link on the way can lead elsewhere.

    Raises:
        OSError: the system refuses; what was at the path is untouched.
    """
    temporary = temporary or f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    name = path if folder is None else os.path.basename(path)
    begun = temporary if folder is None else os.path.basename(temporary)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(begun, flags, mode, dir_fd=folder)
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(begun, name, src_dir_fd=folder, dst_dir_fd=folder)
        log.debug("place", "renamed '%s' to '%s'", begun, path)
    except BaseException:
        discard_temporary(begun, folder)
        raise
    sync_folder(os.path.dirname(path) if folder is None else folder)


def write_file(
    path: str, content: bytes, mode: int = 0o666, *, temporary: str | None = None
) -> None:
    """Put a small file in its place; see `replacing`.

    Raises:
        OSError: the system refuses; what was at the path is untouched.
    """
    with replacing(path, mode, temporary=temporary) as descriptor:
        write_all(descriptor, content)


def put(path: str, temporary: str, make: Callable[[str], object]) -> None:
    """Make an entry under another name of the same filesystem, and rename it to its place.

    Args:
        path: the place; whatever is at it is replaced.
        temporary: the other name.
        make: makes an entry at the path that it is given.

    Raises:
        OSError: the system refuses; what was at the path is untouched.
    """
    try:
        make(temporary)
        publish(temporary, path)
    except BaseException:
        discard_temporary(temporary)
        raise


def discard_temporary(path: str, folder: int | None = None) -> None:
    """Remove a temporary, as far as the system lets."""
    with contextlib.suppress(OSError):
        os.unlink(path, dir_fd=folder)


def prepare_snapshot(folder: str, commit: str, file: str) -> str:
    """Make the folders above a snapshot's file and return its path.

    Raises:
        CacheError: a folder on the way is a link, through which nothing is written.
        OSError: the system refuses.
    """
    path = layout.snapshot_path(folder, commit)
    if os.path.islink(path):
        # A snapshot that is a link is damage; the link is removed, what it leads to stays.
        try:
            os.unlink(path)
        except OSError:
            if os.path.islink(path):
                raise
            # The thread of another file was first.
    parts = file.split("/")
    for part in parts[:-1]:
        path = os.path.join(path, part)
        if os.path.islink(path):
            raise CacheError(f"a link where a folder belongs: {path}", "remove it, then pull again")
    os.makedirs(path, exist_ok=True)
    path = os.path.join(path, parts[-1])
    if os.path.isdir(path) and not os.path.islink(path):
        check_places([path])
        os.rmdir(path)
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


def place_link(folder: str, commit: str, file: str, etag: str) -> bool:
    """Link a blob into a snapshot; whatever was at that place is replaced.

    Returns:
        False if the system has no links.

    Raises:
        OSError: the system refuses for another reason.
    """
    path = prepare_snapshot(folder, commit, file)
    target = layout.link_target(etag, file.count("/"))
    with contextlib.suppress(OSError):
        if os.readlink(path) == target:
            return True
    temporary = os.path.join(folder, layout.BLOBS, f".link.{uuid.uuid4().hex[:8]}.new")
    try:
        try:
            os.symlink(target, path)
        except FileExistsError:
            put(path, temporary, functools.partial(os.symlink, target))
    except OSError as error:
        if abilities.cannot(error):
            return False
        raise
    sync_folder(os.path.dirname(path))
    return True


def place_copy(folder: str, commit: str, file: str, content: str, *, move: bool) -> None:
    """Put a blob's content itself into a snapshot, for a system without links.

    Args:
        folder: the repo's folder.
        commit: the snapshot's.
        file: the file's name in the repo.
        content: the path of the blob, or of another copy.
        move: whether the blob itself is moved there, as the client does with one that is new.

    Raises:
        OSError: the system refuses.
    """
    path = prepare_snapshot(folder, commit, file)
    if move and not os.path.islink(content):
        publish(content, path)
    else:
        temporary = os.path.join(folder, layout.BLOBS, f".copy.{uuid.uuid4().hex[:8]}.new")
        put(path, temporary, functools.partial(shutil.copyfile, content))


def publish(path: str, place: str) -> None:
    """Rename what is complete, and whose bytes are on the disk, to its place for good.

    Raises:
        OSError: the system refuses; it still has its old name.
    """
    os.replace(path, place)
    log.debug("place", "renamed '%s' to '%s'", path, place)
    sync_folder(os.path.dirname(place))


def place_repo_link(path: str, target: str) -> None:
    """Leave a link in the place of a repo's folder that is gone.

    Raises:
        OSError: the system refuses, or something is there.
    """
    os.symlink(target, path)
    sync_folder(os.path.dirname(path))


def replace_repo_link(path: str, target: str) -> None:
    """Let a link in the place of a repo's folder lead elsewhere, with no instant without one.

    Raises:
        OSError: the system refuses; the link is as it was.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.new")
    put(path, temporary, functools.partial(os.symlink, target))


def put_back(aside: str, path: str) -> None:
    """Rename a repo that was set aside back to its place, which is empty.

    Raises:
        OSError: the system refuses, or something is there.
    """
    publish(aside, path)
    with contextlib.suppress(OSError):  # each may hold what other runs have left
        os.rmdir(os.path.dirname(aside))
        os.rmdir(os.path.dirname(os.path.dirname(aside)))


def file_size(path: str) -> int | None:
    """Return the length in bytes of the regular file that a path leads to, `None` for others."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
