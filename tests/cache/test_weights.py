"""Headers of safetensors files are read, checked, and turned into the memory they need."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.caches import safetensors
from vlmcache.cache.weights import read_header, rescale, weights_bytes, with_overhead


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


def test_metadata_is_no_tensor_and_a_scalar_has_one_element(file: Path) -> None:
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
    ],
)
def test_a_header_that_contradicts_itself_or_its_file_is_refused(
    file: Path, header: object, data: bytes
) -> None:
    path = written(file, header, data)
    with pytest.raises(ValueError, match=r"tensor|header"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 16, b"\0" * 8 + b"x"])
def test_a_file_that_is_no_safetensors_file_is_refused(file: Path, content: bytes) -> None:
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


def test_overhead_is_a_tenth_and_a_fixed_part() -> None:
    memory = with_overhead(10_000_000_000)
    assert (memory.weights, memory.overhead) == (10_000_000_000, 1_600_000_000)
    assert memory.total == 11_600_000_000


def test_rescaling_without_headers_keeps_the_order_of_precisions() -> None:
    sizes = [rescale(1_000_000, "bf16", p) for p in ("int4", "int8", "fp16", "fp32")]
    assert sizes == sorted(sizes)
    assert sizes[2:] == [1_000_000, 2_000_000]
