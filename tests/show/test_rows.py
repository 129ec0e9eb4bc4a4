"""Lines that fit: names are shortened in the middle, and what is pasted is never broken."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from vlmcache.cache.state import ByClass
from vlmcache.show.prose import whole
from vlmcache.show.rows import (
    bar,
    class_text,
    repos_text,
    table,
    wrapped,
)
from vlmcache.show.tables import labelled
from vlmcache.show.text import printable

NAMES = st.text("aZ09-_./視モデ é\x1b\u200e", min_size=1, max_size=120).map(printable)


def screen(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


@given(st.lists(st.tuples(NAMES, st.integers(0, 10**12)), max_size=5), st.integers(40, 160))
def test_a_table_fits_the_screen_and_no_line_ends_in_blanks(
    rows: list[tuple[str, int]], width: int
) -> None:
    cells = [[name, "cached", str(size)] for name, size in rows]
    lines = table(["MODEL", "STATE", "SIZE"], cells, width, names=("MODEL",), numbers=("SIZE",))
    assert len(lines) == len(rows) + 1
    assert all(line.cell_len <= width for line in lines)
    assert all(line.plain == line.plain.rstrip() for line in lines)
    assert all(line.plain.endswith(cell[2]) for line, cell in zip(lines[1:], cells, strict=True))
    complete = table(["MODEL", "STATE", "SIZE"], cells, None, names=("MODEL",))
    assert all(name in line.plain for line, (name, *_) in zip(complete[1:], cells, strict=True))


def test_columns_with_a_width_stay_where_they_are() -> None:
    short = table(["MODEL", "SIZE"], [["a", "1 B"]], 40, names=("MODEL",), widths={"SIZE": 8})
    other = table(["MODEL", "SIZE"], [["b" * 90, "9 GB"]], 40, names=("MODEL",), widths={"SIZE": 8})
    assert short[0].plain == other[0].plain
    assert short[1].plain.index("1 B") == other[1].plain.index("9 GB") == 32


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=20))
def test_lines_are_broken_between_words_only_and_nothing_is_lost(words: list[str]) -> None:
    command = "vlmcache clean --keep 'org/name' --cache-dir '/a folder/hub'"
    text = f"{' '.join(words)}: {whole(command)}"
    lines = [line.plain for line in wrapped(screen(30), text, 4)]
    assert sum(command in line for line in lines) == 1
    assert " ".join(" ".join(lines).split()) == f"{' '.join(words)}: {command}"
    assert all(len(line) <= 30 or line.strip().startswith("vlmcache") for line in lines)
    assert all(line.startswith("    ") for line in lines)


def test_a_quoted_command_is_not_broken_although_it_is_longer_than_a_line() -> None:
    command = "'vlmcache clean --partials --free 30GB'"
    lines = [line.plain for line in wrapped(screen(30), f"the disk is full: {command}", 4)]
    assert lines == ["    the disk is full:", f"    {command}"]


def test_a_label_stands_before_the_first_line_only() -> None:
    out = screen(28)
    out.print(labelled("Disk", "one two three four five"))
    assert out.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "Disk    one two three four",
        "        five",
    ]


def test_a_bar_is_as_long_as_it_should_be() -> None:
    assert [bar(share, 4).plain for share in (-1, 0, 0.5, 0.99, 1, 2)] == [
        "────",
        "────",
        "━━──",
        "━━━─",
        "━━━━",
        "━━━━",
    ]


def test_classes_have_the_words_that_people_use() -> None:
    counts = ByClass(
        referenced=1000, shared=2000, metadata=3000, detached=1, partial=2, orphan=3, foreign=4
    )
    assert class_text(counts) == (
        "6 kB used, 1 B old revisions, 3 B leftovers, 2 B unfinished, 4 B other files"
    )
    assert class_text(ByClass()) == ""


def test_repos_are_counted_by_their_type() -> None:
    assert repos_text([]) == "0 models"
    assert repos_text(["model"]) == "1 model"
    assert repos_text(["space", "model", "model", "dataset", "dataset"]) == (
        "2 models, 2 datasets and 1 space"
    )
    assert isinstance(bar(0.5, 3), Text)
