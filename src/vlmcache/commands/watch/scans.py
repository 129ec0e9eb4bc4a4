"""Scans of a cache one after the other, each of only what may have changed since the last."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable

from vlmcache.cache import layout
from vlmcache.cache.scan import Scanner
from vlmcache.cache.state import CacheState, Repo
from vlmcache.commands.watch.events import Notifications, changes
from vlmcache.commands.watch.values import Clock, Event

_RETRY_AFTER = 60.0
_FULL_SCAN_AFTER = 120.0
_FULL_SCAN_SHARE = 1000.0
"""How many times its own duration is waited before everything is scanned again."""


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
            # A folder was removed while it was read: the next check shows what is left.
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
                repo for repo in self._state.repos if not notified or repo.linked_to is not None
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
    times_by_name: dict[str, tuple[int, ...]] = {"": (_mtime(state.dir),)}
    times_by_name[layout.LOCKS] = (_mtime(os.path.join(state.dir, layout.LOCKS)),)
    for repo in repos:
        below = [layout.BLOBS, layout.SNAPSHOTS, layout.REFS, layout.TREES]
        below += (f"{layout.REFS}/{ref}" for ref in repo.refs)
        below += (f"{layout.SNAPSHOTS}/{revision.commit}" for revision in repo.revisions)
        times = [_mtime(repo.path)]
        times += (_mtime(f"{repo.path}/{name}") for name in below)
        times += (_mtime(partial.path) for partial in repo.partials)
        times_by_name[repo.folder] = tuple(times)
    return times_by_name


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
