"""A few lines that change while something is measured; outside a terminal a line now and then."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from vlmcache.show.console import console, styled
from vlmcache.show.progress import LINE_EVERY
from vlmcache.show.text import printable

_BAR, _PLAIN_BAR = ("━", "─"), ("#", "-")


class Moving(Protocol):
    """What is to be shown, as it is now."""

    def lines(self, width: int, bar: tuple[str, str]) -> Sequence[str]:
        """Return the lines on a terminal of a width; `bar` is what is done and what is not."""

    def line(self) -> str:
        """Return the line that stands for them outside a terminal, which may be empty."""


@contextlib.contextmanager
def live_lines(stream: TextIO, moving: Moving) -> Iterator[threading.Event]:
    """Show what moves, as long as the block runs.

    Args:
        stream: where to; a terminal is wiped at the end.
        moving: what is shown.

    Yields:
        An event that is set whenever there is something new: its line is printed soon.
    """
    changed = threading.Event()
    if styled(stream):
        out = console(stream)
        with Live(_Lines(moving), console=out, transient=True, refresh_per_second=5):
            yield changed
        return
    ended = threading.Event()

    def print_lines() -> None:
        while not ended.is_set():
            changed.wait(LINE_EVERY)
            changed.clear()
            line = "" if ended.is_set() else moving.line()
            if line:
                print(f"vlmcache: {printable(line)}", file=stream, flush=True)

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield changed
    finally:
        ended.set()
        changed.set()
        thread.join()


class _Lines:
    """The lines as rich draws them: it asks for them each time."""

    def __init__(self, moving: Moving) -> None:
        self._moving = moving

    def __rich_console__(self, out: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines, each shortened to the terminal's width."""
        utf = (out.encoding or "").lower().startswith("utf")
        for number, line in enumerate(
            self._moving.lines(options.max_width, _BAR if utf else _PLAIN_BAR)
        ):
            style = "bold" if number == 0 else ""
            yield Text(printable(line), style, no_wrap=True, overflow="ellipsis")
