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
from vlmcache.cache.code_files import auto_classes
from vlmcache.cache.completeness import Judgement, Others, judge, read_shards, resolve
from vlmcache.cache.free_memory import available_memory
from vlmcache.cache.memory import MemoryEstimate, estimate, native_kernels, rescale, with_overhead
from vlmcache.cache.model_configs import OtherRepo, stored_precision
from vlmcache.cache.moved import away_error
from vlmcache.cache.pickles import PickleError, read_pickle, read_pickled
from vlmcache.cache.reading import JSON_ERRORS, parse_json, read_bytes
from vlmcache.cache.scan import repo_finder, scan
from vlmcache.cache.state import Repo, Revision
from vlmcache.cache.weights import Precision, Tensor, read_header
from vlmcache.config import ModelConfig, Session, cached_models, find_model
from vlmcache.errors import (
    DamagedWeightsError,
    GgufError,
    NotDownloadedError,
    NotEnoughMemoryError,
    reason_of,
)
from vlmcache.home.journal import read_damaged
from vlmcache.load.layouts import other_format
from vlmcache.load.report import QUANTIZED, WeightsSource
from vlmcache.units import size_text

_CONFIG_LIMIT = 16_000_000
_INDEXES = (formats.SAFETENSORS_INDEX, formats.TORCH_INDEX)
_OF_TRANSFORMERS = (formats.SAFETENSORS_SINGLE, formats.TORCH_SINGLE, *_INDEXES)
TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which one is there if a repo has a tokenizer."""
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
    """At which it is loaded: the one asked for, else the stored one."""
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
    """The cache that these are in."""
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
    def origin(self) -> dict[str, Any]:
        """What it is and where, as a result of a load test says it."""
        elsewhere = None
        if self.repo is not None and self.cache_dir is not None:
            link = os.path.join(self.cache_dir, layout.repo_folder("model", self.repo))
            if self.folder.startswith(os.path.join(link, "")) and os.path.islink(link):
                elsewhere = os.path.dirname(os.path.realpath(link))
        path = os.path.realpath(self.folder)
        return {"repo": self.repo, "commit": self.commit, "path": path, "elsewhere": elsewhere}


class ModelFinder:
    """Finds the files of models in the cache, which is scanned once, and only the repos named.

    Args:
        session: what it works on.
        names: keys of the configuration or repo ids, with an optional `@revision`.
        trust_remote_code: whether the user allows Python code of the repos to run.
        for_application: whether an application loads them, in whose folder `./config.yaml` is its
            own and may allow that code; for a command that folder may be anybody's.
        attention: what computes attention; the configured one if not given.

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
        attention: str | None = None,
    ) -> None:
        cached = cached_models(session.cache)
        self._models = {
            name: find_model(session.config, name, cached, variants=True) for name in names
        }
        folders = {layout.repo_folder("model", model.repo) for model in self._models.values()}
        self._damaged = read_damaged(session.environment)
        self._state = scan(session.cache.dir, only=folders).with_damage(self._damaged)
        self._config = session.config
        self._attention = attention
        self._trust_remote_code = trust_remote_code
        self._trust_config = for_application or session.config.source != "./config.yaml"

    def find(self, name: str, precision: Precision | None = None) -> tuple[ModelConfig, ModelFiles]:
        """Return the configuration of a model that was named, and its files.

        Args:
            name: one of the names.
            precision: at which it will be loaded; the configured one if not given, else the stored.

        Raises:
            NotDownloadedError: the model is not cached, or not completely.
            DamagedWeightsError: a file is there and cannot be what it should be.
            AwayError: it is on a drive that is not mounted.
            OtherFormatError: other programs or libraries load it, or GgufError.
        """
        model = self._models[name]
        repo = self._state.repo(model.repo)
        others = repo_finder(self._state.dir, self._damaged)
        judgement, revision = _loadable(repo, model, name, others)
        needs = judgement.division.repos if judgement.division is not None else ()
        base, base_id = None, ""
        for need in needs:
            if not need.code:
                base_id = need.id
                base = _base_of(need, others)
                needs = (*needs, *(base.division.repos if base.division is not None else ()))
        # The code of a base model is another repo's too.
        code = {need.id: self._commit_of(need, others) for need in needs}
        source = read_source(
            revision.path if base is None or base.revision is None else base.revision.path,
            model=model.key if model.configured else name,
            precision=precision or model.precision,
            repo=model.repo,
            commit=revision.commit,
            trust_remote_code=self._allows(model) and None not in code.values(),
            device_map=model.device_map,
            attention=self._attention or model.attention,
        )
        if base is not None and code[base_id] != base.commit:
            code[base_id] = None
        named = {need.id: code[need.id] for need in needs if need.code}
        changes: dict[str, Any] = {"code_repos": named, "cache_dir": self._state.dir}
        if base is not None:
            changes |= _adapter_of(revision.path, source)
        return model, msgspec.structs.replace(source, **changes)

    def _allows(self, model: ModelConfig) -> bool:
        """Return whether Python code of a repo may run."""
        pinned = layout.COMMIT.fullmatch(model.revision) is not None
        return self._trust_remote_code or (
            self._trust_config and model.trust_remote_code and pinned
        )

    def _commit_of(self, need: OtherRepo, others: Others) -> str | None:
        """Return the commit of another repo whose code may run; `None` if none may.

        An entry of the configuration that allows it pins it. Who allows code for one command means
        the commit that is cached.
        """
        pins = [
            model.revision
            for model in self._config.models.values()
            if model.repo.casefold() == need.id.casefold() and self._allows(model)
        ]
        repo = others(need.id)
        if repo is None or not (pins or self._trust_remote_code):
            return None
        named = [*pins, need.revision][0]
        commit = resolve(repo, named)
        if pins and (commit is None or repo.revision(commit) is None):
            raise NotDownloadedError(
                f"commit {named} of {need.id}, whose code is to run, is not in the cache",
                units.command("pull", f"{need.id}@{named}"),
            )
        return commit


def _base_of(need: OtherRepo, others: Others) -> Judgement:
    """Return what is said of the base model of an adapter, which has to be complete."""
    judgement = judge(others(need.id), need.revision, others)
    if judgement.state != "cached":
        raise NotDownloadedError(
            f"{need.id}, the base model, is not in the cache", units.command("pull", need.id)
        )
    return judgement


def _adapter_of(folder: str, base: ModelFiles) -> dict[str, Any]:
    """Return what an adapter changes of the files of its base model."""
    weights = tuple(
        os.path.join(folder, name)
        for name in ("adapter_model.safetensors", "adapter_model.bin")
        if os.path.isfile(os.path.join(folder, name))
    )[:1]
    changes: dict[str, Any] = {"adapter": folder, "weights": base.weights + weights}
    changes["bytes"] = base.bytes + sum(map(os.path.getsize, weights))
    if any(os.path.isfile(os.path.join(folder, name)) for name in TOKENIZERS):
        changes["processor"] = folder
    return changes


def _loadable(
    repo: Repo | None, model: ModelConfig, name: str, others: Others
) -> tuple[Judgement, Revision]:
    """Return the revision of a repo that is loaded, if it is complete, and its judgement."""
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
        raise DamagedWeightsError(
            f"{name} is damaged: {bad}", units.command("verify", name, "--repair")
        )
    if judgement.state == "partial" or judgement.revision is None:
        repos = tuple(f"the repo {other}, which it needs" for other in judgement.missing_repos)
        missing = ", ".join(judgement.missing + repos)
        missing = missing or "its download was interrupted"
        raise NotDownloadedError(f"{name} is not complete: missing {missing}", pull)
    return judgement, judgement.revision


def read_source(
    folder: str,
    *,
    model: str,
    precision: Precision | None,
    repo: str | None = None,
    commit: str | None = None,
    kind: WeightsSource = "weights",
    trust_remote_code: bool = False,
    device_map: str | dict[str, Any] = "auto",
    attention: str | None = None,
) -> ModelFiles:
    """Return the files that loading from a folder in transformers' form reads.

    Args:
        folder: the folder.
        model: what to call the model.
        precision: at which it will be loaded; the stored one if not given.
        repo: where it is from.
        commit: of the repo.
        kind: what the weights are.
        trust_remote_code: whether code that its configurations name may run.
        device_map: as configured.
        attention: what computes attention, if that was asked for.

    Raises:
        DamagedWeightsError: config.json or the index of the shards cannot be read.
        OtherFormatError: the files are not for transformers.
    """
    remedy = units.command("verify", model, "--repair") if repo else None
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
        kind=kind if kind == "copy" or precision not in QUANTIZED else "at-load",
        as_stored=precision is None,
        stored=stored,
        classes=auto_classes(config),
        trust_remote_code=trust_remote_code,
        attention=attention,
        processor=folder,
        device_map=device_map,
        quantized_by=str(quantized.get("quant_method")) if isinstance(quantized, dict) else None,
    )


def as_copy(source: ModelFiles, folder: str) -> ModelFiles:
    """Return the same model with the weights of a kept copy.

    Raises:
        DamagedWeightsError: the copy cannot be read.
    """
    copy = read_source(folder, model=source.model, precision=source.precision, kind="copy")
    # A copy has no processor of its own.
    others = {
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
        classes=others | copy.classes,
        quantized_by=copy.quantized_by,
    )


def _read_config(folder: str, model: str, remedy: str | None) -> dict[str, Any]:
    """Return what config.json says; nothing if there is none."""
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
        raise DamagedWeightsError(f"{source.model}: {reason_of(error)}", remedy) from None
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
