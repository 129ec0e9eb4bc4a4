"""A word that is not a command: what it may mean, and what it must never be taken for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.commands import Vlmcache, run_here
from vlmcache.cli.register import ALIASES, COMMANDS, REMOVING
from vlmcache.cli.synonyms import SYNONYMS, suggestion

EXPLICIT = {
    "uninstall",
    "del",
    "erase",
    "unlink",
    "destroy",
    "rmi",
    "gc",
    "purge",
    "evict",
    "cleanup",
    "clean-up",
    "tidy",
    "vacuum",
    "autoremove",
    "autoclean",
    "wipe",
}
"""Words that mean removing, and nothing else, in other tools."""

OF_THE_TRASH = {"bin", "recycle", "removed"}
"""Words that mean looking into the trash; `vlmcache trash` removes nothing without `--empty`."""


def meaning(word: str) -> str | None:
    """Return the command that is suggested for a word."""
    hint = suggestion(word)
    return hint.removeprefix("did you mean 'vlmcache ").removesuffix("'?") if hint else None


def one_slip_apart(word: str, name: str) -> bool:
    """Whether one letter was left out, added, replaced, or swapped with the next (by trying)."""
    letters = {*word, *name}
    made = {name}
    for at in range(len(name) + 1):
        made |= {name[:at] + letter + name[at:] for letter in letters}
        made |= {name[:at] + letter + name[at + 1 :] for letter in letters}
        made |= {name[:at] + name[at + 1 :], name[:at] + name[at : at + 2][::-1] + name[at + 2 :]}
    return word in made


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("scan", "status"),
        ("du", "status"),
        ("INFO", "status"),
        ("outdated", "status --outdated"),
        ("check", "verify"),
        ("fsck", "verify"),
        ("install", "pull"),
        ("get", "pull"),
        ("dowload", "pull"),
        ("uninstall", "rm"),
        ("remov", "rm"),
        ("gc", "clean"),
        ("claen", "clean"),
        ("mv", "move"),
        ("bench", "load-test"),
        ("loadtest", "load-test"),
        ("statsu", "status"),
        ("exit-codes", "help exit-codes"),
        ("version", "--version"),
        ("lean", None),
        ("rn", None),
        ("mr", None),
        ("zzz", None),
        ("", None),
    ],
)
def test_a_word_of_another_tool_or_a_slip_of_the_finger_is_understood(
    word: str, command: str | None
) -> None:
    assert meaning(word) == command


def test_only_these_words_mean_removing() -> None:
    assert {word for word, meant in SYNONYMS.items() if meant.split()[0] in REMOVING} == {
        *EXPLICIT,
        *OF_THE_TRASH,
    }


@given(
    st.text("abcdelmnoprtuv-", max_size=9)
    | st.sampled_from([*COMMANDS, *ALIASES, *SYNONYMS]).flatmap(
        lambda name: st.permutations(name).map(lambda letters: "".join(letters[:8]))
    )
)
def test_a_removal_is_suggested_for_a_word_that_means_it_or_is_one_slip_away_and_for_no_other(
    word: str,
) -> None:
    meant = meaning(word)
    if meant is None or meant.split()[0] not in REMOVING:
        return
    names = {
        *EXPLICIT,
        *OF_THE_TRASH,
        *REMOVING,
        *(a for a, name in ALIASES.items() if name in REMOVING),
    }
    assert any(one_slip_apart(word, name) for name in names)


@pytest.mark.parametrize("word", sorted(SYNONYMS))
def test_no_synonym_hides_a_command_and_each_means_something_that_runs(word: str) -> None:
    assert word not in {*COMMANDS, *ALIASES}
    meant = meaning(word)
    if SYNONYMS[word].split()[0] in COMMANDS:
        assert meant == SYNONYMS[word]
        assert run_here(*SYNONYMS[word].split()[:1], "--help").code == 0


@pytest.mark.parametrize(("alias", "command"), ALIASES.items())
@pytest.mark.parametrize("yes", ["--yes", "-y", "-qy"])
def test_a_removal_takes_yes_under_its_own_name_only(
    vlmcache: Vlmcache, alias: str, command: str, yes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vlmcache.environment.items():
        monkeypatch.setenv(name, value)
    if command not in REMOVING:
        return
    words = ["org/name"] if command == "rm" else []
    done = run_here(alias, *words, yes)
    real = " ".join(["vlmcache", command, *words, yes])
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: '{alias}' is another name for '{command}': --yes needs that one\n"
        f"hint: type {real}\n"
    )
    # The same without it is the command.
    assert run_here(alias, *words, "--dry-run").code == (7 if words else 0)


def test_an_option_that_is_almost_one_is_suggested_in_the_hint() -> None:
    done = run_here("status", "--sortt")
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: no such option: --sortt",
        "hint: did you mean --sort? see 'vlmcache status --help'",
    ]


def test_an_option_that_only_resembles_one_is_not_suggested() -> None:
    done = run_here("restore", "saved.tar", "--verify")
    assert done.err.splitlines() == [
        "error: no such option: --verify",
        "hint: see 'vlmcache restore --help'",
    ]


def test_an_option_before_the_command_is_answered_with_where_options_belong() -> None:
    for words in (("-q", "status"), ("--config", "mine.yaml", "status")):
        assert run_here(*words).err.splitlines() == [
            f"error: no such option: {words[0]}",
            "hint: options follow the command: see 'vlmcache status --help'",
        ]
    assert run_here("--nosuch").err.splitlines()[-1] == "hint: see 'vlmcache --help'"
