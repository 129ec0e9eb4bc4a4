"""Several things at once, until all are done, one fails, or a signal arrives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

from vlmcache.hub.progress import Pace, Stopped
from vlmcache.hub.threads import run_in_threads

_LEAVE_AFTER = 5.0
"""Seconds that threads get to put things in order when the work is stopped."""

_T = TypeVar("_T")


def each(items: Iterable[_T], work: Callable[[_T], None], workers: int, pace: Pace) -> None:
    """Do some work for each item, in several threads.

    Args:
        items: taken in their order.
        work: does it; it calls `pace.sleep(0)` now and then, which ends it with `Stopped`.
        workers: threads.
        pace: is stopped if any of the work fails, or a signal arrives here.

    Raises:
        Exception: the first that some work raised; what else was begun has ended by then.
    """
    pending = deque(items)
    failures: list[Exception] = []

    def work_on() -> None:
        while not pace.stopped.is_set():
            try:
                item = pending.popleft()
            except IndexError:
                return
            try:
                work(item)
            except Stopped:
                return
            except Exception as error:
                failures.append(error)
                pace.stopped.set()

    run_in_threads(work_on, min(workers, len(pending)), pace.stopped.set, _LEAVE_AFTER)
    if failures:
        raise failures[0]
