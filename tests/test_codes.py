"""Every code of a finding or an error is in the register, once, with a remedy that helps."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlmcache
from tests.kit.commands import run_here
from vlmcache.codes import CODES

SOURCE = Path(vlmcache.__file__).parent
MAKERS = {"Finding", "finding"}
NOTES = {"error", "warning", "info"}
"""Methods of the scan's notes, of which the first argument is a code too."""


@functools.cache
def help_of(command: str) -> str:
    done = run_here("help", command)
    assert done.code == 0, command
    return done.out


def trees() -> Iterator[ast.Module]:
    for path in SOURCE.rglob("*.py"):
        yield ast.parse(path.read_text(encoding="utf-8"))


def constants() -> dict[str, str]:
    """Return the strings that modules give names to."""
    return {
        target.id: node.value.value
        for tree in trees()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def expressions(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield what stands where a code belongs: first arguments, and `code` of error classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            on_notes = name in NOTES and re.search(r"notes\.|^self\.\w+$", ast.unparse(node.func))
            if node.args and (name in MAKERS or on_notes):
                yield node.args[0]
        elif isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
            for statement in node.body:
                if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value:
                    target = (
                        statement.targets[0]
                        if isinstance(statement, ast.Assign)
                        else statement.target
                    )
                    if isinstance(target, ast.Name) and target.id == "code":
                        yield statement.value


def used() -> set[str]:
    """Return the codes in the source.

    Raises:
        AssertionError: a code is made of parts, so that it could not be found here.
    """
    names = constants()
    codes: set[str] = set()
    for tree in trees():
        for expression in expressions(tree):
            choices = (
                [expression.body, expression.orelse]
                if isinstance(expression, ast.IfExp)
                else [expression]
            )
            for choice in choices:
                if isinstance(choice, ast.Constant):
                    codes.add(str(choice.value))
                elif not (isinstance(choice, ast.Name) and choice.id == "code"):
                    assert isinstance(choice, ast.Name), ast.unparse(expression)
                    codes.add(names[choice.id])
    return codes


def test_the_register_has_the_codes_of_the_source_and_no_others() -> None:
    codes = used()
    assert codes - CODES.keys() == set()
    assert CODES.keys() - codes == set()


def test_the_register_is_sorted_by_code() -> None:
    assert list(CODES) == sorted(CODES)


def test_no_two_codes_have_a_sentence_in_common() -> None:
    sentences = [sentence for entry in CODES.values() for sentence in entry]
    assert [sentence for sentence in sentences if sentences.count(sentence) > 1] == []


@pytest.mark.parametrize("code", CODES)
def test_a_code_has_one_sentence_of_meaning_and_one_of_remedy(code: str) -> None:
    for sentence in CODES[code]:
        assert re.fullmatch(r"['A-Za-z].*\.", sentence)
        assert not re.search(r"[.!?] [A-Z]", sentence)


@pytest.mark.parametrize("code", CODES)
def test_a_remedy_names_a_command_or_a_setting(code: str) -> None:
    """In single quotes; a command of vlmcache exists, as do its options."""
    quoted = re.findall(r"(?<!\w)'([^']+)'(?!\w)", CODES[code][1])
    assert quoted
    for text in quoted:
        program, *words = text.split()
        if program == "vlmcache" and words:
            options = help_of(words[0])
            for option in (word for word in words if word.startswith("-")):
                assert re.search(rf"(?<!\S){option}\b", options), text


def test_explain_prints_what_a_code_means_and_what_to_do() -> None:
    done = run_here("explain", "no-space")
    assert (done.code, done.out.splitlines()) == (0, ["no-space", *CODES["no-space"]])
    document = run_here("explain", "no-space", "--json").document
    assert (document["meaning"], document["remedy"]) == CODES["no-space"]
    assert run_here("explain", "no-space", "-q").out == "no-space\n"


def test_a_code_that_does_not_exist_is_exit_2_with_the_one_that_was_meant() -> None:
    done = run_here("explain", "no-spaces")
    assert (done.code, done.out) == (2, "")
    assert "did you mean no-space?" in done.err


def test_help_shows_a_command_or_the_table_of_exit_codes() -> None:
    assert run_here("help", "pull").out == run_here("pull", "--help").out
    assert run_here("help").out == run_here("--help").out
    assert "\n    9  not enough space\n" in run_here("help", "exit-codes").out
    assert run_here("help", "nothing").code == 2


def test_a_word_that_is_no_code_gets_the_codes_that_are_about_it() -> None:
    assert "about gated: access-denied" in run_here("explain", "gated").err
    assert "docs/codes.md lists them" in run_here("explain", "zzz").err
