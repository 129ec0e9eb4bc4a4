"""Which of a repo's files loading needs, told from their names alone (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

SAFETENSORS_INDEX = "model.safetensors.index.json"
SAFETENSORS_SINGLE = "model.safetensors"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_SINGLE = "pytorch_model.bin"
CONFIG = "config.json"

OTHER_CONFIGS = ("model_index.json", "adapter_config.json", "params.json")
"""What stands in place of config.json in pipelines, adapters and original checkpoints."""

PROCESSOR_FILES = frozenset(
    {
        "added_tokens.json",
        "audio_tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "feature_extractor_config.json",
        "generation_config.json",
        "image_processor_config.json",
        "merges.txt",
        "preprocessor_config.json",
        "processor_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""Names that transformers' tokenizers and processors look for at the top of a repo."""

_MOST_SHARDS = 2000
"""More than any model has; a name that claims more is not believed."""

_ALTERNATIVES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf", ".pkl")
_CONVERTED = (".onnx", ".onnx_data", ".tflite", ".mlmodel", ".mlpackage", ".xml", ".npz", ".nemo")
_CONVERTED_FOLDERS = re.compile(r"(?:^|/)(?:onnx|openvino|coreml|original|flax|tf|gguf)/")
_TRAINING = re.compile(r"(?:^|/)(?:optimizer|scheduler|rng_state\w*|training_args|trainer_state)\.")
_TORCH_WEIGHTS = re.compile(r"(?:^|/)pytorch_model[^/]*\.bin(?:\.index\.json)?$")
_FOR_READERS = re.compile(
    r"(?:^|/)(?:README|LICEN[CS]E|NOTICE|USE_POLICY|\.gitattributes|\.gitignore)[^/]*$"
    r"|\.(?:md|png|jpe?g|gif|svg|webp|pdf)$",
    re.IGNORECASE,
)
_CONSOLIDATED = re.compile(r"(?:^|/)consolidated[^/]*\.safetensors$")


def _is_safetensors(name: str) -> bool:
    return name.endswith(".safetensors") and not _CONVERTED_FOLDERS.search(name)


def wanted(names: Iterable[str]) -> set[str]:
    """Return the files that loading can need; second weight formats are left out.

    Where safetensors are there, pickled, TensorFlow, Flax, GGUF, ONNX and other converted weights
    go, and so does a consolidated copy beside the sharded one. Without safetensors the PyTorch
    weights stay; without these, everything does.
    """
    every = set(names)
    has_safetensors = any(map(_is_safetensors, every))
    has_torch = any(map(_TORCH_WEIGHTS.search, every))
    if not has_safetensors and not has_torch:
        return every
    has_model = any(re.search(r"(?:^|/)model[^/]*\.safetensors$", name) for name in every)
    return {
        name
        for name in every
        if not name.endswith(_CONVERTED)
        and not _CONVERTED_FOLDERS.search(name)
        and not _TRAINING.search(name)
        and not (has_safetensors and _is_alternative(name))
        and not (not has_safetensors and _is_alternative(name) and not name.endswith(".bin"))
        and not (has_model and _CONSOLIDATED.search(name))
    }


def _is_alternative(name: str) -> bool:
    return name.endswith(_ALTERNATIVES) or name.endswith(".bin.index.json")


def second_formats(names: Iterable[str]) -> set[str]:
    """Return the weights that loading never reads because another format is there."""
    every = set(names)
    return every - wanted(every)


def weight_candidates(names: AbstractSet[str]) -> list[tuple[str, bool]]:
    """Return the ways in which a model's weights can be there, the preferred one first.

    Args:
        names: every file known of the revision, from the Hub's listing and from the disk.

    Returns:
        Pairs of a file name and whether it is an index of shards. Shards stand for the index that
        names them. Empty where none of the names is one that transformers looks for.
    """
    order = (
        (SAFETENSORS_SINGLE, False),
        (SAFETENSORS_INDEX, True),
        (TORCH_SINGLE, False),
        (TORCH_INDEX, True),
        ("adapter_model.safetensors", False),
        ("consolidated.safetensors", False),
        ("adapter_model.bin", False),
        ("tf_model.h5", False),
        ("flax_model.msgpack", False),
    )
    numbered = any("-of-" in name for name in names)
    found = [
        (name, index)
        for name, index in order
        if name in names or (index and numbered and shards_of(name, names))
    ]
    return found or [(name, False) for name in sorted(names) if name.endswith(".gguf")]


def shards_of(index: str, names: AbstractSet[str]) -> set[str]:
    """Return all shards of an index, told from the names of some: `model-00001-of-00002…`."""
    stem, ending = index.removesuffix(".index.json").split(".")
    pattern = re.compile(rf"{stem}-\d{{5}}-of-(\d{{5}})\.{ending}")
    counts = {match[1] for name in names if (match := pattern.fullmatch(name))}
    if len(counts) != 1:
        return set()
    (count,) = counts
    if not 0 < int(count) <= _MOST_SHARDS:
        return set()
    return {f"{stem}-{number:05}-of-{count}.{ending}" for number in range(1, int(count) + 1)}


def needed_beside_weights(names: AbstractSet[str]) -> set[str]:
    """Return the tokenizer, processor and code files that the listing names, at its top level."""
    return {
        name
        for name in names
        if name in PROCESSOR_FILES
        or ("/" not in name and name.endswith((".py", ".tiktoken")))
        or name.startswith("additional_chat_templates/")
    }


def show_use(names: Iterable[str], own: Iterable[str], *, model: bool) -> bool:
    """Return whether a revision cannot be used without one of some of its files being read.

    Args:
        names: the files of the revision that are there.
        own: those of them that are looked at.
        model: whether it is one of a model; of anything else a program may read any part.
    """
    every, seen = set(names), set(own)
    if model and seen & _always_opened(every):
        return True
    read = {name for name in every if not _FOR_READERS.search(name)}
    return bool(read) and read <= seen


def _always_opened(names: set[str]) -> set[str]:
    """Return the files that every load of a model opens, whatever library does it.

    Where weights are there in several formats, no single one is opened by all; and what reads GGUF
    files needs no configuration.
    """
    if any(name.endswith(".gguf") for name in names):
        return set()
    configs = names.intersection((CONFIG, *OTHER_CONFIGS))
    opened = configs if len(configs) == 1 else set()
    weights = [one for one in weight_candidates(names) if one[0] in names]
    if len(weights) == 1 and not second_formats(names):
        name, is_index = weights[0]
        opened |= {name, *(shards_of(name, names) if is_index else ())}
    return opened
