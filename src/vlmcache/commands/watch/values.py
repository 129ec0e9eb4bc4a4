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
    """Something that happened to a repo of the cache, or to the disk that it is on.

    revision is a commit, path the partial download or the damaged place, files are names in the
    repo. size counts bytes: those received so far of a download, those on disk of what is removed,
    free ones for `low-space`.
    """

    kind: EventKind
    repo: str | None = None
    type: str | None = None
    revision: str | None = None
    refs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    path: str | None = None
    size: int | None = None
    expected_size: int | None = None
    speed: float | None = None
    """Bytes per second."""
    seconds_left: float | None = None
    detail: str | None = None


class LowSpaceError(VlmcacheError):
    """The disk has less free than was asked for."""

    code = "low-space"
    exit_code = ExitCode.SPACE


class Program(msgspec.Struct, frozen=True):
    """A process that writes a partial download, or has files of a model open or mapped.

    name: the program without its arguments, which may hold secrets.
    """

    pid: int
    name: str
    user: str | None = None
    """Whose it is, `None` where the system does not say it."""


class Download(msgspec.Struct, frozen=True):
    """An unfinished download.

    size: bytes received. expected_size: the file's length as the Hub listed it. file: its name in
    the repo. Both are `None` if the cache has no listing. speed: bytes per second over the
    last twenty seconds.
    """

    repo: str
    type: str
    file: str | None
    etag: str
    path: str
    state: DownloadState
    size: int
    expected_size: int | None
    speed: float | None
    seconds_left: float | None
    process: Program | None


class WatchedModel(msgspec.Struct, frozen=True):
    """A configured model, or another repo of the cache (then key is `None`).

    size_on_disk, expected_size, to_fetch, progress: as `status` has them; of another repo,
    size_on_disk is what `du` says of its folder. used_by: processes that have files of it open
    or mapped, as far as this user may see.
    """

    key: str | None
    repo: str
    type: str
    revision: str | None
    state: State
    size_on_disk: int
    expected_size: int | None
    used_by: tuple[Program, ...]
    to_fetch: int | None = None
    progress: float | None = None
    to_receive: int | None = None
    """`to_fetch` without what another program, which is at work on it, has received already."""


class Snapshot(Report, frozen=True, tag_field="kind", tag="snapshot"):
    """The cache at one check.

    fill_rate: bytes per second by which the free space shrank over the last minute. needed: the
    bytes that running downloads still need, `None` if nothing says how many. full_in: seconds
    until nothing is free; `None` if the running downloads fit, and nothing else fills the disk.
    low: whether less than cache.min_free is free. problems: severity -> number of findings.
    notified: whether the filesystem reports changes, in place of polling.
    """

    at: datetime
    cache: CacheSummary
    fill_rate: float | None
    full_in: float | None
    low: bool
    notified: bool
    models: tuple[WatchedModel, ...]
    downloads: tuple[Download, ...]
    problems: dict[str, int]
    needed: int | None = None

    @property
    def ids(self) -> list[str]:
        """The repos of the models and of the rest of the cache, each once."""
        return list(dict.fromkeys(model.repo for model in self.models))

    @property
    def problem(self) -> LowSpaceError | None:
        """That the disk has too little free, `None` if it has enough."""
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
