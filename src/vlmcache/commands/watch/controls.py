"""What the keys of the live view change: order, filter, and which lines are seen (pure)."""

from __future__ import annotations

from collections.abc import Iterable

from vlmcache.commands.watch.listing import SORTS, Item, ModelRow, items_of
from vlmcache.show.text import printable

_FAR = 1 << 30


class Controls:
    """How the list is shown; `press` changes it."""

    def __init__(self) -> None:
        self.paused = False
        self.typing = False
        """Whether the filter is being typed, and keys are letters of it."""
        self.filter = ""
        self._files = True
        self._sort = 0
        self._first = 0
        self._page = 1

    @property
    def order(self) -> str:
        """The name of the order."""
        return SORTS[self._sort]

    @property
    def keys(self) -> str:
        """What can be pressed."""
        wanted = f" ({printable(self.filter)})" if self.filter else ""
        pause = "continue" if self.paused else "pause"
        return f"q quit  s sort: {self.order}  / filter{wanted}  f files  p {pause}  arrows"

    def press(self, key: str) -> bool:
        """Do what a key means; return whether to continue."""
        moves = {"up": -1, "down": 1, "page up": -self._page, "page down": self._page}
        moves |= {"home": -_FAR, "end": _FAR}
        if not self.typing:
            moves |= {"k": -1, "j": 1, " ": self._page}
        if key in moves:
            self._first += moves[key]
        elif key == "escape":
            self.typing, self.filter = False, ""
        elif self.typing:
            self._type(key)
        elif key in "qQ":
            return False
        elif key == "/":
            self.typing = True
        elif key in "sS":
            self._sort = (self._sort + 1) % len(SORTS)
        elif key in "fF":
            self._files = not self._files
        elif key in "pP":
            self.paused = not self.paused
        return True

    def _type(self, key: str) -> None:
        if key == "enter":
            self.typing = False
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1:
            self.filter += key
            self._first = 0

    def choose(self, rows: Iterable[ModelRow], page: int) -> tuple[list[Item], int, int]:
        """Return the lines to show, the number of the first, and how many there are in all.

        Args:
            rows: the models.
            page: how many lines there is room for.
        """
        items = items_of(rows, self.order, self.filter, files=self._files)
        self._page = page
        self._first = max(0, min(self._first, len(items) - page))
        return items[self._first : self._first + page], self._first, len(items)
