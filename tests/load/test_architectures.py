"""Tiny models of 44 architectures load as plain transformers loads them, and so do their copies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.models import needs_bitsandbytes, needs_torch
from tests.load.conftest import World, make_world, program

CASES = Path(__file__).with_name("architectures.json")
NAMES = sorted(json.loads(CASES.read_text())["models"])


def outcome(world: World, work: str, *names: str) -> dict[str, str | None]:
    answer = world.torch(program("architectures.py"), work, *names, ARCHITECTURES=str(CASES))
    results: dict[str, str | None] = json.loads(answer)
    return results


def assert_equal(problem: str | None) -> None:
    if problem is not None and problem.startswith("skip: "):
        pytest.skip(problem.removeprefix("skip: "))
    assert problem is None, problem


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What became of loading each."""
    return outcome(make_world(tmp_path_factory.mktemp("world"), {}), "loads", *NAMES)


@needs_torch
@pytest.mark.parametrize("name", NAMES)
def test_class_types_weights_and_logits_equal_plain_transformers(
    loads: dict[str, str | None], name: str
) -> None:
    assert_equal(loads[name])


@pytest.mark.full
@needs_bitsandbytes
@pytest.mark.parametrize("name", NAMES)
def test_each_copy_has_the_logits_of_a_fresh_load(world: World, name: str) -> None:
    assert_equal(outcome(world, "copies", name)[name])
