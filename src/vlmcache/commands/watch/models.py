"""The models of a cache as `watch` shows them, and which processes have files of them open."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator

from vlmcache.cache import formats, layout
from vlmcache.cache.completeness import judge, judge_repo
from vlmcache.cache.state import CacheState, Partial, Repo, Revision, State
from vlmcache.cache.usage import Process, Usage, find_users
from vlmcache.commands.watch.values import Program, WatchedModel
from vlmcache.config import Config, ModelConfig

_AFTER = 10.0
_BUSY_AFTER = 2.0
_SHARE = 1000.0
_BUSY_SHARE = 50.0
"""How many times its own duration is waited before an expensive search is made again."""


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
        content = {
            key: (repo.folder, path) for repo in state.repos for key, path in _files_of(state, repo)
        }
        self._usage = find_users({key: path for key, (_, path) in content.items()})
        users: dict[str, dict[int, Program]] = {}
        for key, processes in self._usage.files.items():
            folder, _ = content[key]
            for process in processes:
                users.setdefault(folder, {})[process.pid] = _program(process)
        self._of_folder = {
            folder: tuple(programs[pid] for pid in sorted(programs))
            for folder, programs in users.items()
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


def _files_of(state: CacheState, repo: Repo) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield (device, inode) and real path of all that a process may have open of a repo."""
    base = os.path.realpath(repo.path)
    for blob in repo.blobs.values():
        shared = state.shared.get(blob.shared) if blob.shared is not None else None
        if shared is not None:
            yield (shared.device, shared.inode), os.path.realpath(shared.path)
        else:
            yield (blob.device, blob.inode), os.path.join(base, layout.BLOBS, blob.name)
    for partial in repo.partials:
        yield (partial.device, partial.inode), os.path.join(base, layout.BLOBS, partial.name)
    for revision in repo.revisions:
        for file in revision.files:
            if file.kind == "copy":
                path = os.path.join(base, layout.SNAPSHOTS, revision.commit, *file.name.split("/"))
                yield (file.device, file.inode), path


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
        self._judged: dict[tuple[str, str | None, str | None], tuple[Repo, State, int | None]] = {}

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
        variant = model.variant if model is not None else None
        state, expected = self._judge(repo, revision, variant)
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

    def _judge(
        self, repo: Repo | None, revision: str | None, variant: str | None
    ) -> tuple[State, int | None]:
        """Return the state and the length of the download, computed once per state of a repo."""
        if repo is None:
            return "missing", None
        key = repo.folder, revision, variant
        known = self._judged.get(key)
        if known is None or known[0] is not repo:
            if revision is None:
                state, shown = judge_repo(repo), repo.revisions[0] if repo.revisions else None
            else:
                judgement = judge(repo, revision, variant=variant)
                state, shown = judgement.state, judgement.revision
            known = (repo, state, _expected_size(shown))
            self._judged[key] = known
        return known[1], known[2]


def _expected_size(revision: Revision | None) -> int | None:
    if revision is None or not revision.tree:
        return None
    return sum(revision.tree[name].content_size for name in formats.wanted(revision.tree))
