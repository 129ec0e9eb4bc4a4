"""What a node does for the verbs: the functions of `actor.METHODS`.

The cache's own methods do the work; what they return crosses as it is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from vlmcache.change.plan import Failure
from vlmcache.change.space import free_bytes
from vlmcache.commands.fleet import requests
from vlmcache.commands.fleet.values import ModelOnNode
from vlmcache.commands.fleet.wire import as_json
from vlmcache.commands.remove.values import Removal
from vlmcache.errors import (
    UnconfirmedError,
    UnknownModelError,
    UsageError,
    VlmcacheError,
    reason_of,
)

if TYPE_CHECKING:
    from vlmcache.commands.fleet.actor import Worker
    from vlmcache.commands.status.values import ModelStatus, RepoStatus


class Done(msgspec.Struct, frozen=True):
    """What a node did, and why that is not everything, if it is not."""

    report: msgspec.Raw
    failure: Failure | None = None
    free: int | None = None
    """Bytes free on the filesystem of the node's cache."""


def _done(worker: Worker, report: Any) -> Done:
    problem = report.problem
    failure = None if problem is None else Failure.of(problem)
    content = msgspec.Raw(as_json(report))
    return Done(content, failure, free_bytes(worker.cache.session.cache.dir))


def report_status(worker: Worker, request: bytes) -> requests.CacheOnNode:
    """Return the state of models."""
    asked = msgspec.json.decode(request, type=requests.StatusRequest)
    report = worker.cache.status(asked.models or None)
    named = {model.repo for model in report.models}
    return requests.CacheOnNode(
        report.cache.dir,
        report.cache.free,
        report.cache.total,
        report.cache.size_on_disk,
        tuple(map(_model, report.models)),
        tuple(_repo(repo) for repo in report.repos if repo.name not in named),
    )


def _model(model: ModelStatus) -> ModelOnNode:
    return ModelOnNode(
        model.repo,
        model.revision,
        model.variant,
        model.state,
        model.progress,
        model.commit,
        model.size_on_disk,
        model.expected_size,
        model.to_fetch,
    )


def _repo(repo: RepoStatus) -> ModelOnNode:
    commit = repo.refs.get("main")
    if commit is None and len(repo.revisions) == 1:
        commit = repo.revisions[0].commit
    return ModelOnNode(
        repo.name,
        state=repo.state,
        progress=repo.progress,
        commit=commit,
        size_on_disk=repo.size_on_disk,
        expected_size=repo.expected_size,
        to_fetch=repo.to_fetch,
    )


class _Pending:
    """A removal whose plan waits for a decision, in a thread of its own."""

    def __init__(
        self, worker: Worker, work: Callable[[Callable[[Removal], bool]], Removal]
    ) -> None:
        self._worker = worker
        self._work = work
        self.results: queue.SimpleQueue[Done | VlmcacheError] = queue.SimpleQueue()
        self.decisions: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.planned = False
        threading.Thread(target=self._run, daemon=True).start()

    def _confirm(self, removal: Removal) -> bool:
        self.planned = True
        self.results.put(_done(self._worker, removal))
        return self.decisions.get()

    def _run(self) -> None:
        try:
            self.results.put(_done(self._worker, self._work(self._confirm)))
        except VlmcacheError as error:
            self.results.put(error)
        except Exception as error:
            self.results.put(VlmcacheError(f"{type(error).__name__}: {reason_of(error)}"))

    def next(self) -> Done:
        """Return what comes next: the plan, or the outcome.

        Raises:
            VlmcacheError: it failed.
        """
        result = self.results.get()
        if isinstance(result, VlmcacheError):
            raise result
        return result


class Planned(msgspec.Struct, frozen=True):
    """A plan that waits for a decision, or the outcome if none is needed."""

    waits: bool
    done: Done


def propose_removal(worker: Worker, request: bytes) -> Planned:
    """Plan a removal, and wait for the decision if there is something to remove."""
    asked = msgspec.json.decode(request, type=requests.RemovalRequest)
    cache = worker.cache
    models = asked.models
    if not asked.clean:
        models = _cached(worker, models, asked.options)

    def work(confirm: Callable[[Removal], bool]) -> Removal:
        cache.confirm = confirm
        act = cache.clean if asked.clean else cache.remove
        report: Removal = act(models, dry_run=asked.dry_run, **asked.options)
        return report

    pending = _Pending(worker, work)
    worker.kept["removal"] = pending
    done = pending.next()
    return Planned(pending.planned, done)


def _cached(worker: Worker, models: tuple[str, ...], options: dict[str, Any]) -> tuple[str, ...]:
    """Return those of the names of which the node has something.

    Raises:
        UnknownModelError: it has nothing of any.
    """
    known, unknown = [], None
    for name in models:
        try:
            worker.cache.remove(name, dry_run=True, **options)
        except UnknownModelError as error:
            unknown = unknown or error
        else:
            known.append(name)
    if not known and unknown is not None:
        raise unknown
    return tuple(known)


def settle_removal(worker: Worker, request: bytes) -> Done:
    """Carry out the plan that waits, or drop it."""
    decision = msgspec.json.decode(request, type=requests.Decision)
    pending = worker.kept.pop("removal", None)
    if pending is None:
        raise UsageError("no plan waits for a decision")
    pending.decisions.put(decision.agreed)
    try:
        done: Done = pending.next()
    except UnconfirmedError:
        if decision.agreed:
            raise
        return Done(msgspec.Raw(b"null"))
    return done


def report_verification(worker: Worker, request: bytes) -> Done:
    """Verify; damage is part of the report, not an error."""
    asked = msgspec.json.decode(request, type=requests.VerifyRequest)
    report = worker.cache.verify(asked.models or None, max_age=asked.max_age, workers=asked.workers)
    return _done(worker, report)


def report_loads(worker: Worker, request: bytes) -> Done:
    """Measure loads."""
    asked = msgspec.json.decode(request, type=requests.LoadRequest)
    worker.cache.on_step = lambda step: worker.progress.step(step.text)
    return _done(worker, worker.cache.load_test(asked.models or None, **asked.options))
