"""`watch`: looks at the cache one after the other, each with what happened since the last one."""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import datetime, timezone
from typing import NamedTuple

import msgspec

from vlmcache.cache import formats, layout
from vlmcache.cache.completeness import judge, judge_repo
from vlmcache.cache.mounts import mount_of
from vlmcache.cache.scan import Scanner
from vlmcache.cache.state import CacheState, Partial, Repo, Revision, State
from vlmcache.cache.usage import Process, Usage, content_of, find_users
from vlmcache.commands.status.summary import summarise
from vlmcache.commands.watch.events import Notifications, changes, files_by_blob
from vlmcache.commands.watch.values import (
    Download,
    DownloadState,
    Event,
    Look,
    Program,
    Snapshot,
    Wait,
    WatchedModel,
)
from vlmcache.config import CacheLocation, Config, ModelConfig

_BUSY_INTERVAL = 1.0
"""Seconds between looks while something is being downloaded."""
_LEAST_GAP = 0.5
"""Seconds between looks however often the filesystem tells of changes."""
_SPEED_WINDOW = 20.0
"""Seconds; the hub's client writes ten million bytes at once, which a slow line takes long for."""
_ROOM_WINDOW = 60.0
_LEAST_RATE = 10_000.0
"""Bytes per second below which a shrinking disk is not worth a forecast."""
_FRESH = 10.0
"""Seconds after its last write in which a partial that nobody locks may still be written."""
_STALLED_AFTER = 30.0
_RETRY_AFTER = 60.0
_FULL_SCAN_AFTER = 120.0
_USAGE_AFTER = 10.0
_BUSY_USAGE_AFTER = 2.0
_FULL_SCAN_SHARE = 1000.0
_USAGE_SHARE = 1000.0
_BUSY_USAGE_SHARE = 50.0
"""How many times its own duration is waited before an expensive look is taken again."""


def wait(seconds: float, wake: socket.socket | None) -> bool:
    """Wait so many seconds, or until the socket is readable; always go on."""
    if wake is None:
        time.sleep(seconds)
    else:
        select.select([wake], [], [], seconds)
    return True


def watch(
    config: Config,
    location: CacheLocation,
    *,
    interval: float = 5.0,
    wait: Wait = wait,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
    notify: bool = True,
) -> Generator[Look, None, None]:
    """Yield looks at the cache: one at once, then one whenever something changed.

    There is a look at least every `interval` seconds, and every second while something is being
    downloaded. Nothing is changed, and no network is touched.

    Args:
        config: whose models come first, and whose `min_free` counts as low.
        location: the cache; it may be absent and come later.
        interval: seconds.
        wait: how to wait between looks; it ends the iteration by returning False.
        clock: seconds from any start, never set back.
        now: seconds since the epoch.
        notify: whether to ask the filesystem to tell of changes, where it can.

    Raises:
        ConfigError: the cache path is no folder.
    """
    watcher = _Watcher(config, location, interval, clock, now, notify=notify)
    try:
        while True:
            looked = clock()
            yield watcher.look()
            due = looked + watcher.pause
            if not wait(max(0.0, due - clock()), watcher.wake):
                return
            early = looked + min(_LEAST_GAP, watcher.pause) - clock()
            if early > 0 and not wait(early, None):
                return
    finally:
        watcher.close()


class _Sample(NamedTuple):
    at: float
    value: int


class _Watcher:
    def __init__(
        self,
        config: Config,
        location: CacheLocation,
        interval: float,
        clock: Callable[[], float],
        now: Callable[[], float],
        *,
        notify: bool,
    ) -> None:
        self.config = config
        self.location = location
        self.interval = interval
        self.clock = clock
        self.now = now
        self.scanner = Scanner(location.dir)
        mount = mount_of(location.dir)
        self.notify = notify and not (mount is not None and mount.network)
        self.notifications: Notifications | None = None
        self.retry_at = 0.0
        self.full_scan_at = 0.0
        self.usage_at = -math.inf
        self.usage_cost = 0.0
        self.usage = Usage()
        self.users: dict[str, tuple[Program, ...]] = {}
        self.state: CacheState | None = None
        self.times: dict[str, tuple[int, ...]] = {}
        self.received: dict[tuple[str, int], deque[_Sample]] = {}
        self.locked: set[tuple[str, int]] = set()
        self.told: dict[str, float] = {}
        self.free: deque[_Sample] = deque()
        self.low = False
        self.judged: dict[tuple[str, str | None], tuple[Repo, State, int | None]] = {}
        self.busy = False

    @property
    def pause(self) -> float:
        """Seconds until the next look if nothing is told before."""
        return min(self.interval, _BUSY_INTERVAL) if self.busy else self.interval

    @property
    def wake(self) -> socket.socket | None:
        return self.notifications.wake if self.notifications is not None else None

    def close(self) -> None:
        if self.notifications is not None:
            self.notifications.close()
            self.notifications = None

    def look(self) -> Look:
        events = list(self._refresh())
        assert self.state is not None
        downloads = self._downloads(self.state)
        running = any(download.state != "left-behind" for download in downloads)
        self.busy = running or self.clock() >= self.full_scan_at
        cache = summarise(self.state, self.config, self.location)
        rate = self._fill_rate(cache.free)
        low = cache.free is not None and cache.free < cache.min_free
        if low and not self.low:
            events.append(Event(kind="low-space", size=cache.free, expected_size=cache.min_free))
        self.low = low
        snapshot = Snapshot(
            at=datetime.fromtimestamp(int(self.now()), timezone.utc),
            cache=cache,
            fill_rate=rate,
            full_in=cache.free / rate if rate and cache.free is not None else None,
            low=low,
            notified=self.notifications is not None,
            models=tuple(self._models(self.state)),
            downloads=downloads,
            problems=_problems(self.state),
        )
        by_path = {download.path: download for download in downloads}
        return Look(snapshot, tuple(self._told(events, by_path)))

    # What changed.

    def _refresh(self) -> tuple[Event, ...]:
        """Read again what may have changed, and return what did."""
        at = self.clock()
        before = self.state
        touched = self._touched(at)
        try:
            if before is None or at >= self.full_scan_at:
                started = time.perf_counter()
                self.state = self.scanner.scan(now=self.now())
                cost = time.perf_counter() - started
                self.full_scan_at = at + max(_FULL_SCAN_AFTER, _FULL_SCAN_SHARE * cost)
            elif touched:
                self.state = self.scanner.scan(touched, now=self.now())
        except FileNotFoundError:
            if before is None:
                raise
            # A folder went while it was read: the next look tells what is left.
            self.full_scan_at = at
        happened = () if before is None or self.state is None else changes(before, self.state)
        if any(event.kind == "download-left-behind" for event in happened):
            # Its process has ended, and is not to be shown as the one that writes it.
            self.usage_at = -math.inf
        return happened

    def _touched(self, at: float) -> set[str]:
        """Return names in the cache folder below which something may have changed."""
        touched = {
            repo.folder
            for repo in (self.state.repos if self.state is not None else ())
            if self._live(repo)
        }
        if self.notifications is not None:
            touched |= self.notifications.take()
            alive = self.notifications.alive
            if not os.path.isdir(self.location.dir):
                touched.add("")
            if not alive or "" in touched:
                # The folder itself went or was changed; what the system watched may be gone.
                self.close()
                self.retry_at = at if alive else at + _RETRY_AFTER
        if self.notifications is None and self.notify and at >= self.retry_at:
            self._listen(at)
        if self.state is not None:
            # The system does not tell of what lies behind links.
            told = self.notifications is not None
            repos = [repo for repo in self.state.repos if not told or repo.linked_to is not None]
            times = _folder_times(self.state, repos) if repos or not told else {}
            touched |= {name for name in times if times[name] != self.times.get(name)}
            touched |= self.times.keys() - times.keys()
            self.times = times
        return touched

    def _listen(self, at: float) -> None:
        if not os.path.isdir(self.location.dir):
            return
        try:
            self.notifications = Notifications(self.location.dir)
        except Exception:
            # watchfiles raises OSError for limits and errors of its own for the rest; polling
            # serves as well, only later.
            self.retry_at = at + _RETRY_AFTER
        else:
            # What happened before the system began to listen is found by a look at everything.
            self.full_scan_at = at

    def _told(self, events: list[Event], downloads: dict[str, Download]) -> Iterator[Event]:
        """Complete what is told of downloads, and tell of each one's advance only so often."""
        at = self.clock()
        for event in events:
            download = downloads.get(event.path) if event.path is not None else None
            if download is None or not event.kind.startswith("download-"):
                yield event
                continue
            if event.kind == "download-advanced":
                if at - self.told.get(download.path, -self.interval) < self.interval:
                    continue
                self.told[download.path] = at
            yield msgspec.structs.replace(
                event, speed=download.speed, seconds_left=download.seconds_left
            )
        self.told = {path: when for path, when in self.told.items() if path in downloads}

    # Downloads and room.

    def _downloads(self, state: CacheState) -> tuple[Download, ...]:
        at = self.clock()
        found = []
        kept: set[tuple[str, int]] = set()
        self._find_users(state, at)
        for repo in state.repos:
            files = files_by_blob(repo) if repo.partials else {}
            for partial in repo.partials:
                key = (partial.path, partial.inode)
                kept.add(key)
                listed = files.get(partial.etag)
                expected = listed.size if listed is not None else None
                size = _received(partial, expected)
                samples = self.received.setdefault(key, deque())
                _add_sample(samples, at, size, _SPEED_WINDOW)
                if partial.locked:
                    self.locked.add(key)
                download_state = self._state(partial)
                speed = _rate(samples) if download_state != "left-behind" else None
                left = None
                if speed and expected is not None:
                    left = max(0, expected - size) / speed
                found.append(
                    Download(
                        repo=repo.id,
                        type=repo.type,
                        file=listed.name if listed is not None else None,
                        etag=partial.etag,
                        path=partial.path,
                        state=download_state,
                        size=size,
                        expected_size=expected,
                        speed=speed,
                        seconds_left=left,
                        process=self._writer(partial),
                    )
                )
        self.received = {key: self.received[key] for key in kept}
        self.locked &= kept
        return tuple(found)

    def _live(self, repo: Repo) -> bool:
        """Whether something of the repo is being downloaded."""
        return any(not self._is_left_behind(partial) for partial in repo.partials)

    def _state(self, partial: Partial) -> DownloadState:
        if self._is_left_behind(partial):
            return "left-behind"
        quiet = self.now() - partial.mtime_ns / 1e9
        return "stalled" if quiet > _STALLED_AFTER else "running"

    def _is_left_behind(self, partial: Partial) -> bool:
        """Whether nobody writes it any more; the hub's clients hold a lock as long as they do."""
        if partial.locked:
            return False
        if (partial.path, partial.inode) in self.locked:
            return True
        return self.now() - partial.mtime_ns / 1e9 > _FRESH

    def _fill_rate(self, free: int | None) -> float | None:
        if free is None:
            return None
        _add_sample(self.free, self.clock(), -free, _ROOM_WINDOW)
        rate = _rate(self.free)
        return rate if rate is not None and rate >= _LEAST_RATE else None

    # Models and who uses them.

    def _find_users(self, state: CacheState, at: float) -> None:
        """Look who has what open, as often as its cost allows."""
        least, share = _USAGE_AFTER, _USAGE_SHARE
        if any(map(self._live, state.repos)):
            least, share = _BUSY_USAGE_AFTER, _BUSY_USAGE_SHARE
        if at - self.usage_at < max(least, share * self.usage_cost):
            return
        started = time.perf_counter()
        content = {
            key: (repo.folder, path)
            for repo in state.repos
            for key, path in content_of(state, repo)
        }
        self.usage = find_users({key: path for key, (_, path) in content.items()})
        users: dict[str, dict[int, Program]] = {}
        for key, processes in self.usage.files.items():
            folder, _ = content[key]
            for process in processes:
                users.setdefault(folder, {})[process.pid] = _program(process)
        self.users = {
            folder: tuple(found[pid] for pid in sorted(found)) for folder, found in users.items()
        }
        self.usage_at, self.usage_cost = at, time.perf_counter() - started

    def _writer(self, partial: Partial) -> Program | None:
        users = self.usage.files.get((partial.device, partial.inode), ())
        return _program(users[0]) if users else None

    def _models(self, state: CacheState) -> Iterator[WatchedModel]:
        there = {repo.folder for repo in state.repos}
        self.judged = {key: known for key, known in self.judged.items() if key[0] in there}
        configured = set()
        for model in self.config.models.values():
            held = state.repo(model.repo)
            configured |= {held.folder} if held is not None else set()
            yield self._model(held, model)
        for repo in state.repos:
            if repo.folder not in configured:
                yield self._model(repo, None)

    def _model(self, repo: Repo | None, model: ModelConfig | None) -> WatchedModel:
        revision = model.revision if model is not None else None
        state, expected = self._judge(repo, revision)
        if expected is None and model is not None:
            expected = model.expected_size
        if repo is not None:
            name, kind = repo.id, repo.type
        else:
            assert model is not None
            name, kind = model.repo, "model"
        return WatchedModel(
            key=model.key if model is not None else None,
            repo=name,
            type=kind,
            revision=revision,
            state=state,
            size_on_disk=repo.size_on_disk if repo is not None else 0,
            expected_size=expected,
            used_by=self.users.get(repo.folder, ()) if repo is not None else (),
        )

    def _judge(self, repo: Repo | None, revision: str | None) -> tuple[State, int | None]:
        """Return state and length of the whole download, reckoned once for each state of a repo."""
        if repo is None:
            return "missing", None
        known = self.judged.get((repo.folder, revision))
        if known is None or known[0] is not repo:
            if revision is None:
                state, held = judge_repo(repo), repo.revisions[0] if repo.revisions else None
            else:
                judgement = judge(repo, revision)
                state, held = judgement.state, judgement.revision
            known = (repo, state, _expected_size(held))
            self.judged[repo.folder, revision] = known
        return known[1], known[2]


def _expected_size(revision: Revision | None) -> int | None:
    if revision is None or not revision.tree:
        return None
    return sum(revision.tree[name].content_size for name in formats.wanted(revision.tree))


def _received(partial: Partial, expected: int | None) -> int:
    """Return the bytes received, also of a file that was given its full length beforehand.

    The Rust client does that with every file, and keeps no listing that says the length.
    """
    full = partial.client is not None if expected is None else partial.size >= expected
    return min(partial.allocated, partial.size) if full else partial.size


def _add_sample(samples: deque[_Sample], at: float, value: int, window: float) -> None:
    samples.append(_Sample(at, value))
    # The last sample before the window stays: a pause must not leave a window of one sample.
    while len(samples) > 2 and samples[1].at < at - window:
        samples.popleft()


def _rate(samples: deque[_Sample]) -> float | None:
    """Return the growth per second over the samples, `None` where they lie too close together."""
    seconds = samples[-1].at - samples[0].at
    if seconds < _LEAST_GAP:
        return None
    return max(0.0, (samples[-1].value - samples[0].value) / seconds)


def _problems(state: CacheState) -> dict[str, int]:
    counts: dict[str, int] = {"error": 0, "warning": 0, "info": 0}
    for finding in state.all_findings():
        counts[finding.severity] += 1
    return counts


def _program(process: Process) -> Program:
    """Name a process by its program; an interpreter by the script or module that it runs."""
    words = process.command.split(" ")
    name = os.path.basename(words[0])
    if name.startswith("python") and len(words) > 1:
        script = words[2] if words[1] == "-m" and len(words) > 2 else words[1]
        if not script.startswith("-"):
            name = os.path.basename(script)
    return Program(process.pid, name)


def _folder_times(state: CacheState, repos: Iterable[Repo]) -> dict[str, tuple[int, ...]]:
    """Return name in the cache folder -> modification times that change with what is below it.

    A folder's time tells of names that come and go in it; refs are written in place.
    """
    found: dict[str, tuple[int, ...]] = {"": (_mtime(state.dir),)}
    found[layout.LOCKS] = (_mtime(os.path.join(state.dir, layout.LOCKS)),)
    for repo in repos:
        below = [layout.BLOBS, layout.SNAPSHOTS, layout.REFS, layout.TREES]
        below += (f"{layout.REFS}/{ref}" for ref in repo.refs)
        below += (f"{layout.SNAPSHOTS}/{revision.commit}" for revision in repo.revisions)
        times = [_mtime(repo.path)]
        times += (_mtime(f"{repo.path}/{name}") for name in below)
        times += (_mtime(partial.path) for partial in repo.partials)
        found[repo.folder] = tuple(times)
    return found


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
