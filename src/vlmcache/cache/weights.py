"""Safetensors headers, and the memory that their tensors take at a precision.

The header's format is described at https://huggingface.co/docs/safetensors: eight bytes with its
length, then JSON with dtype, shape and offsets of each tensor.
"""

from __future__ import annotations

import math
import os
import re
from typing import Annotated, Literal

import msgspec

from vlmcache.cache.reading import JSON_ERRORS, open_quietly

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]

HEADER_LIMIT = 100_000_000
"""The longest header that safetensors itself accepts, in bytes."""

MOST_TENSORS = 400_000
"""The most tensors that one file may hold. A mixture of 1T parameters has 140,000, in 61 files."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_TensorName = Annotated[str, msgspec.Meta(max_length=1000)]

DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}

_FLOATS = {"F16", "BF16", "F32", "F64"}
"""Types that a load converts to the precision asked for."""

_SCALES = re.compile(r"scale|absmax|quant_state|\.SCB$|qzeros")
"""Names that go with quantized weights: of bitsandbytes, AWQ, GPTQ, FP8 and MXFP4."""

_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 2, "int4": 2}
"""Bytes of an element that is not quantized. bitsandbytes keeps those in half precision."""

_UNQUANTIZED = re.compile(r"embed|lm_head|norm|wte|wpe|(?:^|\.)output\.weight$|experts\.\d+\.")
"""Names of what bitsandbytes leaves in half precision. Experts of a mixture are among them, since
transformers 5 joins them into tensors of three dimensions."""

OVERHEAD_FRACTION = 0.10
OVERHEAD_BYTES = 600_000_000
"""What is added to the weights: a tenth of them for activations and the key-value cache of a short
chat, and a fixed part for the runtime and the device's context. A rule of thumb, not a measurement;
`vlmcache load-test` measures."""


class TruncatedError(ValueError):
    """A file of weights that is shorter than its own header says."""


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One tensor of a header. Offsets are bytes from the end of the header."""

    dtype: str
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=64)]
    data_offsets: tuple[_Count, _Count]

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def stored(self) -> int:
        """Length in the file, in bytes."""
        return self.data_offsets[1] - self.data_offsets[0]


class MemoryEstimate(msgspec.Struct, frozen=True):
    """What a model takes once loaded, in bytes: its weights, and what comes on top."""

    weights: int
    overhead: int

    @property
    def total(self) -> int:
        """Weights and overhead."""
        return self.weights + self.overhead


def with_overhead(weights: int) -> MemoryEstimate:
    """Return the memory of a model whose weights take so many bytes."""
    return MemoryEstimate(weights, round(weights * OVERHEAD_FRACTION) + OVERHEAD_BYTES)


def read_header(path: str) -> dict[str, Tensor]:
    """Return the tensors that a safetensors file says it holds, by name.

    The file is content of a repo and so not to be trusted: each tensor must lie inside the file
    and be as long as its dtype and shape say, and their number, names and dimensions are bounded.

    Raises:
        TruncatedError: the file ends before its tensors do.
        ValueError: the file is not a safetensors file, or its header contradicts itself.
        OSError: the file cannot be read.
    """
    with open(open_quietly(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise ValueError(f"not a safetensors file: {path}")
        content = file.read(length)
    # Four colons each, which are counted before an object is made of any.
    if content.count(b":") > 5 * MOST_TENSORS:
        raise ValueError(f"the safetensors header names too many tensors: {path}")
    try:
        header = msgspec.json.decode(content, type=dict[_TensorName, msgspec.Raw])
        header.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(raw, type=Tensor) for name, raw in header.items()}
    except JSON_ERRORS as error:
        raise ValueError(f"the safetensors header cannot be read: {error}: {path}") from error
    data = size - 8 - length
    for name, tensor in tensors.items():
        bits = DTYPE_BITS.get(tensor.dtype)
        if tensor.stored < 0:
            raise ValueError(f"tensor {name} has no place: {path}")
        if tensor.data_offsets[1] > data:
            raise TruncatedError(f"tensor {name} lies outside its file: {path}")
        # Of a type that is not known, an element takes a bit at least.
        needs = (tensor.elements * (bits or 1) + 7) // 8
        if needs != tensor.stored if bits else needs > tensor.stored:
            raise ValueError(f"tensor {name} has not the length of its shape: {path}")
    if sum(tensor.stored for tensor in tensors.values()) > data:
        raise ValueError(f"tensors overlap in the safetensors file: {path}")
    return tensors


def is_quantized(tensors: dict[str, Tensor]) -> bool:
    """Return whether weights are stored quantized: integers or short floats, with their scales.

    Masks and positions are integers too, and are not.
    """
    return any(map(_SCALES.search, tensors)) and any(
        len(tensor.shape) > 1 and tensor.dtype not in _FLOATS | {"BOOL", "I64"}
        for tensor in tensors.values()
    )


def tensor_bytes(
    name: str, tensor: Tensor, precision: Precision, *, quantized: bool = False
) -> int:
    """Return the bytes that a tensor takes when loaded at a precision.

    int8 and int4 are bitsandbytes' LLM.int8 and nf4: linear weights (two dimensions, no embedding,
    no output head) take one byte with a float scale a row, or half a byte with a float scale for
    each 64 elements; the rest stays in half precision.

    Args:
        name: its name.
        tensor: what its header says.
        precision: the precision asked for.
        quantized: whether it is one of weights that are stored quantized. These stay as they are;
            what of them is stored in floats can be loaded at another precision of floats.
    """
    elements = tensor.elements
    short = tensor.dtype.startswith("F") and not quantized
    if not short and tensor.dtype not in _FLOATS:
        return tensor.stored
    if precision in ("int8", "int4"):
        if quantized:
            return tensor.stored
        if len(tensor.shape) == 2 and not _UNQUANTIZED.search(name):
            if precision == "int8":
                return elements + 4 * tensor.shape[0]
            return elements // 2 + elements // 16
    return elements * _BYTES[precision]


def weights_bytes(tensors: dict[str, Tensor], precision: Precision) -> int:
    """Return the bytes that all tensors take when loaded at a precision."""
    quantized = is_quantized(tensors)
    return sum(
        tensor_bytes(name, tensor, precision, quantized=quantized)
        for name, tensor in tensors.items()
    )


def rescale(size: int, stored: Precision, precision: Precision) -> int:
    """Return roughly what weights of `size` bytes at one precision take at another.

    For models whose headers are not at hand. Quantized models are taken to keep an eighth of their
    weights in half precision (embeddings, output head), as Qwen2-VL of 2B and 7B do roughly.
    """
    factors: dict[Precision, float] = {
        "fp32": 4.0,
        "fp16": 2.0,
        "bf16": 2.0,
        "int8": 1.13,
        "int4": 0.74,
    }
    return round(size / factors[stored] * factors[precision])
