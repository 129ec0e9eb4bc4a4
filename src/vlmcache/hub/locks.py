"""The hub's own locks: one per blob, held while it is downloaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from vlmcache import log
from vlmcache.cache.owners import denial
from vlmcache.change.locks import PROBE_SECONDS, Lock
from vlmcache.change.tree import Tree
from vlmcache.errors import CacheError, InUseError, reason_of
from vlmcache.progress import StopToken
from vlmcache.units import shell_words

_ASK_EVERY = 1.0
"""Seconds between checks of who holds a lock."""
_GROWTH_SECONDS = 60.0
"""Seconds that a download waits for another one of the same blob that does not progress."""


@contextlib.contextmanager
def blob_lock(
    tree: Tree,
    path: str,
    stop_token: StopToken,
    waiting: Callable[[str | None], None],
    arrived: Callable[[], int] | None = None,
    longest: float | None = None,
) -> Iterator[None]:
    """Hold the lock of a blob, as the client's downloads do; wait for it, and report who has it.

    Args:
        tree: the hub cache.
        path: the lock's file, `.locks/<repo folder>/<etag>.lock`.
        stop_token: ends the waiting.
        waiting: called with who holds it, in words, and with `None` once the waiting is over.
        arrived: returns a number that grows while others bring the blob; as long as it does, the
            waiting continues. If not given, what is left of the tree's patience counts.
        longest: seconds to wait at most for others that bring the blob; no limit if not given.

    Raises:
        InUseError: it is held too long.
        CacheError: this user may not open it, or make it.
        OSError: the lock cannot be made.
        Stopped: the work was asked to stop.
    """
    lock = Lock(tree, path)
    most = 0
    spent = ask_at = 0.0
    holder: str | None = None
    until = _GROWTH_SECONDS if arrived is not None else max(tree.patience, PROBE_SECONDS)

    def patient(waited: float) -> bool:
        nonlocal holder, ask_at, most, until, spent
        spent = waited
        if waited >= ask_at:
            ask_at = waited + _ASK_EVERY
            before, holder = holder, lock.holder()
            if holder != before:
                log.info("locks", "waiting for %s, which holds '%s'", holder, path)
                waiting(holder)
        if arrived is not None and (count := arrived()) > most:
            most, until = count, waited + _GROWTH_SECONDS
        stop_token.check()
        return waited < (until if longest is None else min(until, longest))

    try:
        tree.make_folders(os.path.dirname(path))
        lock.take(patient)
    except PermissionError as error:
        raise _shut_out(error, path, tree.root) from error
    except InUseError as error:
        if longest is None or spent < longest:
            raise
        hint = "pull again later, or wait longer with --max-wait"
        raise InUseError(error.message, hint) from error
    finally:
        tree.patience -= spent if arrived is None else 0.0
        if holder is not None:
            waiting(None)
    try:
        yield
    finally:
        lock.release()


def _shut_out(error: PermissionError, path: str, root: str) -> CacheError:
    """Return the failure for a lock that this user may not open, with its owner and what to do."""
    denied = denial(path, root) or denial(path, root, to_write=True)
    if denied is None:
        return CacheError(f"the lock cannot be opened: {reason_of(error)}: {path}")
    remedy = denied.remedy
    if os.path.exists(path):
        remedy = f"if no download of theirs is running: sudo rm {shell_words(path)}"
    return CacheError(f"the lock cannot be opened: {denied.words}", remedy)
