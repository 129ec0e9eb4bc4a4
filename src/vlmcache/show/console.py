"""The two streams: whether they are terminals, how wide they are, and what may be sent to them."""

from __future__ import annotations

import os
import sys
from typing import IO

from rich.console import Console
from rich.text import Text

from vlmcache.show.text import styled as styled

PIPE_WIDTH = 160
"""Columns where nobody tells: wide enough that a table read by a script keeps its lines whole."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the one place that knows what a reader's going away means."""
        raise BrokenPipeError


def console(stream: IO[str] | None = None) -> Console:
    """Return a rich console on a stream (stdout by default) that obeys the rules of output."""
    stream = sys.stdout if stream is None else stream
    terminal = stream.isatty()
    columns = os.environ.get("COLUMNS", "")
    width = None if terminal else int(columns) if columns.isdigit() and int(columns) else PIPE_WIDTH
    return _Console(
        file=stream,
        width=width,
        force_terminal=styled(stream),
        color_system="auto" if styled(stream) else None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def print_line(out: Console, line: Text) -> None:
    """Print a line, folded on a terminal only: a pipe gets complete lines."""
    out.print(line, soft_wrap=not out.is_terminal)
