"""The help of every option and argument is a sentence that says what it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from vlmcache.cli import main as cli
from vlmcache.cli.register import COMMANDS

FRAGMENTS = {"Also", "By", "Can", "For", "If", "Like", "Not", "Only", "Such", "When", "Where"}
"""Words with which neither a verb nor a noun phrase begins."""
MEASURES = {
    "SIZE": r"\d+(\.\d+)?[kMGT]i?B\b",
    "RATE": r"\d+(\.\d+)?[kMGT]i?B\b",
    "AGE": r"\d+(\.\d+)?[smhdwy]\b",
    "TIME": r"\d+(\.\d+)?[smhdwy]\b",
}
"""Metavar of what has a unit -> an example of it."""
DO_NOTHING_BY_DEFAULT = {
    ("", "--install-completion"),
    ("", "--show-completion"),
    ("status", "--filter"),
    ("pull", "--include"),
    ("pull", "--exclude"),
    ("pull", "--limit-rate"),
    ("rm", "--revision"),
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
