"""The pages of help: the commands in groups, a command's options, the exit codes.

They need neither Typer nor the modules of the commands, which take longer to import than a page
takes to write.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from vlmcache import late
from vlmcache.cli.register import first_words, grouped, members
from vlmcache.errors import ExitCode
from vlmcache.show.text import styled

Rows = Sequence[tuple[str, str]]
"""(term, explanation) of each row."""

COMMON = ("--config", "--cache-dir", "--json", "--quiet", "--verbose", "--help")
"""Options that every command has; they come last."""

EXAMPLES = """Examples:

  vlmcache status
  vlmcache pull Qwen/Qwen2-VL-2B-Instruct
  vlmcache rm Qwen/Qwen2-VL-2B-Instruct --dry-run
  vlmcache clean --free 30GB --dry-run"""
_MORE = (
    ("vlmcache help COMMAND", "Options and examples of a command."),
    ("vlmcache help exit-codes", "What the exit codes mean."),
    ("vlmcache explain CODE", "What a finding or an error means."),
)

_WIDEST = 100
"""Longer lines are hard to read."""
_NARROWEST = 40
_WIDEST_TERM = 26
"""The widest term in columns; a longer one has a line of its own."""
_ROOM = 36
"""Columns that explanations need to stand next to their terms; with fewer they stand below."""
_RANGE = late.pattern(r"(\d+)<=x<=(\d+)")
"""How Typer writes a range of numbers."""


def exit_codes() -> str:
    """Return the table of exit codes."""
    rows = [(f"{code.value:>3}", code.meaning) for code in ExitCode]
    return _section("Exit codes", _rows(rows, room=1))


def root(text: str, options: Rows) -> str:
    """Return the help of `vlmcache` itself.

    Args:
        text: what it does.
        options: its own options.
    """
    summaries = first_words()
    widest = max(map(len, summaries))
    groups = [
        _section(heading, _rows([(name, summaries[name]) for name in names], widest))
        for heading, names in grouped().items()
    ]
    return _page(
        _wrapped(text),
        _usage("vlmcache COMMAND [OPTIONS] [MODEL]..."),
        *groups,
        _section("Options", _rows(options)),
        _examples(EXAMPLES),
        _section("More help", _rows(_MORE)),
    )


def family(text: str, name: str, options: Rows, examples: str) -> str:
    """Return the help of commands that are typed in two words.

    Args:
        text: what they do, in paragraphs.
        name: their first word.
        options: what can be typed in place of the second one.
        examples: lines to type, below a heading.
    """
    more = ((f"vlmcache {name} COMMAND --help", "Options and examples of a command."),)
    return _page(
        *(_wrapped(" ".join(part.split())) for part in text.split("\n\n")),
        _usage(f"vlmcache {name} COMMAND [OPTIONS] [MODEL]..."),
        _section("Commands", _rows(list(members(name).items()))),
        _section("Options", _rows(options)),
        _examples(examples),
        _section("More help", _rows(more)),
    )


def command(text: str, usage: str, arguments: Rows, options: Rows, examples: str) -> str:
    """Return the help of a command.

    Args:
        text: what it does, in paragraphs.
        usage: how it is typed.
        arguments: its arguments.
        options: its options, those that every command has too.
        examples: lines to type, below a heading.
    """
    common = [row for row in options if any(name in row[0].split() for name in COMMON)]
    own = [row for row in options if row not in common]
    paragraphs = [_wrapped(" ".join(part.split())) for part in text.split("\n\n")]
    return _page(
        *paragraphs,
        _usage(usage),
        _section("Arguments", _rows(arguments)) if arguments else "",
        _section("Options", _rows(own)) if own else "",
        _section("Options of every command", _rows(common)),
        _examples(examples),
    )


def _page(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _columns() -> int:
    """Return how wide a page is: as wide as the terminal, within what can be read well."""
    return max(_NARROWEST, min(shutil.get_terminal_size((80, 24)).columns, _WIDEST))


def _heading(text: str) -> str:
    return f"\x1b[1m{text}:\x1b[0m" if styled(sys.stdout) else f"{text}:"


def _usage(line: str) -> str:
    text = textwrap.fill(
        f"Usage: {line}", _columns(), subsequent_indent=" " * 7, break_on_hyphens=False
    )
    return text.replace("Usage:", _heading("Usage"), 1)


def _section(heading: str, lines: Iterable[str]) -> str:
    return "\n".join([_heading(heading), *lines])


def _examples(text: str) -> str:
    """Return examples as they are: a line to type is never wrapped."""
    heading, _, lines = text.partition("\n\n")
    return _section(heading.rstrip(":"), lines.splitlines())


def _wrapped(text: str, indent: int = 0) -> str:
    space = " " * indent
    return textwrap.fill(
        text,
        _columns(),
        initial_indent=space,
        subsequent_indent=space,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _rows(rows: Rows, least: int = 0, room: int = _ROOM) -> list[str]:
    """Return the lines of a table of two columns, or of terms with their explanations below.

    Args:
        rows: terms and explanations.
        least: columns of the terms at least, so that several tables align.
        room: columns that explanations need to stand next to their terms.
    """
    wide = max([least, *(len(term) for term, _ in rows if len(term) <= _WIDEST_TERM)])
    below = _columns() - wide - 4 < room
    indent = 6 if below else wide + 4
    lines = []
    for term, text in rows:
        paragraph = _wrapped(_RANGE.sub(r"\1 to \2", text), indent)
        if below or len(term) > wide:
            lines += [f"  {term}", paragraph]
        else:
            lines.append(f"  {term:<{wide}}  {paragraph.lstrip()}")
    return lines
