"""Finding the files of models in the cache: what a name means, and whether that can be loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

from vlmcache import units
from vlmcache.cache import formats, gguf, layout
from vlmcache.cache.completeness import Judgement, Others, judge, resolve
from vlmcache.cache.model_configs import OtherRepo
from vlmcache.cache.moved import away_error
from vlmcache.cache.scan import repo_finder, scan
from vlmcache.cache.state import Repo, Revision
from vlmcache.cache.weights import Precision
from vlmcache.config import ModelConfig, Session, cached_models, find_model
from vlmcache.errors import DamagedWeightsError, GgufError, NotDownloadedError
from vlmcache.home.journal import read_damaged
from vlmcache.load.source import TOKENIZERS, ModelFiles, read_source


class ModelFinder:
    """Finds the files of models in the cache. It is scanned once, and only for the repos named.

    Args:
        session: what it works on.
        names: keys of the configuration or repo ids, with an optional `@revision`.
        trust_remote_code: whether the user allows Python code of the repos to run.
        for_application: whether an application loads them: `./config.yaml` is then its own, and
            may allow that code. A command may run in anybody's folder.
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
            precision: the one to load at; the configured one if not given, else the stored one.

        Raises:
            NotDownloadedError: the model is not cached, or not completely.
            DamagedWeightsError: a file is there and cannot be what it should be.
            AwayError: it is on a drive that is not mounted.
            OtherFormatError: other programs or libraries load it.
            GgufError: its weights are GGUF.
        """
        model = self._models[name]
        others = repo_finder(self._state.dir, self._damaged)
        judgement, revision = _loadable(self._state.repo(model.repo), model, name, others)
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
        )
        fields: dict[str, Any] = {
            "trust_remote_code": self._allows(model) and None not in code.values(),
            "device_map": model.device_map,
            "attention": self._attention or model.attention,
            "cache_dir": self._state.dir,
        }
        if base is not None:
            fields |= _adapter_of(revision.path, source)
            if code[base_id] != base.commit:
                code[base_id] = None
        fields["code_repos"] = {need.id: code[need.id] for need in needs if need.code}
        return model, msgspec.structs.replace(source, **fields)

    def _allows(self, model: ModelConfig) -> bool:
        """Return whether Python code of a repo may run."""
        pinned = layout.COMMIT.fullmatch(model.revision) is not None
        return self._trust_remote_code or (
            self._trust_config and model.trust_remote_code and pinned
        )

    def _commit_of(self, need: OtherRepo, others: Others) -> str | None:
        """Return the commit of another repo whose code may run; `None` if none may.

        The entry of the configuration that allows it pins it. `--trust-remote-code` means the
        commit that is cached.
        """
        pins = [
            model.revision
            for model in self._config.models.values()
            if model.repo.casefold() == need.id.casefold() and self._allows(model)
        ]
        repo = others(need.id)
        if repo is None or not (pins or self._trust_remote_code):
            return None
        named = pins[0] if pins else need.revision
        commit = resolve(repo, named)
        if pins and (commit is None or repo.revision(commit) is None):
            raise NotDownloadedError(
                f"commit {named} of {need.id}, whose code is to run, is not in the cache",
                units.command("pull", f"{need.id}@{named}"),
            )
        return commit


def _base_of(need: OtherRepo, others: Others) -> Judgement:
    """Return the judgement of an adapter's base model.

    Raises:
        NotDownloadedError: it is not complete.
    """
    judgement = judge(others(need.id), need.revision, others)
    if judgement.state != "cached":
        raise NotDownloadedError(
            f"{need.id}, the base model, is not in the cache", units.command("pull", need.id)
        )
    return judgement


def _adapter_of(folder: str, base: ModelFiles) -> dict[str, Any]:
    """Return the fields in which an adapter's files differ from those of its base model."""
    weights = tuple(
        os.path.join(folder, name)
        for name in ("adapter_model.safetensors", "adapter_model.bin")
        if os.path.isfile(os.path.join(folder, name))
    )[:1]
    changes: dict[str, Any] = {
        "adapter": folder,
        "weights": base.weights + weights,
        "bytes": base.bytes + sum(map(os.path.getsize, weights)),
    }
    if any(os.path.isfile(os.path.join(folder, name)) for name in TOKENIZERS):
        changes["processor"] = folder
    return changes


def _loadable(
    repo: Repo | None, model: ModelConfig, name: str, others: Others
) -> tuple[Judgement, Revision]:
    """Return the judgement of a repo, and the revision that is loaded; see `ModelFinder.find`."""
    if repo is not None and repo.away is not None:
        raise away_error(repo, repo.away)
    judgement = judge(repo, model.revision, others, variant=model.variant)
    files = judgement.revision.files if judgement.revision is not None else ()
    names = {*(judgement.tree or ()), *(file.name for file in files)}
    weights = list(filter(formats.is_weights, names))
    if model.variant is not None or (weights and all(map(gguf.is_gguf, weights))):
        raise GgufError(
            f"{name}: its weights are GGUF, which vlmcache neither loads nor measures",
            "programs that run it: llama.cpp, Ollama, LM Studio",
        )
    pull = units.command("pull", name)
    if judgement.state == "missing":
        raise NotDownloadedError(f"{name} is not in the cache", pull)
    if judgement.state == "damaged":
        damaged = ", ".join(judgement.damaged) or "its revision"
        raise DamagedWeightsError(
            f"{name} is damaged: {damaged}", units.command("verify", name, "--repair")
        )
    if judgement.state == "partial" or judgement.revision is None:
        repos = tuple(f"the repo {other}, which it needs" for other in judgement.missing_repos)
        missing = ", ".join(judgement.missing + repos) or "its download was interrupted"
        raise NotDownloadedError(f"{name} is not complete: missing {missing}", pull)
    return judgement, judgement.revision
