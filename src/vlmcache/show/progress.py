"""Progress on stderr: bars on a terminal, elsewhere a plain line now and then.

Nothing heavy is imported here: most pulls find everything in place and show no progress.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from vlmcache.config import is_on
from vlmcache.progress import Progress, scanned
from vlmcache.show.layout import MARGIN, cells, lines_of, progress_rows, text_of
from vlmcache.show.text import glyphs_of, printable
from vlmcache.show.ticking import Ticking
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
    if os.environ.get("TERM") == "dumb":
        return Lines(sys.stderr)
    from vlmcache.show.console import styled

    if not styled(sys.stderr):
        return OneLine(sys.stderr)
    from vlmcache.show.bars import Bars

    return Bars(sys.stderr)


@contextlib.contextmanager
def scan_line(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Show how far the scan of a very large cache is, once it has taken a second.

    Args:
        stream: a terminal; the line is wiped at the end.
        clock: returns seconds.
    """
    next_at, width = 0.0, 0

    def show(done: int, count: int) -> None:
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

    before = scanned.set(show)
    try:
        yield
    finally:
        scanned.reset(before)
        if width:
            # Not by an escape code, which some terminals do not take.
            stream.write("\r" + " " * width + "\r")
            stream.flush()


class Lines(Ticking):
    """One plain line every ten seconds; notes at once.

    Args:
        stream: where to.
        every: seconds between lines; none but notes if not given.
    """

    def __init__(self, stream: TextIO, every: float | None = LINE_EVERY) -> None:
        super().__init__()
        self._stream = stream
        self.every = every
        self._noted: set[str] = set()

    def tick(self, now: float) -> None:
        """Print a line."""
        speed = self.pace.at(now)
        with self.lock:
            done, total, holders = self.done, self.total, sorted(set(self.holders.values()))
            active = [name for name, share in self.models.items() if share.is_active]
            name = active[0] if len(active) == 1 else ""
            name = name if len(self.models) == 1 else f"{name}, {self.models_text}".strip(", ")
        percent = int(done / total * 100) if total else 100
        words = [f"{name}: {size_text(done)} of {size_text(total)}", f"{percent}%"]
        if speed:
            words += [f"{size_text(int(speed))}/s", f"{duration_text((total - done) / speed)} left"]
        elif speed is not None and self.is_midway and not holders:
            words.append("stalled")
        words += [f"waiting for {holder}" for holder in holders]
        self.note(", ".join(words))

    def waiting(self, repo: str, file: str, holder: str | None) -> None:
        """Say who is waited for, once."""
        super().waiting(repo, file, holder)
        with self.lock:
            if holder is None or holder in self._noted:
                return
            self._noted.add(holder)
        self.note(f"waiting for {holder}, which downloads the same files")

    def note(self, text: str) -> None:
        """Print a line; if nobody reads it any more, that is no reason to stop the work."""
        with contextlib.suppress(OSError):
            print(f"vlmcache: {printable(text)}", file=self._stream, flush=True)


class OneLine(Lines):
    """A line that is overwritten without escape codes, on a terminal that takes none."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, every=0.25)
        self._width = 0

    def tick(self, now: float) -> None:
        """Write the line over itself."""
        rows = progress_rows(self, self.pace.at(now), 1)
        columns = shutil.get_terminal_size().columns - MARGIN
        line = "".join(map(text_of, lines_of(rows, columns, glyphs_of(self._stream))))
        with self.lock:
            width, self._width = self._width, cells(line)
            self._stream.write("\r" + line + " " * min(width - self._width, columns))
            self._stream.flush()

    def close(self) -> None:
        """Wipe the line."""
        with self.lock:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0

    def note(self, text: str) -> None:
        """Print a line in place of the one that is shown."""
        with self.lock:
            self.close()
            super().note(text)
