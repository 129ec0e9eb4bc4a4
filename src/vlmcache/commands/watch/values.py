"""What `watch` yields."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from vlmcache.cache.state import State
from vlmcache.commands.status.values import CacheSummary
from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.report import Report
from vlmcache.units import size_text

EventKind = Literal[
    "downloaded",
    "removed",
    "damaged",
    "away",
    "back",
    "new-revision",
    "download-started",
    "download-advanced",
    "download-left-behind",
    "low-space",
]

DownloadState = Literal["running", "stalled", "left-behind"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a repo of the cache, or to the disk that it is on."""

    kind: EventKind
    repo: str | None = None
    type: str | None = None
    revision: str | None = None
    """The commit."""
    refs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """Their names in the repo."""
    path: str | None = None
    """The partial download, or what is damaged."""
    size: int | None = None
    """Bytes: received so far of a download, on disk of what was removed, free for `low-space`."""
    expected_size: int | None = None
    """Bytes: of the complete file of a download, wanted free for `low-space`."""
    speed: float | None = None
    """Bytes per second."""
    seconds_left: float | None = None
    detail: str | None = None


class LowSpaceError(VlmcacheError):
    """Less is free on the disk than was asked for."""

    code = "low-space"
    exit_code = ExitCode.SPACE


class Program(msgspec.Struct, frozen=True):
    """A process that writes a partial download, or has files of a model open or mapped."""

    pid: int
    name: str
    """The program without its arguments, which may hold secrets."""
    user: str | None = None
    """Whose it is; `None` if the system does not say."""


class Download(msgspec.Struct, frozen=True):
    """An unfinished download."""

    repo: str
    type: str
    file: str | None
    """Its name in the repo; `None` if the cache has no listing."""
    etag: str
    path: str
    state: DownloadState
    size: int
    """Bytes received."""
    expected_size: int | None
    """Length of the file as the Hub listed it; `None` if the cache has no listing."""
    speed: float | None
    """Bytes per second over the last twenty seconds."""
    seconds_left: float | None
    process: Program | None


class WatchedModel(msgspec.Struct, frozen=True):
    """A configured model, or another repo of the cache. Sizes are as `status` has them."""

    key: str | None
    """`None` for another repo."""
    repo: str
    type: str
    revision: str | None
    state: State
    size_on_disk: int
    """Of another repo, what `du` says of its folder."""
    expected_size: int | None
    used_by: tuple[Program, ...]
    """Processes that have files of it open or mapped, as far as this user may see them."""
    to_fetch: int | None = None
    progress: float | None = None
    to_receive: int | None = None
    """`to_fetch` without what another program that is downloading it has received already."""


class Snapshot(Report, frozen=True, tag_field="kind", tag="snapshot"):
    """The cache at one check."""

    at: datetime
    cache: CacheSummary
    fill_rate: float | None
    """Bytes per second by which the free space shrank over the last minute."""
    full_in: float | None
    """Seconds until the disk is full; `None` if the downloads fit and nothing else fills it."""
    low: bool
    """Whether less than `cache.min_free` is free."""
    notified: bool
    """Whether the filesystem reports changes; otherwise the cache is polled."""
    models: tuple[WatchedModel, ...]
    downloads: tuple[Download, ...]
    problems: dict[str, int]
    """Severity -> number of findings."""
    needed: int | None = None
    """Bytes that running downloads still need; `None` if nothing says how many."""

    @property
    def ids(self) -> list[str]:
        """The repos of the models and the other repos of the cache, each once."""
        return list(dict.fromkeys(model.repo for model in self.models))

    @property
    def problem(self) -> LowSpaceError | None:
        """That the disk has too little free space; `None` if it has enough."""
        if not self.low or self.cache.free is None:
            return None
        free, bound = size_text(self.cache.free), size_text(self.cache.min_free)
        return LowSpaceError(f"{free} free, less than {bound}")


class Observation(NamedTuple):
    """One check, and what happened since the one before."""

    snapshot: Snapshot
    events: tuple[Event, ...]


Wait = Callable[[float, socket.socket | None], bool]
"""Waits so many seconds, or until the socket is readable; returns whether to continue."""


class Clock(NamedTuple):
    """Where the time comes from."""

    monotonic: Callable[[], float] = time.monotonic
    """Seconds from any start, never set back."""
    now: Callable[[], float] = time.time
    """Seconds since the epoch."""
