"""Models and unfinished downloads as `watch` shows them, and which processes have them open."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from vlmcache.cache.amounts import Amounts, amounts_of
from vlmcache.cache.completeness import Judgement, judge, judge_repo, judge_revision, worst
from vlmcache.cache.owners import owner_name
from vlmcache.cache.state import CacheState, Partial, Repo, State
from vlmcache.cache.usage import Process, Usage, content_of, find_users
from vlmcache.commands.status.values import estimate_of
from vlmcache.commands.watch.events import files_by_blob
from vlmcache.commands.watch.values import Clock, Download, DownloadState, Program, WatchedModel
from vlmcache.config import Config, ModelConfig
from vlmcache.progress import Rate

_SEARCH_AFTER, _BUSY_SEARCH_AFTER = 10.0, 2.0
"""Seconds after which users are searched for again, at least; busy: while something downloads."""
_SEARCH_SHARE, _BUSY_SEARCH_SHARE = 1000.0, 50.0
"""How many times its own duration is waited before that search is made again, at least."""
_LEAST_GAP = 0.5
"""Seconds between two samples, at the least, for a rate."""
_SPEED_WINDOW = 20.0
"""Seconds; the hub's client writes ten million bytes at once, which takes long on a slow line."""
_FRESH = 10.0
"""Seconds after its last write in which a partial that nobody locks may still be written."""
_STALLED_AFTER = 30.0
"""Seconds without a write after which a download counts as stalled."""


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
            busy: whether something is being downloaded, so that it is asked more often.
        """
        least = _BUSY_SEARCH_AFTER if busy else _SEARCH_AFTER
        share = _BUSY_SEARCH_SHARE if busy else _SEARCH_SHARE
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
    return Program(process.pid, name, _user_of(process.pid))


def _user_of(pid: int) -> str | None:
    """Return whose process it is, if the system shows it in /proc."""
    with contextlib.suppress(OSError):
        return _name_of(os.stat(f"/proc/{pid}").st_uid)
    return None


_name_of = functools.cache(owner_name)
"""Returns a user's name, for which a directory on the network is asked only once."""


class _Judged(NamedTuple):
    """What was found of a model, and the repos that it was judged by."""

    repo: Repo
    needed: dict[str, Repo | None]
    """Id of each other repo that it needs -> that repo."""
    state: State
    amounts: Amounts


class Models:
    """Judges each repo once for each state of it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._judged: dict[tuple[str, str | None, str | None], _Judged] = {}

    def update(self, state: CacheState, users: Users) -> Iterator[WatchedModel]:
        """Yield the configured models, then the other repos of the cache."""
        folders = {repo.folder for repo in state.repos}
        self._judged = {key: known for key, known in self._judged.items() if key[0] in folders}
        configured = set()
        for model in self._config.listed.values():
            # Its name may be spelled in another case than the repo's.
            repo = state.repo(model.repo)
            configured |= {repo.folder} if repo is not None else set()
            yield self._model(state, repo, model, users)
        for repo in state.repos:
            if repo.folder not in configured:
                yield self._model(state, repo, None, users)

    def _model(
        self, state: CacheState, repo: Repo | None, model: ModelConfig | None, users: Users
    ) -> WatchedModel:
        model_state, amounts = self._judge(state, repo, model)
        size_on_disk = amounts.size_on_disk
        if repo is not None and model is None:
            size_on_disk = repo.size_on_disk
        if repo is not None:
            name, kind = repo.id, repo.type
        else:
            assert model is not None
            name, kind = model.repo, "model"
        return WatchedModel(
            key=model.key if model is not None else None,
            repo=name,
            type=kind,
            revision=model.revision if model is not None else None,
            state=model_state,
            size_on_disk=size_on_disk,
            expected_size=amounts.expected_size,
            used_by=users.of(repo) if repo is not None else (),
            to_fetch=amounts.to_fetch,
            progress=amounts.progress,
            to_receive=amounts.to_receive,
        )

    def _judge(
        self, state: CacheState, repo: Repo | None, model: ModelConfig | None
    ) -> tuple[State, Amounts]:
        """Return state and amounts of a model, or of a repo and its first revision."""
        estimate = estimate_of(model) if model is not None else None
        variant = model.variant if model is not None else None
        if repo is None:
            missing = Judgement("missing", None, None)
            return "missing", amounts_of(state, None, missing, estimate=estimate)
        key = repo.folder, model.revision if model is not None else None, variant
        known = self._judged.get(key)
        if (
            known is None
            or known.repo is not repo
            or any(state.repo(name) is not other for name, other in known.needed.items())
        ):
            if model is not None:
                judged = [judge(repo, model.revision, state.repo, variant)]
                model_state = judged[0].state
            else:
                judged = [judge_revision(repo, each, state.repo) for each in repo.revisions]
                model_state = judge_repo(repo, judged)
            shown = worst(model_state, judged)
            amounts = amounts_of(state, repo, shown, variant=variant, estimate=estimate)
            needed = {
                need.id: state.repo(need.id)
                for judgement in judged
                if judgement.division is not None
                for need in judgement.division.repos
            }
            known = self._judged[key] = _Judged(repo, needed, model_state, amounts)
        return known.state, known.amounts


def growth(rate: Rate, at: float, value: int) -> float | None:
    """Add a number to a rate; return its growth per second, `None` if it is too early to say."""
    per_second = rate.add(at, value)
    return per_second if rate.seconds >= _LEAST_GAP else None


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
                rate = self._received.setdefault(key, Rate(_SPEED_WINDOW))
                speed = growth(rate, at, size)
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
