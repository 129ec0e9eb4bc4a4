"""What is shown to be copied is never broken, however narrow the screen is."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from vlmcache.show.console import console
from vlmcache.show.prose import Prose, whole
from vlmcache.show.tables import hanging, labelled
from vlmcache.show.text import printable

WORD = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30)
SENTENCES = st.lists(WORD, min_size=1, max_size=20)


def lines(shown: Prose, width: int) -> list[str]:
    sink = io.StringIO()
    Console(file=sink, width=width, markup=False, highlight=False).print(shown, crop=False)
    return sink.getvalue().splitlines()


@given(words=SENTENCES, width=st.integers(1, 120), indent=st.integers(0, 12))
def test_lines_are_broken_between_words_only_and_no_blank_ends_one(
    words: list[str], width: int, indent: int
) -> None:
    text = " ".join(words)
    shown = lines(Prose(text, indent), width)
    assert " ".join(" ".join(shown).split()) == " ".join(text.split())
    for line in shown:
        assert line == line.rstrip()
        assert line.startswith(" " * indent)
        fits = cell_len(line) <= max(width, indent + 20)
        assert fits or len(line.split()) == 1


@given(before=SENTENCES, blanks=st.lists(WORD, min_size=2, max_size=6), width=st.integers(1, 90))
def test_a_path_or_command_with_blanks_is_one_word(
    before: list[str], blanks: list[str], width: int
) -> None:
    path = " ".join(blanks)
    text = f"{' '.join(before)} {whole(path)} (why)"
    assert any(path in line for line in lines(Prose(text, 2), width))


def test_a_command_in_quotes_is_never_broken() -> None:
    text = "it is damaged: 'vlmcache verify org/name --repair --max-age 0' fetches it again"
    shown = lines(Prose(text), 40)
    assert shown[1] == "'vlmcache verify org/name --repair --max-age 0'"


def test_a_label_stands_before_the_first_line_only() -> None:
    shown = lines(labelled("Cache", "/mnt/models/hub (HF_HUB_CACHE) and so on"), 30)
    assert shown == ["Cache   /mnt/models/hub", "        (HF_HUB_CACHE) and so", "        on"]
    assert lines(hanging(Text("one\ntwo"), 2), 30) == ["  one", "  two"]


def test_a_number_keeps_its_unit_and_each_line_of_a_comment_its_sign() -> None:
    shown = lines(Prose("# with a lot of room: 30 GB", 2, again="# "), 27)
    assert shown == ["  # with a lot of room:", "  # 30 GB"]


def test_in_a_pipe_nothing_is_broken_unless_it_says_how_wide_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "word " * 100 + "end"
    for columns, count in (("", 1), ("60", 9)):
        monkeypatch.setenv("COLUMNS", columns)
        sink = io.StringIO()
        console(sink).print(text)
        assert sink.getvalue().count("\n") == count


def test_a_name_cannot_hold_what_stands_for_a_blank() -> None:
    assert "\ue000" not in printable("a\ue000b")
