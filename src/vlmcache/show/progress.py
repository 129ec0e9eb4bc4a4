"""Progress on stderr: bars on a terminal, elsewhere a plain line now and then.

Nothing heavy is imported here: most pulls find all in place and show no progress.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from vlmcache.config import is_on
from vlmcache.progress import Progress, Sum, scanned
from vlmcache.show.text import printable
from vlmcache.units import duration_text, size_text

LINE_EVERY = 10.0
"""Seconds between the lines that stand in for bars."""
_SCAN_AFTER, _SCAN_EVERY = 1.0, 0.2
"""Seconds until the line of a scan is shown, and until it is shown anew."""


def on_stderr(*, quiet: bool) -> Progress:
    """Return what shows a download's progress on this process's stderr."""
    if quiet:
        return Lines(sys.stderr, every=None)
    # The hub's own variable says whether there are to be bars.
    if not sys.stderr.isatty() or is_on(os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")):
        return Lines(sys.stderr)
    from vlmcache.show.bars import Bars
    from vlmcache.show.console import styled

    return Bars(sys.stderr) if styled(sys.stderr) else Lines(sys.stderr)


@contextlib.contextmanager
def scan_line(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Show meanwhile how far the scan of a very large cache is, once it has taken a second.

    Args:
        stream: a terminal; the line is wiped in the end.
        clock: seconds.
    """
    next_at, width = 0.0, 0

    def tell(done: int, count: int) -> None:
        nonlocal next_at, width
        now = clock()
        if done == 0:
            next_at = now + _SCAN_AFTER
        elif now >= next_at:
            next_at = now + _SCAN_EVERY
            line = f"reading the cache: {done:,} of {count:,} repos"
            width = max(width, len(line))
            stream.write("\r" + line)
            stream.flush()

    before = scanned.set(tell)
    try:
        yield
    finally:
        scanned.reset(before)
        if width:
            # Not by an escape code, which some terminals do not want.
            stream.write("\r" + " " * width + "\r")
            stream.flush()


class Lines(Progress):
    """One plain line every ten seconds; notes at once.

    Args:
        stream: where to.
        every: seconds between lines; none but notes if not given.
    """

    def __init__(self, stream: TextIO, every: float | None = LINE_EVERY) -> None:
        self._stream = stream
        self._every = every
        self._lock = threading.Lock()
        self._sum = Sum()
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None

    def started(self, repo: str, sizes: Mapping[str, int], have: int) -> None:
        """Begin to show."""
        with self._lock:
            self._sum.begin(sizes, have)
        if self._every is None or not sizes:
            return
        self._ended.clear()
        self._ticker = threading.Thread(target=self._tick, args=(repo, self._every), daemon=True)
        self._ticker.start()

    def _tick(self, repo: str, every: float) -> None:
        before, at = self._sum.have, time.monotonic()
        while not self._ended.wait(every):
            with self._lock:
                done, total = self._sum.done, self._sum.total
            now = time.monotonic()
            speed = max(0.0, (done - before) / (now - at))
            before, at = done, now
            left = f", {duration_text((total - done) / speed)} left" if speed > 0 else ", stalled"
            self._print(
                f"{repo}: {size_text(done)} of {size_text(total)}, {size_text(int(speed))}/s{left}"
            )

    def moved(self, repo: str, file: str, position: int) -> None:  # noqa: ARG002
        """Take note of a position."""
        with self._lock:
            self._sum.positions[file] = position

    def ended(self, repo: str) -> None:  # noqa: ARG002
        """Stop showing."""
        self._ended.set()
        if self._ticker is not None:
            self._ticker.join()
            self._ticker = None

    def note(self, text: str) -> None:
        """Print a line."""
        self._print(text)

    def _print(self, text: str) -> None:
        print(f"vlmcache: {printable(text)}", file=self._stream, flush=True)
