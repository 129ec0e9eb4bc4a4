"""Sizes and durations: from the words people type to numbers, and back."""

from __future__ import annotations

import re

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(i?)b?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhdwy])\s*", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}

LARGEST = (1 << 63) - 1
"""The largest size in bytes that a filesystem can have: what is typed beyond it is a mistake."""
LONGEST = 1000 * _SECONDS["y"]
"""The longest duration in seconds; far beyond it the calendar of Python ends."""


def parse_size(text: str) -> int:
    """Return the bytes that a text such as `1.5GB` (decimal), `2GiB` (binary) or `4096` means.

    Raises:
        ValueError: the text is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size: {text!r} (write 1.5GB, 2GiB or a number of bytes)")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    unit: int = base ** _POWERS[prefix.lower()]
    size = float(number) * unit
    if size >= LARGEST:
        raise ValueError(f"no disk has that size: {_short(text)}")
    return round(size)


def parse_duration(text: str) -> float:
    """Return the seconds that a text such as `30d`, `12h`, `90s` or `0` means.

    Raises:
        ValueError: the text is no duration.
    """
    if text.strip() == "0":
        return 0.0
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a duration: {text!r} (write 30d, 12h or 90s)")
    number, unit = match.groups()
    seconds = float(number) * _SECONDS[unit.lower()]
    if seconds > LONGEST:
        raise ValueError(f"longer than a thousand years: {_short(text)}")
    return seconds


def _short(text: str) -> str:
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


def duration_text(seconds: float) -> str:
    """Return seconds as the largest whole unit that people would say: `3 days`, `5 min`."""
    for name, length in (("day", 86400), ("hour", 3600)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}" if count == 1 else f"{count} {name}s"
    if seconds >= 60:
        return f"{int(seconds // 60)} min"
    return f"{max(0, int(seconds))} s"
