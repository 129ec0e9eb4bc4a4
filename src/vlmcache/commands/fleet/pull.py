"""`fleet pull`: a model to all nodes, of which the hub sends one copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from vlmcache.cache.state import Finding
from vlmcache.change.plan import Failure, Plan
from vlmcache.commands.fleet.asking import Work, ask_all
from vlmcache.commands.fleet.calls import LOST, Fleet
from vlmcache.commands.fleet.model_finder import WantedModelFinder
from vlmcache.commands.fleet.parcels import NodeStock, Survey, WantedModel, content_key
from vlmcache.commands.fleet.pull_values import (
    FleetPull,
    FleetPullOptions,
    NodeModel,
    NodePullState,
    PulledNode,
    SpreadModel,
)
from vlmcache.commands.fleet.spread import NodeState, Spreader, contents_by_repo
from vlmcache.commands.fleet.values import nodes_problem
from vlmcache.config import Session
from vlmcache.errors import ExitCode, PartlyError, SpaceError, VlmcacheError
from vlmcache.progress import Progress, continued_by
from vlmcache.units import first_of


def pull_to_fleet(
    session: Session,
    join: Callable[[], Fleet],
    names: Sequence[str],
    options: FleetPullOptions,
    progress: Progress,
) -> FleetPull:
    """Download models once, and spread them over the nodes of a fleet.

    Args:
        session: of the machine on which this runs; its cache is neither read nor changed.
        join: returns the nodes, which are starting: what needs none of them is done before.
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
    finder = WantedModelFinder(session, names, options, progress)
    finder.warm_up()
    fleet = join()
    hint = f"'{options.command(session, names)}' continues from here"
    with continued_by(progress, hint):
        return _Pull(fleet, finder, options, progress, hint).run()


class _Pull:
    """A model on its way to the nodes of a fleet.

    Args:
        fleet: the nodes.
        finder: says what every node is to have.
        options: how.
        progress: called as the work proceeds.
        hint: how to continue what is not complete.
    """

    def __init__(
        self,
        fleet: Fleet,
        finder: WantedModelFinder,
        options: FleetPullOptions,
        progress: Progress,
        hint: str,
    ) -> None:
        self._fleet = fleet
        self._finder = finder
        self._options = options
        self._progress = progress
        self._hint = hint
        self._begun = time.monotonic()

    def run(self) -> FleetPull:
        """Pull, and return what was done."""
        models = self._finder.models(self._fleet)
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
        spread: Spreader | None = None
        if not self._options.dry_run and any(_is_incomplete(s, models) for s in active.values()):
            spread = Spreader(self._fleet, active, models, self._finder.given, self._progress)
            spread.run()
        return self._report(models, states, leaders, spread)

    # What the nodes have.

    def _surveyed(self, models: tuple[WantedModel, ...]) -> dict[str, NodeState]:
        """Return what each node has, by its name."""
        nodes = self._fleet.nodes
        rate = self._options.limit_rate
        requests = {node.id: Survey(node.name, models, rate) for node in nodes}
        replies = ask_all(self._fleet, Work("pull-survey"), requests, self._progress)
        states = {node.name: NodeState(node) for node in nodes}
        for reply in replies.values():
            state = states[reply.call.node.name]
            if reply.failure is None:
                state.stock = reply.value(NodeStock)
                state.error = state.stock.error
            elif reply.lost:
                state.lost = reply.failure.message
            else:
                state.error = reply.failure
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
        first = next(iter(short.values()))
        error = SpaceError(
            f"nothing was downloaded: {first_of(list(short))}: {first.message}",
            "make room there, or name the other nodes with --nodes",
        )
        error.causes = tuple(
            SpaceError(f"{name}: {failure.message}", failure.hint)
            for name, failure in short.items()
            if len(short) > 1
        )
        raise error

    # The report.

    def _report(
        self,
        models: Sequence[WantedModel],
        states: dict[str, NodeState],
        leaders: dict[str, str],
        spread: Spreader | None,
    ) -> FleetPull:
        failures = spread.incomplete() if spread is not None else {}
        given = sum(map(len, self._finder.given.values()))
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
            (
                *self._finder.findings,
                *(spread.findings if spread is not None else ()),
                *_findings_of(states),
            ),
            self._options.dry_run,
            _to_fetch(models, states),
        )
        return report.with_problem(self._problem(report))

    def _node_model(
        self, model: WantedModel, state: NodeState, failure: Failure | None
    ) -> NodeModel:
        key, stock, finished = model.id, state.stock, state.finished
        own = finished.errors.get(key) if finished is not None else None
        error: Failure | None = None
        outcome: NodePullState = "failed"
        if finished is not None and own is None and key in finished.states:
            outcome = finished.states[key]
        elif failure is None and stock is not None and key in stock.complete:
            outcome = "cached"
        elif self._options.dry_run and failure is None:
            outcome = "planned"
        else:
            error = own or failure
        return NodeModel(
            model.repo,
            model.commit,
            outcome,
            finished.paths.get(key) if finished is not None else None,
            stock.to_fetch.get(key, 0) if stock is not None else 0,
            error,
        )

    def _problem(self, report: FleetPull) -> VlmcacheError | None:
        problem = nodes_problem(report.nodes)
        if problem is None or self._options.dry_run:
            return problem
        # Whatever the reason: some nodes may be complete, and all keep what they have.
        partly = PartlyError(problem.message, self._hint)
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
    for repo, sizes in contents_by_repo(models).items():
        for etag, size in sizes.items():
            key = content_key(repo, etag)
            if not any(key in stock.contents for stock in stocks):
                total += size - max((stock.begun.get(key, 0) for stock in stocks), default=0)
    return total


def _is_incomplete(state: NodeState, models: Sequence[WantedModel]) -> bool:
    stock = state.stock
    return stock is not None and not stock.complete.issuperset(model.id for model in models)


def _findings_of(states: dict[str, NodeState]) -> tuple[Finding, ...]:
    return tuple(
        msgspec.structs.replace(finding, detail=f"{name}: {finding.detail}")
        for name, state in states.items()
        if state.stock is not None
        for finding in state.stock.findings
    )
