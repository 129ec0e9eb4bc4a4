"""Tiny models of 44 architectures load as plain transformers loads them, and so do their copies."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.models import needs_bitsandbytes, needs_torch
from tests.load.conftest import World, make_world, program

CASES = Path(__file__).with_name("architectures.json")
NAMES = sorted(json.loads(CASES.read_text())["models"])
OF_EACH_KIND = {
    "bert_model": "an encoder",
    "blip2_t5": "a query transformer, of which a part stays fp32",
    "clip": "images and text side by side",
    "donut": "a pair of two architectures",
    "gemma3": "a text model within, with a sliding window",
    "gpt2": "weights that lie transposed",
    "gpt_oss": "experts with biases",
    "jamba": "states in place of attention",
    "layoutlmv3": "a head for each token",
    "llama_tied": "one weight under two names",
    "mixtral": "experts that are joined",
    "pixtral_llava": "weights that are renamed",
    "t5": "an encoder and a decoder, of which a part stays fp32",
    "whisper": "sounds",
}
"""Those that the check loads, and what each stands for; the others are loaded by the tier full."""
OTHERS = [name for name in NAMES if name not in OF_EACH_KIND]


def outcome(world: World, work: str, *names: str) -> dict[str, str | None]:
    answer = world.torch(program("architectures.py"), work, *names, ARCHITECTURES=str(CASES))
    results: dict[str, str | None] = json.loads(answer)
    return results


def assert_equal(problem: str | None) -> None:
    if problem is not None and problem.startswith("skip: "):
        pytest.skip(problem.removeprefix("skip: "))
    assert problem is None, problem


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str | None]]:
    """What became of loading some, which are loaded once."""

    @functools.cache
    def load(*names: str) -> dict[str, str | None]:
        return outcome(make_world(tmp_path_factory.mktemp("world"), {}), "loads", *names)

    return load


@needs_torch
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_class_types_weights_and_logits_equal_plain_transformers(
    loads: Callable[..., dict[str, str | None]], name: str
) -> None:
    assert_equal(loads(*OF_EACH_KIND)[name])


@pytest.mark.full
@needs_torch
@pytest.mark.parametrize("name", OTHERS)
def test_class_types_weights_and_logits_of_others_equal_plain_transformers(
    loads: Callable[..., dict[str, str | None]], name: str
) -> None:
    assert_equal(loads(*OTHERS)[name])


@pytest.mark.full
@needs_bitsandbytes
@pytest.mark.parametrize("name", NAMES)
def test_each_copy_has_the_logits_of_a_fresh_load(world: World, name: str) -> None:
    assert_equal(outcome(world, "copies", name)[name])
