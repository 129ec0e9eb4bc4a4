"""The help of every option and argument is a sentence that says what it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from tests.kit.commands import Vlmcache, run_here
from vlmcache.cli import main as cli
from vlmcache.cli.register import COMMANDS, first_words, grouped, words_of

FRAGMENTS = {"Also", "By", "Can", "For", "If", "Like", "Not", "Only", "Such", "When", "Where"}
"""Words with which neither a verb nor a noun phrase begins."""
MEASURES = {
    "SIZE": r"\d+(\.\d+)?[kMGT]i?B\b",
    "AGE": r"\d+(\.\d+)?[smhdwy]\b",
    "TIME": r"\d+(\.\d+)?[smhdwy]\b",
}
"""Metavar of what has a unit -> an example of it."""
DO_NOTHING_BY_DEFAULT = {
    ("status", "--filter"),
    ("pull", "--include"),
    ("pull", "--exclude"),
    ("pull", "--limit-rate"),
    ("rm", "--revision"),
    ("rm", "--include"),
    ("clean", "--older-than"),
    ("clean", "--max-size"),
    ("clean", "--free"),
    ("clean", "--keep"),
    ("watch", "--metrics"),
    ("watch", "--listen"),
    ("move", "--relink"),
    ("load-test", "--synthetic"),
    ("load-test", "--save"),
    ("load-test", "--compare"),
    ("load-test", "--plot"),
    ("fleet-pull", "--include"),
    ("fleet-pull", "--exclude"),
    ("fleet-rm", "--revision"),
    ("fleet-rm", "--include"),
    ("fleet-clean", "--older-than"),
    ("fleet-clean", "--max-size"),
    ("fleet-clean", "--free"),
    ("fleet-clean", "--keep"),
    ("fleet-load-test", "--synthetic"),
    ("doctor", "--shared"),
}
"""Options with a value that change nothing unless they are given, and so have no default."""


def parameters() -> Iterator[tuple[str, str, Any]]:
    """Yield command, name and parameter, for `vlmcache` itself too."""
    group: Any = typer.main.get_command(cli.app)
    for command in ("", *COMMANDS):
        for parameter in (group.get_command(None, command) if command else group).params:
            yield command, parameter.opts[0], parameter


ALL = {(command, name): parameter for command, name, parameter in parameters()}
OPTIONS = [key for key, value in ALL.items() if value.param_type_name == "option"]
MEASURED = [key for key in OPTIONS if ALL[key].metavar in MEASURES]


@pytest.mark.parametrize(("command", "name"), ALL)
def test_a_help_is_sentences_that_begin_with_a_verb_or_a_noun_phrase(
    command: str, name: str
) -> None:
    text = ALL[command, name].help
    assert text, "no help"
    assert text.endswith("."), text
    for sentence in re.split(r"(?<=\w[.])\s+", text):
        first, *others = sentence.split()
        assert re.fullmatch(r"[A-Z]\w*", first), f"does not begin with a capital word: {sentence}"
        assert first not in FRAGMENTS, f"no sentence: {sentence}"
        assert len(others) >= 2, f"too short to say anything: {sentence}"


@pytest.mark.parametrize(("command", "name"), MEASURED)
def test_a_help_shows_how_a_size_an_age_or_a_rate_is_written(command: str, name: str) -> None:
    parameter = ALL[command, name]
    assert re.search(MEASURES[parameter.metavar], parameter.help), parameter.help


@pytest.mark.parametrize(("command", "name"), OPTIONS)
def test_a_default_is_shown_or_is_in_the_help(command: str, name: str) -> None:
    parameter = ALL[command, name]
    shown = parameter.show_default and parameter.default not in (None, False)
    plain = parameter.is_flag and parameter.default is False
    counts = parameter.count
    stated = "default" in parameter.help
    unused = (command, name) in DO_NOTHING_BY_DEFAULT
    assert [shown, plain or counts, stated, unused].count(True) == 1, parameter.help


def test_every_option_that_is_said_to_have_no_default_exists() -> None:
    assert set(OPTIONS) >= DO_NOTHING_BY_DEFAULT


def page(*arguments: str, columns: int) -> list[str]:
    """Return the lines of a page of help as a pipe gets it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        done = run_here(*arguments)
    assert (done.code, done.err) == (0, "")
    return done.out.splitlines()


PAGES = [("--help",), ("help", "exit-codes"), *((name, "--help") for name in COMMANDS)]


@pytest.mark.parametrize("arguments", PAGES, ids=" ".join)
def test_a_page_of_help_fits_its_width_and_never_wraps_an_example(
    arguments: tuple[str, ...],
) -> None:
    widest_page = set(page(*arguments, columns=160))
    examples = {line for line in widest_page if re.match(r"  .*\bvlmcache ", line)}
    for columns in (40, 60, 80, 100, 160):
        lines = page(*arguments, columns=columns)
        widest = max(len(line) for line in lines if line not in examples)
        assert widest <= min(columns, 100)
        assert not any(line != line.rstrip() for line in lines)
        if arguments[0] in COMMANDS and arguments[-1] == "--help":
            at = lines.index("Examples:")
            assert lines[at + 1 :], "no example"
            assert set(lines[at + 1 :]) <= widest_page
            assert any(
                f"vlmcache {' '.join(words_of(arguments[0]))}" in line for line in lines[at + 1 :]
            )


def test_the_usage_line_names_arguments_as_other_programs_do() -> None:
    assert "Usage: vlmcache recall [OPTIONS] MODEL..." in page("recall", "--help", columns=80)
    backup = page("backup", "--help", columns=80)
    assert "Usage: vlmcache backup [OPTIONS] DEST [MODEL]..." in backup


def test_the_commands_are_in_groups_and_each_in_one() -> None:
    groups = grouped()
    headings = ["Look", "Get", "Free space", "Move and save", "Measure", "Many machines", "Other"]
    assert list(groups) == headings
    assert sorted(name for names in groups.values() for name in names) == sorted(first_words())
    lines = page("--help", columns=80)
    for heading, names in groups.items():
        at = lines.index(f"{heading}:")
        shown = [line.split()[0] for line in lines[at + 1 : at + 1 + len(names)]]
        assert shown == list(names)


def test_help_of_a_command_is_its_help_and_help_of_nothing_is_the_first_page() -> None:
    assert page("help", "pull", columns=80) == page("pull", "--help", columns=80)
    assert page("help", "download", columns=80) == page("pull", "--help", columns=80)
    assert page("help", columns=80) == page("--help", columns=80) == page(columns=80)
    wrong = run_here("help", "scan")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err == "error: no such command: scan\nhint: did you mean 'vlmcache status'?\n"


def test_only_a_terminal_that_can_show_it_gets_bold_headings(vlmcache: Vlmcache) -> None:
    assert "\x1b[1mLook:\x1b[0m" in vlmcache.on_terminal("--help")
    assert "\x1b[1mUsage:\x1b[0m vlmcache pull" in vlmcache.on_terminal("pull", "--help")
    for quiet in ({"TERM": "dumb"}, {"NO_COLOR": "1"}):
        assert "\x1b" not in vlmcache.on_terminal("--help", **quiet)
