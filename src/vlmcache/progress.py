"""How a download tells what it does; whoever shows it decides how."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping


class Watcher:
    """Is told of a download's progress, from several threads; this one keeps it to itself."""

    def started(self, repo: str, sizes: Mapping[str, int], have: int) -> None:
        """A repo's transfer begins: file name -> bytes, and the bytes already there."""

    def moved(self, repo: str, file: str, position: int) -> None:
        """So many bytes of a file are there now; fewer than before where it starts again."""

    def ended(self, repo: str) -> None:
        """A repo's transfer is over, well or not."""

    def note(self, text: str) -> None:
        """Something that a person would want to know while waiting."""


class Stopped(Exception):  # noqa: N818 - not a failure: someone asked for it
    """The work was asked to stop."""


class Pace:
    """Keeps all transfers together below a rate, and lets each of them stop at once.

    Args:
        rate: bytes a second; no bound if not given.
    """

    def __init__(self, rate: int | None = None) -> None:
        self.rate = rate
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait until so many bytes may be received.

        Raises:
            Stopped: the work was asked to stop.
        """
        wait = 0.0
        if self.rate:
            with self._lock:
                now = time.monotonic()
                # What was not used in the last quarter of a second may be made up for.
                self._free_at = max(self._free_at, now - 0.25) + count / self.rate
                wait = self._free_at - now
        self.sleep(wait)

    def sleep(self, seconds: float) -> None:
        """Wait, and no longer than until the work is asked to stop.

        Raises:
            Stopped: it was.
        """
        if self.stopped.wait(seconds) if seconds > 0 else self.stopped.is_set():
            raise Stopped
