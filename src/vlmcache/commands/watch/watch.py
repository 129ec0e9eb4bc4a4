"""`watch`: one check of the cache after the other, each with what happened since the last one.

A check scans only what may have changed since the last one.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import datetime, timezone
from typing import get_args

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.mounts import mount_of
from vlmcache.cache.scan import Scanner
from vlmcache.cache.state import CacheState, Repo, Severity
from vlmcache.commands.status.values import found_damaged, summarize_cache
from vlmcache.commands.watch.events import BEGUN, Notifications, changes
from vlmcache.commands.watch.listing import full_in, model_rows, total_of
from vlmcache.commands.watch.models import Downloads, Models, Users, growth
from vlmcache.commands.watch.values import Clock, Download, Event, Observation, Snapshot, Wait
from vlmcache.config import Session, own_home
from vlmcache.home.journal import FILE, read_damaged
from vlmcache.progress import Rate

_BUSY_INTERVAL = 1.0
"""Seconds between checks while something is being downloaded."""
_LEAST_GAP = 0.5
"""Seconds between checks however often the filesystem reports changes."""
_FREE_WINDOW = 60.0
"""Seconds over which the pace is measured at which the disk fills."""
_LEAST_RATE = 10_000.0
"""Bytes per second below which a shrinking disk is not worth a forecast."""
_RETRY_AFTER = 60.0
"""Seconds after which the filesystem is asked again to report changes."""
_FULL_SCAN_AFTER = 120.0
"""Seconds after which everything is scanned again, at least."""
_FULL_SCAN_SHARE = 1000.0
"""How many times its own duration is waited before everything is scanned again."""
_CLOCK = Clock()


def wait(seconds: float, wake: socket.socket | None) -> bool:
    """Wait so many seconds, or until the socket is readable; always continue."""
    if wake is None:
        # Windows refuses to select nothing.
        time.sleep(seconds)
    else:
        select.select([wake], [], [], seconds)
    return True


def watch(
    session: Session,
    *,
    interval: float = 5.0,
    wait: Wait = wait,
    clock: Clock = _CLOCK,
    notify: bool = True,
) -> Generator[Observation, None, None]:
    """Yield checks of the cache: one at once, then one whenever something changed.

    There is a check at least every `interval` seconds, and every second while something is being
    downloaded. Nothing is changed, and no network is used.

    Args:
        session: the models of its configuration come first, and less free space than its `min_free`
            counts as low; the cache may be created later.
        interval: seconds.
        wait: how to wait between checks; it ends the iteration by returning False.
        clock: where the time comes from.
        notify: whether to ask the filesystem to report changes, if it can.

    Raises:
        ConfigError: the cache path is not a folder.
    """
    checks = _Checks(session, interval, clock, notify=notify)
    try:
        while True:
            checked = clock.monotonic()
            yield checks.next()
            due = checked + checks.pause
            if not wait(max(0.0, due - clock.monotonic()), checks.scans.wake):
                return
            early = checked + min(_LEAST_GAP, checks.pause) - clock.monotonic()
            if early > 0 and not wait(early, None):
                return
    finally:
        checks.scans.close()


class _Checks:
    """Checks of one cache, and what is remembered from one to the next."""

    def __init__(self, session: Session, interval: float, clock: Clock, *, notify: bool) -> None:
        self._session = session
        self._interval = interval
        self._clock = clock
        folder = session.cache.dir
        mount = mount_of(folder)
        notify = notify and not (mount is not None and mount.network)
        self.scans = Scans(folder, clock, notify=notify)
        self._users = Users()
        self._downloads = Downloads(clock)
        self._models = Models(session.config)
        self._used = Rate(_FREE_WINDOW)
        self._low = False
        self._busy = False
        self._running = False
        self._advanced: dict[str, float] = {}
        self._remembered: tuple[int, set[tuple[int, int, int, int]]] = (0, set())

    @property
    def pause(self) -> float:
        """Seconds until the next check if nothing is reported before."""
        return min(self._interval, _BUSY_INTERVAL) if self._busy else self._interval

    def next(self) -> Observation:
        """Check the cache, and return what is seen and what happened since the last check."""
        state, changed = self.scans.update(self._downloads.are_live_in)
        state = state.with_damage(self._damaged())
        events = [*changed]
        if any(event.kind == "download-left-behind" for event in events):
            # Its process has ended, and is not to be shown as the one that writes it.
            self._users.forget()
        busy = any(map(self._downloads.are_live_in, state.repos))
        self._users.update(state, self._clock.monotonic(), busy=busy)
        downloads = self._downloads.update(state, self._users)
        running = any(download.state != "left-behind" for download in downloads)
        self._busy = running or self.scans.is_due
        cache = summarize_cache(self._session, state, mount_of(self._session.cache.dir))
        if self._running and not running:
            # Downloads that have ended do not fill the disk any longer.
            self._used = Rate(_FREE_WINDOW)
        self._running = running
        rate = self._fill_rate(cache.free)
        low = cache.free is not None and cache.free < cache.min_free
        if low and not self._low:
            events.append(Event(kind="low-space", size=cache.free, expected_size=cache.min_free))
        self._low = low
        models = tuple(self._models.update(state, self._users))
        total = total_of(model_rows(models, downloads))
        snapshot = Snapshot(
            at=datetime.fromtimestamp(int(self._clock.now()), timezone.utc),
            cache=cache,
            fill_rate=rate,
            full_in=full_in(cache.free, rate, total),
            low=low,
            notified=self.scans.wake is not None,
            models=models,
            downloads=downloads,
            problems=_problems(state, self._downloads.are_live_in),
            needed=0 if total is None else total.left,
        )
        by_path = {download.path: download for download in downloads}
        return Observation(snapshot, tuple(self._reported(events, by_path)))

    def _damaged(self) -> set[tuple[int, int, int, int]]:
        """Return what the journal says of damaged files; it is read again once it has changed."""
        path = os.path.join(own_home(self._session.environment)[0], FILE)
        changed = _mtime(path)
        if self._remembered[0] != changed:
            self._remembered = changed, read_damaged(self._session.environment)
        return self._remembered[1]

    def _fill_rate(self, free: int | None) -> float | None:
        if free is None:
            return None
        rate = growth(self._used, self._clock.monotonic(), -free)
        return rate if rate is not None and rate >= _LEAST_RATE else None

    def _reported(self, events: list[Event], downloads: dict[str, Download]) -> Iterator[Event]:
        """Complete the events of downloads, and report each one's advance only so often."""
        at = self._clock.monotonic()
        for event in events:
            download = downloads.get(event.path) if event.path is not None else None
            if download is None or not event.kind.startswith("download-"):
                yield event
                continue
            if event.kind == "download-advanced":
                if at - self._advanced.get(download.path, -self._interval) < self._interval:
                    continue
                self._advanced[download.path] = at
            yield msgspec.structs.replace(
                event, speed=download.speed, seconds_left=download.seconds_left
            )
        self._advanced = {path: at for path, at in self._advanced.items() if path in downloads}


def _problems(state: CacheState, is_live: Callable[[Repo], bool]) -> dict[str, int]:
    counts = Counter(finding.severity for finding in state.findings)
    for repo in state.repos:
        begun = BEGUN if is_live(repo) else ()
        findings = (*repo.findings, *found_damaged(repo))
        counts.update(finding.severity for finding in findings if finding.code not in begun)
    return {severity: counts[severity] for severity in get_args(Severity)}


class Scans:
    """Scans a cache again and again, by the filesystem's notifications or else by polling.

    Args:
        folder: the cache, which may be created later.
        clock: where the time comes from.
        notify: whether to ask the filesystem for notifications.
    """

    def __init__(self, folder: str, clock: Clock, *, notify: bool) -> None:
        self._folder = folder
        self._clock = clock
        self._notify = notify
        self._scanner = Scanner(folder)
        self._notifications: Notifications | None = None
        self._retry_at = 0.0
        self._full_scan_at = 0.0
        self._state: CacheState | None = None
        self._times: dict[str, tuple[int, ...]] = {}

    @property
    def is_due(self) -> bool:
        """Whether the next scan reads everything again."""
        return self._clock.monotonic() >= self._full_scan_at

    @property
    def wake(self) -> socket.socket | None:
        """Readable once the filesystem has reported a change; `None` while the cache is polled."""
        return self._notifications.wake if self._notifications is not None else None

    def close(self) -> None:
        """Stop listening."""
        if self._notifications is not None:
            self._notifications.close()
            self._notifications = None

    def update(self, is_live: Callable[[Repo], bool]) -> tuple[CacheState, tuple[Event, ...]]:
        """Read again what may have changed; return the cache and what did change.

        Args:
            is_live: whether something of a repo is being downloaded, so that it is read each time.

        Raises:
            ConfigError: the cache path is not a folder.
        """
        at = self._clock.monotonic()
        before = self._state
        touched = self._touched(at, is_live)
        try:
            if before is None or at >= self._full_scan_at:
                started = time.perf_counter()
                self._state = self._scanner.scan(now=self._clock.now())
                cost = time.perf_counter() - started
                self._full_scan_at = at + max(_FULL_SCAN_AFTER, _FULL_SCAN_SHARE * cost)
            elif touched:
                self._state = self._scanner.scan(touched, now=self._clock.now())
        except FileNotFoundError:
            if before is None:
                raise
            # A folder was removed while it was read: the next check reads everything again.
            self._full_scan_at = at
        assert self._state is not None
        return self._state, () if before is None else changes(before, self._state)

    def _touched(self, at: float, is_live: Callable[[Repo], bool]) -> set[str]:
        """Return names in the cache folder below which something may have changed."""
        touched = {
            repo.folder
            for repo in (self._state.repos if self._state is not None else ())
            if is_live(repo)
        }
        if self._notifications is not None:
            touched |= self._notifications.take()
            alive = self._notifications.alive
            if not os.path.isdir(self._folder):
                touched.add("")
            if not alive or "" in touched:
                # The folder itself was removed or changed; what the system watched may not exist.
                self.close()
                self._retry_at = at if alive else at + _RETRY_AFTER
        if self._notifications is None and self._notify and at >= self._retry_at:
            self._listen(at)
        if self._state is not None:
            # The system does not report what changes behind links.
            notified = self._notifications is not None
            repos = [
                repo
                for repo in self._state.repos
                if not notified or repo.linked_to is not None or repo.bases
            ]
            times = _folder_times(self._state, repos) if repos or not notified else {}
            touched |= {name for name in times if times[name] != self._times.get(name)}
            touched |= self._times.keys() - times.keys()
            self._times = times
        return touched

    def _listen(self, at: float) -> None:
        if not os.path.isdir(self._folder):
            return
        try:
            self._notifications = Notifications(self._folder)
        except Exception:
            # watchfiles raises OSError for limits and errors of its own for the rest; polling
            # serves as well, only later.
            self._retry_at = at + _RETRY_AFTER
        else:
            # What happened before the system began to listen is found by a full scan.
            self._full_scan_at = at


def _folder_times(state: CacheState, repos: Iterable[Repo]) -> dict[str, tuple[int, ...]]:
    """Return name in the cache folder -> modification times that change with what is below it.

    A folder's time changes with the names in it; refs are written in place.
    """
    paths: dict[str, list[str]] = {
        "": [state.dir],
        layout.LOCKS: [os.path.join(state.dir, layout.LOCKS)],
    }
    for repo in repos:
        names = [layout.BLOBS, layout.SNAPSHOTS, layout.REFS, layout.TREES]
        names += (f"{layout.REFS}/{ref}" for ref in repo.refs)
        names += (f"{layout.SNAPSHOTS}/{revision.commit}" for revision in repo.revisions)
        paths[repo.folder] = [repo.path, *(f"{repo.path}/{name}" for name in names)]
        paths[repo.folder] += (partial.path for partial in repo.partials)
        paths[repo.folder] += (
            layout.blob_path(os.path.join(base, repo.folder), "") for base in repo.bases
        )
    return {name: tuple(map(_mtime, below)) for name, below in paths.items()}


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
