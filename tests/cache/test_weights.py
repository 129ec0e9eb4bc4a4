"""Headers of safetensors files are read, checked, and turned into the memory they need."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.caches import safetensors
from vlmcache.cache.memory import estimate, rescale, with_overhead
from vlmcache.cache.weights import Precision, Tensor, read_header

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "int4")


def weights_bytes(tensors: Mapping[str, Tensor], precision: Precision) -> int:
    """Return the bytes that tensors take at a precision, if no more is known about the model."""
    return estimate(tensors, {}, precision, accelerator=True).weights


def written(path: Path, header: object, data: bytes = b"") -> str:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_header_names_each_tensor_with_dtype_and_shape(file: Path) -> None:
    file.write_bytes(safetensors({"a.weight": ([4, 8], b"\0" * 64), "b": ([3], b"\0" * 6)}))
    tensors = read_header(str(file))
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        "a.weight": ("F16", (4, 8)),
        "b": ("F16", (3,)),
    }


def test_metadata_is_not_a_tensor_and_a_scalar_has_one_element(file: Path) -> None:
    entry = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    path = written(file, {"__metadata__": {"format": "pt"}, "scale": entry}, b"\0" * 4)
    assert read_header(path)["scale"].elements == 1


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"not json", b""),
        ({"a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}, b"\0" * 4),
        ({"a": {"dtype": "F16", "shape": [4], "data_offsets": [8, 0]}}, b"\0" * 8),
        ({"a": {"dtype": "F16", "shape": [-4], "data_offsets": [0, 8]}}, b"\0" * 8),
        ({"a": {"dtype": "F16", "shape": [5], "data_offsets": [0, 8]}}, b"\0" * 8),
        ({"a": {"shape": [4]}}, b""),
        ({"a": 5}, b""),
        (b"[" * 100_000, b""),
        (b'{"a":' * 100_000, b""),
        ({"a": {"dtype": "F16", "shape": [2**62] * 100_000, "data_offsets": [0, 0]}}, b""),
        ({"a": {"dtype": "F99", "shape": [2**62] * 60, "data_offsets": [0, 8]}}, b"\0" * 8),
        ({"a": {"dtype": "F16", "shape": [2**64, 0], "data_offsets": [0, 0]}}, b""),
        ({"a": {"dtype": "F16", "shape": [10**30, 0], "data_offsets": [0, 0]}}, b""),
        ({"a": {"dtype": "F16", "shape": [4], "data_offsets": [10**30, 10**30 + 8]}}, b""),
        ({"a" * 1001: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}, b""),
        (b"{" + b'"a":[],' * 2_000_001 + b'"b":[]}', b""),
        (
            {
                "a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]},
                "b": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]},
            },
            b"\0" * 8,
        ),
    ],
    ids=range(17),
)
def test_a_header_that_contradicts_itself_or_its_file_is_refused(
    file: Path, header: object, data: bytes
) -> None:
    path = written(file, header, data)
    with pytest.raises(ValueError, match=r"tensor|header"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 16, b"\0" * 8 + b"x"])
def test_a_file_that_is_not_a_safetensors_file_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"safetensors"):
        read_header(str(file))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_read_or_refused_with_a_value_error(
    file: Path, content: bytes, length: int
) -> None:
    file.write_bytes(struct.pack("<Q", length) + content)
    try:
        read_header(str(file))
    except ValueError:
        return


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    dtype=st.sampled_from(["F16", "U8", "F4", "NEW"]),
    size=st.sampled_from([0, 1, 7, 2**31, 2**62, 2**63, 2**64, 10**40, -1]),
    dimensions=st.sampled_from([0, 1, 2, 63, 64, 65, 1000, 100_000]),
    copies=st.integers(1, 20),
    end=st.sampled_from([0, 8, 16, 2**63, 10**40]),
)
def test_no_tensor_is_larger_than_its_file_whatever_its_shape_says(
    file: Path, dtype: str, size: int, dimensions: int, copies: int, end: int
) -> None:
    tensor = {"dtype": dtype, "shape": [size] * dimensions, "data_offsets": [0, end]}
    path = written(file, {f"a{number}": tensor for number in range(copies)}, b"\0" * 16)
    try:
        tensors = read_header(path)
    except ValueError:
        return
    assert sum(tensor.stored for tensor in tensors.values()) <= 16
    assert all(weights_bytes(tensors, precision) <= 16 * 8 * 4 for precision in PRECISIONS)


def test_memory_follows_the_precision(file: Path) -> None:
    file.write_bytes(
        safetensors(
            {
                "model.embed_tokens.weight": ([100, 64], b"\0" * 12800),
                "model.layers.0.q_proj.weight": ([64, 64], b"\0" * 8192),
                "model.norm.weight": ([64], b"\0" * 128),
            }
        )
    )
    tensors = read_header(str(file))
    rest = 6400 + 64
    assert weights_bytes(tensors, "fp32") == 4 * (rest + 4096)
    assert weights_bytes(tensors, "bf16") == 2 * (rest + 4096)
    assert weights_bytes(tensors, "int8") == 2 * rest + 4096 + 4 * 64
    assert weights_bytes(tensors, "int4") == 2 * rest + 4096 // 2 + 4096 // 16


_SHORT = {
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "F16": 2,
    "BF16": 2,
    "F32": 4,
    "I32": 4,
    "I64": 8,
}


def stored(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    return {
        name: Tensor(dtype, shape, (0, math.prod(shape) * _SHORT[dtype]))
        for name, (dtype, shape) in tensors.items()
    }


@pytest.mark.parametrize(
    "linear",
    [
        {
            "q.weight": ("U8", (2048, 1)),
            "q.weight.absmax": ("U8", (64,)),
            "q.weight.quant_map": ("F32", (16,)),
            "q.weight.quant_state.bitsandbytes__nf4": ("U8", (80,)),
        },
        {"q.weight": ("I8", (64, 64)), "q.SCB": ("F32", (64,))},
        {
            "q.qweight": ("I32", (64, 8)),
            "q.qzeros": ("I32", (1, 8)),
            "q.scales": ("F16", (1, 64)),
            "q.g_idx": ("I32", (64,)),
        },
        {"q.weight": ("F8_E4M3", (64, 64)), "q.weight_scale_inv": ("F32", (1, 1))},
        {
            "experts.gate_up_proj_blocks": ("U8", (4, 8, 2, 16)),
            "experts.gate_up_proj_scales": ("U8", (4, 8, 2)),
        },
    ],
    ids=["bnb-4bit", "bnb-8bit", "awq-gptq", "fp8", "mxfp4"],
)
def test_weights_that_are_stored_quantized_take_what_is_stored_at_every_precision(
    linear: dict[str, tuple[str, tuple[int, ...]]],
) -> None:
    kept = stored(linear)
    rest = stored({"model.embed_tokens.weight": ("BF16", (100, 64)), "proj": ("BF16", (64, 64))})
    quantized = sum(tensor.stored for tensor in kept.values())
    floats = sum(tensor.stored for tensor in rest.values())
    for precision in ("int4", "int8", "bf16", "fp16"):
        assert weights_bytes(kept | rest, precision) - (quantized + floats) in range(-200, 1)
    assert floats < weights_bytes(kept | rest, "fp32") - quantized <= 2 * floats + 200


def test_masks_and_positions_do_not_make_weights_quantized_ones() -> None:
    floats = {"q.weight": ("F16", (64, 64))}
    for extra in (
        {"attn.bias": ("U8", (8, 8))},
        {"position_ids": ("I64", (1, 8)), "layer_scale": ("F16", (8,))},
    ):
        tensors = stored({**floats, **extra})
        rest = sum(tensors[name].stored for name in extra)
        assert weights_bytes(tensors, "int8") == 64 * 64 + 4 * 64 + rest


def test_eight_bit_floats_without_scales_are_loaded_at_the_precision() -> None:
    tensors = stored({"q.weight": ("F8_E4M3", (64, 64))})
    assert weights_bytes(tensors, "bf16") == 2 * 64 * 64


def test_overhead_is_a_tenth_and_a_fixed_part() -> None:
    memory = with_overhead(10_000_000_000)
    assert (memory.weights, memory.overhead) == (10_000_000_000, 1_600_000_000)
    assert memory.total == 11_600_000_000


def test_rescaling_without_headers_keeps_the_order_of_precisions() -> None:
    sizes = [rescale(1_000_000, "bf16", p) for p in ("int4", "int8", "fp16", "fp32")]
    assert sizes == sorted(sizes)
    assert sizes[2:] == [1_000_000, 2_000_000]
