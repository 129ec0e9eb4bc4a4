"""A blob that may be sent again: compared with what is here, continued apart where it differs."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vlmcache.cache import layout
from vlmcache.change import partials
from vlmcache.change.place import is_full
from vlmcache.change.tree import Tree

if TYPE_CHECKING:
    from hashlib import _Hash

_FICLONE = 0x40049409
"""`ioctl_ficlone(2)`, which Python's fcntl does not name in all versions."""
_TOUCH_EVERY = 1 << 20
"""Compared bytes after which others are to see that a download continues."""


class ArrivingBlob(partials.ResumableFile):
    """A blob that may be sent again from the start, or from any offset that is here already.

    What is sent again is compared with what is on the disk, which stays as it is as long as both
    agree. From the first difference on, a second file takes what arrives, after a copy of what
    comes before. Once it is the longer one, it replaces the first; earlier if the disk is full.

    Args:
        tree: the cache.
        partial: the path.
        etag: the hash that names the blob.
        size: the complete blob's length in bytes.
        on_progress: is called with the number of bytes that are on the disk.
    """

    def __init__(
        self, tree: Tree, partial: str, etag: str, size: int, on_progress: Callable[[int], None]
    ) -> None:
        _keep_longer(tree, partial, etag, size)
        super().__init__(tree.edit_or_create(partial), etag, size, on_progress)
        self.sent = 0
        """The offset of what is added next, which is at most `position`."""
        self._tree = tree
        self._path = partial
        # The first file as long as it is the longer one: descriptor, length, hash.
        self._first: tuple[int, int, _Hash] | None = None
        self._check: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def opened(self, check: Callable[[], None]) -> Iterator[int]:
        """Yield how many bytes can be continued, and close the file in the end.

        Args:
            check: is called from time to time, and raises to stop.
        """
        self._check = check
        try:
            self.resume(partials.usable(self._descriptor, self._size), check)
            yield self.position
        finally:
            self.fall_back()
            os.close(self._descriptor)

    def follow(self, offset: int) -> None:
        """Take what is added next for what begins at an offset, at most at `position`."""
        self.sent = offset
        os.lseek(self._descriptor, self.position, os.SEEK_SET)

    def clone(self, source: int) -> bool:
        """Share the blocks of another file, if the filesystem can; all of it is hashed then.

        Args:
            source: the descriptor of a file that should have the blob's content.

        Raises:
            OSError: the system refuses to read what is here now.
            Stopped: the work was asked to stop.
        """
        try:
            import fcntl

            fcntl.ioctl(self._descriptor, _FICLONE, source)
        except (ImportError, OSError):
            return False
        if os.fstat(self._descriptor).st_size != self._size:
            self.restart()
            return False
        self.resume(self._size, self._check)
        self.follow(self._size)
        return True

    def fall_back(self) -> None:
        """Continue at the end of the longer file, as a later run would; the other one stays."""
        if self._first is not None:
            os.close(self._descriptor)
            self._descriptor, self.position, self._digest = self._first
            self._first = None
            self._synced = self.position
            self._on_progress(self.position)
        self.follow(self.position)

    def add(self, data: bytes) -> None:
        """Compare what comes next with what is here, and write what is not.

        Raises:
            OSError: the system refuses.
            Stopped: the work was asked to stop.
        """
        data = self._without_known(data)
        if not data:
            return
        before = self.position
        try:
            super().add(data)
        except OSError as error:
            if self._first is None or self.position != before or not is_full(error):
                raise
            self._replace_first()
            os.lseek(self._descriptor, before, os.SEEK_SET)
            super().add(data)
        self.sent = self.position
        if self._first is not None and self.position > self._first[1]:
            self.sync()
            self._replace_first()

    def restart(self) -> None:
        """Throw all away.

        Raises:
            OSError: the system refuses.
        """
        super().restart()
        self.sent = 0

    def _without_known(self, data: bytes) -> bytes:
        """Return what of the data comes after all that is here, once it differs or reaches it."""
        while data and self.sent < self.position:
            os.lseek(self._descriptor, self.sent, os.SEEK_SET)
            known = os.read(self._descriptor, min(len(data), self.position - self.sent))
            if not known:
                raise OSError(errno.EIO, "the partial download became shorter")
            same = _common_length(known, data)
            if (self.sent + same) // _TOUCH_EVERY > self.sent // _TOUCH_EVERY:
                os.utime(self._descriptor)  # It is in use, although it does not grow.
            self.sent += same
            data = data[same:]
            if same < len(known):
                self._continue_apart(self.sent)
        os.lseek(self._descriptor, self.position, os.SEEK_SET)
        return data

    def _continue_apart(self, length: int) -> None:
        """Continue behind the first bytes, without losing what follows them if that is possible."""
        if self._first is None and self._has_room():
            try:
                self._begin_second(length)
                return
            except OSError as error:
                if not is_full(error):
                    raise
                self._tree.discard(self._second)
        os.ftruncate(self._descriptor, length)
        self.resume(length, self._check)

    @property
    def _second(self) -> str:
        names = layout.own_partials(self._etag)
        return os.path.join(os.path.dirname(self._path), names[1])

    def _has_room(self) -> bool:
        """Whether the second file can become as long as the first one."""
        if not hasattr(os, "fstatvfs"):
            return True
        disk = os.fstatvfs(self._descriptor)
        return disk.f_bavail * disk.f_frsize > self.position

    def _begin_second(self, length: int) -> None:
        if _length(self._tree, self._second, self._size) < 0:
            self._tree.discard(self._second)  # A link, or too long: nothing that can be continued.
        first, second = self._descriptor, self._tree.edit_or_create(self._second)
        try:
            usable = partials.usable(second, self._size)
            if usable <= length or self._hash_of(second, length) != self._hash_of(first, length):
                os.ftruncate(second, 0)
                os.lseek(first, 0, os.SEEK_SET)
                os.lseek(second, 0, os.SEEK_SET)
                partials.copy_bytes(first, second, length, self._check)
                usable = length
        except BaseException:
            os.close(second)
            raise
        self._first = first, self.position, self._digest
        self._descriptor = second
        self.resume(usable, self._check)

    def _hash_of(self, descriptor: int, length: int) -> str:
        return partials.hash_of(descriptor, self._etag, self._size, length, self._check).hexdigest()

    def _replace_first(self) -> None:
        assert self._first is not None
        self._tree.rename(self._second, self._path)
        os.close(self._first[0])
        self._first = None


def discard_partials(tree: Tree, partial: str, etag: str) -> None:
    """Remove what has arrived of a blob, as far as the system lets."""
    for name in layout.own_partials(etag):
        tree.discard(os.path.join(os.path.dirname(partial), name))


def _keep_longer(tree: Tree, partial: str, etag: str, size: int) -> None:
    """Let the longer of the two files that a transfer can leave be the partial."""
    second = os.path.join(os.path.dirname(partial), layout.own_partials(etag)[1])
    if _length(tree, second, size) > max(0, _length(tree, partial, size)):
        tree.rename(second, partial)


def _length(tree: Tree, path: str, most: int) -> int:
    """Return the length of a file that can be continued, -1 of anything else."""
    with contextlib.suppress(FileNotFoundError):
        status = tree.stat(path)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size <= most:
            return status.st_size
    return -1


def _common_length(first: bytes, second: bytes) -> int:
    """Return how many of the first bytes of two strings are the same."""
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(first), len(second)))
