"""No name in a JSON document acts on the terminal that shows the document."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.show.document import document, stream_line
from vlmcache.show.text import printable

DOCUMENTS = sorted(Path(__file__).with_name("documents").glob("*.json"))
ACTING = [
    *map(chr, (*range(0x20), *range(0x7F, 0xA0))),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]
"""C0, DEL, C1, direction marks, line and paragraph separators."""
NAMES = st.text(st.one_of(st.sampled_from(ACTING), st.characters(exclude_categories=["Cs"])))


def _is_safe(character: str) -> bool:
    return character.isprintable() and unicodedata.category(character)[0] != "C"


def _named(value: Any, name: str) -> Any:
    """Return a document with a name at the end of each string in it, keys left alone."""
    if isinstance(value, dict):
        return {key: _named(below, name) for key, below in value.items()}
    if isinstance(value, list):
        return [_named(below, name) for below in value]
    return value + name if isinstance(value, str) else value


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_each_document_with_any_names_is_printable_and_means_the_same(path: Path) -> None:
    kept = json.loads(path.read_text(encoding="utf-8"))
    fields = {
        key: value
        for key, value in kept.items()
        if key not in ("schema", "ok", "exit_code", "errors", "kind")
    }

    @given(NAMES)
    def check(name: str) -> None:
        content = _named(fields, name)
        value = msgspec.defstruct("Value", fields)(**content)
        error = VlmcacheError(name, name)
        text = document(path.stem, value, ExitCode.FAILED, error)
        lines = [
            document(path.stem, value, ExitCode.FAILED, error, line=True),
            stream_line(path.stem, value),
        ]
        for shown in (text.replace("\n", ""), *lines):
            assert all(map(_is_safe, shown))
        for shown in (text, *lines):
            assert json.loads(shown) | content == json.loads(shown)
        assert json.loads(text)["errors"][0]["message"] == name

    check()


@given(NAMES)
def test_what_a_view_shows_of_any_name_is_printable(name: str) -> None:
    assert all(map(_is_safe, printable(name)))
    assert all(character not in printable(name) for character in ACTING)
