"""Which of a repo's files loading needs, by their names alone (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

from vlmcache import late
from vlmcache.cache import layout

SAFETENSORS_INDEX = "model.safetensors.index.json"
SAFETENSORS_SINGLE = "model.safetensors"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_SINGLE = "pytorch_model.bin"
CONFIG = "config.json"
PIPELINE = "model_index.json"

OTHER_CONFIGS = (PIPELINE, "adapter_config.json", "params.json")
"""What replaces config.json in pipelines, adapters and original checkpoints."""

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
"""More than any model has; names that claim more are not believed."""

_SHARD = late.pattern(r"(.+)-(\d{1,6})-of-(\d{1,6})")
_TRAINING = late.pattern(
    r"(?:^|/)(?:(?:optimizer|scheduler|rng_state\w*|training_args)\.(?:pt|pth|bin)"
    r"|trainer_state\.json)$"
)
_CHECKPOINT = late.pattern(r"(?:checkpoint-|global_step)\d+/")
_FOR_READERS = late.pattern(
    r"(?:^|/)(?:README|LICEN[CS]E|NOTICE|USE_POLICY|\.gitattributes|\.gitignore)[^/]*$"
    r"|\.(?:md|png|jpe?g|gif|svg|webp|pdf)$",
    re.IGNORECASE,
)
_WEIGHT_ENDINGS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".ot"),
    *(".onnx", ".onnx_data", ".onnx.data", ".ort", ".tflite", ".pb", ".mlmodel", ".engine"),
    *(".npy", ".npz", ".nemo", ".arpa", ".binary", ".caffemodel", ".joblib", ".keras", ".plan"),
    *(".pdiparams", ".pdmodel", ".pdparams", ".pickle", ".pkl", ".pte", ".t7", ".task"),
)
"""Endings of files of weights, of any library."""
_CONSOLIDATED = late.pattern(r"consolidated[^/]*\.safetensors(?:\.index\.json)?$")
_ALTERNATE_FOLDERS = ("coreml", "gguf", "metal", "onnx", "openvino", "original")
"""Folders at the top of a repo that hold its weights a second time, for other programs."""

_OPENVINO = frozenset({"openvino_model.bin", "openvino_model.xml"})
_CONVERTED_PARTS = frozenset({*_OPENVINO, "model.onnx", "model.onnx_data"})
"""The names of second copies of a pipeline's part, for other runtimes."""
_TEXT_ENCODER = late.pattern(r"text_encoders/(?:clip_[a-z]|t5xxl\w*)\.safetensors$")
"""The names under which ComfyUI looks for the text encoders of a pipeline."""
_TFLITE = late.pattern(r"(?:model|\d+)(?:-\w+)?\.tflite$")
"""The names of exports for mobile devices, some of which give the length of the input."""

VARIANTS = frozenset({"bf16", "ema", "fp16", "fp32", "fp8", "non_ema"})
"""Variants that are known to be the default weights at another precision or step. What any other
word in a name means cannot be known, as in `pytorch_model.generator.bin`."""

_OTHER_WEIGHTS = late.pattern("adapter|control|embed|lora|lycoris|motion|upscal", re.IGNORECASE)
"""Words in the name of a single file which say that it is not a copy of the pipeline."""

_FOREIGN = {
    "diffusion_flax_model.msgpack": "diffusion_pytorch_model",
    "flax_model.msgpack": "model",
    "rust_model.ot": "model",
    "tf_model.h5": "model",
}
"""TensorFlow's, Flax's and Rust's names for the weights of a stem."""

DEFAULT_STEMS = ("model", "diffusion_pytorch_model")


_PARSED = (".safetensors", ".bin", ".h5", ".msgpack", ".ot")
"""Endings of weights whose names tell which weights they are."""


class WeightKey(NamedTuple):
    """What files of the same weights in several formats have in common."""

    folder: str
    stem: str
    variant: str


WEIGHTS = WeightKey("", "model", "")
"""The default weights of a repo in transformers' form."""


class WeightSet(NamedTuple):
    """The files of one format that together are one set of weights, by their names.

    single: the file that holds all weights. index_file and shards: the same in several files. There
    may be both, and some shards may be missing.
    """

    single: str | None
    index_file: str | None
    shards: frozenset[str]
    numbers: frozenset[tuple[int, int]]
    """Number and count in the names of the shards."""

    @property
    def files(self) -> frozenset[str]:
        """All files of the set."""
        return self.shards | {name for name in (self.single, self.index_file) if name is not None}

    @property
    def index_name(self) -> str:
        """The name of the shards' index, whether it exists or not."""
        if self.index_file is not None:
            return self.index_file
        folder, slash, base = min(self.shards).rpartition("/")
        words = [_SHARD.sub(r"\1", word) for word in base.split(".")]
        return folder + slash + ".".join([words[0], words[-1], "index", *words[1:-1], "json"])

    @property
    def expected(self) -> frozenset[str]:
        """All shards, by the count that the names of some give."""
        counts = {count for _, count in self.numbers}
        if len(counts) != 1 or not 0 < (count := counts.pop()) <= _MOST_SHARDS:
            return self.shards
        first, last = min(self.numbers)[0], max(self.numbers)[0]
        numbers = range(count if last < count else count + 1) if not first else range(1, count + 1)
        folder, slash, base = min(self.shards).rpartition("/")
        width = len(re.split(r"-(\d+)-of-", base)[1])
        names = (re.sub(r"-\d+-of-", f"-{number:0{width}}-of-", base) for number in numbers)
        return self.shards | {folder + slash + name for name in names}

    @property
    def complete(self) -> bool:
        """Whether the names make a complete set: one file, or an index and all shards."""
        if self.single is not None:
            return True
        counts = {count for _, count in self.numbers}
        if self.index_file is None or len(counts) != 1:
            return False
        (count,) = counts
        numbers = {number for number, _ in self.numbers}
        # Some sets are counted from zero, up to the count less one or, as gpt-oss's, to the count.
        return 0 < count <= _MOST_SHARDS and (
            numbers.issuperset(range(1, count + 1)) or numbers.issuperset(range(count))
        )


class SecondFormat(NamedTuple):
    """A set of weights that, by the names, also exists in a format that loaders prefer."""

    key: WeightKey
    ending: str
    weights: WeightSet
    twins: tuple[tuple[str, WeightSet], ...]
    """Ending and files of each complete set of the same weights, the preferred one first."""


class _WeightFile(NamedTuple):
    """What the name of a file of weights says; `number` is a shard's number and count."""

    key: WeightKey
    ending: str
    role: Literal["single", "shard", "index"]
    number: tuple[int, int] | None


def _parse_weights(name: str) -> _WeightFile | None:
    """Return what a file's name says; `None` if it does not say which weights the file holds."""
    folder, _, base = name.rpartition("/")
    if _TRAINING.search(name) or base in _OPENVINO:
        return None
    words = base.split(".")
    role: Literal["single", "shard", "index"] = "single"
    tag = ""
    if len(words) > 3 and words[-1] == "json" and "index" in words[-3:-1]:
        role, place = "index", words.index("index", len(words) - 3)
        tag = ".".join(words[place + 1 : -1])
        words = words[:place]
    if len(words) < 2 or f".{words[-1]}" not in _PARSED:
        return None
    numbered = None
    for place, word in enumerate(words[:-1]):
        match = _SHARD.fullmatch(word)
        if match is not None:
            if role != "single":
                return None
            words[place] = match[1]
            role, numbered = "shard", (int(match[2]), int(match[3]))
    stem, variant, ending = words[0], ".".join(words[1:-1]) or tag, words[-1]
    if ending in ("h5", "msgpack", "ot"):
        counterpart = _FOREIGN.get(f"{stem}.{ending}")
        if counterpart is None:
            return None
        return _WeightFile(WeightKey(folder, counterpart, variant), ending, role, numbered)
    if (stem, ending) == ("model", "bin"):
        # CTranslate2's name; PyTorch's own is pytorch_model.bin.
        return None
    stem = stem.removeprefix("pytorch_")
    if stem == "open_clip_pytorch_model":
        stem = "open_clip_model"
    return _WeightFile(WeightKey(folder, stem, variant), ending, role, numbered)


def weight_sets(names: Iterable[str]) -> dict[WeightKey, dict[str, WeightSet]]:
    """Return the sets of weights among the names, by key and ending."""
    found: dict[WeightKey, dict[str, WeightSet]] = {}
    # Most files of most repos are something else.
    likely = [name for name in names if name.endswith(_PARSED) or ".index." in name]
    for name in sorted(likely):
        parsed = _parse_weights(name)
        if parsed is None:
            continue
        key, ending, role, numbered = parsed
        formats = found.setdefault(key, {})
        weights = formats.get(ending, WeightSet(None, None, frozenset(), frozenset()))
        if role == "single" and weights.single is None:
            weights = weights._replace(single=name)
        elif role == "index" and weights.index_file is None:
            weights = weights._replace(index_file=name)
        elif numbered is not None:
            numbers = weights.numbers | {numbered}
            weights = weights._replace(shards=weights.shards | {name}, numbers=numbers)
        formats[ending] = weights
    return found


def second_formats(
    names: Iterable[str], sets: Mapping[WeightKey, Mapping[str, WeightSet]] | None = None
) -> list[SecondFormat]:
    """Return the sets of weights that, by the names, have a complete twin in the same folder.

    Twins have the same stem, apart from a leading `pytorch_`, and the same variant. Pickled weights
    (`.bin`) are second to safetensors; those of TensorFlow, Flax and Rust are second to both. A
    pipeline keeps every `.bin` if one of its parts has weights as `.bin` only, since diffusers then
    loads them all as `.bin`.

    Args:
        names: the files of a revision.
        sets: their sets of weights, if these are known already.
    """
    every = set(names)
    sets = weight_sets(every) if sets is None else sets
    found: list[SecondFormat] = []
    pickled_only = False
    for key, formats in sets.items():
        preferred = [
            (ending, formats[ending])
            for ending in ("safetensors", "bin")
            if ending in formats and formats[ending].complete
        ]
        for ending, weights in formats.items():
            if ending == "safetensors":
                continue
            twins = tuple(twin for twin in preferred if twin[0] != ending)
            if twins:
                found.append(SecondFormat(key, ending, weights, twins))
            elif ending == "bin" and key.folder:
                pickled_only = True
    if pickled_only and PIPELINE in every:
        found = [second for second in found if second.ending != "bin"]
    return found


def why_left_out(
    names: Iterable[str], sets: Mapping[WeightKey, Mapping[str, WeightSet]] | None = None
) -> dict[str, str]:
    """Return the files that a pull leaves out unless it is asked for them -> why.

    Weights are left out only if the same weights are fetched, complete by their names: in a
    preferred format in the same folder (see `second_formats`), or as the default set of the repo,
    of which the others are copies for other programs, at other precisions, or in a single file.
    Small files that belong only to such copies are left out with them. In doubt a file is fetched.

    Args:
        names: the files of a revision.
        sets: their sets of weights, if these are known already.
    """
    every = set(names)
    sets = weight_sets(every) if sets is None else sets
    found = _copies_of_default(every, sets)
    for second in second_formats(every, sets):
        ending, twin = second.twins[0]
        stays = twin.single or twin.index_file or f"the {ending} files"
        found |= dict.fromkeys(second.weights.files, f"the same weights are in {stays}")
    if found:
        folders: dict[str, bool] = {}
        for name in filter(is_weights, every):
            folder = name.rpartition("/")[0]
            folders[folder] = folders.get(folder, True) and name in found
        for name in every - found.keys():
            if "/" in name and folders.get(name.rpartition("/")[0], False):
                found[name] = "it belongs to weights that are left out"
    return found


def wanted(names: Iterable[str]) -> set[str]:
    """Return the files that loading can need: all but those that are left out."""
    every = set(names)
    return every - why_left_out(every).keys()


@layout.by_name
def is_weights(name: str) -> bool:
    """Return whether a file's ending is one of weights, of any library."""
    return name.lower().endswith(_WEIGHT_ENDINGS)


def _copies_of_default(
    every: AbstractSet[str], sets: Mapping[WeightKey, Mapping[str, WeightSet]]
) -> dict[str, str]:
    """Return the files that copy the complete default set of a repo -> why they are left out."""
    complete = {
        key
        for key, formats in sets.items()
        if not key.variant
        and any(formats[ending].complete for ending in ("safetensors", "bin") if ending in formats)
    }
    is_pipeline = PIPELINE in every
    if is_pipeline:
        parts = {
            key._replace(variant="")
            for key in sets
            if key.stem in DEFAULT_STEMS
            and key.folder.partition("/")[0] not in ("", *_ALTERNATE_FOLDERS)
        }
        has_default = bool(parts) and parts <= complete
    else:
        parts = {WeightKey("", stem, "") for stem in DEFAULT_STEMS} & complete
        has_default = CONFIG in every and bool(parts)
    if not has_default and WeightKey("", "adapter_model", "") not in complete:
        return {}
    found = {
        name: "it is of a training, not of the model"
        for name in every
        if _TRAINING.search(name) or _CHECKPOINT.match(name)
    }
    if not has_default:
        return found
    for key, formats in sets.items():
        if key.variant in VARIANTS and key._replace(variant="") in parts:
            why = f"the default weights once more ({key.variant})"
        elif not is_pipeline and key == ("", "open_clip_model", "") and WEIGHTS in parts:
            why = "the same weights under the name of another library"
        else:
            continue
        for weights in formats.values():
            found |= dict.fromkeys(weights.files, why)
    folders = {key.folder for key in parts} | {"vae_decoder", "vae_encoder"}
    for name in every:
        top, _, below = name.partition("/")
        if below and top in _ALTERNATE_FOLDERS:
            found[name] = f"a copy for other programs ({top}/)"
        elif not below and name.endswith(".gguf"):
            found[name] = "a copy for other programs (GGUF)"
        elif not is_pipeline and _CONSOLIDATED.match(name):
            found[name] = "a copy for other programs (consolidated)"
        elif is_pipeline and _is_single_file(name):
            found[name] = "the pipeline once more, in a single file"
        elif not is_pipeline and _TFLITE.match(name):
            found[name] = "a copy for other programs (TFLite)"
        elif is_pipeline and (
            _is_converted_part(name, folders)
            or ("text_encoder" in folders and _TEXT_ENCODER.match(name))
        ):
            found[name] = "a copy for other programs"
    return found


def _is_single_file(name: str) -> bool:
    """Return whether a file at the top of a pipeline is a copy of all of it, by its name."""
    if "/" in name or not name.endswith((".safetensors", ".ckpt")) or _OTHER_WEIGHTS.search(name):
        return False
    parsed = _parse_weights(name)
    return parsed is None or (parsed.role == "single" and parsed.key.stem not in DEFAULT_STEMS)


def _is_converted_part(name: str, folders: AbstractSet[str]) -> bool:
    folder, _, base = name.rpartition("/")
    return folder in folders and base in _CONVERTED_PARTS


def weight_candidates(names: AbstractSet[str]) -> list[tuple[str, bool]]:
    """Return the forms in which a model's weights can exist, the preferred one first.

    Args:
        names: all known files of the revision, from the Hub's listing and from the disk.

    Returns:
        Pairs of a file name and whether it is an index of shards. Shards without their index count
        as the index. Empty if transformers looks for none of the names.
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
    candidates = [
        (name, is_index)
        for name, is_index in order
        if name in names or (is_index and numbered and shards_of(name, names))
    ]
    return candidates or [(name, False) for name in sorted(names) if name.endswith(".gguf")]


def shards_of(index: str, names: AbstractSet[str]) -> set[str]:
    """Return the names of all shards of an index, by those that exist: `model-00001-of-00002…`."""
    stem, ending = index.removesuffix(".index.json").split(".")
    pattern = re.compile(rf"{stem}-\d{{5}}-of-(\d{{5}})\.{ending}")
    counts = {match[1] for name in names if (match := pattern.fullmatch(name))}
    if len(counts) != 1:
        return set()
    (count,) = counts
    if not 0 < int(count) <= _MOST_SHARDS:
        return set()
    return {f"{stem}-{number:05}-of-{count}.{ending}" for number in range(1, int(count) + 1)}


def show_use(names: Iterable[str], own: Iterable[str], *, model: bool) -> bool:
    """Return whether every use of a revision reads at least one of certain files.

    Args:
        names: all files of the revision that exist.
        own: those of them that are watched.
        model: whether it is a model; of anything else a program may read any part.
    """
    every, watched = set(names), set(own)
    if model and watched & _always_opened(every) and _other_weights(every) <= watched:
        return True
    read = {name for name in every if not _FOR_READERS.search(name)}
    return bool(read) and read <= watched


def _other_weights(names: set[str]) -> set[str]:
    """Return the weights that a program can use instead of those that transformers loads."""
    every = set(filter(is_weights, names))
    for name, is_index in weight_candidates(names):
        if name in names:
            return every - {name} - set(shards_of(name, names) if is_index else ())
    return every


def _always_opened(names: set[str]) -> set[str]:
    """Return the files that every load of a model opens, with any library.

    If weights exist in several formats, no format is opened by all; and programs that read GGUF
    files need no configuration.
    """
    if any(name.endswith(".gguf") for name in names):
        return set()
    configs = names.intersection((CONFIG, *OTHER_CONFIGS))
    opened = configs if len(configs) == 1 else set()
    weights = [weight for weight in weight_candidates(names) if weight[0] in names]
    if len(weights) == 1 and not second_formats(names):
        name, is_index = weights[0]
        opened |= {name, *(shards_of(name, names) if is_index else ())}
    return opened
