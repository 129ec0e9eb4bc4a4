"""Lines that fit: tables that shorten names in the middle, labels, bars.

Nothing here breaks a line within a word, or within what `whole` protects: paths and commands are
pasted. A width of `None` means that the stream has none: lines are then complete.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from rich.console import Console
from rich.containers import Lines
from rich.text import Text

from vlmcache.cache.state import ByClass
from vlmcache.show.layout import short_name
from vlmcache.show.prose import GLUE, breaks, glued
from vlmcache.show.text import UNICODE
from vlmcache.units import and_list, counted, size_text

_GAP = 2
_LEAST_NAME = 8
_CLASS_WORDS = {
    "referenced": "used",
    "shared": "used",
    "metadata": "used",
    "detached": "old revisions",
    "partial": "unfinished",
    "orphan": "leftovers",
    "foreign": "other files",
}


def width_of(out: Console) -> int | None:
    """Return the columns of a terminal, `None` for a pipe, which gets complete lines."""
    return out.width if out.is_terminal or out.file.isatty() else None


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    width: int | None,
    *,
    names: Collection[str] = (),
    numbers: Collection[str] = (),
    widths: Mapping[str, int] = MappingProxyType({}),
) -> list[Text]:
    """Return the lines of a table, its headings first.

    Args:
        columns: the headings.
        rows: the cells, as many as headings.
        width: columns of the screen.
        names: headings of cells that are shortened if the table is too wide.
        numbers: headings of cells that are aligned to the right.
        widths: heading -> columns, of cells that keep their place whatever the rows are. Names then
            have the rest of the screen.
    """
    lines = [[Text(name, "dim") for name in columns]]
    lines += [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    longest = [max(line[number].cell_len for line in lines) for number in range(len(columns))]
    if width is not None:
        longest = [widths.get(name, size) for name, size in zip(columns, longest, strict=True)]
        excess = sum(longest) + _GAP * (len(longest) - 1) - width
        shrunk = [number for number, name in enumerate(columns) if name in names]
        if widths and excess < 0:
            longest[shrunk[0]] -= excess
        while excess > 0 and shrunk:
            widest = max(shrunk, key=longest.__getitem__)
            if longest[widest] <= _LEAST_NAME:
                break
            longest[widest] -= 1
            excess -= 1
    return [_line(line, longest, columns, numbers, width) for line in lines]


def _line(
    cells: Sequence[Text],
    widths: Sequence[int],
    columns: Sequence[str],
    numbers: Collection[str],
    width: int | None,
) -> Text:
    line = Text(no_wrap=True)
    for cell, room, column in zip(cells, widths, columns, strict=True):
        if cell.cell_len > room:
            cell = Text(short_name(cell.plain, room, UNICODE), cell.style)
        gap = " " * (room - cell.cell_len)
        parts = (gap, cell) if column in numbers else (cell, gap)
        for part in (" " * _GAP if line else "", *parts):
            line.append(part)
    line.rstrip()
    if width is not None:
        line.truncate(width, overflow="ellipsis")
    return line


def wrapped(
    out: Console, text: str | Text, indent: int = 0, *, first: Text | None = None
) -> list[Text]:
    """Return lines with an indent, broken between words only.

    Args:
        out: where they will be printed.
        text: what they say.
        indent: columns.
        first: what stands in these columns of the first line.
    """
    content = Text(text) if isinstance(text, str) else text.copy()
    content.plain = glued(content.plain)
    width = width_of(out)
    lines = content.split("\n", allow_blank=True)
    if width is not None:
        room = max(10, width - indent)
        lines = Lines(piece for line in lines for piece in line.divide(breaks(line.plain, room)))
    shown = []
    for number, line in enumerate(lines):
        start = first if first is not None and number == 0 else Text()
        gap = " " * max(0, indent - start.cell_len)
        complete = Text.assemble(start, gap, line)
        complete.plain = complete.plain.replace(GLUE, " ")
        complete.rstrip()
        shown.append(complete)
    return shown


def print_rows(out: Console, lines: Iterable[Text]) -> None:
    """Print lines as they are: they fit, or must not be broken."""
    for line in lines:
        out.print(line, soft_wrap=True)


def bar(fraction: float, width: int, style: str = "green") -> Text:
    """Return a bar so many columns wide."""
    done = min(width, max(0, int(fraction * width)))
    return Text.assemble(("━" * done, style), ("─" * (width - done), "dim"))


def class_text(by_class: ByClass) -> str:
    """Return the bytes of each class, in the words that people use: `3 GB used, 1 GB leftovers`."""
    sizes: dict[str, int] = {}
    for name in by_class.__struct_fields__:
        word = _CLASS_WORDS.get(name, name)
        sizes[word] = sizes.get(word, 0) + getattr(by_class, name)
    return ", ".join(f"{size_text(size)} {word}" for word, size in sizes.items() if size)


def repos_text(types: Iterable[str]) -> str:
    """Return how many repos there are, by type: `47 models and 1 dataset`."""
    kinds = list(types)
    others = (kind for kind in ("dataset", "space") if kind in kinds)
    return and_list([counted(kinds.count(kind), kind) for kind in ("model", *others)])
