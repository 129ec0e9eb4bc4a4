"""A blob that is arriving: a file written and hashed from front to back, resumed if interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, TypeAlias

from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes, is_resumable
from vlmcache.cache.hashing import BLOCK, Identity, new_hash
from vlmcache.cache.locks import lock_held
from vlmcache.cache.usage import find_users
from vlmcache.change.tree import Tree, write_all
from vlmcache.change.writeback import Writeback

if TYPE_CHECKING:
    from hashlib import _Hash

_Known: TypeAlias = tuple[int, int, int, int]
"""Device, inode, size and mtime in ns of a file."""
SYNC_EVERY = 16 << 20
"""Bytes of a download that are brought to the disk at once. The last two such parts, and what was
written of the next, are what a lost power supply can cost."""

_NOT_HERE = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
)
"""Why the kernel cannot copy a block: `copy_file_range(2)`."""


@contextlib.contextmanager
def opened(tree: Tree, path: str) -> Iterator[int]:
    """Open an unfinished download, a new one if there is none, and yield its descriptor.

    Raises:
        StaleError: it is not a regular file, or has a second name.
        OSError: the system refuses.
    """
    descriptor = tree.edit_or_create(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def usable(descriptor: int, size: int) -> int:
    """Return how many bytes of an unfinished download can be continued; the rest is cut off.

    Args:
        descriptor: the file.
        size: the complete blob's length in bytes.

    Raises:
        OSError: the system refuses.
    """
    status = os.fstat(descriptor)
    length = status.st_size
    if length > size:
        length = 0
    elif length and status.st_mtime < _boot_time():
        # The machine was off since then: what was not yet on the disk may be zeros.
        length = max(0, length // SYNC_EVERY - 2) * SYNC_EVERY
    if length != status.st_size:
        os.ftruncate(descriptor, length)
    return length


class ResumableFile:
    """What of a blob is on the disk by now.

    Args:
        descriptor: the file.
        etag: the hash that names the blob.
        size: the complete blob's length in bytes.
        on_progress: is called with the number of bytes that are on the disk.
    """

    def __init__(
        self, descriptor: int, etag: str, size: int, on_progress: Callable[[int], None]
    ) -> None:
        self.position = 0
        self._etag = etag
        self._size = size
        self._descriptor = descriptor
        self._on_progress = on_progress
        self._digest = new_hash(etag, size)
        self._writeback = Writeback(descriptor, SYNC_EVERY)

    @property
    def is_complete(self) -> bool:
        """Whether what is on the disk is the complete blob."""
        return self.hash == self._etag

    @property
    def hash(self) -> str:
        """The hash of what is on the disk."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Bring all to the disk.

        Raises:
            OSError: the system refuses.
        """
        os.fsync(self._descriptor)
        self._writeback.start(self.position)

    def resume(self, length: int, check: Callable[[], None]) -> None:
        """Hash what is on the disk already, and continue behind it.

        Args:
            length: how much of it, in bytes.
            check: is called from time to time, and raises to stop.

        Raises:
            OSError: the system refuses, or the file became shorter.
        """
        self._digest = hash_of(self._descriptor, self._etag, self._size, length, check)
        self.position = length
        self._writeback.start(length)
        os.lseek(self._descriptor, length, os.SEEK_SET)
        self._on_progress(length)

    def add(self, data: bytes) -> None:
        """Write what comes next.

        Raises:
            OSError: the system refuses.
        """
        write_all(self._descriptor, data)
        self._digest.update(data)
        self.position += len(data)
        self._on_progress(self.position)
        self._writeback.reached(self.position)

    def restart(self) -> None:
        """Throw all away.

        Raises:
            OSError: the system refuses.
        """
        self._on_progress(0)
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._digest = new_hash(self._etag, self._size)
        self.position = 0
        self._writeback.start(0)


def copy_bytes(source: int, target: int, length: int, check: Callable[[], None]) -> None:
    """Copy the next bytes of a file to another.

    Args:
        source: the descriptor of the one.
        target: the descriptor of the other.
        length: bytes.
        check: is called from time to time, and raises to stop.

    Raises:
        OSError: the system refuses, or the file is shorter.
    """
    position, by_kernel = 0, hasattr(os, "copy_file_range")
    while position < length:
        check()
        count, _ = copy_block(source, target, min(BLOCK, length - position), by_kernel)
        by_kernel, position = count > 0 and by_kernel, position + count


def hash_of(descriptor: int, etag: str, size: int, length: int, check: Callable[[], None]) -> _Hash:
    """Return the hash of the first bytes of a file, to which more can be added.

    Args:
        descriptor: the file.
        etag: the hash that names the blob.
        size: the complete blob's length in bytes.
        length: bytes to hash.
        check: is called from time to time, and raises to stop.

    Raises:
        OSError: the system refuses, or the file is shorter.
    """
    digest = new_hash(etag, size)
    os.lseek(descriptor, 0, os.SEEK_SET)
    while length > 0:
        check()
        block = os.read(descriptor, min(BLOCK, length))
        if not block:
            raise OSError(errno.EIO, "the partial download became shorter")
        digest.update(block)
        length -= len(block)
    return digest


def copy_beginning(
    tree: Tree,
    partial: str,
    size: int,
    check: Callable[[], None],
    known_bad: Callable[[], Collection[_Known]],
) -> None:
    """Make a partial of what another program left behind of the same blob, which stays as it is.

    It is one that nobody has open or locked, that was not written to for an hour and has no holes;
    of several the longest. Whether its bytes are correct shows once the blob is complete.

    Args:
        tree: the cache.
        partial: the path of ours; if it exists, nothing is done.
        size: the complete blob's length in bytes.
        check: is called from time to time, and raises to stop.
        known_bad: returns the files that were found to be corrupted, as `Journal.damaged` does.

    Raises:
        OSError: the system refuses to write.
    """
    if tree.exists(partial):
        return
    with contextlib.ExitStack() as stack:
        length, source = _longest_of_others(tree, partial, size, known_bad, stack)
        if not length:
            return
        target = stack.enter_context(opened(tree, partial))
        # If not all can be copied, what was copied is a beginning too.
        with contextlib.suppress(OSError):
            copy_bytes(source, target, length, check)
        # `usable` judges by it what a lost power supply has left of the bytes.
        status = os.fstat(source)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def bad_beginning(
    tree: Tree, partial: str, size: int, known_bad: Callable[[], Collection[_Known]]
) -> list[Identity]:
    """Return the file of which `copy_beginning` made a partial that was corrupted, if any."""
    with contextlib.ExitStack() as stack:
        length, source = _longest_of_others(tree, partial, size, known_bad, stack)
        if not length:
            return []
        status = os.fstat(source)
        times = status.st_mtime_ns, status.st_ctime_ns
        return [Identity(status.st_dev, status.st_ino, status.st_size, *times)]


def _longest_of_others(
    tree: Tree,
    partial: str,
    size: int,
    known_bad: Callable[[], Collection[_Known]],
    stack: contextlib.ExitStack,
) -> tuple[int, int]:
    """Return the length of the longest partial that another program left, and it opened.

    The length is 0 if there is none. The arguments are those of `copy_beginning`, and what closes
    the file.
    """
    folder, name = os.path.split(partial)
    etag = name.removesuffix(layout.PARTIAL_SUFFIX)
    lock = os.path.join(folder, etag + layout.LOCK_SUFFIX)
    others = {other for other in tree.names(folder) if layout.partial_etag(other) == etag}
    others.difference_update(layout.own_partials(etag))
    if not others or lock_held(lock, tree):
        return 0, -1
    bad = known_bad()
    begun: list[tuple[int, int]] = []
    for other in others:
        path = os.path.join(folder, other)
        with contextlib.suppress(OSError):
            source = tree.open(path)
            stack.callback(os.close, source)
            status = os.fstat(source)
            key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            length = 0 if key in bad else _usable_of_other(source, path, size)
            begun.append((length, source))
    return max(begun, default=(0, -1))


def _usable_of_other(descriptor: int, path: str, size: int) -> int:
    """Return how many bytes of another program's partial can be the beginning of a blob."""
    status = os.fstat(descriptor)
    length = status.st_size
    resumable = is_resumable(
        size,
        ours=False,
        size=length,
        allocated=allocated_bytes(status),
        age=time.time() - status.st_mtime,
    )
    if not resumable or find_users({(status.st_dev, status.st_ino): path}).files:
        return 0
    try:
        hole = os.lseek(descriptor, 0, os.SEEK_HOLE)
    except (AttributeError, OSError):  # a system or filesystem that does not say where they are
        hole = length
    os.lseek(descriptor, 0, os.SEEK_SET)
    return length if hole == length else 0


def copy_block(source: int, target: int, most: int, by_kernel: bool) -> tuple[int, bytes | None]:
    """Copy the next bytes of a file to another, by the filesystem itself if it can.

    Args:
        source: the descriptor of the one.
        target: the descriptor of the other.
        most: bytes.
        by_kernel: whether the kernel is asked.

    Returns:
        How many bytes were copied, and these if they were read. `0, None` if the kernel was asked
        and does not copy here.

    Raises:
        OSError: the system refuses, or the file became shorter.
    """
    if by_kernel:
        try:
            # Some filesystems copy nothing and report no error.
            return os.copy_file_range(source, target, most), None
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            return 0, None
    block = os.read(source, most)
    if not block:
        raise OSError(errno.EIO, "the file became shorter meanwhile")
    write_all(target, block)
    return len(block), block


def _boot_time() -> float:
    """Return when the machine started, in seconds since the epoch."""
    import psutil

    try:
        return float(psutil.boot_time())
    except (OSError, RuntimeError, psutil.Error):
        return 0.0
