"""A repo that is not for transformers is no damaged one: each says what it is and what loads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vlmcache
from tests.kit.caches import CacheBuilder, model_files
from tests.kit.contents import Content
from vlmcache.errors import UnloadableError
from vlmcache.load.finder import ModelFinder
from vlmcache.load.layouts import other_format

CONFIG = b'{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}'
OF_TRANSFORMERS = "an architecture of transformers"
NEITHER = "which vlmcache neither loads nor measures"
NO_BASE = "names no base model of the hub"
ADAPTER: dict[str, Content] = {
    "adapter_config.json": b'{"base_model_name_or_path": "org/base", "peft_type": "LORA"}',
    "adapter_model.safetensors": b"x",
}

LAYOUTS: dict[str, tuple[dict[str, Content], str, str]] = {
    "gguf": (
        {"model-Q4_K_M.gguf": b"GGUF"},
        "org/model: its weights are GGUF, which vlmcache neither loads nor measures",
        "programs that run it: llama.cpp, Ollama, LM Studio",
    ),
    "adapter without its base": (
        ADAPTER,
        "org/model is not complete: missing the repo org/base, which it needs",
        "vlmcache pull org/model",
    ),
    "adapter whose base is a folder": (
        ADAPTER | {"adapter_config.json": b'{"base_model_name_or_path": "/home/me/base"}'},
        f"org/model: it is an adapter (PEFT), and its adapter_config.json {NO_BASE}, {NEITHER}",
        "what loads it: peft: PeftModel.from_pretrained, onto its base",
    ),
    "diffusers": (
        {
            "model_index.json": b'{"_class_name": "P", "unet": ["diffusers", "UNet"]}',
            "unet/config.json": b"{}",
            "unet/diffusion_pytorch_model.safetensors": b"x",
        },
        f"org/model: it is a pipeline of diffusers, {NEITHER}",
        "what loads it: diffusers: DiffusionPipeline.from_pretrained",
    ),
    "onnx": (
        {"config.json": CONFIG, "onnx/model.onnx": b"x"},
        f"org/model: its weights are ONNX, {NEITHER}",
        "what loads it: onnxruntime, optimum",
    ),
    "variant": (
        {"config.json": CONFIG, "model.fp16.safetensors": b"x"},
        f"org/model: its weights are the variant fp16 only, {NEITHER}",
        'what loads it: transformers: from_pretrained(…, variant="fp16")',
    ),
    "mistral": (
        {"params.json": b"{}", "consolidated.safetensors": b"x", "tekken.json": b"{}"},
        f"org/model: its weights are in Mistral's own form, {NEITHER}",
        "what loads it: mistral-inference, vLLM",
    ),
    "tensorflow": (
        {"config.json": CONFIG, "tf_model.h5": b"x"},
        f"org/model: its weights are TensorFlow's or Flax's, {NEITHER}",
        "what loads it: transformers 4, with TensorFlow or Flax",
    ),
    "ctranslate2": (
        {"config.json": b'{"suppress_ids": []}', "model.bin": b"x", "vocabulary.json": b"[]"},
        f"org/model: its weights are CTranslate2's, {NEITHER}",
        "what loads it: ctranslate2, faster-whisper",
    ),
    "timm": (
        {"config.json": b'{"architecture": "vit_tiny"}', "model.safetensors": b"x"},
        f"org/model: it is a model of timm, {NEITHER}",
        "what loads it: timm.create_model",
    ),
    "tokenizer": (
        {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}"},
        f"org/model: it holds no weights, {NEITHER}",
        "what loads it: AutoTokenizer or AutoProcessor, if it has such files",
    ),
    "openvino": (
        {"config.json": CONFIG, "openvino_model.bin": b"x", "openvino_model.xml": b"x"},
        f"org/model: its weights are OpenVINO's, {NEITHER}",
        "what loads it: openvino, optimum-intel",
    ),
    "comfyui": (
        {"flux1-dev.safetensors": b"x"},
        f"org/model: its weights have no config.json that names {OF_TRANSFORMERS}, {NEITHER}",
        "what loads it: the program that its page names, such as ComfyUI",
    ),
}


def refused(cache: CacheBuilder) -> UnloadableError:
    session = vlmcache.Cache(cache_dir=cache.root).session
    with pytest.raises(UnloadableError) as caught:
        ModelFinder(session, ["org/model"]).find("org/model")
    return caught.value


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_says_what_it_is_and_what_loads_it(cache: CacheBuilder, name: str) -> None:
    files, message, hint = LAYOUTS[name]
    cache.repo("org/model").revision(files)
    error = refused(cache)
    assert (error.message, error.hint) == (message, hint)
    assert error.code != "damaged-weights"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_config_with_numbers_that_only_python_takes_is_read(
    cache: CacheBuilder, value: str
) -> None:
    config = f'{{"model_type": "qwen2", "dtype": "float16", "limit": {value}}}'.encode()
    cache.repo("org/model").revision(model_files() | {"config.json": config})
    session = vlmcache.Cache(cache_dir=cache.root).session
    _, source = ModelFinder(session, ["org/model"]).find("org/model")
    assert (source.model_type, source.precision, source.as_stored) == ("qwen2", "fp16", True)


@pytest.mark.parametrize(
    "content", [b"[]", b'"text"', b"{", b"", b"\xff{}", b"[" * 100_000, b'{"a": NaN']
)
def test_a_config_that_is_no_json_object_is_damage(tmp_path: Path, content: bytes) -> None:
    from vlmcache.errors import DamagedWeightsError
    from vlmcache.load.source import read_source

    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(DamagedWeightsError, match=r"config\.json"):
        read_source(str(tmp_path), model="org/model", precision=None)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_layout_is_taken_for_another_once_readers_files_are_added(name: str) -> None:
    files, message, _ = LAYOUTS[name]
    if NEITHER not in message:
        return
    content = files.get("config.json")
    config = json.loads(content) if isinstance(content, bytes) else {}
    more = {"README.md", ".gitattributes", "LICENSE", "generation_config.json"}
    assert other_format("org/model", {*files, *more}, config).message == message
