"""Safetensors headers.

The format is described at https://huggingface.co/docs/safetensors: eight bytes with the header's
length, then JSON with the dtype, shape and offsets of each tensor.
"""

from __future__ import annotations

import math
import os
from typing import Annotated, Literal

import msgspec

from vlmcache.cache.reading import JSON_ERRORS, open_quietly
from vlmcache.errors import reason_of

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


def read_header(path: str) -> dict[str, Tensor]:
    """Return the tensors that a safetensors file lists, by name.

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
    # Each has four colons or more: they are counted before any objects are made.
    if content.count(b":") > 5 * MOST_TENSORS:
        raise ValueError(f"the safetensors header names too many tensors: {path}")
    try:
        header = msgspec.json.decode(content, type=dict[_TensorName, msgspec.Raw])
        header.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(raw, type=Tensor) for name, raw in header.items()}
    except JSON_ERRORS as error:
        raise ValueError(
            f"the safetensors header cannot be read: {reason_of(error)}: {path}"
        ) from error
    data = size - 8 - length
    for name, tensor in tensors.items():
        bits = DTYPE_BITS.get(tensor.dtype)
        if tensor.stored < 0:
            raise ValueError(f"tensor {name} ends before it begins: {path}")
        if tensor.data_offsets[1] > data:
            raise TruncatedError(f"tensor {name} lies outside its file: {path}")
        # Of an unknown type, an element takes at least one bit.
        needs = (tensor.elements * (bits or 1) + 7) // 8
        if needs != tensor.stored if bits else needs > tensor.stored:
            raise ValueError(f"the length of tensor {name} does not fit its shape: {path}")
    if sum(tensor.stored for tensor in tensors.values()) > data:
        raise ValueError(f"tensors overlap in the safetensors file: {path}")
    return tensors
