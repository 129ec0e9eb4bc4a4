"""`fleet verify` and `fleet load-test`: the same on all nodes, and which of them differ."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from vlmcache.change.plan import Failure
from vlmcache.commands.fleet.asking import Work, ask_all
from vlmcache.commands.fleet.calls import Fleet, Node, Reply
from vlmcache.commands.fleet.on_node import Done
from vlmcache.commands.fleet.requests import LoadRequest, VerifyRequest
from vlmcache.commands.fleet.values import (
    DamagedModel,
    FleetLoads,
    FleetVerification,
    LoadedModel,
    NodeLoads,
    NodeVerification,
)
from vlmcache.commands.verify.values import Verification
from vlmcache.load.report import LoadReport, Result, Spread
from vlmcache.progress import Progress
from vlmcache.report import Report

_R = TypeVar("_R", bound=Report)

_LOAD = 7200.0
"""Seconds that one step of a load test may take."""
SLOW = 1.25
"""A node that takes so many times as long as the others is slow, if chance does not explain it."""


def verify_nodes(fleet: Fleet, request: VerifyRequest, progress: Progress) -> FleetVerification:
    """Verify the caches of nodes."""
    requests = {node.id: request for node in fleet.nodes}
    replies = ask_all(fleet, Work("verify", "verified"), requests, progress)
    return FleetVerification(tuple(_verified(node, replies[node.id]) for node in fleet.nodes))


def _verified(node: Node, reply: Reply) -> NodeVerification:
    report, failure, free = _report_of(reply, Verification)
    row = NodeVerification(node=node.name, address=node.address, error=failure, free=free)
    if report is None:
        return row
    damaged = Counter(damage.repo for damage in report.damaged)
    missing = Counter(file.name for file in report.missing)
    return msgspec.structs.replace(
        row,
        models=tuple(
            DamagedModel(name, damaged[name], missing[name])
            for name in dict.fromkeys((*damaged, *missing))
        ),
        cache=report.cache,
        checked=report.checked,
        bytes=report.bytes,
        remembered=report.remembered,
        remembered_bytes=report.remembered_bytes,
        seconds=report.seconds,
        damaged=report.damaged,
        missing=report.missing,
        unverifiable=report.unverifiable,
    )


def load_test_nodes(fleet: Fleet, request: LoadRequest, progress: Progress) -> FleetLoads:
    """Measure loads on nodes, all at the same time, and name the slow ones."""
    requests = {node.id: request for node in fleet.nodes}
    replies = ask_all(fleet, Work("load-test", silent=_LOAD), requests, progress)
    return compare_nodes([_loaded(node, replies[node.id]) for node in fleet.nodes])


def _loaded(node: Node, reply: Reply) -> NodeLoads:
    report, failure, free = _report_of(reply, LoadReport)
    row = NodeLoads(node=node.name, address=node.address, error=failure, free=free)
    if report is None:
        return row
    return msgspec.structs.replace(
        row,
        models=tuple(map(_model, report.results)),
        machine=report.machine,
        results=report.results,
        failures=report.failures,
    )


def _model(result: Result) -> LoadedModel:
    return LoadedModel(
        result.model, result.precision, result.loader, result.device, result.cold, result.warm
    )


def compare_nodes(nodes: Sequence[NodeLoads]) -> FleetLoads:
    """Return a report in which each load is compared with the same on other nodes (pure)."""
    rows = []
    for node in nodes:
        others = [model for other in nodes if other is not node for model in other.models]
        rows.append(
            msgspec.structs.replace(
                node, models=tuple(_compared(model, others) for model in node.models)
            )
        )
    slow = tuple(row.node for row in rows if any(model.slow for model in row.models))
    return FleetLoads(tuple(rows), slow)


def _compared(model: LoadedModel, others: Sequence[LoadedModel]) -> LoadedModel:
    same = [other for other in others if _load_of(other) == _load_of(model)]
    ratio, slow = None, False
    # What differs cold is the disk; a warm load that is slow is slow cold too.
    for own, theirs in (
        (model.cold, [other.cold for other in same if other.cold is not None]),
        (model.warm, [other.warm for other in same if other.warm is not None]),
    ):
        if own is None or not theirs:
            continue
        times = own.median / statistics.median(other.median for other in theirs)
        ratio = times if ratio is None else max(ratio, times)
        slow = slow or (times >= SLOW and own.min > _usual_most(theirs))
    return msgspec.structs.replace(model, ratio=ratio, slow=slow)


def _usual_most(spreads: Sequence[Spread]) -> float:
    """Return the longest load that is usual: the median of each node's longest."""
    return statistics.median(spread.max for spread in spreads)


def _load_of(model: LoadedModel) -> tuple[str, str, str]:
    return model.model, model.precision, model.loader


def _report_of(reply: Reply, kind: type[_R]) -> tuple[_R | None, Failure | None, int | None]:
    """Return a node's report, why it is not complete, and the bytes that are free there."""
    if reply.failure is not None:
        return None, reply.failure, None
    done = reply.value(Done)
    return msgspec.json.decode(done.report, type=kind | None), done.failure, done.free
