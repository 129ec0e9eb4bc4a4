"""Threads that are waited for, until their work is done or a signal arrives."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

from vlmcache.progress import Pace, Stopped

_LEAVE_AFTER = 5.0
"""Seconds that threads get to put things in order when the work is stopped."""

_T = TypeVar("_T")


def run_in_threads(
    work: Callable[[], None], count: int, stop: Callable[[], None], leave_after: float
) -> None:
    """Let threads do some work, and wait for their end.

    Args:
        work: what each of them does; it returns soon once `stop` was called.
        count: how many.
        stop: is called if a signal arrives here.
        leave_after: seconds that each gets then to put things in order.

    Raises:
        BaseException: what the signal's handler raised.
    """
    # Daemons, since a thread that waits for somebody else must not hold up the process's end.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                # With a bound, since a wait without one keeps signals out on Windows.
                thread.join(0.5)
    except BaseException:
        stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join(leave_after)
        raise


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
