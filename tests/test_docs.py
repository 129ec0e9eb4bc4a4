"""The documentation is true today: help, pictures, tables and links."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import generate, pictures
from docs.terminal import BACKGROUND, text_of, words_of
from tests.kit.models import HAS_TORCH
from vlmcache.cli.register import COMMANDS, FAMILIES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
AGAIN = "python -m docs.generate"
TAKES_LONG = {"backup", "doctor", "move", "pull-bars", "quantize", "restore", "verify", "watch"}
LIVE = {"pull-bars", "watch"}
"""Of these, what is shown depends on how long the downloads of models of true sizes take."""
NEEDS_TORCH = {"load-test", "quantize"}
OF_OTHERS = re.compile(r" Note the disk has # more free: .*? keep the rest")
"""What is said if another program writes to the disk in that moment."""


def saved(name: str) -> str:
    return (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")


def standing(text: str) -> str:
    """Return the words without lines that begin with a time: which events came is chance.

    Of `doctor`, which shows what this machine has, only the names of its checks.
    """
    if text.startswith("$ vlmcache doctor"):
        return " ".join(re.findall(r"^(?:ok|warning|failed) +(\w+)", text, re.MULTILINE))
    return "\n".join(line for line in words_of(text).split("\n") if not line.startswith("# "))


def late(name: str, columns: int) -> bool:
    """Whether a picture is compared at the end of a piece of work only: it takes seconds."""
    return columns > 80 or name in TAKES_LONG


@pytest.fixture(scope="module")
def stage() -> Iterator[pictures.Stage]:
    with pictures.stage() as opened:
        yield opened


def test_the_help_of_every_command_is_in_the_documentation() -> None:
    assert generate.PAGE.read_text(encoding="utf-8") == generate.commands_page(), AGAIN


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        pytest.param(name, columns, marks=[pytest.mark.full] if late(name, columns) else [])
        for name in pictures.PICTURES
        for columns in pictures.WIDTHS
    ],
)
def test_a_picture_shows_what_the_command_says_now(
    stage: pictures.Stage, name: str, columns: int
) -> None:
    """The words are the same; figures, times, hashes and the widths of columns may differ."""
    if name in NEEDS_TORCH and not HAS_TORCH:
        pytest.skip("what it says needs torch")

    def words(text: str) -> str:
        # Where a line breaks depends on figures before it.
        return OF_OTHERS.sub("", " ".join(standing(text).split()))

    wanted = words(text_of(saved(f"{name}-{columns}")))
    with contextlib.ExitStack() as stack:
        at = stack.enter_context(pictures.stage(true=True)) if name in LIVE else stage
        drawn = pictures.draw(name, at, columns, lambda text: words(text) == wanted)
    assert words(text_of(drawn)) == wanted, f"{AGAIN} {name}"


@pytest.mark.parametrize("path", sorted(pictures.FOLDER.glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_is_dark_in_itself_small_and_shown_on_a_page(path: Path) -> None:
    svg = path.read_text(encoding="utf-8")
    assert len(svg) < (60_000 if path.stem == "session" else 20_000)
    assert f'fill="{BACKGROUND}"/>' in svg
    # What is shown may name an address; nothing is fetched from one.
    assert "http" not in re.sub(r">[^<]*<", "><", svg).replace("http://www.w3.org/2000/svg", "")
    pages = (ROOT / "README.md", ROOT / "docs" / "screens.md")
    assert any(f"pictures/{path.name})" in page.read_text(encoding="utf-8") for page in pages)


def test_the_moving_picture_stands_still_for_who_wants_that() -> None:
    """What is in the last frame is shown without the animation, the rest is not."""
    svg = saved("session")
    still, motion, _ = svg.partition("@media(prefers-reduced-motion:no-preference)")
    assert motion
    assert "g g{opacity:0}g .z{opacity:1}" in still
    assert "animation" not in still


def test_the_badges_say_what_the_package_says() -> None:
    for name, drawn in generate.badges().items():
        assert saved(f"badge-{name}") == drawn, f"{AGAIN} badges"


def test_the_page_of_screens_shows_each_picture() -> None:
    assert generate.SCREENS_PAGE.read_text(encoding="utf-8") == generate.screens_page(), AGAIN


def test_every_address_of_the_readme_is_absolute_and_leads_to_a_file_of_the_project() -> None:
    """A package index shows the README alone, so that nothing in it can be relative."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    urls = dict(re.findall(r'^(\w+) = "(https://[^"]+)"$', project, re.MULTILINE))
    home = urls["Homepage"]
    places = (
        f"{home}/blob/main/",
        f"{home}/tree/main/",
        f"{home.replace('github.com', 'raw.githubusercontent.com')}/main/",
    )
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    addresses = [*re.findall(r"\]\(([^)\s]+)", text), *re.findall(r"https?://[^\s)>\"]+", text)]
    assert len(addresses) > 20
    for address in [*addresses, urls["Documentation"], urls["Changelog"]]:
        place = next((place for place in places if address.startswith(place)), None)
        assert place is not None, address
        assert (ROOT / address.removeprefix(place).partition("#")[0]).is_file(), address
    assert all(url.startswith(home) for url in urls.values())


def test_every_page_of_the_documentation_is_in_its_list_once() -> None:
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text("utf-8"))
    pages = {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"}
    assert sorted(listed) == sorted(pages)


def test_the_pages_of_codes_are_the_ones_in_the_code() -> None:
    assert generate.CODES_PAGE.read_text(encoding="utf-8") == generate.codes_page(), AGAIN
    assert generate.EXIT_CODES_PAGE.read_text(encoding="utf-8") == generate.exit_codes_page(), AGAIN


def test_every_command_and_option_in_the_text_exists() -> None:
    pattern = re.compile(r"^## vlmcache ([\w -]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    helped = dict(pattern.findall(generate.PAGE.read_text(encoding="utf-8")))
    for page in PAGES:
        for span in re.findall(r"`(vlmcache [^`]+)`", page.read_text(encoding="utf-8")):
            command, *words = span.replace("=", " ").split()[1:]
            if command.startswith("-") or (command in FAMILIES and not words):
                continue
            if command in FAMILIES:
                command = f"{command} {words.pop(0)}"
            assert command in helped, f"{page.name}: {span}"
            for option in (word for word in words if re.match(r"--?[a-z]", word)):
                assert re.search(rf"(?<!\w){option}\b", helped[command]), f"{page.name}: {span}"


def anchors_of(page: Path) -> set[str]:
    """Return the names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_link_between_pages_leads_to_a_file_and_to_a_heading() -> None:
    broken = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#?)([^)\s]*)\)", text):
            if "://" in target:
                continue
            path = page.parent / target if target else page
            if not path.exists() or (anchor and anchor not in anchors_of(path)):
                broken.add(f"{page.name}: {target}#{anchor}")
    assert broken == set()


def test_a_page_is_short_unless_it_is_made_or_keeps_counts() -> None:
    long = {"commands.md", "codes.md", "benchmarks.md", "faults.md", "testing.md"}
    lines = {page.name: page.read_text("utf-8").count("\n") for page in ROOT.glob("docs/*.md")}
    assert {name for name, count in lines.items() if count > 120} <= long


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
