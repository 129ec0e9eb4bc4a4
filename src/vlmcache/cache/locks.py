"""Whether a lock of the hub is held; only this module decides it.

A lock is a file on which its holder has an flock, as filelock takes it. If the filesystem has no
flock (Lustre, CIFS, buckets), a lock counts as held while its file exists and was written within
the last hour.
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
"""Seconds after the last write during which a lock or partial counts as held without an flock."""
_WITHOUT = "this filesystem has no locks: files written within the last hour count as in use"
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
_LOCKLESS: dict[int, str] = {}
"""Device of each filesystem without locks that was met -> a path on it."""


def lockless() -> tuple[Finding, ...]:
    """Return a finding for each filesystem without locks that this process has met."""
    return tuple(
        Finding("no-locks", "warning", None, path, _WITHOUT, "pull from one machine at a time")
        for path in _LOCKLESS.values()
    )


def flock(descriptor: int, path: str, *, shared: bool = False) -> bool | None:
    """Try to lock an open file at once.

    Args:
        descriptor: the file.
        path: its path.
        shared: whether others may lock it too; that is enough to find out whether it is held.

    Returns:
        Whether it is locked now; `None` if the filesystem has no locks.

    Raises:
        OSError: the system refuses for another reason than that somebody holds it.
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
        if _LOCKLESS.setdefault(os.fstat(descriptor).st_dev, path) == path:
            log.info("locks", "%s: '%s'", _WITHOUT, path)
        return None
    return True


def is_fresh(status: os.stat_result, now: float | None = None) -> bool:
    """Return whether a file was written within the last hour.

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
        # A shared lock fails only if somebody holds the hub's exclusive one: two processes that
        # check do not see each other. Network drives grant it for a file open for reading.
        free = flock(descriptor, path, shared=True)
        return is_fresh(os.fstat(descriptor)) if free is None else not free
    finally:
        os.close(descriptor)


def lock_held(path: str, tree: CacheTree | None = None) -> bool:
    """Return whether another process holds the hub's lock at a path.

    A lock that cannot be tried counts as held, since deleting under it would do more harm.

    Args:
        path: the lock's file.
        tree: the cache that it is in, so that no link on the way leads out of it.
    """
    try:
        return check_lock(tree or CacheTree(os.path.dirname(path)), path)
    except OSError:
        return True


def partial_in_use(path: str, tree: CacheTree) -> bool:
    """Return whether a partial may be in use on a filesystem without locks, judged by its time.

    There, neither the processes of other machines nor their locks can be seen.
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
