"""The two streams: whether they are terminals, how wide they are, and what may be sent to them."""

from __future__ import annotations

import os
import sys
from typing import IO, Any, cast

from rich.console import Console
from rich.text import Text

from vlmcache import late
from vlmcache.show.prose import Prose
from vlmcache.show.text import ASCII, glyphs_of, in_ascii
from vlmcache.show.text import styled as styled

_NARROWEST = 20
"""Columns below which no line can be laid out."""
PIPE_WIDTH = 160
"""Columns of a stream that has no width: enough for a table that a script reads line by line."""


class _Plain:
    """A stream that drops blanks at the ends of lines, and replaces what it cannot show."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._strips = not styled(stream)
        self._ascii = glyphs_of(stream) == ASCII

    def write(self, text: str) -> int:
        """Write complete lines."""
        if self._ascii:
            text = in_ascii(text)
        if self._strips:
            text = _BLANKS_AT_END.sub("", text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_BLANKS_AT_END = late.pattern(r"[ \t]+(?=\n|\Z)")


class _Console(Console):
    breaks_lines = True
    """Whether long lines are broken: not in a pipe, unless it says how wide it is."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects, without cutting anything off to fit the screen; strings as `Prose`."""
        shown = (Prose(part) if isinstance(part, str | Text) else part for part in objects)
        super().print(*(objects if options else shown), **{"crop": False, **options})

    def on_broken_pipe(self) -> None:
        """Leave it to `cli.main`, the one place that knows what a closed pipe means."""
        raise BrokenPipeError


def console(stream: IO[str] | None = None) -> Console:
    """Return a rich console on a stream (stdout by default) that obeys the rules of output."""
    stream = sys.stdout if stream is None else stream
    out = _Console(
        file=cast("IO[str]", _Plain(stream)),
        width=_width_of(stream),
        force_terminal=styled(stream),
        color_system="auto" if styled(stream) else None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
        _environ=_variables(),
    )
    out.breaks_lines = stream.isatty() or out.width != PIPE_WIDTH
    return out


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _variables() -> dict[str, str]:
    """Return the environment without sizes like `²`, which rich takes for numbers and fails."""
    sizes = ("COLUMNS", "LINES")
    return {
        name: text for name, text in os.environ.items() if name not in sizes or _is_number(text)
    }


def _width_of(stream: IO[str]) -> int | None:
    """Return the columns to use; `None` to ask the terminal, whose width may change."""
    columns = os.environ.get("COLUMNS", "")
    if _is_number(columns) and int(columns):
        return max(_NARROWEST, int(columns[:6]))
    return None if stream.isatty() else PIPE_WIDTH


def print_line(out: Console, line: Text) -> None:
    """Print a sentence: broken between words on a terminal, a complete line in a pipe."""
    out.print(Prose(line))
