"""The memory that a model takes once loaded, from its weights' headers and its config.json.

What transformers does with a tensor was read in its source (5.23) and measured: docs/memory.md.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from vlmcache import late
from vlmcache.cache.context import context_memory
from vlmcache.cache.weights import DTYPE_BITS, Precision, Tensor

_FLOATS = {"F16", "BF16", "F32", "F64"}
"""Types that loading converts to the precision asked for."""

_SCALES = late.pattern(r"scale|absmax|quant_state|\.SCB$|qzeros")
"""Names that go with quantized weights: of bitsandbytes, AWQ, GPTQ, FP8 and MXFP4."""

_FP8_SCALE = late.pattern(r"\.weight_scale(?:_inv)?$|\.(?:input|activation)_scale$")

_EXPERT = late.pattern(r"experts\.\d+\.")
"""Weights of one expert of a mixture. transformers 5 joins them into tensors of three dimensions,
which no mapped file holds, and which bitsandbytes leaves alone."""

_UNQUANTIZED = late.pattern(
    r"embed|lm_head|norm|wte|wpe|(?:^|\.)output\.weight$|(?:^|\.)shared\.weight$|attention_bias"
)
"""Names of what bitsandbytes leaves in half precision, apart from experts: whatever is not a linear
layer, and the output head."""

_TIED = late.pattern(r"(?:^|\.)(?:shared|embed_tokens|wte|word_embeddings|lm_head)\.weight$")
"""Names of an embedding and of the output head, which are one tensor in a model that ties them."""

_SMALL = r"e_score_correction_bias|A_log|dt_bias|conv1d|sinks|gate\.weight"
_KEPT_IN_FP32: dict[str, tuple[str, str]] = {
    "blip-2": ("query_tokens|qformer", ""),
    "gpt_oss": ("post_attention_layernorm|input_layernorm|norm", ""),
    "hy_v4": ("", f"lm_head|{_SMALL}"),
    "instructblip": ("query_tokens", ""),
    "instructblipvideo": ("query_tokens", ""),
    "kyutai_speech_to_text": ("", "codec_model"),
    "longcat_flash": (r"classifier\.weight", ""),
    "mt5": ("wo", ""),
    "nemotron3_5_transcribe": ("", "audio_tower|multi_modal_projector"),
    "pop2piano": ("wo", ""),
    "t5": ("wo", ""),
    "udop": ("wo", ""),
    "umt5": ("wo", ""),
    "voxtral": ("", "embed_positions"),
}
"""Architecture -> names of what stays fp32 when loaded at fp16, and at fp16 or bf16: transformers'
`_keep_in_fp32_modules` and `_keep_in_fp32_modules_strict`, if they are more than a few vectors.
bitsandbytes quantizes none of the first. As in transformers, the names match anywhere."""

_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 2, "int4": 2}
_HALVES: dict[str, Precision] = {"float16": "fp16", "bfloat16": "bf16"}

OVERHEAD_FRACTION = 0.10
OVERHEAD_BYTES = 600_000_000
"""What is added to the weights: a tenth of them for activations and the key-value cache of a short
chat, and a fixed part for the runtime and the device's context. A rule of thumb, not a measurement;
`vlmcache load-test` measures."""


class MemoryEstimate(msgspec.Struct, frozen=True):
    """The bytes that a model takes once loaded: its weights, and what is added to them."""

    weights: int
    overhead: int
    mapped: int = 0
    """Those of the weights that are mapped from their files; the kernel can drop them."""
    device: int = 0
    """Those of the weights that are on an accelerator."""
    context: int = 0
    """The key-value cache of the context asked for."""
    notes: tuple[str, ...] = ()
    """Sentences on what is only approximate."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.overhead + self.context

    @property
    def held(self) -> MemoryEstimate:
        """The part that has to fit for a load to succeed.

        It is the weights without those that the kernel can drop and read again; the memory for
        computing is needed only later.
        """
        return MemoryEstimate(self.weights - self.mapped, 0)

    @property
    def anonymous(self) -> int:
        """Those of the weights that the process holds itself: the kernel cannot drop them."""
        return self.weights - self.mapped - self.device


def with_overhead(weights: int) -> MemoryEstimate:
    """Return the memory of a model whose weights take a number of bytes."""
    return MemoryEstimate(weights, round(weights * OVERHEAD_FRACTION) + OVERHEAD_BYTES)


def estimate(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    precision: Precision,
    *,
    accelerator: bool = False,
    native: bool = True,
    context: int = 0,
) -> MemoryEstimate:
    """Return the memory that a model takes once loaded.

    Args:
        tensors: the tensors of the files that are loaded.
        config: the content of config.json; empty if it is not known.
        precision: the precision asked for.
        accelerator: whether it is loaded on an accelerator and not on the CPU.
        native: whether the packages that run mxfp4 as it is stored are installed.
        context: how many tokens its key-value cache has to hold.
    """
    plan = _Plan(tensors, config, precision, accelerator=accelerator, native=native)
    held = mapped = 0
    for name, tensor in plan.loaded():
        size, stays = plan.tensor(name, tensor)
        held += size
        mapped += size if stays else 0
    cache, notes = context_memory(config, context, plan.half_bytes) if context else (0, ())
    return msgspec.structs.replace(
        with_overhead(held),
        mapped=0 if accelerator else mapped,
        device=held if accelerator else 0,
        context=cache,
        notes=notes,
    )


def native_kernels() -> bool:
    """Return whether the packages that run mxfp4 as it is stored are installed.

    These are the ones that transformers asks for.
    """
    return all(importlib.util.find_spec(name) is not None for name in ("kernels", "triton"))


def has_accelerator() -> bool:
    """Return whether this machine has an accelerator, by its devices: torch is not imported."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd")))


class _Plan:
    """What loading does with each tensor of one model at one precision."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, Any],
        precision: Precision,
        *,
        accelerator: bool,
        native: bool,
    ) -> None:
        self._tensors = tensors
        self._precision = precision
        stored = config.get("quantization_config")
        named = stored.get("quant_method") if isinstance(stored, dict) else None
        method = named if named is None else str(named)
        self._quantized = method is not None or is_quantized(tensors)
        runs = {"fp8": accelerator, "mxfp4": accelerator and native}
        self._unpacked = method if method in runs and not runs[method] else None
        parts = list(_parts(config))
        half: Precision = "bf16"
        if precision in ("fp16", "bf16"):
            half = precision
        elif precision in ("int8", "int4"):
            half = next(
                (
                    _HALVES[word]
                    for part in parts
                    for word in (part.get("dtype"), part.get("torch_dtype"))
                    if isinstance(word, str) and word in _HALVES
                ),
                "bf16",
            )
        known = [_KEPT_IN_FP32[kind] for kind in _kinds(parts) if kind in _KEPT_IN_FP32]
        self._half = half
        self._skipped = _any_of(loose for loose, _ in known)
        self._kept = _any_of(
            word for loose, strict in known for word in (strict, loose if half == "fp16" else "")
        )
        self.half_bytes = 4 if precision == "fp32" else 2
        self._tied = any(part.get("tie_word_embeddings") is True for part in parts)

    def loaded(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that loading keeps: of tied ones only the first."""
        shapes = set()
        for name, tensor in sorted(self._tensors.items()):
            if self._tied and _TIED.search(name):
                if tensor.shape in shapes:
                    continue
                shapes.add(tensor.shape)
            if not self._is_spent(name):
                yield name, tensor

    def _is_spent(self, name: str) -> bool:
        """Return whether a tensor only serves to unpack others."""
        if self._unpacked == "fp8":
            return _FP8_SCALE.search(name) is not None
        return self._unpacked == "mxfp4" and name.endswith("_scales")

    def tensor(self, name: str, tensor: Tensor) -> tuple[int, bool]:
        """Return the bytes that a tensor takes, and whether it stays in its mapped file.

        int8 and int4 are bitsandbytes' LLM.int8 and nf4: linear weights take one byte per element
        and a float scale per row, or half a byte and a float scale per 64 elements; the rest stays
        in half precision. Weights that are stored quantized stay as they are, unless the packages
        that run them are missing; their floats are converted to the precision asked for.
        """
        floats = self._float_bytes(name)
        if self._unpacked == "mxfp4" and name.endswith("_blocks"):
            return tensor.elements * 2 * floats, False
        short = tensor.dtype.startswith("F") and (not self._quantized or self._unpacked == "fp8")
        if not short and tensor.dtype not in _FLOATS:
            return tensor.stored, True
        if self._precision in ("int8", "int4"):
            if self._quantized:
                return tensor.stored, True
            if self._is_linear(name, tensor):
                if self._precision == "int8":
                    return tensor.elements + 4 * tensor.shape[0], False
                return tensor.elements // 2 + tensor.elements // 16, False
        same = DTYPE_BITS.get(tensor.dtype) == 8 * floats and self._is_type(tensor, floats)
        return tensor.elements * floats, same and _EXPERT.search(name) is None

    def _is_linear(self, name: str, tensor: Tensor) -> bool:
        return (
            len(tensor.shape) == 2
            and _UNQUANTIZED.search(name) is None
            and _EXPERT.search(name) is None
            and (self._skipped is None or self._skipped.search(name) is None)
        )

    def _float_bytes(self, name: str) -> int:
        if self._precision != "fp32" and self._kept is not None and self._kept.search(name):
            return 4
        return _BYTES[self._precision]

    def _is_type(self, tensor: Tensor, size: int) -> bool:
        """Return whether a tensor of that many bytes per element is stored as it is loaded."""
        return size == 4 or tensor.dtype == {"fp16": "F16"}.get(self._half, "BF16")


def is_quantized(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether weights are stored quantized: integers or short floats, with their scales.

    Masks and positions are integers too, and do not count.
    """
    return any(map(_SCALES.search, tensors)) and any(
        len(tensor.shape) > 1 and tensor.dtype not in _FLOATS | {"BOOL", "I64"}
        for tensor in tensors.values()
    )


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and those of the models in it, down to two levels."""
    yield config
    for part in config.values():
        if isinstance(part, dict):
            yield part
            yield from (below for below in part.values() if isinstance(below, dict))


def _kinds(parts: list[Mapping[str, Any]]) -> Iterator[str]:
    return (kind for part in parts if isinstance(kind := part.get("model_type"), str))


def _any_of(patterns: Iterator[str]) -> re.Pattern[str] | None:
    words = "|".join(filter(None, patterns))
    return re.compile(words) if words else None


def rescale(size: int, stored: Precision, precision: Precision) -> int:
    """Return roughly the bytes that weights of `size` bytes at one precision take at another.

    It is for models whose headers are not available. Quantized models are taken to keep an eighth
    of their weights in half precision (embeddings, output head), as Qwen2-VL 2B and 7B do roughly.
    """
    factors: dict[Precision, float] = {
        "fp32": 4.0,
        "fp16": 2.0,
        "bf16": 2.0,
        "int8": 1.13,
        "int4": 0.74,
    }
    return round(size / factors[stored] * factors[precision])
