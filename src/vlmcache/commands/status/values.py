"""What `status` returns."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Literal

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.mounts import AccessTimes, Mount, nearest_folder
from vlmcache.cache.moved import away_remedy
from vlmcache.cache.state import Away, ByClass, CacheState, Finding, Repo, State
from vlmcache.cache.trash import trash_size
from vlmcache.cache.weights import Precision
from vlmcache.config import ModelConfig, Session, hub_home, shipped_config
from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.home.copies import KeptCopy
from vlmcache.names import parse_name
from vlmcache.paths import real_path
from vlmcache.report import Report
from vlmcache.scheduled import RunOutcome
from vlmcache.units import size_text

MemorySource = Literal["weights", "config", "table"]


class NotCachedError(VlmcacheError):
    """A model that was asked for is not completely in the cache."""

    code = "not-cached"
    exit_code = ExitCode.DAMAGE


class CacheSummary(msgspec.Struct, frozen=True):
    """The complete cache folder. Sizes are bytes; free and total are the filesystem's."""

    dir: str
    source: str
    exists: bool
    filesystem: str | None
    access_times: AccessTimes
    size_on_disk: int
    free: int | None
    total: int | None
    min_free: int
    comfortable_free: int
    max_size: int | None
    by_class: ByClass
    trash: int = 0
    """Bytes on disk of all that is in the trash; by_class counts what of it is in the folder."""
    archive: str | None = None
    """The configured folder to which `clean` moves models instead of deleting them."""

    @property
    def bound(self) -> int | None:
        """What should be free, `None` if it is."""
        if self.free is None or self.free >= max(self.comfortable_free, self.min_free):
            return None
        return self.min_free if self.free < self.min_free else self.comfortable_free

    @property
    def low(self) -> str:
        """How little is free, in words."""
        free = size_text(self.free or 0)
        if (self.free or 0) < self.min_free:
            return f"{free} free, below the minimum of {size_text(self.min_free)}"
        return f"{free} free, under the comfortable {size_text(self.comfortable_free)}"


def found_damaged(repo: Repo) -> Iterator[Finding]:
    """Yield what `verify` found damaged in a repo and is unchanged since."""
    for revision in repo.revisions:
        names = [file.name for file in revision.files if file.damaged]
        if names:
            damaged = units.first_of(names, 1)
            detail = f"verify found damage, and it has not changed since: {damaged}"
            remedy = units.command("verify", layout.typed_name(repo.type, repo.id), "--repair")
            path = revision.file_path(names[0])
            yield Finding("damaged-blob", "error", repo.id, path, detail, remedy)


def summarize_cache(session: Session, state: CacheState, mount: Mount | None) -> CacheSummary:
    """Return the facts about the cache folder."""
    limits = session.config.limits
    try:
        usage = shutil.disk_usage(nearest_folder(session.cache.dir))
    except OSError:
        usage = None
    return CacheSummary(
        dir=state.dir,
        source=session.cache.source,
        exists=state.exists,
        filesystem=mount.type if mount else None,
        access_times=mount.access_times if mount else "unknown",
        size_on_disk=state.size_on_disk,
        free=usage.free if usage else None,
        total=usage.total if usage else None,
        min_free=limits.min_free,
        comfortable_free=limits.comfortable_free,
        max_size=limits.max_size,
        by_class=state.by_class,
        trash=trash_size(state.dir) if state.exists else 0,
        archive=session.config.archive,
    )


def second_caches(session: Session, missing: Collection[str] = ()) -> Iterator[Finding]:
    """Yield that a usual place of a cache, which is not the chosen one, holds repos.

    Args:
        session: which cache is the chosen one.
        missing: models that are not complete in it; those that the other place holds are named.
    """
    home = os.path.expanduser("~")
    candidates = [
        os.path.join(home, ".cache", "huggingface", "hub"),
        os.path.join(home, ".cache", "huggingface", "transformers"),
        os.path.join(hub_home(session.environment), "hub"),
    ]
    if session.environment.get("XDG_CACHE_HOME"):
        base = os.path.expanduser(session.environment.variables["XDG_CACHE_HOME"])
        candidates.append(os.path.join(base, "huggingface", "hub"))
    names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE")
    values = filter(None, map(session.environment.get, names))
    candidates += (os.path.abspath(os.path.expanduser(value)) for value in values)
    # Of several paths of one folder the first counts.
    others = {real_path(path): path for path in reversed(candidates)}
    others.pop(real_path(session.cache.dir), None)
    for path in reversed(others.values()):
        try:
            entries = os.listdir(path)
        except OSError:
            continue
        if any(map(layout.parse_repo_folder, entries)):
            detail = (
                f"another cache with models is at {path}; "
                f"{session.cache.source} decides for {session.cache.dir}"
            )
            models = [repo for repo in missing if layout.repo_folder("model", repo) in entries]
            if models:
                detail += f"; {', '.join(models)} may be there already"
            remedy = units.command("status", "--cache-dir", path)
            yield Finding("second-cache", "warning", None, path, detail, remedy)


@functools.cache
def shipped_models() -> dict[str, ModelConfig]:
    """Return repo -> its shipped configuration, read only if a model has no better source."""
    return {model.repo: model for model in shipped_config().models.values()}


def estimate_of(model: ModelConfig) -> int | None:
    """Return the length of the complete download, as the user's or the shipped config.yaml says."""
    if model.expected_size is not None:
        return model.expected_size
    shipped = shipped_models().get(model.repo)
    return shipped.expected_size if shipped else None


class Outdated(msgspec.Struct, frozen=True):
    """A newer revision on the hub: its commit, and the bytes that an update would fetch."""

    commit: str
    fetch: int


class VariantStatus(msgspec.Struct, frozen=True):
    """One GGUF variant of a model."""

    name: str
    """What to type after the colon."""
    state: State
    size: int
    """Length of its files in bytes."""


class ModelStatus(msgspec.Struct, frozen=True):
    """One configured or asked-for model.

    size is the length of the files, size_on_disk what they and unfinished downloads of them occupy,
    expected_size the length of the complete download. memory_estimate is weights and overhead once
    loaded at `precision`: the configured one, else the stored type if that is known. memory_source
    says what memory was estimated from.
    """

    key: str
    repo: str
    revision: str
    state: State
    commit: str | None
    path: str | None
    size: int
    size_on_disk: int
    expected_size: int | None
    missing_files: tuple[str, ...]
    damaged_files: tuple[str, ...]
    precision: Precision | None
    memory_estimate: int | None
    memory_overhead: int | None
    memory_source: MemorySource | None
    last_used: datetime | None
    configured: bool
    outdated: Outdated | None = None
    """What `--outdated` found; `None` without it, and if nothing is newer."""
    linked_to: str | None = None
    """Where the repo is, if the cache has only a link to it."""
    away: Away | None = None
    """Where it is and what to mount, if the state is `away`."""
    variant: str | None = None
    """The GGUF variant that is asked for, or of several the only one that is here."""
    memory_context: int | None = None
    """Of `memory_estimate`, the key-value cache of the context that `--context` names."""
    memory_notes: tuple[str, ...] = ()
    """What of `memory_estimate` is only approximate."""
    to_fetch: int | None = None
    """What a pull would fetch of it: what is missing without what partial downloads save."""
    progress: float | None = None
    """The fraction of `expected_size` that is on disk, unfinished downloads included, 0 to 1."""
    variants: tuple[VariantStatus, ...] = ()
    """All of the revision's."""
    base: str | None = None
    """The folder of the base that has files of it; these are no part of `size_on_disk`."""
    size_in_base: int = 0
    """The length of these files."""

    @property
    def id(self) -> str:
        """The repo's id, with the revision if it is not main, and the variant."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return self.repo + revision + (f":{self.variant}" if self.variant else "")

    @property
    def name(self) -> str:
        """What people see of it: its key and the variant."""
        return f"{self.key}:{self.variant}" if self.variant else self.key


class RevisionStatus(msgspec.Struct, frozen=True):
    """One snapshot of a repo."""

    commit: str
    refs: tuple[str, ...]
    state: State
    path: str
    files: int
    size: int
    size_on_disk: int
    missing_files: tuple[str, ...]
    last_modified: datetime
    variants: tuple[VariantStatus, ...] = ()
    """Its GGUF variants, also those that only the hub has, if its listing is here."""


class RepoStatus(msgspec.Struct, frozen=True):
    """One repo of the cache, configured or not. size_on_disk is what `du` says of its folder."""

    repo: str
    type: str
    path: str
    state: State
    size: int
    size_on_disk: int
    revisions: tuple[RevisionStatus, ...]
    refs: dict[str, str]
    partials: int
    last_used: datetime | None
    linked_to: str | None
    away: Away | None = None
    expected_size: int | None = None
    """The length of the complete download of the revision that `state` is about."""
    to_fetch: int | None = None
    """What a pull would fetch of that."""
    progress: float | None = None
    """The fraction of `expected_size` that need not be fetched any more, 0 to 1."""
    base: str | None = None
    """The folder of the base that has files of it; these are no part of `size_on_disk`."""
    size_in_base: int = 0
    """The length of these files."""

    @property
    def name(self) -> str:
        """What to type for it."""
        return layout.typed_name(self.type, self.repo)


class Elsewhere(msgspec.Struct, frozen=True):
    """A folder outside the cache with repos that the cache links to."""

    path: str
    repos: tuple[str, ...]
    moved: bool
    """Whether `vlmcache move` moved all of them there."""
    size_on_disk: int
    """Bytes, including those in the shared store there; of a base, the length of its files."""
    free: int | None
    """Bytes; `None` if the folder does not exist now."""
    base: bool = False
    """Whether it is a base to which `vlmcache attach` has linked."""


class Status(Report, frozen=True):
    """What `vlmcache status` returns."""

    cache: CacheSummary
    models: tuple[ModelStatus, ...]
    repos: tuple[RepoStatus, ...]
    recommendations: tuple[Recommendation, ...]
    findings: tuple[Finding, ...]
    copies: tuple[KeptCopy, ...] = ()
    """Kept quantized copies, which are in vlmcache's own folder and not in the cache."""
    elsewhere: tuple[Elsewhere, ...] = ()
    """Where the repos are of which the cache has only links; not part of its bytes."""
    schedules: tuple[RunOutcome, ...] = ()
    """How the last run of each schedule ended."""
    configured: bool = True
    """False if no model is named or configured: then `models` is empty, and `repos` are what there
    is to see, the largest first."""

    @property
    def ids(self) -> list[str]:
        """The models' repo ids, with the revision if it is not main, and the variant.

        If none is configured, those of the repos in the cache.
        """
        return [model.id for model in self.models] if self.configured else self.all_ids

    @property
    def all_ids(self) -> list[str]:
        """The models' ids, then those of the other repos in the cache."""
        named = {model.repo for model in self.models if model.revision == "main"}
        ids = [model.id for model in self.models]
        return ids + [repo.name for repo in self.repos if repo.name not in named]

    @property
    def incomplete(self) -> list[str]:
        """The names of the models that are not cached: of those in the cache, if none is named."""
        return [row.name for row in self._asked if row.state != "cached"]

    @property
    def _asked(self) -> list[ModelStatus] | list[RepoStatus]:
        """What the report is about."""
        if self.configured:
            return list(self.models)
        return [repo for repo in self.repos if repo.type == "model"]

    @property
    def in_one_line(self) -> str:
        """How many of the models are cached."""
        asked, missing = len(self._asked), len(self.incomplete)
        return f"{asked - missing} of {units.counted(asked, 'model')} cached"

    @property
    def not_cached(self) -> NotCachedError | None:
        """That a model is not cached, and what to do about it, as `--check` reports it."""
        if not self._asked and not self.configured:
            return NotCachedError("no model is cached", "'vlmcache help pull' shows how to get one")
        missing = [row for row in self._asked if row.state != "cached"]
        if not missing:
            return None
        states = ", ".join(f"{row.name} is {row.state}" for row in missing)
        commands = [step.command for step in self.recommendations if step.command]
        names = {row.repo for row in missing}
        names |= {model.key for model in self.models if model.state != "cached"}
        fetching = (
            command
            for command in commands
            if command.startswith(("vlmcache pull ", "vlmcache verify "))
            # Another repo's damage says nothing of what was asked for.
            and not names.isdisjoint(parse_name(word).name for word in shlex.split(command))
        )
        away = {away_remedy(row.away): None for row in missing if row.away is not None}
        usual = next(iter(commands), None)
        if not self.configured:
            usual = f"'{units.command('status', missing[0].name)}' shows what is missing of it"
        first = next(fetching, None if away else usual)
        hint = "; ".join([*([first] if first else []), *away]) or None
        return NotCachedError(f"not every model is cached: {states}", hint)


class Recommendation(msgspec.Struct, frozen=True):
    """Something to do next, and the command that does it."""

    text: str
    command: str | None
    frees: int = 0
    """Bytes of disk that the command would free, by its plan."""

    @property
    def cleans(self) -> bool:
        """Whether it removes only what nobody chose to keep."""
        return self.frees > 0 and (self.command or "").startswith("vlmcache clean")
