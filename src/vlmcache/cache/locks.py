"""Whether a lock of the hub is held, and by whom: the one place that decides it.

A lock is a file on which its holder has an flock, as filelock takes it. Where the filesystem has no
flock (Lustre, CIFS, buckets), it is held while its file is there and was written within the hour.
"""

from __future__ import annotations

import errno
import os
import sys
import time

from vlmcache import log
from vlmcache.cache.state import Finding
from vlmcache.cache.tree import CacheTree

SOFT_SECONDS = 3600.0
"""Seconds since it was written in which a lock or a partial counts as held without an flock."""
_WITHOUT = "this filesystem has no locks: what was written within the hour counts as in use"
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
_UNLOCKED: dict[int, str] = {}
"""Device of each filesystem without locks that was met -> a path on it."""


def unlocked() -> tuple[Finding, ...]:
    """Return a finding for each filesystem without locks that this process has met."""
    return tuple(
        Finding("no-locks", "warning", None, path, _WITHOUT, "pull from one machine at a time")
        for path in _UNLOCKED.values()
    )


def flock(descriptor: int, path: str, *, shared: bool = False) -> bool | None:
    """Try to lock an open file at once.

    Args:
        descriptor: the file.
        path: its path.
        shared: whether others may have it at the same time, as is enough to see whether it is held.

    Returns:
        Whether it is locked now; `None` if the filesystem has no locks.

    Raises:
        OSError: the system refuses for another reason than that it is held.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in _NO_LOCKS:
            raise
        if _UNLOCKED.setdefault(os.fstat(descriptor).st_dev, path) == path:
            log.info("locks", "%s: '%s'", _WITHOUT, path)
        return None
    return True


def is_fresh(status: os.stat_result, now: float | None = None) -> bool:
    """Return whether a file was written within the hour.

    Args:
        status: of the file.
        now: the filesystem's own time; this machine's if not given.
    """
    return (time.time() if now is None else now) - status.st_mtime < SOFT_SECONDS


def check_lock(tree: CacheTree, path: str) -> bool:
    """Return whether another process holds the lock at a path; nothing is created or changed.

    Raises:
        StaleError: it is not a regular file.
        OSError: it cannot be tried.
    """
    try:
        descriptor = tree.open(path)
    except FileNotFoundError:
        return False
    try:
        # A shared lock fails just where somebody holds the hub's exclusive one; two that only
        # look do not see each other, and network drives take it on a file open for reading.
        free = flock(descriptor, path, shared=True)
        return is_fresh(os.fstat(descriptor)) if free is None else not free
    finally:
        os.close(descriptor)


def lock_held(path: str, tree: CacheTree | None = None) -> bool:
    """Return whether another process holds the hub's lock at a path.

    A lock that cannot be tried counts as held, since deleting under it would be the greater harm.

    Args:
        path: the lock's file.
        tree: the cache that it is in, so that no link on the way leads out of it.
    """
    try:
        return check_lock(tree or CacheTree(os.path.dirname(path)), path)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def partial_in_use(path: str, tree: CacheTree) -> bool:
    """Return whether a partial may be being written where nothing but its time can say so.

    Processes of other machines cannot be seen, nor their locks on a filesystem without locks.
    """
    try:
        descriptor = tree.open(path)
    except OSError:
        return False
    try:
        return flock(descriptor, path, shared=True) is None and is_fresh(os.fstat(descriptor))
    except OSError:
        return False
    finally:
        os.close(descriptor)
