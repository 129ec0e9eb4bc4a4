"""Repos whose files are not for transformers: what they are, and what loads them (pure)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from vlmcache.cache import formats
from vlmcache.cache.model_configs import ADAPTER_CONFIG
from vlmcache.errors import OtherFormatError


class Layout(NamedTuple):
    """What a repo holds that transformers does not load, and what loads it."""

    what: str
    """Follows `it is` or `its weights are`."""
    loads: str
    """Programs or calls that load it."""


_Test = Callable[[AbstractSet[str], Mapping[str, Any]], bool]
"""Tells from a repo's files and from what its config.json says whether a layout is its."""


def _has(*patterns: str) -> _Test:
    """Return the test whether a file's name matches one of some patterns."""
    pattern = re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)
    return lambda names, _: any(map(pattern.search, names))


_LAYOUTS: tuple[tuple[_Test, Layout], ...] = (
    (
        _has(rf"^{re.escape(formats.PIPELINE)}$"),
        Layout("it is a pipeline of diffusers", "diffusers: DiffusionPipeline.from_pretrained"),
    ),
    (
        lambda _, config: isinstance(config.get("quantization"), dict),
        Layout("its weights are MLX's", "mlx-lm, mlx-vlm"),
    ),
    (
        lambda _, config: (
            "model_type" not in config and isinstance(config.get("architecture"), str)
        ),
        Layout("it is a model of timm", "timm.create_model"),
    ),
    (
        _has(rf"^{re.escape(ADAPTER_CONFIG)}$"),
        Layout(
            f"it is an adapter (PEFT), and its {ADAPTER_CONFIG} names no base model of the hub",
            "peft: PeftModel.from_pretrained, onto its base",
        ),
    ),
    (_has(r"^open_clip_config\.json$"), Layout("it is a model of OpenCLIP", "open_clip")),
    (_has(r"\.nemo$"), Layout("its weights are NeMo's", "nemo_toolkit")),
    (
        _has(r"^consolidated.*\.safetensors$"),
        Layout("its weights are in Mistral's own form", "mistral-inference, vLLM"),
    ),
    (
        _has(r"^(?:original/)?consolidated.*\.pth$"),
        Layout("its weights are in Meta's own form", "llama-models"),
    ),
    (_has(r"\.(?:onnx|ort)$"), Layout("its weights are ONNX", "onnxruntime, optimum")),
    (
        _has(r"(?:^|/)openvino_model\.(?:bin|xml)$"),
        Layout("its weights are OpenVINO's", "openvino, optimum-intel"),
    ),
    (_has(r"\.(?:gguf|ggml)$"), Layout("its weights are GGUF", "llama.cpp, Ollama, LM Studio")),
    (
        _has(r"^tf_model.*\.h5$", r"^flax_model.*\.msgpack$"),
        Layout("its weights are TensorFlow's or Flax's", "transformers 4, with TensorFlow or Flax"),
    ),
    (_has(r"^rust_model\.ot$"), Layout("its weights are of rust-bert", "rust-bert")),
    (_has(r"\.(?:keras|h5)$"), Layout("its weights are of Keras", "keras")),
    (_has(r"\.tflite$"), Layout("its weights are TensorFlow Lite's", "LiteRT")),
    (_has(r"\.(?:mlmodel|mlpackage)(?:/|$)"), Layout("its weights are Core ML's", "coremltools")),
    (_has(r"\.(?:engine|plan)$"), Layout("its weights are of TensorRT", "TensorRT-LLM")),
    (_has(r"^model\.bin$"), Layout("its weights are CTranslate2's", "ctranslate2, faster-whisper")),
    (
        _has(r"\.(?:pt|pth|ckpt|pkl|t7|bin)$"),
        Layout("its weights are pickled by another program", "the program that its page names"),
    ),
    (
        _has(r"\.safetensors$"),
        Layout(
            "its weights have no config.json that names an architecture of transformers",
            "the program that its page names, such as ComfyUI",
        ),
    ),
    (
        lambda names, _: not any(map(formats.is_weights, names)),
        Layout("it holds no weights", "AutoTokenizer or AutoProcessor, if it has such files"),
    ),
)
"""Test and layout, in the order in which they are tried."""


def other_format(
    model: str, names: AbstractSet[str], config: Mapping[str, Any]
) -> OtherFormatError:
    """Return the error that says what a repo is and what loads it.

    Args:
        model: what to call it.
        names: its files.
        config: what its config.json says; empty without one.
    """
    layout = layout_of(names, config)
    if layout is None:
        return OtherFormatError(f"{model}: its weights are in no format that vlmcache knows")
    return OtherFormatError(
        f"{model}: {layout.what}, which vlmcache neither loads nor measures",
        f"what loads it: {layout.loads}",
    )


def layout_of(names: AbstractSet[str], config: Mapping[str, Any]) -> Layout | None:
    """Return what the files of a repo are in which transformers finds no weights of its own.

    Args:
        names: the repo's files.
        config: what config.json says; empty without one.
    """
    sets = [key for key in formats.weight_sets(names) if not key.folder and key.stem == "model"]
    variants = sorted(key.variant for key in sets)
    if variants and variants[0] and formats.PIPELINE not in names:
        call = f'transformers: from_pretrained(…, variant="{variants[0]}")'
        return Layout(f"its weights are the variant {variants[0]} only", call)
    return next((layout for fits, layout in _LAYOUTS if fits(names, config)), None)
