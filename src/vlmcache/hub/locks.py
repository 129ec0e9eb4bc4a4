"""The hub's own locks: one per blob, held while it is downloaded."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator

from vlmcache import log
from vlmcache.cache.owners import denial
from vlmcache.change.locks import PROBE_SECONDS, Lock
from vlmcache.change.tree import Tree
from vlmcache.errors import CacheError, reason_of
from vlmcache.progress import StopToken

_TELL_EVERY = 30.0
_GROWTH_SECONDS = 60.0
"""Seconds that a download waits for another one of the same blob from which nothing comes."""


@contextlib.contextmanager
def blob_lock(
    tree: Tree,
    path: str,
    stop_token: StopToken,
    note: Callable[[str], None],
    arrived: Callable[[], int] | None = None,
) -> Iterator[None]:
    """Hold the lock of a blob, as the client's downloads do; wait for it, and say for whom.

    Args:
        tree: the hub cache.
        path: the lock's file, `.locks/<repo folder>/<etag>.lock`.
        stop_token: ends the waiting.
        note: called with a line about the waiting.
        arrived: returns a number that grows while others bring the blob; as long as it does, the
            waiting continues. If not given, what is left of the tree's patience counts.

    Raises:
        InUseError: it is held too long.
        CacheError: this user may not open it, or make it.
        OSError: the lock cannot be made.
        Stopped: the work was asked to stop.
    """
    lock = Lock(tree, path)
    told = most = 0
    spent = 0.0
    until = _GROWTH_SECONDS if arrived is not None else max(tree.patience, PROBE_SECONDS)

    def patient(waited: float) -> bool:
        nonlocal told, most, until, spent
        spent = waited
        if waited >= told * _TELL_EVERY:
            told += 1
            log.info("locks", "waiting for %s, which holds '%s'", lock.holder(), path)
            note(f"waiting for {lock.holder()}, which downloads the same file (lock: {path})")
        if arrived is not None and (count := arrived()) > most:
            most, until = count, waited + _GROWTH_SECONDS
        stop_token.check()
        return waited < until

    try:
        tree.make_folders(os.path.dirname(path))
        lock.take(patient)
    except PermissionError as error:
        raise _shut_out(error, path, tree.root) from error
    finally:
        tree.patience -= spent if arrived is None else 0.0
    try:
        yield
    finally:
        lock.release()


def _shut_out(error: PermissionError, path: str, root: str) -> CacheError:
    """Return who owns the lock, or its folder, that this user may not open, and what to do."""
    denied = denial(path, root) or denial(path, root, to_write=True)
    if denied is None:
        return CacheError(f"the lock cannot be opened: {reason_of(error)}: {path}")
    remedy = denied.remedy
    if os.path.exists(path):
        remedy = f"if no download of theirs is running: sudo rm {shlex.quote(path)}"
    return CacheError(f"the lock cannot be opened: {denied.words}", remedy)
