"""Holding a lock file while something is removed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


class TakenError(Exception):
    """Some process uses it now."""


@contextlib.contextmanager
def hold_lock(
    path: str, mode: int, seconds: float, *, force: bool
) -> Iterator[BaseFileLock | None]:
    """Hold a lock file in the way that huggingface_hub does."""
    import filelock

    if os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    lock = filelock.FileLock(path, timeout=seconds, mode=mode)
    try:
        lock.acquire()
    except filelock.Timeout:
        if not force:
            raise TakenError(f"the hub's lock is held: {path}") from None
        yield None
        return
    try:
        yield lock
    finally:
        with contextlib.suppress(OSError):
            lock.release()
