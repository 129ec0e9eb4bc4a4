"""Words for numbers and instants, and names made safe to print."""

from __future__ import annotations

import sys
import unicodedata
from datetime import datetime
from typing import Any

from vlmcache.cache.locks import unlocked
from vlmcache.units import duration_text

NOTHING = "-"


def printable(text: str) -> str:
    """Return a name from disk or network with everything escaped that a terminal would act on.

    Control characters, direction marks, separators other than a blank, and bytes that are no UTF-8.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character.isprintable() and unicodedata.category(character)[0] != "C":
        return character
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # how Python carries a byte that is no UTF-8
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def encodable(value: Any) -> Any:
    """Return builtins with the bytes in them that are no UTF-8 written out with a backslash."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encodable(item) for item in value]
    return value


def ago(instant: datetime | None, now: datetime) -> str:
    """Return how long an instant is past: `3 days ago`."""
    if instant is None:
        return NOTHING
    seconds = (now - instant).total_seconds()
    return "just now" if seconds < 60 else f"{duration_text(seconds)} ago"


def warn_of_missing_locks() -> None:
    """Say which filesystems without locks the command has met."""
    sys.stdout.flush()
    for finding in unlocked():
        print(f"warning: {finding.detail}: {printable(finding.path)}", file=sys.stderr)
