"""Sentences for a screen: broken between words only, so that what they name can be copied."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from vlmcache import late

GLUE = "\ue000"
"""Stands for a blank at which no line may end. `printable` leaves no such character in a name."""
_UNBROKEN = late.pattern(r"'vlmcache [^'\n]*'|[0-9] (?:[kMGT]?B|s|min)\b")
"""A command in quotes, and a number with its unit."""
_WORD = late.pattern(r"\s*\S+\s*")
_LEAST = 20
"""Columns for the words, however narrow the screen is."""


def whole(words: str) -> str:
    """Return a command, or a path with blanks in it, as a single word of `Prose`."""
    return words.replace(" ", GLUE)


def glued(text: str) -> str:
    """Return words in which no quoted command, and no number with its unit, can be broken."""
    return _UNBROKEN.sub(lambda part: whole(part[0]), text)


class Prose:
    """Lines that are broken between words to fit the screen; a longer word is left as it is.

    No command in quotes, path, hash or what `whole` was given is broken: the terminal itself wraps
    it, and copying gives it back. Without a width, nothing is broken.

    Args:
        text: the words; a line break in them begins a new line.
        indent: columns before each line.
        label: what stands in these columns in the first line.
        again: what the second line and those after it begin with, such as the sign of a comment.
    """

    def __init__(
        self, text: str | Text, indent: int = 0, label: Text | None = None, again: str = ""
    ) -> None:
        self.text = Text(text) if isinstance(text, str) else text
        self.indent = indent
        self.label = label
        self.again = again

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        width = max(options.max_width - self.indent - cell_len(self.again), _LEAST)
        before = Text() if self.label is None else self.label.copy()
        for line in self._lines(width if getattr(console, "breaks_lines", True) else None):
            before.pad_right(self.indent - before.cell_len)
            shown = before + line
            shown.rstrip()
            shown.no_wrap, shown.overflow = True, "ignore"
            yield shown
            before = Text(" " * self.indent + self.again)

    def _lines(self, width: int | None) -> Iterator[Text]:
        text = self.text.copy()
        text.plain = glued(text.plain)
        for paragraph in text.split("\n", allow_blank=True):
            for line in paragraph.divide(breaks(paragraph.plain, width)):
                line.plain = line.plain.replace(GLUE, " ")
                yield line


def breaks(text: str, width: int | None) -> list[int]:
    """Return where each line after the first begins, if a line has so many columns."""
    starts: list[int] = []
    column = 0
    for word in _WORD.finditer(text) if width is not None else ():
        if column and column + cell_len(word[0].rstrip()) > (width or 0):
            starts.append(word.start())
            column = 0
        column += cell_len(word[0])
    return starts
