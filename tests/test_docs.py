"""The documentation is true today: help, pictures, tables and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import generate, pictures
from docs.terminal import BACKGROUND, text_of, words_of
from tests.kit.models import HAS_TORCH
from vlmcache.cli.register import COMMANDS
from vlmcache.errors import ExitCode

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
AGAIN = "python -m docs.generate"


def saved(name: str) -> str:
    return (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")


def standing(text: str) -> str:
    """Return the words without lines that begin with a time: which events came is chance."""
    return "\n".join(line for line in words_of(text).split("\n") if not line.startswith("# "))


@pytest.fixture(scope="module")
def stage() -> Iterator[pictures.Stage]:
    with pictures.stage() as opened:
        yield opened


def test_the_help_of_every_command_is_in_the_documentation() -> None:
    assert generate.PAGE.read_text(encoding="utf-8") == generate.commands_page(), AGAIN


@pytest.mark.parametrize("name", [name for name in pictures.PICTURES if name != "load-test"])
def test_a_picture_shows_what_the_command_says_now(stage: pictures.Stage, name: str) -> None:
    """The words are the same; figures, times, hashes and the widths of columns may differ."""
    wanted = standing(text_of(saved(name)))
    drawn = pictures.draw(name, stage, lambda text: standing(text) == wanted)
    assert standing(text_of(drawn)) == wanted, AGAIN


@pytest.mark.skipif(not HAS_TORCH, reason="the report's types need nothing, its words need torch")
def test_the_picture_of_the_load_test_is_its_report_as_it_would_be_shown_now(
    stage: pictures.Stage,
) -> None:
    """A load test takes a minute; its report is kept beside the picture and shown anew."""
    assert text_of(pictures.draw_saved_load_test(stage)) == text_of(saved("load-test")), AGAIN


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_light_dark_in_itself_and_on_the_readme(name: str) -> None:
    svg = saved(name)
    assert len(svg) < 20_000
    assert f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>' in svg
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert f"(docs/pictures/{name}.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_exit_codes_is_the_one_in_the_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert told == [(str(code.value), code.meaning) for code in ExitCode]


def test_the_pages_of_codes_are_the_ones_in_the_code() -> None:
    assert generate.CODES_PAGE.read_text(encoding="utf-8") == generate.codes_page(), AGAIN
    assert generate.EXIT_CODES_PAGE.read_text(encoding="utf-8") == generate.exit_codes_page(), AGAIN


def test_every_command_and_option_in_the_text_exists() -> None:
    pattern = re.compile(r"^## vlmcache ([\w-]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    helped = dict(pattern.findall(generate.PAGE.read_text(encoding="utf-8")))
    for page in PAGES:
        for span in re.findall(r"`(vlmcache [^`]+)`", page.read_text(encoding="utf-8")):
            command, *words = span.replace("=", " ").split()[1:]
            if command.startswith("-"):
                continue
            assert command in helped, f"{page.name}: {span}"
            for option in (word for word in words if re.match(r"--?[a-z]", word)):
                assert re.search(rf"(?<!\w){option}\b", helped[command]), f"{page.name}: {span}"


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = {
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    }
    assert broken == set()


def test_every_test_file_that_the_pages_name_exists() -> None:
    text = (ROOT / "docs/invariants.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/.]+)`", text)
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_promise_of_the_security_page_names_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    table = text.partition("| promise | test |\n|---|---|\n")[2].partition("\n\n")[0]
    missing = []
    for row in table.splitlines():
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        missing += [
            (name, test)
            for name, test in named
            if not re.search(rf"^def {test}\(", (ROOT / "tests" / name).read_text(), re.MULTILINE)
        ]
    assert missing == []
    assert len(table.splitlines()) > 20


def test_the_architecture_shows_where_the_code_of_every_command_is() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| `(cli/\w+\.py)` \|", text, re.MULTILINE))
    assert rows == {name: f"cli/{name.replace('-', '')}.py" for name in COMMANDS}
    source = ROOT / "src" / "vlmcache"
    places = re.findall(r"`((?:cli|commands|load|hub|change|cache|home|show)/[\w/.]*)`", text)
    assert not [place for place in places if not (source / place).exists()]
