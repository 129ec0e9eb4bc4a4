"""A numbered list to choose from, in pages of plain lines, which a screen reader can follow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from rich.text import Text

from vlmcache.show.console import console
from vlmcache.show.rows import print_rows, table, width_of
from vlmcache.show.tables import hanging
from vlmcache.show.text import printable
from vlmcache.units import and_more

_MOST_NAMES = 5
_LEAST_ROWS = 3
_BELOW = 6
"""Lines of a screen for the headings, and for what is below the list."""
_NARROW = 60
"""Columns below which what is below the list takes more lines."""


class Choice(NamedTuple):
    """A line of the list."""

    names: tuple[str, ...]
    """What can be typed for it; the first is its name."""
    cells: tuple[str | Text, ...]
    guard: str = ""
    """Why it is chosen only if its number is typed with a `!`, or not at all."""
    barred: bool = False
    """Whether it cannot be chosen at all."""

    @property
    def searched(self) -> str:
        """What words are looked for in."""
        cells = (cell.plain if isinstance(cell, Text) else cell for cell in self.cells)
        return " ".join((*self.names, *map(printable, self.names), *cells)).casefold()


class Choices(NamedTuple):
    """A list to choose from, and the words for it."""

    rows: Sequence[Choice]
    columns: tuple[str, ...]
    verb: str
    """What is done with what is chosen: `remove`."""
    unchanged: str
    """What is said if nobody chooses: `nothing was removed`."""
    total: Callable[[Sequence[int]], str]
    """Returns what a choice amounts to."""
    title: str = ""
    """The line before the list, which is not broken: a path."""
    room: str = ""
    """How much is free."""
    shortened: Collection[str] = ()
    """Columns whose cells may be shortened."""
    numbers: Collection[str] = ()
    """Columns that are aligned to the right."""
    once: bool = False
    """Whether the first answer that chooses something ends it."""

    def print_title(self) -> None:
        """Print what comes before the list."""
        out = console(sys.stderr)
        if self.title:
            print_rows(out, [Text(self.title, "dim")])

    def print_page(self, shown: Sequence[int], start: int, chosen: Collection[int]) -> int:
        """Print as much of the list as fits the screen, and return how many rows that is.

        Args:
            shown: the numbers of the rows that are listed, from 0 on.
            start: where in `shown` the page begins.
            chosen: the numbers that are marked.
        """
        out = console(sys.stderr)
        below = _BELOW if out.width >= _NARROW else 2 * _BELOW
        page = shown[start : start + max(_LEAST_ROWS, out.size.height - below)]
        cells = [
            (self._marked(number, number in chosen), *self.rows[number].cells) for number in page
        ]
        columns = ("NO", *self.columns)
        lines = table(
            columns,
            cells,
            width_of(out),
            names=self.shortened,
            numbers=("NO", *self.numbers),
        )
        print_rows(out, lines)
        return len(page)

    def _marked(self, number: int, chosen: bool) -> str:
        """Return the number of a row as it is typed, with a star if it is chosen."""
        row = self.rows[number]
        guarded = bool(row.guard) and not row.barred
        return f"{'*' if chosen else ''}{number + 1}{'!' if guarded else ' '}"

    def named(self, numbers: Sequence[int], *, reasons: bool = False) -> list[str]:
        """Return a line for each of some rows: number, name and, if asked for, why it stays."""
        lines = []
        for number in numbers[:_MOST_NAMES]:
            row = self.rows[number]
            line = f"  {number + 1} {printable(row.names[0])}"
            lines.append(f"{line}: {printable(row.guard)}" if reasons and row.guard else line)
        rest = and_more(len(numbers) - _MOST_NAMES)
        return [*lines, *([f" {rest}"] if rest else [])]


def say(*lines: str) -> None:
    """Print lines on stderr, broken between words; a line that is indented keeps its indent."""
    out = console(sys.stderr)
    for line in lines:
        text = line.lstrip(" ")
        out.print(hanging(Text(text), len(line) - len(text)))
