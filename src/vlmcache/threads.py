"""Work in threads, which are waited for until they are done or a signal arrives."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TypeVar

from vlmcache.progress import Stopped, StopToken

_LEAVE_AFTER = 5.0
"""Seconds that each thread gets to clean up when the work is stopped."""

_QUESTIONS = 8
"""Threads that wait for answers at the same time."""

_T = TypeVar("_T")
_R = TypeVar("_R")


@contextlib.contextmanager
def _threads(
    work: Callable[[], None], count: int, stop: Callable[[], None], leave_after: float
) -> Iterator[None]:
    """Let threads do some work while the block runs, and wait for their end after it."""
    # Daemons: a thread that waits for somebody else must not delay the end of the process.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            while thread.is_alive():
                # With a limit: on Windows no signal gets through a wait without one.
                thread.join(0.5)
    except BaseException:
        stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join(leave_after)
        raise


def run_in_threads(
    work: Callable[[], None], count: int, stop: Callable[[], None], leave_after: float
) -> None:
    """Let threads do some work, and wait for their end.

    Args:
        work: what each of them does; it returns soon once `stop` was called.
        count: how many.
        stop: is called if a signal arrives here.
        leave_after: seconds that each thread then gets to clean up.

    Raises:
        BaseException: what the signal's handler raised.
    """
    with _threads(work, count, stop, leave_after):
        pass


def results(
    items: Iterable[_T], work: Callable[[_T], _R], workers: int, stopped: threading.Event
) -> Generator[_R, None, None]:
    """Do some work for each item in several threads, and yield what it returns, in no order.

    Close the iterator to stop early.

    Args:
        items: taken in their order.
        work: does it; it raises `Stopped` soon once `stopped` is set.
        workers: threads.
        stopped: is set if any of the work fails, or a signal arrives here.

    Raises:
        Exception: the first that any work raised, once all threads have ended.
    """
    pending = deque(items)
    left = len(pending)
    done: queue.SimpleQueue[_R | Exception] = queue.SimpleQueue()

    def work_on() -> None:
        while not stopped.is_set():
            try:
                item = pending.popleft()
            except IndexError:
                return
            try:
                done.put(work(item))
            except Exception as error:
                done.put(error)
                stopped.set()

    failure: Exception | None = None
    with _threads(work_on, min(workers, left), stopped.set, _LEAVE_AFTER):
        while left and failure is None:
            try:
                result = done.get(timeout=0.5)
            except queue.Empty:
                failure = Stopped() if stopped.is_set() else None
                continue
            if isinstance(result, Exception):
                failure = result
            else:
                left -= 1
                yield result
    if failure is not None:
        raise failure


def each(
    items: Iterable[_T], work: Callable[[_T], None], workers: int, stop_token: StopToken
) -> None:
    """Do some work for each item, in several threads.

    Args:
        items: taken in their order.
        work: does it; it calls `stop_token.check()` now and then, which ends it with `Stopped`.
        workers: threads.
        stop_token: is stopped if any of the work fails, or a signal arrives here.

    Raises:
        Exception: the first that any work raised, once all threads have ended.
    """
    with contextlib.closing(results(items, work, workers, stop_token.stopped)) as done:
        for _ in done:
            pass


def in_parallel(
    items: Sequence[_T],
    work: Callable[[_T], _R],
    stop: Callable[[], None],
    done: Callable[[int], None] = lambda _: None,
) -> list[_R]:
    """Return what some work returns for each item, in their order; it is done in several threads.

    Args:
        items: a single one is worked on in this thread.
        work: waits for answers more than it computes, and may be abandoned at any moment.
        stop: is called if a signal arrives here.
        done: is called with how many are done, from any of the threads.

    Raises:
        Exception: the first that some work raised.
    """
    if len(items) < 2:
        return [work(item) for item in items]
    pending = deque(enumerate(items))
    returned: dict[int, _R] = {}
    failures: list[Exception] = []

    def work_on() -> None:
        while not failures:
            try:
                number, item = pending.popleft()
            except IndexError:
                return
            try:
                returned[number] = work(item)
            except Exception as error:
                failures.append(error)
            done(len(returned))

    run_in_threads(work_on, min(_QUESTIONS, len(items)), stop, 0.0)
    if failures:
        raise failures[0]
    return [returned[number] for number in range(len(items))]


class StillError(Exception):
    """Some work has stopped making progress."""


def unless_still(work: Callable[[], _R], seconds: float) -> _R:
    """Return what some work returns, however long it takes, unless it stops making progress.

    It has if its thread uses no processor time: reading from a disk, however slow, uses some for
    each block, and waiting for a drive that has gone uses none. Such a thread is abandoned. Where
    the system does not show what a thread uses, the work is always waited for.

    Args:
        work: what is done, in a thread of its own.
        seconds: how long it may go without progress.

    Raises:
        StillError: it stopped making progress.
        BaseException: what the work raised.
    """
    clocks: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    results: list[_R] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        clock = getattr(time, "pthread_getcpuclockid", None)
        clocks.put(None if clock is None else clock(threading.get_ident()))
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    clock = clocks.get()
    used, since = -1.0, time.monotonic()
    while not done.wait(min(0.5, seconds)):
        now = time.monotonic()
        # The thread may have ended by now.
        with contextlib.suppress(OSError):
            spent = now if clock is None else time.clock_gettime(clock)
            used, since = spent, (now if spent != used else since)
        if now - since >= seconds:
            raise StillError(f"nothing was read for {seconds:g} s")
    if failures:
        raise failures[0]
    return results[0]
