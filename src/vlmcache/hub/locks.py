"""The hub's own locks: one a blob, held while it is downloaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from vlmcache.progress import Pace

_POLL = 0.25
_TELL_EVERY = 30.0


@contextlib.contextmanager
def blob_lock(path: str, pace: Pace, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a blob, as the client's downloads do; wait for it, and say on whom.

    Args:
        path: the lock's file, `.locks/<repo folder>/<etag>.lock`.
        pace: stops the waiting.
        note: is told of the waiting.

    Raises:
        OSError: the lock cannot be made.
        Stopped: the work was asked to stop.
    """
    from filelock import Timeout
    from huggingface_hub.utils._fixes import WeakFileLock

    os.makedirs(os.path.dirname(path), exist_ok=True)
    waited = 0.0
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(path, timeout=_POLL))
                break
            except Timeout:
                if waited % _TELL_EVERY == 0:
                    holder = _holder(path)
                    who = f"process {holder}" if holder else "another process"
                    note(f"waiting for {who}, which downloads the same file (lock: {path})")
                waited += _POLL
                pace.sleep(0)
        yield


def _holder(path: str) -> int | None:
    """Return the process that holds a lock, where Linux tells (`/proc/locks`, proc(5))."""
    try:
        inode = os.stat(path).st_ino
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            lines = file.readlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        # "1: FLOCK ADVISORY WRITE 4711 fe:00:1234 0 EOF"; a waiter has "->" after the number.
        if len(fields) < 6 or fields[1] == "->" or not fields[4].isdigit():
            continue
        if fields[5].rpartition(":")[2] == str(inode):
            return int(fields[4])
    return None
