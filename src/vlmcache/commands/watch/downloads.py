"""Unfinished downloads of a cache: how far, how fast, and whether anybody writes them."""

from __future__ import annotations

from collections import deque

from vlmcache.cache.state import CacheState, Partial, Repo
from vlmcache.commands.watch.events import files_by_blob
from vlmcache.commands.watch.models import Users
from vlmcache.commands.watch.values import Clock, Download, DownloadState

_LEAST_GAP = 0.5
"""Seconds between two samples, at the least, for a rate."""
_SPEED_WINDOW = 20.0
"""Seconds; the hub's client writes ten million bytes at once, which takes long on a slow line."""
_FRESH = 10.0
"""Seconds after its last write in which a partial that nobody locks may still be written."""
_STALLED_AFTER = 30.0


class Rate:
    """How fast a number grows, over a window of seconds."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, at: float, value: int) -> float | None:
        """Add a sample; return the growth per second, `None` if the samples are too close."""
        samples = self._samples
        samples.append((at, value))
        # The last sample before the window stays: a pause must not leave a window of one sample.
        while len(samples) > 2 and samples[1][0] < at - self._window:
            samples.popleft()
        since, before = samples[0]
        seconds = at - since
        return max(0.0, (value - before) / seconds) if seconds >= _LEAST_GAP else None


class Downloads:
    """Follows the unfinished downloads from check to check."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._received: dict[tuple[str, int], Rate] = {}
        self._locked: set[tuple[str, int]] = set()

    def update(self, state: CacheState, users: Users) -> tuple[Download, ...]:
        """Return the downloads as a scan found them, with their speed since the ones before."""
        at = self._clock.monotonic()
        downloads = []
        known: set[tuple[str, int]] = set()
        for repo in state.repos:
            files = files_by_blob(repo) if repo.partials else {}
            for partial in repo.partials:
                key = (partial.path, partial.inode)
                known.add(key)
                listed = files.get(partial.etag)
                expected = listed.size if listed is not None else None
                size = _received(partial, expected)
                speed = self._received.setdefault(key, Rate(_SPEED_WINDOW)).add(at, size)
                if partial.locked:
                    self._locked.add(key)
                download_state = self._state(partial)
                if download_state == "left-behind":
                    speed = None
                left = None
                if speed and expected is not None:
                    left = max(0, expected - size) / speed
                downloads.append(
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
                        process=users.writer(partial),
                    )
                )
        self._received = {key: self._received[key] for key in known}
        self._locked &= known
        return tuple(downloads)

    def are_live_in(self, repo: Repo) -> bool:
        """Return whether something of the repo is being downloaded."""
        return any(not self._is_left_behind(partial) for partial in repo.partials)

    def _state(self, partial: Partial) -> DownloadState:
        if self._is_left_behind(partial):
            return "left-behind"
        quiet = self._clock.now() - partial.mtime_ns / 1e9
        return "stalled" if quiet > _STALLED_AFTER else "running"

    def _is_left_behind(self, partial: Partial) -> bool:
        """Return whether nobody writes it; the hub's clients hold a lock as long as they do."""
        if partial.locked:
            return False
        if (partial.path, partial.inode) in self._locked:
            return True
        return self._clock.now() - partial.mtime_ns / 1e9 > _FRESH


def _received(partial: Partial, expected: int | None) -> int:
    """Return the bytes received, also of a file that was given its full length beforehand.

    The Rust client does that with every file, and keeps no listing that says the length.
    """
    full = partial.client is not None if expected is None else partial.size >= expected
    return min(partial.allocated, partial.size) if full else partial.size
