"""Threads that are waited for, until their work is done or a signal arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable


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
