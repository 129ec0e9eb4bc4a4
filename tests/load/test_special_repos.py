"""Repos with code of their own, unusual weights, and adapters load, or say why not."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.kit.models import needs_torch
from tests.load.conftest import make_world

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
    here = str(Path(__file__).parents[2])
    answer = world.python(PROGRAM.read_text(), PYTHONPATH=here)
    results: dict[str, str | None] = json.loads(answer)
    return results


@needs_torch
@pytest.mark.parametrize("check", CHECKS)
def test_load_model(outcomes: dict[str, str | None], check: str) -> None:
    assert outcomes[check] is None, outcomes[check]
