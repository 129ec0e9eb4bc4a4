"""Writing a long file to the disk while more of it is written.

The kernel begins to write late, and a sync waits for everything since the one before: the disk
rests while bytes arrive, and bytes wait while the disk writes. On Linux sync_file_range(2) begins
without waiting.
"""

from __future__ import annotations

import errno
import os
import sys

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
"""The flags of sync_file_range(2), from linux/fs.h."""
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP})


class Writeback:
    """Brings a file to the disk as it grows: all of it but the last two windows.

    Args:
        descriptor: the file, which is written from front to back.
        window: length in bytes of what is written to the disk at once.
        keep: whether what is on the disk stays in the page cache too.
    """

    def __init__(self, descriptor: int, window: int, *, keep: bool = True) -> None:
        self._descriptor = descriptor
        self._window = window
        self._keep = keep
        self._begun = 0
        self._written = 0

    def start(self, position: int) -> None:
        """Say where the file is continued, or begun again: all before is on the disk."""
        self._begun = self._written = position

    def reached(self, position: int) -> None:
        """Say how long the file is by now.

        Raises:
            OSError: the disk refuses what was written before.
        """
        if position - self._begun < self._window:
            return
        if _write(self._descriptor, self._begun, position, _WRITE):
            flags = _WAIT_BEFORE | _WRITE | _WAIT_AFTER
            _write(self._descriptor, self._written, self._begun, flags)
            done = self._begun
        else:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
            done = position
        if not self._keep:
            from vlmcache.cache import page_cache

            page_cache.give_back(self._descriptor, self._written, done - self._written)
        self._written, self._begun = done, position


def _write(descriptor: int, begin: int, end: int, flags: int) -> bool:
    """Let a range be written to the disk, as the flags say; return whether the kernel can.

    Raises:
        OSError: the disk refuses.
    """
    # Files shorter than a window do without these.
    import ctypes

    from vlmcache.cache import page_cache

    if begin == end:
        # A length of 0 would stand for the rest of the file.
        return True
    library = page_cache.libc() if sys.platform.startswith("linux") else None
    call = getattr(library, "sync_file_range", None)
    if call is None:
        return False
    part = ctypes.c_int64(begin), ctypes.c_int64(end - begin)
    if not call(descriptor, *part, ctypes.c_uint(flags)):
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number))
