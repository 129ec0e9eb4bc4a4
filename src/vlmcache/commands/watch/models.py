"""Models and unfinished downloads as `watch` shows them, and which processes have them open."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator

from vlmcache.cache import formats
from vlmcache.cache.completeness import judge, judge_repo
from vlmcache.cache.state import CacheState, Partial, Repo, Revision, State
from vlmcache.cache.usage import Process, Usage, content_of, find_users
from vlmcache.commands.watch.events import files_by_blob
from vlmcache.commands.watch.values import Clock, Download, DownloadState, Program, WatchedModel
from vlmcache.config import Config, ModelConfig

_AFTER = 10.0
_BUSY_AFTER = 2.0
_SHARE = 1000.0
_BUSY_SHARE = 50.0
"""How many times its own duration is waited before an expensive search is made again."""
_LEAST_GAP = 0.5
"""Seconds between two samples, at the least, for a rate."""
_SPEED_WINDOW = 20.0
"""Seconds; the hub's client writes ten million bytes at once, which takes long on a slow line."""
_FRESH = 10.0
"""Seconds after its last write in which a partial that nobody locks may still be written."""
_STALLED_AFTER = 30.0


class Users:
    """Who uses which repo, asked of the system as often as the cost of that allows."""

    def __init__(self) -> None:
        self._found_at = -math.inf
        self._cost = 0.0
        self._usage = Usage()
        self._of_folder: dict[str, tuple[Program, ...]] = {}

    def update(self, state: CacheState, at: float, *, busy: bool) -> None:
        """Find out again who has what open, if it is time to.

        Args:
            state: the cache.
            at: seconds on a clock that is never set back.
            busy: whether something is being downloaded, so that it is time earlier.
        """
        least, share = (_BUSY_AFTER, _BUSY_SHARE) if busy else (_AFTER, _SHARE)
        if at - self._found_at < max(least, share * self._cost):
            return
        started = time.perf_counter()
        self._usage = find_users(
            {key: path for repo in state.repos for key, path in content_of(state, repo)}
        )
        self._of_folder = {
            repo.folder: tuple(map(_program, self._usage.of_repo(state, repo) or ()))
            for repo in state.repos
        }
        self._found_at, self._cost = at, time.perf_counter() - started

    def forget(self) -> None:
        """Make the next update ask the system, however recent the last one is."""
        self._found_at = -math.inf

    def of(self, repo: Repo) -> tuple[Program, ...]:
        """Return the processes that have files of a repo open."""
        return self._of_folder.get(repo.folder, ())

    def writer(self, partial: Partial) -> Program | None:
        """Return the process that writes a partial download."""
        users = self._usage.files.get((partial.device, partial.inode), ())
        return _program(users[0]) if users else None


def _program(process: Process) -> Program:
    """Name a process by its program; an interpreter by the script or module that it runs."""
    words = process.command.split(" ")
    name = os.path.basename(words[0])
    if name.startswith("python") and len(words) > 1:
        script = words[2] if words[1] == "-m" and len(words) > 2 else words[1]
        if not script.startswith("-"):
            name = os.path.basename(script)
    return Program(process.pid, name)


class Models:
    """Judges each repo once for each state of it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._judged: dict[tuple[str, str | None], tuple[Repo, State, int | None]] = {}

    def update(self, state: CacheState, users: Users) -> Iterator[WatchedModel]:
        """Yield the configured models, then the other repos of the cache."""
        folders = {repo.folder for repo in state.repos}
        self._judged = {key: known for key, known in self._judged.items() if key[0] in folders}
        configured = set()
        for model in self._config.models.values():
            # Its name may be spelled in another case than the repo's.
            repo = state.repo(model.repo)
            configured |= {repo.folder} if repo is not None else set()
            yield self._model(repo, model, users)
        for repo in state.repos:
            if repo.folder not in configured:
                yield self._model(repo, None, users)

    def _model(self, repo: Repo | None, model: ModelConfig | None, users: Users) -> WatchedModel:
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
            used_by=users.of(repo) if repo is not None else (),
        )

    def _judge(self, repo: Repo | None, revision: str | None) -> tuple[State, int | None]:
        """Return the state and the length of the download, computed once per state of a repo."""
        if repo is None:
            return "missing", None
        known = self._judged.get((repo.folder, revision))
        if known is None or known[0] is not repo:
            if revision is None:
                state, shown = judge_repo(repo), repo.revisions[0] if repo.revisions else None
            else:
                judgement = judge(repo, revision)
                state, shown = judgement.state, judgement.revision
            known = (repo, state, _expected_size(shown))
            self._judged[repo.folder, revision] = known
        return known[1], known[2]


def _expected_size(revision: Revision | None) -> int | None:
    if revision is None or not revision.tree:
        return None
    return sum(revision.tree[name].content_size for name in formats.wanted(revision.tree))


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
                        seconds_left=(
                            max(0, expected - size) / speed
                            if speed and expected is not None
                            else None
                        ),
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
