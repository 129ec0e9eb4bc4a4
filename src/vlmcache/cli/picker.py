"""Choosing from a numbered list: by numbers, by names, by searching.

Each answer is a typed line, and is followed by lines that say what it did. Nothing on the screen is
drawn over, so that it can be read aloud and logged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vlmcache import late
from vlmcache.cli.confirmation import can_ask, typed
from vlmcache.errors import UsageError
from vlmcache.show.text import printable
from vlmcache.units import did_you_mean

if TYPE_CHECKING:
    from vlmcache.commands.pull.plan import VariantError
    from vlmcache.commands.remove.offered import Offer
    from vlmcache.show.choices import Choices

_NUMBERS = late.pattern(r"(-?)([0-9]{1,9})(?:-([0-9]{1,9})|(!))?")
_HELP = """\
  1-3,7   choose these; a name chooses too
  -2      take 2 back, and -1-3 three; none takes all back
  4!      choose 4 although the list says why it should stay
  all     choose everything that is listed, or that matches
  words   list only what has these words; /words if they are a number
  /       list everything again
  n, p    the next page, the previous one
  Enter   continue with what is chosen
  q       leave, as Ctrl-C and Ctrl-D do: nothing is changed"""


def variant(error: VariantError) -> str:
    """Ask on stderr which variant of a model is meant, and return its name.

    Raises:
        VariantError: none of them is chosen, or several are.
    """
    from vlmcache.commands.pull.view import variants_of

    chosen = pick(variants_of(error))
    if len(chosen) != 1:
        raise error
    return list(error.sizes)[chosen[0]]


def chooser(*, json: bool, yes: bool, missing: str, hint: str) -> Callable[[Offer], Sequence[int]]:
    """Return the function that lists what can be removed, and asks what of it to remove.

    Args:
        json: whether the answer is JSON; then nothing is asked.
        yes: whether `--yes` was given.
        missing: what is said if there is no terminal.
        hint: what to type then.

    Raises:
        UsageError: there is no terminal, or `--yes` was given, which chooses nothing.
    """
    if not can_ask(json=json):
        raise UsageError(missing, hint)
    if yes:
        raise UsageError(f"{missing}: --yes chooses nothing from a list", hint)

    def choose(offer: Offer) -> Sequence[int]:
        from vlmcache.commands.remove import view

        return pick(view.choices_of(offer))

    return choose


class Meant(NamedTuple):
    """What a typed line means. All are numbers of rows, from 0 on."""

    chosen: list[int]
    taken_back: list[int]
    stays: list[int]
    """What was named and is not chosen, for the reason that its row gives."""


def meant(text: str, choices: Choices, listed: Sequence[int]) -> Meant | None:
    """Return what numbers, names, `all` and `none` mean; `None` if they are words to search for.

    Args:
        text: what was typed.
        choices: the list.
        listed: the numbers of the rows that are listed now.

    Raises:
        UsageError: the list has no such number.
    """
    found = Meant([], [], [])
    for part in filter(None, re.split(r"[,\s]+", _joined_ranges(text.strip()))):
        match = _NUMBERS.fullmatch(part)
        deliberate = match is not None and match[4] is not None
        if part.casefold() == "all":
            numbers: Sequence[int] = listed
        elif part.casefold() == "none":
            found.taken_back.extend(range(len(choices.rows)))
            continue
        elif match is not None:
            first, last = int(match[2]), int(match[3] or match[2])
            if not 1 <= first <= last <= len(choices.rows):
                raise UsageError(f"no such number: {part}", f"type 1 to {len(choices.rows)}")
            numbers = range(first - 1, last)
        else:
            numbers = _named(part, choices)
            if not numbers:
                return None
        if match is not None and match[1]:
            found.taken_back.extend(numbers)
            continue
        for number in numbers:
            row = choices.rows[number]
            stays = row.barred or (bool(row.guard) and not deliberate)
            (found.stays if stays else found.chosen).append(number)
    return Meant(*(list(dict.fromkeys(numbers)) for numbers in found))


def _joined_ranges(text: str) -> str:
    """Return `1-3` for `1 - 3`; in `1 -3`, 3 is taken back."""
    return re.sub(r"(?<=[0-9])\s*-\s+(?=[0-9])", "-", text)


def _named(text: str, choices: Choices) -> list[int]:
    """Return the numbers of the rows that a name means, in any case; of a repo, its end too."""
    name = text.casefold()
    return [
        number
        for number, row in enumerate(choices.rows)
        if any(name in (full.casefold(), full.casefold().rpartition("/")[2]) for full in row.names)
    ]


def pick(choices: Choices) -> list[int]:
    """Show a list on stderr, and return the numbers of the rows that are chosen, from 0 on.

    Returns:
        None if the person leaves.

    Raises:
        VlmcacheError: the input ended: exit code 130.
    """
    return _Picking(choices).run()


class _Picking:
    """One list on the screen, and what was chosen from it so far."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.listed = list(range(len(choices.rows)))
        self.searched = ""
        self.start = 0
        self.fit = 0
        self.chosen: dict[int, None] = {}

    def run(self) -> list[int]:
        """Ask until the person continues or leaves."""
        self.choices.print_title()
        self._print()
        self._say(
            f"{self.choices.room}. Type numbers to choose, words to search for, or ? for help"
        )
        verb = f"{self.choices.verb[:1].upper()}{self.choices.verb[1:]}"
        while True:
            question = f"{verb} which? (Enter leaves): "
            if self.chosen:
                question = f"{verb} which else? (Enter continues): "
            text = typed(question, ended=self.choices.unchanged).strip()
            if not text or text.casefold() in ("q", "quit"):
                return [] if text else list(self.chosen)
            self._answer(text)
            if self.chosen and self.choices.once:
                return list(self.chosen)

    def _answer(self, text: str) -> None:
        word = text.casefold()
        if word in ("?", "help"):
            self._say(*_HELP.splitlines())
        elif word in ("n", "p"):
            self._turn(forward=word == "n")
        elif word.startswith("/"):
            self._search(text[1:].strip())
        else:
            try:
                found = meant(text, self.choices, self.listed)
            except UsageError as error:
                self._say(f"{error.message}; {error.hint}")
                return
            if found is None:
                self._search(text)
            else:
                self._choose(found)

    def _say(self, *lines: str) -> None:
        from vlmcache.show.choices import say

        say(*lines)

    def _print(self) -> None:
        self.fit = self.choices.print_page(self.listed, self.start, self.chosen)
        end, every = self.start + self.fit, len(self.choices.rows)
        words = f"{self.start + 1} to {end} of {len(self.listed)}"
        parts = [f"{words} with '{printable(self.searched)}'" if self.searched else words]
        parts += [f"n: {len(self.listed) - end} more"] if end < len(self.listed) else []
        parts += ["p: back"] if self.start else []
        parts += [f"/: all {every}"] if self.searched else []
        if len(parts) > 1:
            self._say("; ".join(parts))

    def _turn(self, *, forward: bool) -> None:
        if forward and self.start + self.fit >= len(self.listed):
            self._say("this is the last page")
            return
        if not forward and not self.start:
            self._say("this is the first page")
            return
        self.start += self.fit if forward else -min(self.start, self.fit)
        self._print()

    def _search(self, text: str) -> None:
        words = text.casefold().split()
        rows = self.choices.rows
        found = [
            number
            for number, row in enumerate(rows)
            if not words or all(word in row.searched for word in words)
        ]
        if not found:
            near = did_you_mean(text, [row.names[0] for row in rows]) or "? explains what to type"
            self._say(f"nothing in the list has '{printable(text)}'; {printable(near)}")
            return
        self.listed, self.searched, self.start = found, text if words else "", 0
        self._print()

    def _choose(self, found: Meant) -> None:
        choices = self.choices
        added = [number for number in found.chosen if number not in self.chosen]
        back = [number for number in found.taken_back if number in self.chosen]
        self.chosen |= dict.fromkeys(added)
        for number in back:
            self.chosen.pop(number, None)
        for title, numbers in (("Chosen", added), ("Taken back", back)):
            if numbers:
                self._say(f"{title}:", *choices.named(numbers))
        if found.stays:
            self._say("Not chosen:", *choices.named(found.stays, reasons=True))
            free = [number for number in found.stays if not choices.rows[number].barred]
            if free:
                self._say(f"type {free[0] + 1}! to choose it nevertheless")
        if self.chosen and not choices.once:
            total = choices.total(list(self.chosen))
            self._say(f"{len(self.chosen)} chosen, {total}")
        elif not self.chosen and not found.stays:
            self._say("nothing is chosen")
