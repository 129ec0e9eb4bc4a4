"""Help, messages, README and docs are plain American English: tests/words.txt lists what is not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATTERNS = [
    line
    for line in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
ODD = re.compile("|".join(f"(?:{pattern})" for pattern in PATTERNS), re.IGNORECASE)
KEYS = frozenset({"quantise"})
"""Keys of JSON documents, which never change once they were published."""
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")} - {ROOT / "CHANGELOG.md"})
"""The changelog keeps the words of earlier versions."""


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("src/**/*.py")), ids=lambda path: str(path.relative_to(ROOT / "src"))
)
def test_no_string_of_a_module_has_an_odd_turn_of_english(path: Path) -> None:
    found = [
        f"line {node.lineno}: {match[0]!r}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value not in KEYS
        for match in ODD.finditer(node.value)
    ]
    assert not found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_has_an_odd_turn_of_english(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [
        f"line {number}: {match[0]!r}"
        for number, line in enumerate(lines, 1)
        for match in ODD.finditer(line)
    ]
    assert not found
