"""Single files copied to another drive, hashed on the way, with the attributes of their source."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat as modes
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from vlmcache.cache import page_cache
from vlmcache.cache.hashing import new_hash
from vlmcache.cache.tree import CacheTree, is_root
from vlmcache.change.partials import copy_block
from vlmcache.change.tree import Tree
from vlmcache.commands.move.values import SourceDamagedError

OnProgress = Callable[[str, int], None]
"""Is called with a source's path and how many of its bytes are copied."""

_BLOCK = 8 << 20
_SYNC_EVERY = 8
"""Blocks after which the copy is flushed to the disk, so that memory does not fill up."""
_COPYING = ".copying"


class OpenedFile(NamedTuple):
    """A regular file that was opened to be copied."""

    path: str
    descriptor: int


def walk(tree: CacheTree, top: str) -> dict[str, os.stat_result]:
    """Return path below a folder -> its status, folders before what they hold.

    Raises:
        OSError: a folder cannot be read, or something is not a file, folder or link.
    """
    statuses: dict[str, os.stat_result] = {}
    pending = [""]
    while pending:
        prefix = pending.pop()
        place = os.path.join(top, prefix) if prefix else top
        with tree.folder(place) as descriptor:
            base = place if descriptor is None else ""
            for name in sorted(os.listdir(base or descriptor)):
                status = os.stat(os.path.join(base, name), dir_fd=descriptor, follow_symlinks=False)
                path = os.path.join(prefix, name)
                statuses[path] = status
                if modes.S_ISDIR(status.st_mode):
                    pending.append(path)
                elif not modes.S_ISREG(status.st_mode) and not modes.S_ISLNK(status.st_mode):
                    where = os.path.join(top, path)
                    raise OSError(errno.EINVAL, "not a file, folder or link", where)
    return statuses


def copy_attributes(made: str | int, status: os.stat_result) -> None:
    """Give a file or folder that was copied the owner, mode and times of its source.

    Args:
        made: its descriptor, or its path where the system takes no descriptors.
        status: of its source.

    Raises:
        OSError: for another reason than that the filesystem has none, or they are not ours to set.
    """
    if is_root():
        with where_possible():
            os.chown(made, status.st_uid, status.st_gid)
    mode = modes.S_IMODE(status.st_mode) & ~modes.S_ISUID
    with where_possible():
        if modes.S_IMODE(os.stat(made).st_mode) != mode:
            os.chmod(made, mode)
    with where_possible():
        os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextlib.contextmanager
def where_possible() -> Iterator[None]:
    """Continue where the filesystem has no such attribute, or it is not ours to set."""
    try:
        yield
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def copy_file(
    source: OpenedFile, tree: Tree, target: str, expected: str, on_progress: OnProgress
) -> None:
    """Copy a file, by the filesystem itself if it can, and hash what is copied.

    The page cache keeps of the source what it had before, and nothing of the target.

    Args:
        source: the file, whose descriptor is closed.
        tree: the destination.
        target: the copy's path; only this user may read it at first.
        expected: the hash that the content should have.
        on_progress: is called with the progress.

    Raises:
        SourceDamagedError: the content has another hash; nothing is at the target then.
        OSError: the system refuses.
    """
    temporary = target + _COPYING
    with (
        os.fdopen(source.descriptor, "rb", buffering=0),
        tree.replacing(target, 0o600, temporary=temporary) as writer,
    ):
        status = os.fstat(source.descriptor)
        size = status.st_size
        digest = new_hash(expected, size)
        _copy_blocks(source, writer, digest, on_progress)
        # Only what is on the disk can leave the page cache.
        os.fsync(writer)
        page_cache.give_back(writer, 0, size)
        if digest.hexdigest() != expected:
            raise SourceDamagedError(
                f"damaged, so not moved: {source.path}", "'vlmcache verify --repair' repairs it"
            )
        copy_attributes(writer if os.utime in os.supports_fd else temporary, status)


def _copy_blocks(
    source: OpenedFile, writer: int, digest: hashlib._Hash, on_progress: OnProgress
) -> None:
    reader = source.descriptor
    size = os.fstat(reader).st_size
    resident = page_cache.resident_blocks(reader, size, _BLOCK) or ()
    by_kernel = hasattr(os, "copy_file_range")
    position = number = synced = 0
    with ThreadPoolExecutor(1) as pool:
        hashed: Future[None] | None = None
        while position < size:
            count, block = copy_block(reader, writer, min(_BLOCK, size - position), by_kernel)
            if not count:
                by_kernel = False
                continue
            if hashed is not None:
                hashed.result()
            hashed = pool.submit(_hash, digest, writer, position, count, block)
            position += count
            number += 1
            if number <= len(resident) and not resident[number - 1]:
                page_cache.give_back(reader, position - count, count)
            if number % _SYNC_EVERY == 0:
                hashed.result()
                os.fsync(writer)
                page_cache.give_back(writer, synced, position - synced)
                synced = position
            on_progress(source.path, position)
        if hashed is not None:
            hashed.result()


def _hash(
    digest: hashlib._Hash, descriptor: int, position: int, count: int, block: bytes | None
) -> None:
    """Hash a block: as it was read, or as it reads at the destination if the kernel copied it."""
    while block is None and count:
        part = os.pread(descriptor, count, position)
        if not part:
            raise OSError(errno.EIO, "the copy is shorter than what was copied")
        digest.update(part)
        position += len(part)
        count -= len(part)
    if block is not None:
        digest.update(block)
