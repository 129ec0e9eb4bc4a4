"""Which files a load reads (of a snapshot, a kept copy or a synthetic model), and their memory.

Neither torch nor transformers is needed for that; a child process is handed the answer.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from vlmcache import units
from vlmcache.cache import formats, layout
from vlmcache.cache.code_files import auto_classes
from vlmcache.cache.completeness import read_shards
from vlmcache.cache.free_memory import available_memory
from vlmcache.cache.memory import MemoryEstimate, estimate, native_kernels, rescale, with_overhead
from vlmcache.cache.model_configs import stored_precision
from vlmcache.cache.pickles import PickleError, read_pickle, read_pickled
from vlmcache.cache.reading import JSON_ERRORS, parse_json, read_bytes
from vlmcache.cache.state import Revision
from vlmcache.cache.weights import Precision, Tensor, read_header
from vlmcache.errors import DamagedWeightsError, NotEnoughMemoryError, reason_of
from vlmcache.load.layouts import other_format
from vlmcache.load.report import QUANTIZED, WeightsSource
from vlmcache.paths import real_path
from vlmcache.units import size_text

_CONFIG_LIMIT = 16_000_000
_INDEXES = (formats.SAFETENSORS_INDEX, formats.TORCH_INDEX)
_OF_TRANSFORMERS = (formats.SAFETENSORS_SINGLE, formats.TORCH_SINGLE, *_INDEXES)
TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which a repo with a tokenizer has at least one."""
_SMALLER: tuple[Precision, ...] = ("fp16", "int8", "int4")


class ModelFiles(msgspec.Struct, frozen=True):
    """The files of one model at one precision, and what may be done with them."""

    model: str
    repo: str | None
    commit: str | None
    folder: str
    weights: tuple[str, ...]
    """Paths of the files that hold the weights, in the order in which they are loaded."""
    bytes: int
    precision: Precision
    """The one to load at: the one asked for, else the stored one."""
    model_type: str
    kind: WeightsSource = "weights"
    as_stored: bool = False
    """Whether no precision was asked for, so that transformers takes the stored type."""
    stored: Precision | None = None
    """The type that the weights are stored in, as far as it is known."""
    classes: dict[str, str] = msgspec.field(default_factory=dict)
    """Classes of code that config.json names, by transformers' auto class for each."""
    code_repos: dict[str, str | None] = msgspec.field(default_factory=dict)
    """Other repos whose code its configurations name -> the commit that may run, if one may."""
    cache_dir: str | None = None
    """The cache that the model and those repos are in."""
    trust_remote_code: bool = False
    """Whether the code may run, that of other repos included."""
    attention: str | None = None
    """What computes attention, if that was asked for."""
    adapter: str | None = None
    """The folder of a PEFT adapter, which is loaded onto the model."""
    processor: str = ""
    """The folder that the processor is made from."""
    device_map: str | dict[str, Any] = "auto"
    quantized_by: str | None = None
    """The method that the stored weights are quantized by, if they are."""

    @property
    def repair(self) -> str | None:
        """The command that repairs the files; `None` for what is of no repo."""
        return _repair(self.model, self.repo)

    @property
    def origin(self) -> dict[str, Any]:
        """What it is and where, as in a result of a load test."""
        elsewhere = None
        if self.repo is not None and self.cache_dir is not None:
            link = os.path.join(self.cache_dir, layout.repo_folder("model", self.repo))
            if self.folder.startswith(os.path.join(link, "")) and os.path.islink(link):
                elsewhere = os.path.dirname(real_path(link))
        path = real_path(self.folder)
        return {"repo": self.repo, "commit": self.commit, "path": path, "elsewhere": elsewhere}


def _repair(model: str, repo: str | None) -> str | None:
    return units.command("verify", model, "--repair") if repo else None


def read_source(
    folder: str,
    *,
    model: str,
    precision: Precision | None,
    repo: str | None = None,
    commit: str | None = None,
) -> ModelFiles:
    """Return the files that loading from a folder in transformers' form reads.

    Args:
        folder: the folder.
        model: what to call the model.
        precision: the one to load at; the stored one if `None`.
        repo: the repo that the files are from, if they are from one.
        commit: the repo's commit.

    Raises:
        DamagedWeightsError: config.json or the index of the shards cannot be read.
        OtherFormatError: the files are not for transformers.
    """
    remedy = _repair(model, repo)
    config = _read_config(folder, model, remedy)
    weights = weight_files(folder)
    names = _names_in(folder)
    if not weights and not names & set(_INDEXES):
        raise other_format(model, names, config)
    if not weights:
        raise DamagedWeightsError(f"{model}: no weights that can be loaded in {folder}", remedy)
    # MLX packs its weights into integers, and names them and their file as transformers does.
    packed = isinstance(config.get("quantization"), dict) and "U32" in _dtypes(weights[0])
    if packed or not (config.get("model_type") or config.get("auto_map")):
        raise other_format(model, names, config)
    quantized = config.get("quantization_config")
    stored = stored_precision(config, _dtypes(weights[0]))
    return ModelFiles(
        model=model,
        repo=repo,
        commit=commit,
        folder=folder,
        weights=tuple(weights),
        bytes=sum(os.path.getsize(file) for file in weights),
        precision=precision or stored or "fp32",
        model_type=str(config.get("model_type") or ""),
        kind="at-load" if precision in QUANTIZED else "weights",
        as_stored=precision is None,
        stored=stored,
        classes=auto_classes(config),
        processor=folder,
        quantized_by=str(quantized.get("quant_method")) if isinstance(quantized, dict) else None,
    )


def as_copy(source: ModelFiles, folder: str) -> ModelFiles:
    """Return the same model with the weights of a kept copy.

    Raises:
        DamagedWeightsError: the copy cannot be read.
    """
    copy = read_source(folder, model=source.model, precision=source.precision)
    # A copy has no processor of its own.
    of_processor = {
        auto: name
        for auto, name in source.classes.items()
        if not auto.startswith(("AutoConfig", "AutoModel"))
    }
    return msgspec.structs.replace(
        source,
        folder=folder,
        weights=copy.weights,
        bytes=copy.bytes,
        kind="copy",
        classes=of_processor | copy.classes,
        quantized_by=copy.quantized_by,
    )


def _read_config(folder: str, model: str, remedy: str | None) -> dict[str, Any]:
    """Return what config.json says, which is nothing if there is none."""
    try:
        config = parse_json(read_bytes(os.path.join(folder, formats.CONFIG), _CONFIG_LIMIT))
    except FileNotFoundError:
        return {}
    except (OSError, *JSON_ERRORS) as error:
        raise DamagedWeightsError(
            f"{model}: config.json cannot be read: {reason_of(error)}", remedy
        ) from None
    if not isinstance(config, dict):
        raise DamagedWeightsError(f"{model}: config.json is not a JSON object", remedy)
    return config


def _names_in(folder: str) -> set[str]:
    """Return the files below a folder, named as in a repo."""
    return {
        os.path.relpath(os.path.join(above, name), folder).replace(os.sep, "/")
        for above, _, names in os.walk(folder)
        for name in names
    }


def _dtypes(path: str) -> list[str]:
    """Return the types of the tensors in a file of weights; none if it cannot be read."""
    try:
        if path.endswith(".safetensors"):
            return [tensor.dtype for tensor in read_header(path).values()]
        return [tensor.dtype for tensor in read_pickle(path).values()]
    except (OSError, ValueError):
        return []


def weight_files(folder: str) -> list[str]:
    """Return the paths of the weight files that transformers would load from a folder.

    Empty where there are none, or not all that an index names.
    """
    names = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    for name, is_index in formats.weight_candidates(names):
        if name not in names or name not in _OF_TRANSFORMERS:
            continue
        shards = read_shards(Revision("", folder, (), (), 0), name) if is_index else {name}
        paths = [os.path.join(folder, *shard.split("/")) for shard in sorted(shards or ())]
        # transformers takes the first format that is there, complete or not.
        return paths if all(map(os.path.isfile, paths)) else []
    return []


def read_tensors(source: ModelFiles) -> dict[str, Tensor]:
    """Return the tensors that the weight files say they hold; none for unknown forms of pickles.

    Raises:
        DamagedWeightsError: a header makes no sense, or the file is shorter than it says.
    """
    tensors: dict[str, Tensor] = {}
    try:
        for path in source.weights:
            if path.endswith(".safetensors"):
                tensors |= read_header(path)
            else:
                tensors |= read_pickled(path)
    except PickleError:
        return {}
    except (OSError, ValueError) as error:
        raise DamagedWeightsError(f"{source.model}: {reason_of(error)}", source.repair) from None
    return tensors


def estimate_memory(
    source: ModelFiles,
    precision: Precision | None = None,
    *,
    accelerator: bool = False,
    context: int = 0,
) -> MemoryEstimate:
    """Return the memory that a model takes once it is loaded.

    Args:
        source: its files.
        precision: the one to load at; the source's if not given.
        accelerator: whether it is loaded on an accelerator, not on the CPU.
        context: tokens of the context that its key-value cache is to hold.

    Raises:
        DamagedWeightsError: the weight files contradict themselves.
    """
    precision = precision or source.precision
    tensors = read_tensors(source)
    if not tensors:
        stored = source.kind == "copy" or source.quantized_by is not None
        return with_overhead(source.bytes if stored else rescale(source.bytes, "bf16", precision))
    return estimate(
        tensors,
        _read_config(source.folder, source.model, None),
        precision,
        accelerator=accelerator,
        native=native_kernels(),
        context=context,
    )


def read_ahead_limit(need: MemoryEstimate) -> int:
    """Return how many bytes of weights fit into memory in addition to what a load must hold.

    Pages that are read ahead beyond that would be dropped again before they are used.
    """
    return max(0, available_memory() - need.anonymous)


def check_fits(source: ModelFiles, need: MemoryEstimate, free: int, device: str) -> None:
    """Make sure that a model fits, before the kernel or the device finds that it does not.

    Raises:
        NotEnoughMemoryError: it does not; the hint names a precision at which it would.
    """
    if need.total <= free:
        return
    hint = "free some memory, or use a machine or device with more"
    for precision in _SMALLER if source.kind == "weights" else ():
        smaller = estimate_memory(source, precision).total
        if smaller <= min(free, need.total - 1):
            hint = f"--precision {precision} takes about {size_text(smaller)}"
            break
    raise NotEnoughMemoryError(
        f"{source.model} at {source.precision} needs about {size_text(need.total)}"
        f" ({size_text(need.weights)} of weights), and {device} has {size_text(free)} free",
        hint,
    )
