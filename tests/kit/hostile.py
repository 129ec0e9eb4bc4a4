"""Strategies for what is read from outside: almost right, and meant to do harm.

`FUZZ=100 pytest tests/fuzz` tries a hundred times as many examples, and other ones each time.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_FACTOR = int(os.environ.get("FUZZ", "1"))

TEXTS = st.sampled_from(
    [
        "",
        ".",
        "..",
        "../../../x",
        "/etc/x",
        "a/../b",
        "a//b",
        "C:\\x",
        "a\\b",
        "nul\0byte",
        "line\nbreak",
        "\x1b]0;owned\x07",
        "\u202egnp",
        "\ud800",
        "x" * 300,
        "x/" * 600,
        "main",
        "refs/pr/1",
        "0" * 40,
        "f" * 64,
        "models--a--b",
        "{}",
        "null",
        "-1",
        "²",
        "--all",
    ]
)
NUMBERS = st.sampled_from(
    [0, 1, -1, 40, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, 10**400]
)
ATOMS = st.none() | st.booleans() | NUMBERS | TEXTS | st.text(max_size=8)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def examples(count: int) -> Callable[[Any], Any]:
    """Return the settings of a test of so many examples, the same ones each time."""
    return settings(
        max_examples=count * _FACTOR,
        derandomize=_FACTOR == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """Draw a document in which up to three parts are replaced, removed, renamed or repeated."""
    holder = {"root": copy.deepcopy(document)}
    for _ in range(draw(st.integers(0, 3))):
        place: Any = holder
        key: Any = "root"
        while draw(st.integers(0, 3)) and isinstance(place[key], dict | list) and place[key]:
            place = place[key]
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(keys))
        how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "repeat"]))
        if how == "replace" or place is holder:
            place[key] = draw(VALUES)
        elif how == "remove":
            del place[key]
        elif isinstance(place, dict):
            place[draw(TEXTS)] = place[key]
        else:
            place.append(place[key])
    return holder["root"]


@st.composite
def spoiled(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw bytes that were truncated, or some of which were changed."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["cut", "put", "overwrite", "deep"]))
        if how == "cut":
            del data[at:]
        elif how == "put":
            data[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif how == "overwrite":
            data[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
        else:
            data[at:at] = draw(st.sampled_from([b"[", b'{"a":'])) * 20_000
    return bytes(data)


def as_json(document: Any) -> st.SearchStrategy[bytes]:
    """Return JSON of documents like this one, most of it valid."""
    # What UTF-8 cannot express is left to JSON's own escapes.
    valid = mutated(document).map(lambda value: json.dumps(value).encode())
    return valid | valid.flatmap(spoiled)
