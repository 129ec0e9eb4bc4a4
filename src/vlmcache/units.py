"""Sizes, durations and command lines: from what people type, and back."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from vlmcache import late
from vlmcache.errors import UsageError

_T = TypeVar("_T")

_SIZE = late.pattern(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgtp])(i?)b?|b)\s*", re.IGNORECASE)
_POWERS = ("", "k", "m", "g", "t", "p")

_DURATION = late.pattern(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhdwy])\s*", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}

_BARE = late.pattern(r"[0-9]+(?:\.[0-9]+)?")
_DIGITS = 40
"""Digits of a number that are read; no disk and no calendar needs more."""

LARGEST = (1 << 63) - 1
"""The largest size in bytes that a filesystem can have; a larger one is a mistake."""
LONGEST = 1000 * _SECONDS["y"]
"""The longest duration in seconds; Python's calendar ends not far beyond it."""


def parse_size(text: str) -> int:
    """Return the bytes that a string such as `1.5GB` (decimal), `2GiB` (binary), `7B` or `0` means.

    Raises:
        ValueError: the string is not a size, or has no unit.
    """
    if _is_zero(text, ("GB", "MB")):
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size: {short_text(text)} (write 1.5GB, 2GiB or 4096B)")
    number, prefix, binary = match.groups()
    unit = (1024 if binary else 1000) ** _POWERS.index((prefix or "").lower())
    whole, _, digits = number.partition(".")
    whole, digits = whole.lstrip("0"), digits[:_DIGITS]
    # Whole numbers all the way: what is written must be read back to the byte.
    scale = 10 ** len(digits)
    size = LARGEST
    if len(whole) <= _DIGITS:
        size = (2 * int(whole + digits or "0") * unit + scale) // (2 * scale)
    if size >= LARGEST:
        raise ValueError(f"no disk has that size: {short_text(text)}")
    return size


def parsed(name: str, text: str, parse: Callable[[str], _T]) -> _T:
    """Return what the string of an option or an argument means.

    Raises:
        UsageError: it means nothing; the message begins with the name.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def exact_size(size: int) -> str:
    """Return a size in bytes as it is typed, which `parse_size` reads back to the byte: `50GB`."""
    for base, end in ((1000, "B"), (1024, "iB")):
        for power in range(len(_POWERS) - 1, 0, -1):
            if size and size % base**power == 0:
                prefix = _POWERS[power] if power == 1 and base == 1000 else _POWERS[power].upper()
                return f"{size // base**power}{prefix}{end}"
    return f"{size}B"


def parse_duration(text: str, units: tuple[str, str] = ("d", "h")) -> float:
    """Return the seconds that a string such as `30d`, `12h`, `90s` or `0` means.

    Args:
        text: the string. `M` is refused, as it would mean minutes where most people mean months.
        units: the units to offer for a number without one.

    Raises:
        ValueError: the string is not a duration, or has no unit.
    """
    if _is_zero(text, units):
        return 0.0
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a duration: {short_text(text)} (write 30d, 12h or 90s)")
    number, unit = match.groups()
    if unit == "M":
        days = int(min(float(number), LONGEST) * 30)
        raise ValueError(
            f"{short_text(text)}: minutes or months? (write {number[:20]}m or {days}d)"
        )
    seconds = float(number) * _SECONDS[unit.lower()]
    if seconds > LONGEST:
        raise ValueError(f"longer than a thousand years: {short_text(text)}")
    return seconds


def _is_zero(text: str, units: tuple[str, str]) -> bool:
    """Return whether a string is a plain 0, which needs no unit.

    Raises:
        ValueError: it is another number without a unit, which could mean anything.
    """
    number = text.strip()
    if not _BARE.fullmatch(number):
        return False
    if not number.strip("0."):
        return True
    short = number[:20]
    raise ValueError(f"{short_text(text)} has no unit ({short}{units[0]}? {short}{units[1]}?)")


def short_text(text: str) -> str:
    """Return the beginning of a string from outside, in quotes, for a message of one line."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def size_text(size: int) -> str:
    """Return a size in bytes in decimal units, as the Hub shows it: `4.4 GB`."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(amount) < 999.5 or unit == "TB":
            break
        amount /= 1000
    if unit == "B" or abs(amount) >= 99.95:
        return f"{amount:.0f} {unit}"
    return f"{amount:.1f}".removesuffix(".0") + f" {unit}"


def pace_text(size: int, seconds: float) -> str:
    """Return how long some bytes took: `0.2 s (370 MB/s)`, `3 min (120 MB/s)`."""
    rate = size_text(int(size / max(seconds, 0.001)))
    digits = 1 if seconds >= 0.1 else 2
    took = duration_text(seconds) if seconds >= 60 else f"{seconds:.{digits}f} s"
    return f"{took} ({rate}/s)"


def counted(count: int, noun: str) -> str:
    """Return how many of something there are: `1 file`, `3 files`, `2 processes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"


def and_list(parts: Sequence[str]) -> str:
    """Return parts of a sentence in a row: `2 models, 1 file and 3 blobs`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def and_more(count: int) -> str:
    """Return the end of a list from which some were left out: ` and 3 more`; empty for none."""
    return f" and {count} more" if count > 0 else ""


def first_of(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Return the first of some names, and how many more there are: `a, b and 3 more`."""
    return separator.join(names[:most]) + and_more(len(names) - most)


def duration_text(seconds: float) -> str:
    """Return seconds in the largest unit that people would say: `3 days`, `5 min`."""
    for name, length in (("day", 86400), ("hour", 3600)):
        if seconds >= length:
            return counted(int(seconds // length), name)
    if seconds >= 60:
        return f"{int(seconds // 60)} min"
    return f"{max(0, int(seconds))} s"


def seconds_text(seconds: float) -> str:
    """Return a measured time as it stands in a sentence: `3.7 s`, `0.05 s`."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def command(name: str, *words: str) -> str:
    """Return a command line of vlmcache for a shell, its words quoted where they need it."""
    return shell_words("vlmcache", name, *words)


def shell_words(*words: str) -> str:
    """Return words quoted for a shell, with what cannot be shown escaped as bash and zsh do."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    import shlex  # only for hints

    if all(map(is_shown, word)):
        return shlex.quote(word)
    parts = []
    for character in word:
        if character in "'\\":
            parts.append("\\" + character)
        elif is_shown(character):
            parts.append(character)
        else:
            parts += (f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return f"$'{''.join(parts)}'"


def is_shown(character: str) -> bool:
    """Return whether a character is shown as it is: it is harmless, and both streams encode it."""
    if " " <= character <= "~":
        return True
    if not character.isprintable() or unicodedata.category(character)[0] == "C":
        return False
    return all(is_encodable(character, stream) for stream in (sys.stdout, sys.stderr))


def is_encodable(text: str, stream: object) -> bool:
    """Return whether the encoding of a stream has all characters of a string."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if encoding.lower() == "utf-8":
        return True
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


_ALIKE = 0.6
"""How similar a name must be to be suggested; less suggests names that mean something else."""


def did_you_mean(
    text: str, known: Iterable[str], most: int = 3, least: float = _ALIKE
) -> str | None:
    """Return the question that names what is similar to a string; `None` if nothing is.

    Args:
        text: what was typed.
        known: what could have been meant.
        most: how many of these to name at most.
        least: how similar they have to be, 0 to 1.
    """
    import difflib  # only for mistakes

    typed = text.casefold().lstrip("-")
    compared = difflib.SequenceMatcher(None, "", typed)

    def likeness(name: str) -> float:
        """Return how similar they are, 0 to 1: in any case, with or without the repo's owner."""
        folded, alike = name.casefold().lstrip("-"), 0.0
        for part in (folded, folded.rpartition("/")[2]):
            compared.set_seq1(part)
            if compared.real_quick_ratio() > alike and compared.quick_ratio() > alike:
                alike = max(alike, compared.ratio())
        return max(alike, _ALIKE) if len(typed) > 2 and typed in folded else alike

    near = sorted(((likeness(name), name) for name in dict.fromkeys(known)), key=lambda n: -n[0])
    names = [name for alike, name in near[:most] if alike >= least]
    return f"did you mean {' or '.join(names)}?" if names else None
