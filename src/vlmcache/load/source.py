"""Which files a load reads, a snapshot, a kept copy or a synthetic model; what memory they take.

Nothing of torch or transformers is needed to tell; a child process is handed the answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

from vlmcache import units
from vlmcache.cache import formats, gguf, layout
from vlmcache.cache.completeness import Others, judge, read_shards
from vlmcache.cache.free_memory import available_memory
from vlmcache.cache.memory import MemoryEstimate, estimate, native_kernels, rescale, with_overhead
from vlmcache.cache.model_configs import decoded
from vlmcache.cache.moved import away_error
from vlmcache.cache.pickles import PickleError, read_pickled
from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.cache.scan import repo_finder, scan
from vlmcache.cache.state import Repo, Revision
from vlmcache.cache.weights import Precision, Tensor, read_header
from vlmcache.config import ModelConfig, Session, cached_models, find_model
from vlmcache.errors import (
    DamagedWeightsError,
    GgufError,
    NotDownloadedError,
    NotEnoughMemoryError,
)
from vlmcache.home.journal import read_damaged
from vlmcache.load.report import QUANTIZED, WeightsSource
from vlmcache.units import size_text

_CONFIG_LIMIT = 16_000_000
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
    model_type: str
    kind: WeightsSource = "weights"
    has_own_code: bool = False
    """Whether config.json names Python code of the repo for its classes."""
    trust_remote_code: bool = False
    device_map: str | dict[str, Any] = "auto"
    quantized_by: str | None = None
    """The method that the stored weights are quantized by, if they are."""


class _ModelFile(msgspec.Struct):
    """The part of config.json that is of interest here."""

    model_type: str = ""
    auto_map: dict[str, Any] = msgspec.field(default_factory=dict)
    quantization_config: dict[str, Any] | None = None


class ModelFinder:
    """Finds the files of models in the cache, which is scanned once, and only the repos named.

    Args:
        session: what it works on.
        names: keys of the configuration or repo ids, with an optional `@revision`.
        trust_remote_code: whether the user allows Python code of the repos to run.
        for_application: whether an application loads them, in whose folder `./config.yaml` is its
            own and may allow that code; for a command that folder may be anybody's.

    Raises:
        UnknownModelError: a name is neither a key nor a repo id.
    """

    def __init__(
        self,
        session: Session,
        names: Iterable[str],
        *,
        trust_remote_code: bool = False,
        for_application: bool = False,
    ) -> None:
        cached = cached_models(session.cache)
        self._models = {
            name: find_model(session.config, name, cached, variants=True) for name in names
        }
        folders = {layout.repo_folder("model", model.repo) for model in self._models.values()}
        self._damaged = read_damaged(session.environment)
        self._state = scan(session.cache.dir, only=folders).with_damage(self._damaged)
        self._trust_remote_code = trust_remote_code
        self._trust_config = for_application or session.config.source != "./config.yaml"

    def find(self, name: str, precision: Precision | None = None) -> tuple[ModelConfig, ModelFiles]:
        """Return the configuration of a model that was named, and its files.

        Args:
            name: one of the names.
            precision: at which it will be loaded; the configured one if not given.

        Raises:
            NotDownloadedError: the model is not cached, or not completely.
            DamagedWeightsError: a file is there and cannot be what it should be.
            AwayError: it is on a drive that is not mounted.
            GgufError: other programs run it.
        """
        model = self._models[name]
        repo = self._state.repo(model.repo)
        others = repo_finder(self._state.dir, self._damaged)
        revision = _loadable(repo, model, name, others)
        allowed = (
            self._trust_config
            and model.trust_remote_code
            and layout.COMMIT.fullmatch(model.revision) is not None
        )
        source = read_source(
            revision.path,
            model=model.key if model.configured else name,
            precision=precision or model.precision,
            repo=model.repo,
            commit=revision.commit,
            trust_remote_code=self._trust_remote_code or allowed,
            device_map=model.device_map,
        )
        return model, source


def _loadable(repo: Repo | None, model: ModelConfig, name: str, others: Others) -> Revision:
    """Return the revision of a repo that is loaded, if it is complete."""
    if repo is not None and repo.away is not None:
        raise away_error(repo, repo.away)
    judgement = judge(repo, model.revision, others, variant=model.variant)
    files = judgement.revision.files if judgement.revision is not None else ()
    weights = {*(judgement.tree or ()), *(file.name for file in files)}
    weights = set(filter(formats.is_weights, weights))
    if model.variant is not None or (weights and all(map(gguf.is_gguf, weights))):
        raise GgufError(
            f"{name}: its weights are GGUF, which vlmcache neither loads nor measures",
            "programs that run it: llama.cpp, Ollama, LM Studio",
        )
    pull = units.command("pull", name)
    if judgement.state == "missing":
        raise NotDownloadedError(f"{name} is not in the cache", pull)
    if judgement.state == "damaged":
        bad = ", ".join(judgement.damaged) or "its revision"
        raise DamagedWeightsError(f"{name} is damaged: {bad}", pull)
    if judgement.state == "partial" or judgement.revision is None:
        missing = ", ".join(judgement.missing + judgement.missing_repos)
        missing = missing or "its download was interrupted"
        raise NotDownloadedError(f"{name} is not complete: missing {missing}", pull)
    return judgement.revision


def read_source(
    folder: str,
    *,
    model: str,
    precision: Precision,
    repo: str | None = None,
    commit: str | None = None,
    kind: WeightsSource = "weights",
    trust_remote_code: bool = False,
    device_map: str | dict[str, Any] = "auto",
) -> ModelFiles:
    """Return the files that loading from a folder in transformers' form reads.

    Raises:
        DamagedWeightsError: config.json or the index of the shards cannot be read.
    """
    remedy = units.command("verify", model, "--repair") if repo else None
    path = os.path.join(folder, formats.CONFIG)
    try:
        content = msgspec.json.decode(read_bytes(path, _CONFIG_LIMIT), type=_ModelFile)
    except (OSError, *JSON_ERRORS) as error:
        raise DamagedWeightsError(f"{model}: config.json cannot be read: {error}", remedy) from None
    weights = weight_files(folder)
    if not weights:
        raise DamagedWeightsError(f"{model}: no weights that can be loaded in {folder}", remedy)
    method = (content.quantization_config or {}).get("quant_method")
    return ModelFiles(
        model=model,
        repo=repo,
        commit=commit,
        folder=folder,
        weights=tuple(weights),
        bytes=sum(os.path.getsize(file) for file in weights),
        precision=precision,
        model_type=content.model_type,
        kind=kind if kind == "copy" or precision not in QUANTIZED else "at-load",
        has_own_code=bool(content.auto_map),
        trust_remote_code=trust_remote_code,
        device_map=device_map,
        quantized_by=str(method) if content.quantization_config is not None else None,
    )


def weight_files(folder: str) -> list[str]:
    """Return the paths of the weight files that transformers would load from a folder.

    Empty where there are none, or not all that an index names.
    """
    names = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    for name, is_index in formats.weight_candidates(names):
        if name not in names:
            continue
        shards = read_shards(Revision("", folder, (), (), 0), name) if is_index else {name}
        paths = [os.path.join(folder, *shard.split("/")) for shard in sorted(shards or ())]
        # The first format that is there is the one that transformers takes, whole or not.
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
        remedy = units.command("verify", source.model, "--repair") if source.repo else None
        raise DamagedWeightsError(f"{source.model}: {error}", remedy) from None
    return tensors


def estimate_memory(
    source: ModelFiles,
    precision: Precision | None = None,
    *,
    accelerator: bool = False,
    context: int = 0,
) -> MemoryEstimate:
    """Return what a model takes once loaded.

    Args:
        source: its files.
        precision: that of the source if not given.
        accelerator: whether it is loaded on one, in place of the CPU.
        context: tokens of the context that its key-value cache is to hold.

    Raises:
        DamagedWeightsError: the weight files contradict themselves.
    """
    precision = precision or source.precision
    tensors = read_tensors(source)
    if not tensors:
        stored = source.kind == "copy" or source.quantized_by is not None
        return with_overhead(source.bytes if stored else rescale(source.bytes, "bf16", precision))
    content = read_bytes(os.path.join(source.folder, formats.CONFIG), _CONFIG_LIMIT)
    return estimate(
        tensors,
        decoded(content) or {},
        precision,
        accelerator=accelerator,
        native=native_kernels(),
        context=context,
    )


def read_ahead_limit(need: MemoryEstimate) -> int:
    """Return how many bytes of weights fit into memory in addition to what a load must hold.

    Pages that are read ahead of that would be dropped again before they are used.
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
