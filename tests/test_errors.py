"""What the system refuses is said in its words and with the path, never with its number."""

from __future__ import annotations

import ast
import builtins
import errno
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_architecture import MODULES
from vlmcache.errors import in_words, reason_of

NUMBERS = sorted(errno.errorcode)


@given(number=st.sampled_from(NUMBERS), name=st.text(min_size=1), given_path=st.text(min_size=1))
def test_a_refusal_is_the_systems_words_and_one_path(
    number: int, name: str, given_path: str
) -> None:
    named = OSError(number, os.strerror(number), f"/{name}")
    assert in_words(named, given_path) == f"{os.strerror(number)}: /{name}"
    relative = OSError(number, os.strerror(number), f"blobs/{name}")
    assert in_words(relative, given_path) == f"{os.strerror(number)}: {given_path}"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOENT, "No such file"), "No such file"),
        (OSError("[Errno 111] Connection refused"), "Connection refused"),
        (RuntimeError("pool: [Errno 113] No route\n to host"), "pool: No route to host"),
        (OSError("[WinError 5] Access is denied"), "Access is denied"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_reason_is_one_line_without_a_number(error: Exception, words: str) -> None:
    assert reason_of(error) == words


def _handlers(tree: ast.AST) -> Iterator[ast.ExceptHandler]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))


def _may_be_the_systems(handler: ast.ExceptHandler) -> bool:
    names = {
        node.id for node in ast.walk(handler.type or ast.Tuple([])) if isinstance(node, ast.Name)
    }
    kinds = [kind for name in names if isinstance(kind := getattr(builtins, name, None), type)]
    return any(issubclass(kind, OSError) or issubclass(OSError, kind) for kind in kinds)


def _printed(handler: ast.ExceptHandler) -> Iterator[int]:
    """Yield the lines where a failure is made a string in another way than by these functions."""
    compared = {
        id(word)
        for node in ast.walk(handler)
        if isinstance(node, ast.Compare)
        for word in ast.walk(node)
    }
    for node in ast.walk(handler):
        if id(node) in compared:
            continue
        value = None
        if isinstance(node, ast.FormattedValue):
            value = node.value
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "str" and node.args:
            value = node.args[0]
        if isinstance(value, ast.Name) and value.id == handler.name:
            yield value.lineno


@pytest.mark.parametrize("module", [name for name in MODULES if name != "errors"])
def test_no_module_prints_a_refusal_of_the_system_in_another_way(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    printed = [
        line
        for handler in _handlers(tree)
        if _may_be_the_systems(handler)
        for line in _printed(handler)
    ]
    passed_on = {
        id(word)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "OSError"
        for word in node.args
    }
    words = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "strerror"
        if getattr(node.value, "id", "") != "os" and id(node) not in passed_on
    ]
    assert (printed, words) == ([], [])
