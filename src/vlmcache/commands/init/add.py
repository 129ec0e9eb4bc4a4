"""`pull --add`: models are added to the user's config.yaml, which otherwise stays as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.reading import read_bytes
from vlmcache.commands.init.init import new_file, place_of
from vlmcache.commands.init.plan import Entry, NotAddedError, key_for, with_entries
from vlmcache.commands.init.values import ConfigWriteError
from vlmcache.commands.init.write import change
from vlmcache.config import ModelConfig, Session, cached_repos, find_model
from vlmcache.config_file import parse_config
from vlmcache.environment import FILE_LIMIT
from vlmcache.errors import ConfigError, UsageError, reason_of
from vlmcache.paths import real_path


class Addition(NamedTuple):
    """A model in the user's config.yaml."""

    key: str
    repo: str
    path: str
    """The file."""
    new: bool
    """False if the file named the model before."""
    active: str | None
    """Another config.yaml that counts in the working folder."""


class ConfigAdder:
    """Adds models to the user's config.yaml.

    It is the one that `--config` or `VLMCACHE_CONFIG` names, else the one in the user's folder,
    which is made if it does not exist.

    Args:
        session: what the command works on.
        names: the models, as they were typed.

    Raises:
        UsageError: a name is not that of a model.
        ConfigError: the file cannot be read.
        ConfigWriteError: nothing can be added to it.
    """

    def __init__(self, session: Session, names: Sequence[str]) -> None:
        config = session.config
        self.path = place_of(session, config.path if config.source == "--config" else None)
        self.active = config.path if config.source == "./config.yaml" else None
        """Another config.yaml that counts in the working folder."""
        cached = cached_repos(session.cache)
        self._taken = {name for name in cached if "/" not in name}
        self.models = []
        for name in names:
            model = find_model(config, name, cached, variants=True, others=True)
            if model.repo.count("/") > 1:
                raise UsageError(f"{model.repo} is not a model: config.yaml names models only")
            self.models.append(model)
        if os.path.isdir(self.path) or (
            os.path.islink(self.path) and not os.path.exists(self.path)
        ):
            raise ConfigWriteError(
                f"{self.path} is not a file: nothing can be added to it", "move it out of the way"
            )
        folder = nearest_folder(os.path.dirname(real_path(self.path)))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigWriteError(
                f"{self.path} cannot be written: its folder is not yours to change",
                "name a file elsewhere with --config",
            )
        # Before anything is fetched: what will be done can be done.
        self._with_models(self._content(), self.models)

    def add(
        self, complete: Mapping[tuple[str, str], str | None], *, dry_run: bool
    ) -> list[Addition]:
        """Add those of the models that are complete, and return them.

        Args:
            complete: (repo, revision) of these -> the variant.
            dry_run: only return them.

        Raises:
            ConfigError: the file cannot be read.
            ConfigWriteError: nothing can be added to it.
            SpaceError: the disk is full.
        """
        additions: list[Addition] = []
        models = [
            msgspec.structs.replace(model, variant=complete[model.repo, model.revision])
            for model in self.models
            if (model.repo, model.revision) in complete
        ]

        def changed(content: bytes | None) -> bytes:
            new, additions[:] = self._with_models(content, models)
            return new

        planned = self._with_models(self._content(), models)[1]
        if dry_run or not any(addition.new for addition in planned):
            return planned
        change(self.path, changed)
        return additions

    def _content(self) -> bytes | None:
        try:
            return read_bytes(self.path, FILE_LIMIT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {reason_of(error)}") from error

    def _with_models(
        self, content: bytes | None, models: Sequence[ModelConfig]
    ) -> tuple[bytes, list[Addition]]:
        """Return the content with the models that it does not name yet."""
        known: dict[str, ModelConfig] = {}
        if content is not None:
            config = parse_config(content, self.path, "user")
            known = dict(config.listed) if config is not None else {}
        additions: list[Addition] = []
        entries: list[Entry] = []
        for model in models:
            same = next((key for key, listed in known.items() if _is_same(listed, model)), None)
            if same is not None:
                additions.append(Addition(same, model.repo, self.path, False, self.active))
                continue
            taken = {*self._taken, *known}
            key = model.key
            if not model.configured or key in taken:
                key = key_for(model.repo, taken, model.variant)
            known[key] = model
            entries.append(Entry(key, model))
            additions.append(Addition(key, model.repo, self.path, True, self.active))
        if content is None:
            return new_file(entries).encode(), additions
        try:
            return (with_entries(content, self.path, entries) if entries else content), additions
        except NotAddedError as error:
            lines = ", ".join(entry.in_line for entry in entries)
            raise ConfigWriteError(
                f"{self.path}: nothing was added: {error}", f"add to its models by hand: {lines}"
            ) from None


def _is_same(model: ModelConfig, other: ModelConfig) -> bool:
    return (model.repo.casefold(), model.revision, model.variant) == (
        other.repo.casefold(),
        other.revision,
        other.variant,
    )
