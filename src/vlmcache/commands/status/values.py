"""What `status` returns."""

from __future__ import annotations

import shutil
from datetime import datetime
from typing import Literal

import msgspec

from vlmcache.cache.mounts import AccessTimes, Mount, nearest_folder
from vlmcache.cache.moved import away_remedy
from vlmcache.cache.state import Away, ByClass, CacheState, Finding, State
from vlmcache.cache.weights import Precision
from vlmcache.config import Session
from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.home.copies import KeptCopy
from vlmcache.report import Report
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
    )


class Outdated(msgspec.Struct, frozen=True):
    """A newer revision on the hub: its commit, and the bytes that an update would fetch."""

    commit: str
    fetch: int


class ModelStatus(msgspec.Struct, frozen=True):
    """One configured or asked-for model.

    size is the length of the files, size_on_disk what they occupy, expected_size the length of the
    complete download. memory_estimate is weights and overhead once loaded at `precision`;
    memory_source says what it was estimated from.
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
    precision: Precision
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


class Elsewhere(msgspec.Struct, frozen=True):
    """A folder outside the cache with repos that the cache links to.

    moved: whether `vlmcache move` moved all of them there. size_on_disk includes what they
    have in the shared store there. free is `None` if that place does not exist now.
    """

    path: str
    repos: tuple[str, ...]
    moved: bool
    size_on_disk: int
    free: int | None


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

    @property
    def ids(self) -> list[str]:
        """The models' repo ids, with the revision if it is not main."""
        return [
            model.repo if model.revision == "main" else f"{model.repo}@{model.revision}"
            for model in self.models
        ]

    @property
    def all_ids(self) -> list[str]:
        """The models' ids, then those of the other repos in the cache."""
        ids = self.ids
        return ids + [repo.repo for repo in self.repos if repo.repo not in ids]

    @property
    def not_cached(self) -> NotCachedError | None:
        """That a model is not cached, and what to do about it, as `--check` reports it."""
        missing = [model for model in self.models if model.state != "cached"]
        if not missing:
            return None
        states = ", ".join(f"{model.key} is {model.state}" for model in missing)
        commands = [step.command for step in self.recommendations if step.command]
        fetching = (
            command
            for command in commands
            if command.startswith(("vlmcache pull ", "vlmcache verify "))
        )
        away = {away_remedy(model.away): None for model in missing if model.away is not None}
        first = next(fetching, None if away else next(iter(commands), None))
        hint = "; ".join([*([first] if first else []), *away]) or None
        return NotCachedError(f"not every model is cached: {states}", hint)


class Recommendation(msgspec.Struct, frozen=True):
    """Something to do next, and the command that does it."""

    text: str
    command: str | None
    frees: int = 0
    """Bytes of disk that the command would free, by its plan."""
