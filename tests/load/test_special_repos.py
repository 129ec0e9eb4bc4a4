"""Repos with code of their own, unusual weights, and adapters load, or say why not."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.kit.models import needs_torch
from tests.load.conftest import World, make_world, program
from tests.load.test_models import TOKENIZER, with_config

PROGRAM = Path(__file__).with_name("special.py")
CHECKS = [
    node.name
    for node in ast.parse(PROGRAM.read_text()).body
    if isinstance(node, ast.FunctionDef)
    and [ast.unparse(decorator) for decorator in node.decorator_list] == ["check"]
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What became of each check of special.py."""
    world = make_world(tmp_path_factory.mktemp("world"), {})
    results: dict[str, str | None] = json.loads(world.torch(program(PROGRAM.name)))
    return results


@needs_torch
@pytest.mark.parametrize("check", CHECKS)
def test_load_model(outcomes: dict[str, str | None], check: str) -> None:
    assert outcomes[check] is None, outcomes[check]


@pytest.mark.full
@needs_torch
def test_load_test_times_the_processor_and_shows_what_is_to_be_known(tiny_world: World) -> None:
    files = with_config(tiny_world.made["qwen2"], attn_implementation="flash_attention_2")
    tiny_world.cache.repo("tiny/flash").revision(files | TOKENIZER)
    code, document = tiny_world.document(
        "load-test", "tiny/flash", "--warm", "--trials", "1", "--loader", "plain"
    )
    assert code == 0
    (result,) = document["results"]
    warm = result["trials"][0]
    assert warm["processor"] > 0
    assert warm["no_processor"] is None
    assert len(warm["notes"]) == 1
    assert "config.json asks for flash_attention_2" in warm["notes"][0]
    done = tiny_world.vlmcache("load-test", "tiny/flash", "--attention", "flash_attention_2")
    assert done.returncode == 11
    assert "flash_attention_2 needs flash-attn" in done.stderr
    assert done.stderr.endswith("hint: --attention sdpa\n")
    done = tiny_world.vlmcache("load-test", "tiny/flash", "--attention", "fast")
    assert done.returncode == 2
    assert "'fast' is not one of sdpa, eager, flash_attention_2" in done.stderr
