"""Progress that is shown anew at intervals."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping

from vlmcache.progress import Tally
from vlmcache.show.layout import Pace


class Ticking(Tally):
    """Shows progress at intervals, from a thread, between the beginning and the end of work."""

    every: float | None = None
    """Seconds between them; nothing is shown if `None`."""

    def __init__(self) -> None:
        super().__init__()
        self.pace = Pace(self)
        self._over = threading.Event()
        self._ticker: threading.Thread | None = None

    def open(self) -> None:
        """Begin to show."""

    def tick(self, now: float) -> None:
        """Show how far it is at a time in seconds."""

    def close(self) -> None:
        """Stop showing."""

    def planned(self, done: str, sizes: Mapping[str, int], have: Mapping[str, int]) -> None:
        """Begin to show, unless nothing is to be done."""
        super().planned(done, sizes, have)
        self._begin()

    def started(self, repo: str, sizes: Mapping[str, int], have: int) -> None:
        """Begin a model, and to show if that has not begun."""
        super().started(repo, sizes, have)
        self._begin()

    def ended(self, repo: str) -> None:
        """End a model, and to show if nothing else was planned."""
        super().ended(repo)
        if not self._is_planned:
            self._end()

    def finished(self) -> None:
        """Stop showing."""
        super().finished()
        self._end()

    def _begin(self) -> None:
        if self._ticker is not None or self.every is None or not self.models:
            return
        self.pace = Pace(self)
        self.pace.at(time.monotonic())
        self._over.clear()
        self.open()
        self._ticker = threading.Thread(target=self._tick, args=(self.every,), daemon=True)
        self._ticker.start()

    def _tick(self, every: float) -> None:
        # What reads stderr may go away, and is no reason to stop the work.
        with contextlib.suppress(OSError):
            while not self._over.wait(every):
                self.tick(time.monotonic())

    def _end(self) -> None:
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            self._over.set()
            ticker.join()
            self.close()
