"""A blob that is arriving: a file written and hashed from front to back, resumed if interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vlmcache.cache.hashing import BLOCK, new_hash
from vlmcache.change.tree import Tree, write_all

if TYPE_CHECKING:
    from hashlib import _Hash

SYNC_EVERY = 16 << 20
"""Bytes after which a download is brought to the disk: what a lost power supply can cost."""


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
        length = max(0, length // SYNC_EVERY - 1) * SYNC_EVERY
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
        self._synced = 0

    @property
    def right(self) -> bool:
        """Whether what is on the disk is the complete blob."""
        return self.hash == self._etag

    @property
    def hash(self) -> str:
        """The hash of what is on the disk."""
        return self._digest.hexdigest()

    def resume(self, length: int, check: Callable[[], None]) -> None:
        """Hash what is on the disk already, and continue behind it.

        Args:
            length: how much of it, in bytes.
            check: is called from time to time, and raises to stop.

        Raises:
            OSError: the system refuses, or the file became shorter.
        """
        self._digest = hash_of(self._descriptor, self._etag, self._size, length, check)
        self.position = self._synced = length
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
        if self.position - self._synced >= SYNC_EVERY:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
            self._synced = self.position

    def restart(self) -> None:
        """Throw all away.

        Raises:
            OSError: the system refuses.
        """
        self._on_progress(0)
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._digest = new_hash(self._etag, self._size)
        self.position = self._synced = 0


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


def _boot_time() -> float:
    """Return when the machine started, in seconds since the epoch."""
    import psutil

    try:
        return float(psutil.boot_time())
    except (OSError, RuntimeError, psutil.Error):
        return 0.0
