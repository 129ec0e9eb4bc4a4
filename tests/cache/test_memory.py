"""The memory of a model is estimated from its headers and its configuration alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmcache.cache.context import context_memory
from vlmcache.cache.memory import MemoryEstimate, estimate
from vlmcache.cache.weights import DTYPE_BITS, Precision, Tensor

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "int4")
N = 64 * 64


def tensors(dtype: str, *names: str, shape: tuple[int, ...] = (64, 64)) -> dict[str, Tensor]:
    size = math.prod(shape) * DTYPE_BITS[dtype] // 8
    return {name: Tensor(dtype, shape, (0, size)) for name in names}


def parts(memory: MemoryEstimate) -> tuple[int, int, int]:
    return memory.anonymous, memory.mapped, memory.device


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        ("BF16", "bf16", (0, 4 * N)),
        ("BF16", "fp16", (4 * N, 0)),
        ("F16", "fp16", (0, 4 * N)),
        ("BF16", "fp32", (8 * N, 0)),
        ("F32", "fp32", (0, 8 * N)),
        ("BF16", "int8", (N + 4 * 64, 2 * N)),
        ("BF16", "int4", (N // 2 + N // 16, 2 * N)),
        ("F32", "int8", (N + 4 * 64 + 2 * N, 0)),
    ],
)
def test_on_the_cpu_only_what_keeps_its_type_stays_in_its_file(
    dtype: str, precision: Precision, expected: tuple[int, int]
) -> None:
    held = tensors(dtype, "model.embed_tokens.weight", "model.layers.0.q_proj.weight")
    assert parts(estimate(held, {}, precision)) == (*expected, 0)
    on_device = estimate(held, {}, precision, accelerator=True)
    assert parts(on_device) == (0, 0, sum(expected))
    assert on_device.held.total == sum(expected)


@pytest.mark.parametrize(
    ("config", "name", "kept"),
    [
        ({"model_type": "t5"}, "decoder.block.0.layer.2.DenseReluDense.wo.weight", ["fp16"]),
        ({"model_type": "blip-2"}, "qformer.encoder.layer.0.dense.weight", ["fp16"]),
        (
            {"model_type": "instructblip", "text_config": {"model_type": "t5"}},
            "language_model.decoder.block.0.layer.2.DenseReluDense.wo.weight",
            ["fp16"],
        ),
        ({"model_type": "hy_v4"}, "lm_head.weight", ["fp16", "bf16"]),
        ({"model_type": "qwen2"}, "model.layers.0.wo.weight", []),
    ],
)
def test_what_an_architecture_keeps_in_fp32_takes_four_bytes(
    config: dict[str, Any], name: str, kept: list[str]
) -> None:
    held = tensors("BF16", name)
    halves: tuple[Precision, ...] = ("fp16", "bf16")
    assert [half for half in halves if estimate(held, config, half).weights == 4 * N] == kept
    quantized = estimate(held, config | {"dtype": "bfloat16"}, "int8").weights
    assert (quantized >= 2 * N) == bool(kept)


def test_experts_are_joined_and_left_alone_by_quantizing() -> None:
    held = tensors("BF16", "model.layers.0.mlp.experts.3.up_proj.weight")
    assert parts(estimate(held, {}, "bf16")) == (2 * N, 0, 0)
    assert parts(estimate(held, {}, "int8")) == (2 * N, 0, 0)


@pytest.mark.parametrize("where", ["top", "text"])
def test_tied_weights_that_are_stored_twice_are_loaded_once(where: str) -> None:
    held = tensors("BF16", "model.embed_tokens.weight", "lm_head.weight")
    tie = {"tie_word_embeddings": True}
    assert estimate(held, tie if where == "top" else {"text_config": tie}, "bf16").weights == 2 * N
    assert estimate(held, {"tie_word_embeddings": False}, "bf16").weights == 4 * N


def test_fp8_is_unpacked_without_an_accelerator() -> None:
    held = tensors("F8_E4M3", "layers.0.q_proj.weight") | tensors(
        "F32", "layers.0.q_proj.weight_scale_inv", shape=(1, 1)
    )
    config = {"quantization_config": {"quant_method": "fp8"}}
    assert parts(estimate(held, config, "bf16")) == (2 * N, 0, 0)
    assert parts(estimate(held, config, "bf16", accelerator=True))[2] in (N + 2, N + 4)


@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize("native", [False, True])
def test_mxfp4_is_unpacked_without_what_runs_it(accelerator: bool, native: bool) -> None:
    held = tensors("U8", "layers.0.mlp.experts.down_proj_blocks") | tensors(
        "U8", "layers.0.mlp.experts.down_proj_scales", shape=(64, 4)
    )
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    memory = estimate(held, config, "bf16", accelerator=accelerator, native=native)
    assert memory.weights == (N + 256 if accelerator and native else 4 * N)


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes"])
def test_other_quantized_weights_stay_as_they_are_stored(method: str) -> None:
    held = tensors("I32", "q.qweight", shape=(64, 8)) | tensors("F16", "q.scales", shape=(1, 64))
    config = {"quantization_config": {"quant_method": method}}
    for precision in PRECISIONS[1:]:
        assert estimate(held, config, precision).weights == 64 * 8 * 4 + 2 * 64


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=4)
    ),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    [
        *("quantization_config", "quant_method", "model_type", "text_config", "dtype"),
        *("num_hidden_layers", "hidden_size", "num_attention_heads", "layer_types"),
        *("sliding_window", "kv_lora_rank", "tie_word_embeddings", "full_attention_interval"),
    ]
)


@given(
    config=st.dictionaries(_KEYS, _JSON | st.dictionaries(_KEYS, _JSON, max_size=4), max_size=8),
    precision=st.sampled_from(PRECISIONS),
    dtype=st.sampled_from(["F32", "BF16", "F16", "U8", "F8_E4M3"]),
    accelerator=st.booleans(),
    context=st.integers(0, 10**6),
)
def test_whatever_a_configuration_says_the_parts_are_the_weights(
    config: dict[str, Any], precision: Precision, dtype: str, accelerator: bool, context: int
) -> None:
    held = tensors(dtype, "model.embed_tokens.weight", "experts.0.w.weight", "a_blocks", "q.weight")
    memory = estimate(held, config, precision, accelerator=accelerator, context=context)
    assert min(parts(memory)) >= 0
    assert sum(parts(memory)) == memory.weights
    assert memory.context >= 0
    assert memory.held.total <= memory.total


LLAMA = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA, 4 * 2 * 2 * 32 * 1000),
        (LLAMA | {"num_key_value_heads": None}, 4 * 2 * 8 * 32 * 1000),
        (LLAMA | {"head_dim": 64}, 4 * 2 * 2 * 64 * 1000),
        ({"text_config": LLAMA, "num_hidden_layers": 99}, 4 * 2 * 2 * 32 * 1000),
        (LLAMA | {"sliding_window": 100}, 4 * 2 * 2 * 32 * 100),
        (LLAMA | {"sliding_window": 100, "use_sliding_window": False}, 4 * 2 * 2 * 32 * 1000),
        (
            LLAMA
            | {"sliding_window": 100, "layer_types": ["sliding_attention", "full_attention"] * 2},
            2 * 2 * 32 * (2 * 100 + 2 * 1000),
        ),
        (
            LLAMA | {"sliding_window": 100, "sliding_window_pattern": 4},
            2 * 2 * 32 * (3 * 100 + 1000),
        ),
        (
            {
                "d_model": 256,
                "num_heads": 8,
                "d_kv": 16,
                "num_layers": 4,
                "is_encoder_decoder": True,
            },
            2 * 4 * 2 * 8 * 16 * 1000,
        ),
        ({"n_layer": 2, "n_embd": 64, "n_head": 4}, 2 * 2 * 64 * 1000),
    ],
    ids=[
        *("grouped", "every-head", "head-dim", "text-part", "window", "window-off", "alternating"),
        *("pattern", "encoder-decoder", "gpt2"),
    ],
)
def test_the_cache_of_a_context_follows_heads_and_windows(
    config: dict[str, Any], expected: int
) -> None:
    for element in (2, 4):
        assert context_memory(config, 1000, element) == (element * expected, ())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "does not say"),
        (LLAMA | {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "v_head_dim": 8}, "MLA"),
        (LLAMA | {"layer_types": ["linear_attention", "full_attention"] * 2}, "linear"),
        (LLAMA | {"linear_num_key_heads": 4, "full_attention_interval": 4}, "linear"),
    ],
    ids=["unknown", "latent", "linear", "linear-by-interval"],
)
def test_what_is_only_approximate_is_named(config: dict[str, Any], words: str) -> None:
    _, notes = context_memory(config, 1000, 2)
    assert [words in note for note in notes] == [True]
