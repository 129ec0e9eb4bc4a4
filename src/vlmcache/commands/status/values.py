"""What `status` answers with."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from vlmcache.cache.mounts import AccessTimes
from vlmcache.cache.state import Away, ByClass, Finding, State
from vlmcache.cache.weights import Precision
from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.home.copies import KeptCopy

MemorySource = Literal["weights", "config", "table"]


class NotCachedError(VlmcacheError):
    """A model that was asked for is not there as a whole."""

    code = "not-cached"
    exit_code = ExitCode.DAMAGE


class CacheSummary(msgspec.Struct, frozen=True):
    """The cache folder as a whole. Sizes are bytes; free and total are the filesystem's."""

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


class Outdated(msgspec.Struct, frozen=True):
    """A newer revision on the hub: its commit, and the bytes that an update would fetch."""

    commit: str
    fetch: int


class ModelStatus(msgspec.Struct, frozen=True):
    """One configured or asked-for model.

    size is the length of what is there, size_on_disk what it occupies, expected_size the length of
    the whole download. memory_estimate is weights and overhead once loaded at `precision`;
    memory_source says what it was reckoned from.
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
    """What `--outdated` found; `None` without it, and where there is nothing newer."""
    linked_to: str | None = None
    """Where the repo lies, if the cache has but a link to it."""
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

    moved: whether `vlmcache move` has brought all of them there. size_on_disk includes what they
    have in the shared store there. free is `None` where that place is not there now.
    """

    path: str
    repos: tuple[str, ...]
    moved: bool
    size_on_disk: int
    free: int | None


class Status(msgspec.Struct, frozen=True):
    """What `vlmcache status` answers."""

    cache: CacheSummary
    models: tuple[ModelStatus, ...]
    repos: tuple[RepoStatus, ...]
    recommendations: tuple[Recommendation, ...]
    findings: tuple[Finding, ...]
    copies: tuple[KeptCopy, ...] = ()
    """Kept quantised copies, which lie in vlmcache's own folder and not in the cache."""
    elsewhere: tuple[Elsewhere, ...] = ()
    """Where the repos lie of which the cache has but links; no part of its bytes."""


class Recommendation(msgspec.Struct, frozen=True):
    """Something to do next, and the command that does it."""

    text: str
    command: str | None
    frees: int = 0
    """Bytes of disk that the command would free, by its plan."""
