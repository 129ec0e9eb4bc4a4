"""Progress on a terminal: bars."""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from vlmcache.show.console import console
from vlmcache.show.layout import MARGIN, Line, lines_of, progress_rows
from vlmcache.show.text import glyphs_of, printable
from vlmcache.show.ticking import Ticking

LOOKS = {"done": "#56b4e9", "left": "dim", "wait": "#e69f00", "total": "bold", "": ""}
"""Sky blue and orange of the palette of Okabe and Ito, which people with any kind of color
blindness tell apart; a bar's done part is drawn thicker too."""
_MOST_ROWS = 12


class Bars(Ticking):
    """A bar for each file that is on its way, and one for all, below them."""

    every = 0.125

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._out: Console = console(stream)
        self._out.show_cursor = _leave_cursor  # type: ignore[method-assign]
        self._live: Live | None = None

    def open(self) -> None:
        """Begin to show."""
        self._live = Live(
            console=self._out, transient=True, auto_refresh=False, vertical_overflow="crop"
        )
        self._live.start()

    def tick(self, now: float) -> None:
        """Show how far it is."""
        if self._live is not None:
            columns, lines = self._size()
            rows = progress_rows(self, self.pace.at(now), min(_MOST_ROWS, lines - 1))
            shown = lines_of(rows, columns - MARGIN, glyphs_of(self._stream))
            self._live.update(Text("\n").join(map(_styled, shown)), refresh=True)

    def close(self) -> None:
        """Wipe the bars."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._out.print(f"vlmcache: {printable(text)}", style=LOOKS["wait"], soft_wrap=True)

    def _size(self) -> tuple[int, int]:
        """Return the columns and lines of the terminal as it is now."""
        columns, lines = self._out.size
        try:
            now = os.get_terminal_size(self._stream.fileno())
        except OSError:
            return columns, lines
        # COLUMNS may have been exported for a wider one.
        return min(columns, now.columns or columns), now.lines or lines


def _leave_cursor(show: bool = True) -> bool:  # noqa: ARG001
    """Neither hide nor show the cursor: if the process is killed, a hidden one stays hidden."""
    return False


def _styled(line: Line) -> Text:
    text = Text(no_wrap=True, overflow="crop", end="")
    for piece in line:
        text.append(piece.text, LOOKS[piece.look])
    return text
