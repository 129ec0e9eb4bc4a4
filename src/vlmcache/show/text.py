"""Words for numbers and instants, and names made safe to print."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from vlmcache import late
from vlmcache.units import duration_text, is_encodable, is_shown

if TYPE_CHECKING:
    from vlmcache.scheduled import RunOutcome

NOTHING = "-"


class Glyphs(NamedTuple):
    """What we draw ourselves, each of one column."""

    done: str
    left: str
    cut: str


UNICODE = Glyphs("━", "─", "…")
ASCII = Glyphs("#", "-", "~")
_IN_ASCII = str.maketrans({"━": "#", "█": "#", "╸": "#", "╺": "-", "─": "-", "…": "~", "·": "-"})


def glyphs_of(stream: object) -> Glyphs:
    """Return what to draw on a stream."""
    # Python writes UTF-8 in the locale C too, where a terminal may show anything for it.
    in_c = os.environ.get("LC_ALL") in ("C", "POSIX")
    return ASCII if in_c or not is_encodable("".join(UNICODE), stream) else UNICODE


def in_ascii(text: str) -> str:
    """Return a string with what we draw ourselves replaced by ASCII of the same width."""
    return text.translate(_IN_ASCII)


def styled(stream: IO[str]) -> bool:
    """Return whether escape codes may be sent to a stream."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("CLICOLOR") == "0"
    return stream.isatty() and not plain and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Return a name from disk or network with everything escaped that a terminal would act on.

    That is control characters, direction marks, separators other than a blank, bytes that are not
    UTF-8, and what the encoding of the terminal does not have. Columns are counted after that.
    """
    return _escaped(text, is_shown, _terminal_escape)


def printable_json(text: str) -> str:
    """Return JSON with the same characters escaped in its strings; its values are the same."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "\n".join(_escaped(line, _is_safe, _json_escape) for line in text.split("\n"))


_UNUSUAL = late.pattern(r"[^ -~]+")
"""What is not printable ASCII."""


def _escaped(text: str, is_kept: Callable[[str], bool], escape: Callable[[str], str]) -> str:
    return _UNUSUAL.sub(
        lambda run: "".join(
            character if is_kept(character) else escape(character) for character in run[0]
        ),
        text,
    )


def _is_safe(character: str) -> bool:
    return character.isprintable() and unicodedata.category(character)[0] != "C"


def _terminal_escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # how Python carries a byte that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _json_escape(character: str) -> str:
    """Return the escape of RFC 8259: of what is beyond 16 bits, a pair of surrogates."""
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def encodable(value: Any) -> Any:
    """Return builtins in which bytes that are not UTF-8 are written out with a backslash."""
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


def outcome_text(outcome: RunOutcome) -> str:
    """Return how the run of a schedule ended: `freed 4.2 GB`, `exit 8: …`."""
    if outcome.at is None:
        return "running" if outcome.running else "did not finish"
    code = f"exit {outcome.exit_code}: " if outcome.exit_code else ""
    return code + printable(outcome.text)


def warn(texts: Iterable[str]) -> None:
    """Print warnings on stderr."""
    sys.stdout.flush()
    for text in texts:
        print(f"warning: {printable(text)}", file=sys.stderr)


def warn_of_missing_locks() -> None:
    """Say which filesystems without locks the command has met."""
    # Help, which needs this module too, does not wait for those of the cache.
    from vlmcache.cache.locks import lockless

    warn(f"{finding.detail}: {finding.path}" for finding in lockless())
