"""Models load as transformers loads them, at each precision; what is impossible is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.contents import Content
from tests.kit.models import CONFIGS, needs_torch
from tests.load.conftest import World, program

pytestmark = needs_torch

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
PAIRS = [f"{name} {precision}" for name in CONFIGS for precision in PRECISIONS]
IN_CHECK = [
    *(f"qwen2_vl {precision}" for precision in PRECISIONS),
    *("qwen2_5_vl int8", "qwen3_vl bf16", "got_ocr2 fp16", "qwen2 int4"),
]
"""One model at each precision, and each of the others at one; the tier full compares all."""
OWN_CONFIGURATION = """
from transformers import Qwen2Config


class OwnConfig(Qwen2Config):
    model_type = "own"
"""
OWN_MODELING = """
from transformers import Qwen2ForCausalLM

from .configuration_own import OwnConfig


class OwnModel(Qwen2ForCausalLM):
    config_class = OwnConfig
"""
VOCABULARY = {"[U]": 0, "a": 3, "b": 4, "<|image_pad|>": 5, "<|video_pad|>": 6}
WORDS: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": number, "content": content, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, content in ((5, "<|image_pad|>"), (6, "<|video_pad|>"))
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "WordLevel",
        "vocab": VOCABULARY,
        "unk_token": "[U]",
    },
}
TOKENIZER = {
    "tokenizer.json": json.dumps(WORDS).encode(),
    "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
}


def with_config(files: dict[str, Content], **changes: Any) -> dict[str, Content]:
    path = files["config.json"]
    assert isinstance(path, Path)
    return files | {"config.json": json.dumps(json.loads(path.read_text()) | changes).encode()}


def read_safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def safetensors(header: dict[str, Any], content: bytes, names: list[str]) -> bytes:
    """Return a file with only some tensors of another."""
    kept: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts = b""
    for name in names:
        begin, end = header[name]["data_offsets"]
        kept[name] = header[name] | {"data_offsets": [len(parts), len(parts) + end - begin]}
        parts += content[begin:end]
    encoded = json.dumps(kept).encode()
    return len(encoded).to_bytes(8, "little") + encoded + parts


@pytest.fixture(scope="session")
def outcomes(tiny_world: World) -> dict[str, str | None]:
    """What became of each check of checks.py."""
    files = tiny_world.made["qwen2"]
    weights = files["model.safetensors"]
    assert isinstance(weights, Path)
    header, content = read_safetensors(weights)
    names = [name for name in header if name != "__metadata__"]
    half = len(names) // 2
    index = dict.fromkeys(names[:half], "model-1.safetensors")
    index |= dict.fromkeys(names[half:], "model-2.safetensors")
    config = {"config.json": files["config.json"]}
    first = [name for name in names if ".layers.1." not in name]
    own = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
    }
    for repo, made in {
        "sharded": config
        | {
            "model.safetensors.index.json": json.dumps(
                {"metadata": {}, "weight_map": index}
            ).encode(),
            "model-1.safetensors": safetensors(header, content, names[:half]),
            "model-2.safetensors": safetensors(header, content, names[half:]),
        },
        "lacking": config | {"model.safetensors": safetensors(header, content, first)},
        "own-code": with_config(files, model_type="own", auto_map=own)
        | {
            "configuration_own.py": OWN_CONFIGURATION.encode(),
            "modeling_own.py": OWN_MODELING.encode(),
        },
        "with-tokenizer": files | TOKENIZER,
        "vision-with-tokenizer": tiny_world.made["qwen2_vl"] | TOKENIZER,
        "with-processor": tiny_world.made["qwen2_vl"]
        | TOKENIZER
        | {
            "preprocessor_config.json": b'{"image_processor_type": "Qwen2VLImageProcessor",'
            b' "processor_class": "Qwen2VLProcessor"}',
        },
        "quantized": with_config(files, quantization_config={"quant_method": "gptq", "bits": 4}),
    }.items():
        tiny_world.cache.repo(f"tiny/{repo}").revision(made)
    answer = tiny_world.torch(program("checks.py"), "all", *IN_CHECK)
    results: dict[str, str | None] = json.loads(answer)
    return results


def assert_done(outcomes: dict[str, str | None], name: str) -> None:
    problem = outcomes[name]
    if problem is not None and problem.startswith("skip: "):
        pytest.skip(problem.removeprefix("skip: "))
    assert problem is None, problem


@pytest.mark.parametrize("pair", IN_CHECK)
def test_logits_equal_those_of_plain_transformers(
    outcomes: dict[str, str | None], pair: str
) -> None:
    assert_done(outcomes, pair)


@pytest.mark.full
def test_logits_of_each_model_at_each_precision_equal_those_of_plain_transformers(
    tiny_world: World,
) -> None:
    others = [pair for pair in PAIRS if pair not in IN_CHECK]
    results = json.loads(tiny_world.torch(program("checks.py"), "only", *others))
    assert results.keys() == set(others)
    wrong = [said for said in results.values() if said and not said.startswith("skip: ")]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_kept_copy_has_the_logits_of_quantizing_and_is_not_used_once_damaged(
    outcomes: dict[str, str | None], precision: str
) -> None:
    assert_done(outcomes, f"copy {precision}")


@pytest.mark.parametrize("loader", ["pinned", "fastsafetensors", "runai"])
def test_other_loaders_give_the_same_logits(outcomes: dict[str, str | None], loader: str) -> None:
    assert_done(outcomes, f"loader {loader}")


@pytest.mark.parametrize(
    "check",
    [
        "own_code_runs_only_when_allowed",
        "sharded_weights_load",
        "missing_weights_are_reported",
        "a_processor_needs_no_torchvision_for_images_and_text",
        "a_tokenizer_is_returned",
        "a_vision_model_with_only_a_tokenizer_has_that",
        "the_class_that_the_configuration_names_is_loaded",
        "tokens_that_cannot_be_generated_are_no_failure",
        "plain_leaves_the_collector_alone_and_named_loaders_do_not",
        "what_a_loader_reads_while_the_model_is_built_counts_as_reading",
        "decoding_is_warmed_up_before_it_is_timed",
        "an_absent_device_is_reported",
        "a_quantized_model_is_not_quantized_again",
        "bitsandbytes_prints_nothing_useless",
        "collecting_continues_after_a_load",
        "every_weight_is_resident_afterwards",
        "the_use_is_remembered",
    ],
)
def test_load_model(outcomes: dict[str, str | None], check: str) -> None:
    assert_done(outcomes, check)
