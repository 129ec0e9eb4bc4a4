"""The two streams: whether they are terminals, how wide they are, and what may be sent to them."""

from __future__ import annotations

import os
import sys
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from vlmcache.show.prose import Prose

PIPE_WIDTH = 160
"""Columns where nobody tells: wide enough that a table read by a script keeps its lines whole."""


def styled(stream: IO[str]) -> bool:
    """Return whether escape codes may be sent to a stream."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _Console(Console):
    breaks_lines = True
    """Whether long lines are broken: not in a pipe, unless it says how wide it is."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print something, of which nothing is cut off to fit the screen; strings as `Prose`."""
        shown = (Prose(part) if isinstance(part, str | Text) else part for part in objects)
        super().print(*(objects if options else shown), **{"crop": False, **options})

    def on_broken_pipe(self) -> None:
        """Leave it to the one place that knows what a reader's going away means."""
        raise BrokenPipeError


def console(stream: IO[str] | None = None) -> Console:
    """Return a rich console on a stream (stdout by default) that obeys the rules of output."""
    stream = sys.stdout if stream is None else stream
    terminal = stream.isatty()
    columns = os.environ.get("COLUMNS", "")
    width = None if terminal else int(columns) if columns.isdigit() and int(columns) else PIPE_WIDTH
    out = _Console(
        file=stream,
        width=width,
        force_terminal=styled(stream),
        color_system="auto" if styled(stream) else None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )
    out.breaks_lines = terminal or width != PIPE_WIDTH
    return out


def print_line(out: Console, line: Text) -> None:
    """Print a sentence: broken between words on a terminal, a complete line in a pipe."""
    out.print(Prose(line))
