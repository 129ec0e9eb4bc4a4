"""`fleet pull`: a model to all nodes, of which the hub sends one copy."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from vlmcache.cache.hashing import new_hash
from vlmcache.cache.state import Finding
from vlmcache.change.plan import Failure, Plan
from vlmcache.commands.fleet.calls import LOST, Fleet
from vlmcache.commands.fleet.known import (
    NOT_ASKED,
    Asked,
    AskedModels,
    Known,
    KnownModels,
    by_commit,
    wanted_of,
)
from vlmcache.commands.fleet.parcels import NodeStock, Survey, WantedModel, content_key
from vlmcache.commands.fleet.pull_values import (
    FleetPull,
    FleetPullOptions,
    NodeModel,
    PulledNode,
    SpreadModel,
)
from vlmcache.commands.fleet.spread import NodeState, Spread
from vlmcache.commands.fleet.values import nodes_problem, some
from vlmcache.commands.pull.plan import VariantError
from vlmcache.commands.pull.prepare import prepare_needed, prepare_pull
from vlmcache.commands.pull.values import PlannedModel
from vlmcache.commands.remove.values import UnconfirmedError
from vlmcache.config import ModelConfig, Session, cached_repos, find_model
from vlmcache.errors import (
    AccessError,
    ExitCode,
    HubError,
    OfflineError,
    PartlyError,
    SpaceError,
    VlmcacheError,
)
from vlmcache.hub.client import Client
from vlmcache.hub.quick import commit_of
from vlmcache.progress import Progress, continued_by

_ANSWER = 1.0

_T = TypeVar("_T")


def pull_to_fleet(
    session: Session,
    fleet: Fleet,
    names: Sequence[str],
    options: FleetPullOptions | None = None,
    progress: Progress | None = None,
) -> FleetPull:
    """Download models once, and spread them over the nodes of a fleet.

    Args:
        session: of the machine on which this runs; its cache is neither read nor changed.
        fleet: the nodes.
        names: keys of config.yaml or repo ids, with an optional `@revision` and `:VARIANT`.
        options: how.
        progress: called as the work proceeds: nodes have the place of models.

    Returns:
        What was done. Its problem says which nodes are not complete.

    Raises:
        UnknownModelError: a name is neither a key nor a repo id.
        SpaceError: a node has no room for what is missing there; nothing was begun.
        VlmcacheError: the hub does not say what is to be fetched.
    """
    options, progress = options or FleetPullOptions(), progress or Progress()
    with continued_by(progress, f"'{options.command(session, names)}' continues from here"):
        return _Run(session, fleet, names, options, progress).run()


class _HubClient(Client):
    """A hub's client that keeps the small contents that it reads to plan with."""

    kept: dict[str, bytes]

    def content(self, address: str) -> bytes | None:
        """Return a small file, and keep it."""
        body = super().content(address)
        if body is not None:
            self.kept[address] = body
        return body


class _Run:
    def __init__(
        self,
        session: Session,
        fleet: Fleet,
        names: Sequence[str],
        options: FleetPullOptions,
        progress: Progress,
    ) -> None:
        self._session = session
        self._fleet = fleet
        self._names = names
        self._options = options
        self._progress = progress
        self._begun = time.monotonic()
        self._findings: list[Finding] = []
        self._given: dict[str, bytes] = {}

    def run(self) -> FleetPull:
        models = self._wanted_models()
        states = self._surveyed(models)
        self._check_room(states)
        leaders = _leaders(states)
        active = {
            name: state
            for name, state in states.items()
            if leaders.get(name) == name and state.error is None and state.lost is None
        }
        for name in states.keys() - active.keys():
            state = states[name]
            if leaders.get(name, name) == name and state.error is None:
                state.error = Failure(LOST, state.lost or "no answer", None, int(ExitCode.PARTLY))
        spread: Spread | None = None
        if not self._options.dry_run and any(_is_incomplete(s, models) for s in active.values()):
            spread = Spread(self._fleet, active, models, self._given, self._progress)
            spread.run()
            self._findings += spread.findings
        return self._report(models, states, leaders, spread)

    # What is to be had.

    def _wanted_models(self) -> tuple[WantedModel, ...]:
        """Return what every node is to have: from nodes if they know it, else from the hub."""
        session = self._session
        cached = cached_repos(session.cache)
        asked = [
            find_model(session.config, name, cached, variants=True, others=True)
            for name in self._names
        ]
        asked = list({(m.repo, m.revision, m.variant): m for m in asked}.values())
        questions = [Asked.of(model, self._options.selection) for model in asked]
        answers = self._answers("pull-known", AskedModels(tuple(questions)), KnownModels)
        known = [by_commit(answers, number) for number in range(len(questions))]
        if all(known):
            current = self._current(questions, known)
            if current is not None:
                return current
        try:
            return self._asked_once(asked)
        except HubError as error:
            if isinstance(error, AccessError) or not all(len(commits) == 1 for commits in known):
                raise
            offline = isinstance(error, OfflineError)
            found = [next(iter(commits.values())) for commits in known]
            for one in found:
                detail = (
                    f"as nodes have it, at commit {one.model.commit}; whether there is a newer "
                )
                detail += f"one is not known: {error.message}"
                severity: Literal["info", "warning"] = "info" if offline else "warning"
                self._findings.append(
                    Finding(NOT_ASKED, severity, one.model.repo, "", detail, error.hint)
                )
            return self._taken(found)

    def _current(
        self, questions: Sequence[Asked], known: Sequence[Mapping[str, Known]]
    ) -> tuple[WantedModel, ...] | None:
        """Return what nodes have of each model if that is what its revision means now."""
        client = Client(self._session.environment)
        found: list[Known] = []
        try:
            for asked, commits in zip(questions, known, strict=True):
                commit: str | None = asked.revision
                if asked.revision not in commits:
                    commit = commit_of(client, asked.repo, asked.revision)
                if commit is None or commit not in commits:
                    return None
                found.append(commits[commit])
        finally:
            client.stop()
        return self._taken(found)

    def _taken(self, found: Sequence[Known]) -> tuple[WantedModel, ...]:
        for one in found:
            self._findings += one.findings
        return tuple(one.model for one in found)

    def _answers(self, method: str, request: msgspec.Struct, kind: type[_T]) -> dict[str, _T]:
        """Return what nodes answer, by their names; those that fail are heard of later."""
        waiting = {self._fleet.call(node, method, request).number for node in self._fleet.nodes}
        answers: dict[str, _T] = {}
        while waiting:
            for reply in self._fleet.arrived(_ANSWER):
                if reply.call.number in waiting:
                    waiting.remove(reply.call.number)
                    if reply.failure is None:
                        answers[reply.call.node.name] = reply.value(kind)
        return answers

    def _asked_once(self, asked: Sequence[ModelConfig]) -> tuple[WantedModel, ...]:
        """Ask the hub, once for all nodes, what is to be fetched."""
        session, options = self._session, self._options
        client = _HubClient(session.environment, note=self._progress.note)
        client.kept = {}
        try:
            # Nothing is here: what single nodes have, they say themselves.
            with tempfile.TemporaryDirectory(prefix="vlmcache-fleet-") as empty:
                planned: list[PlannedModel] = []
                for model in asked:
                    selection = options.selection
                    if model.variant is not None:
                        selection = msgspec.structs.replace(selection, variant=model.variant)
                    part = prepare_pull(client, empty, model, selection)
                    while isinstance(part.error, VariantError) and options.choose is not None:
                        model = msgspec.structs.replace(model, variant=options.choose(part.error))
                        selection = msgspec.structs.replace(selection, variant=model.variant)
                        part = prepare_pull(client, empty, model, selection)
                    planned.append(part)
                others = prepare_needed(client, empty, planned)
            for part in (*planned, *others):
                if part.error is not None:
                    raise part.error
                self._findings += part.findings
            to_confirm = [part for part in others if part.order is not None]
            asks = options.agree if to_confirm and not options.dry_run else None
            if asks is not None and not asks(to_confirm):
                raise UnconfirmedError("not confirmed: nothing was fetched")
            models = tuple(
                wanted_of(part, options.selection, part.order.restriction)
                for part in (*others, *planned)
                if part.order is not None
            )
            self._keep_given(client, models)
        finally:
            client.stop()
        return models

    def _keep_given(self, client: _HubClient, models: Sequence[WantedModel]) -> None:
        """Keep what the hub has sent already, so that it does not send it again."""
        for model in models:
            for name in model.wanted:
                listed = model.files[name]
                body = client.kept.get(client.file_address(model.repo, model.commit, name))
                if body is None or len(body) != listed.content_size:
                    continue
                digest = new_hash(listed.etag, len(body))
                digest.update(body)
                if digest.hexdigest() == listed.etag:
                    self._given[listed.etag] = body

    # What the nodes have.

    def _surveyed(self, models: tuple[WantedModel, ...]) -> dict[str, NodeState]:
        states = {node.name: NodeState(node) for node in self._fleet.nodes}
        for name, state in states.items():
            request = Survey(name, models, self._options.limit_rate)
            self._fleet.call(state.node, "pull-survey", request)
        waiting = set(states)
        while waiting:
            for reply in self._fleet.arrived(_ANSWER):
                if reply.call.method != "pull-survey":
                    continue
                state = states[reply.call.node.name]
                waiting.discard(reply.call.node.name)
                if reply.lost:
                    state.lost = reply.failure.message if reply.failure is not None else ""
                elif reply.failure is not None:
                    state.error = reply.failure
                else:
                    state.stock = reply.value(NodeStock)
                    state.error = state.stock.error
        return states

    def _check_room(self, states: dict[str, NodeState]) -> None:
        """Make sure that every node has room.

        Raises:
            SpaceError: one or more have not.
        """
        short = {
            name: state.error
            for name, state in states.items()
            if state.error is not None and state.error.code == SpaceError.code
        }
        if not short or self._options.dry_run:
            return
        names = some(list(short))
        first = next(iter(short.values()))
        error = SpaceError(
            f"nothing was begun: {names}: {first.message}",
            "make room there, or leave them out with --nodes",
        )
        error.causes = tuple(
            SpaceError(f"{name}: {failure.message}", failure.hint)
            for name, failure in short.items()
            if len(short) > 1
        )
        raise error

    # What is said of it.

    def _report(
        self,
        models: Sequence[WantedModel],
        states: dict[str, NodeState],
        leaders: dict[str, str],
        spread: Spread | None,
    ) -> FleetPull:
        failures = spread.incomplete() if spread is not None else {}
        given = sum(map(len, self._given.values()))
        rows: list[PulledNode] = []
        for name, state in states.items():
            leader = leaders.get(name, name)
            done = states[leader]
            failure = state.error or failures.get(leader)
            finished, stock = done.finished, state.stock
            rows.append(
                PulledNode(
                    node=name,
                    address=state.node.address,
                    models=tuple(self._node_model(model, done, failure) for model in models),
                    free=stock.free if stock is not None else None,
                    error=failure,
                    cache=stock.cache if stock is not None else None,
                    shares_with=leader if leader != name else None,
                    from_hub=state.from_hub,
                    from_nodes=state.from_nodes,
                    sent=state.sent,
                    plan=stock.plan if stock is not None and leader == name else Plan(()),
                    receipt=finished.receipt if finished is not None and leader == name else None,
                )
            )
        shown = tuple(
            SpreadModel(
                model.key,
                model.repo,
                model.revision,
                model.commit,
                len(model.wanted),
                sum(model.files[name].content_size for name in model.wanted),
                model.variant,
                model.needed_by,
            )
            for model in models
        )
        report = FleetPull(
            shown,
            tuple(rows),
            sum(row.from_hub for row in rows) + (given if spread is not None else 0),
            sum(row.from_nodes for row in rows),
            spread.planner.rounds if spread is not None else 0,
            time.monotonic() - self._begun,
            (*self._findings, *_findings_of(states)),
            self._options.dry_run,
            _to_fetch(models, states),
        )
        return report.with_problem(self._problem(report))

    def _node_model(
        self, model: WantedModel, state: NodeState, failure: Failure | None
    ) -> NodeModel:
        stock, finished = state.stock, state.finished
        to_fetch = stock.to_fetch.get(model.repo, 0) if stock is not None else 0
        own = finished.errors.get(model.repo) if finished is not None else None
        if finished is not None and own is None and model.repo in finished.states:
            is_new = finished.states[model.repo] == "pulled"
            found = NodeModel(model.repo, model.commit, "pulled" if is_new else "cached")
        elif failure is None and stock is not None and model.repo in stock.complete:
            found = NodeModel(model.repo, model.commit, "cached")
        elif self._options.dry_run and failure is None:
            found = NodeModel(model.repo, model.commit, "planned")
        else:
            found = NodeModel(model.repo, model.commit, "failed", error=own or failure)
        path = finished.paths.get(model.repo) if finished is not None else None
        return msgspec.structs.replace(found, path=path, to_fetch=to_fetch)

    def _problem(self, report: FleetPull) -> VlmcacheError | None:
        problem = nodes_problem(report.nodes)
        if problem is None or self._options.dry_run:
            return problem
        # Whatever the reason: some nodes may be complete, and all keep what they have.
        again = self._options.command(self._session, self._names)
        partly = PartlyError(problem.message, f"'{again}' continues from here")
        partly.causes = problem.causes
        return partly


def _leaders(states: dict[str, NodeState]) -> dict[str, str]:
    """Return node -> the node that does the work for it: another one if they share a cache."""
    places: dict[str, str] = {}
    leaders: dict[str, str] = {}
    for name, state in states.items():
        if state.stock is not None and state.error is None:
            leaders[name] = places.setdefault(state.stock.place, name)
    return leaders


def _to_fetch(models: Sequence[WantedModel], states: dict[str, NodeState]) -> int:
    """Return how many bytes only the hub has."""
    stocks = [state.stock for state in states.values() if state.stock is not None]
    total = 0
    for model in models:
        for etag, listed in model.contents.items():
            key = content_key(model.repo, etag)
            if not any(key in stock.held for stock in stocks):
                begun = max((stock.begun.get(key, 0) for stock in stocks), default=0)
                total += listed.content_size - begun
    return total


def _is_incomplete(state: NodeState, models: Sequence[WantedModel]) -> bool:
    stock = state.stock
    return stock is not None and not stock.complete.issuperset(model.repo for model in models)


def _findings_of(states: dict[str, NodeState]) -> tuple[Finding, ...]:
    return tuple(
        msgspec.structs.replace(finding, detail=f"{name}: {finding.detail}")
        for name, state in states.items()
        if state.stock is not None
        for finding in state.stock.findings
    )
