"""Kept copies are compared before they are kept, and set aside once they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.models import needs_bitsandbytes
from tests.load.conftest import World, program

pytestmark = needs_bitsandbytes


@pytest.fixture(scope="session")
def copy_outcomes(tiny_world: World) -> dict[str, str | None]:
    """What became of each check of copy_checks.py."""
    files = tiny_world.made["qwen2"]
    config = json.loads(Path(str(files["config.json"])).read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    quantized = files | {"config.json": json.dumps(config).encode()}
    tiny_world.cache.repo("tiny/gptq").revision(quantized)
    results: dict[str, str | None] = json.loads(tiny_world.torch(program("copy_checks.py")))
    return results


@pytest.mark.parametrize(
    "check",
    [
        "a_copy_that_cannot_be_loaded_is_set_aside",
        "what_is_stored_quantized_is_not_quantized",
        "outcomes_differ_in_weights_and_in_logits",
        "a_model_that_needs_images_or_sounds_is_compared",
        "a_model_that_fails_when_it_computes_raises",
        "the_cache_of_a_context_is_as_large_as_estimated",
    ],
)
def test_a_copy(copy_outcomes: dict[str, str | None], check: str) -> None:
    assert copy_outcomes[check] is None, copy_outcomes[check]
