"""`fleet rm` and `fleet clean`: one plan for all nodes, one question, a receipt of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeGuard

import msgspec

from vlmcache.cache.layout import name_by_path
from vlmcache.change.plan import Failure, Remove, RemoveTree
from vlmcache.commands.fleet.asking import Work, ask_all
from vlmcache.commands.fleet.calls import Fleet, Node, Reply
from vlmcache.commands.fleet.on_node import Done, Planned
from vlmcache.commands.fleet.requests import Decision, RemovalRequest
from vlmcache.commands.fleet.values import FleetRemoval, NodeRemoval, RemovedModel, error_of
from vlmcache.commands.remove.values import Removal
from vlmcache.errors import ExitCode, require_consent
from vlmcache.progress import Progress

_ACT = 1800.0
"""Seconds that a node may be silent while it removes: caches can be large, and disks slow."""

Confirm: TypeAlias = Callable[[FleetRemoval], bool]


def remove_from_nodes(
    fleet: Fleet, request: RemovalRequest, progress: Progress, confirm: Confirm | None
) -> FleetRemoval:
    """Remove from all nodes what each has planned.

    The plan that is carried out is the one that was shown: a node keeps it, and leaves alone what
    has changed since.

    Args:
        fleet: the nodes.
        request: what to remove.
        progress: shows who is waited for.
        confirm: is given the plans of all nodes, and returns whether to continue; without it nobody
            is asked.

    Raises:
        UnconfirmedError: `confirm` said no.
    """
    nodes = {node.id: node for node in fleet.nodes}
    replies = ask_all(fleet, Work("plan-removal"), dict.fromkeys(nodes, request), progress)
    planned = {key: _row(nodes[key], replies[key]) for key in nodes}
    absent = [row.error for row in planned.values() if _is_absent(row.error)]
    if absent and len(absent) == len(planned):
        raise error_of(absent[0]).saying(
            f"{absent[0].message} of any node", "'vlmcache fleet status' shows what they have"
        )
    planned = _without_absent(planned)
    waiting = {
        key: Decision(agreed=True)
        for key, reply in replies.items()
        if reply.failure is None and reply.value(Planned).waits
    }
    report = _report(planned)
    if request.dry_run or not waiting:
        return report
    require_consent(confirm, report, "was removed")
    done = ask_all(fleet, Work("decide", silent=_ACT), waiting, progress)
    rows = dict(planned)
    for key, reply in done.items():
        rows[key] = _after(planned[key], reply)
    return _report(rows)


def _report(rows: Mapping[str, NodeRemoval]) -> FleetRemoval:
    return FleetRemoval(
        tuple(rows.values()),
        sum(row.plan.frees for row in rows.values() if row.plan is not None),
        sum(row.receipt.freed for row in rows.values() if row.receipt is not None),
        sum(row.receipt.trashed for row in rows.values() if row.receipt is not None),
    )


def _row(node: Node, reply: Reply) -> NodeRemoval:
    row = NodeRemoval(node=node.name, address=node.address, error=reply.failure)
    if reply.failure is not None:
        return row
    return _filled(row, reply.value(Planned).done)


def _filled(row: NodeRemoval, done: Done) -> NodeRemoval:
    removal = msgspec.json.decode(done.report, type=Removal | None)
    if removal is None:
        return msgspec.structs.replace(row, error=done.failure, free=done.free)
    receipt = removal.receipt
    return msgspec.structs.replace(
        row,
        models=_models(removal),
        cache=removal.cache,
        plan=removal.plan,
        receipt=receipt,
        free=done.free,
        error=done.failure,
        in_use=removal.in_use,
        findings=removal.findings,
        trash=removal.trash,
        missed_by=removal.missed_by,
    )


def _models(removal: Removal) -> tuple[RemovedModel, ...]:
    """Return what is removed, the largest first."""
    frees: dict[str, int] = {}
    for action in removal.plan.actions:
        if isinstance(action, Remove | RemoveTree):
            name = name_by_path(action.repo, action.path) if action.repo else action.path
            frees[name] = frees.get(name, 0) + action.frees
    return tuple(
        RemovedModel(name, size) for name, size in sorted(frees.items(), key=lambda row: -row[1])
    )


def _after(planned: NodeRemoval, reply: Reply) -> NodeRemoval:
    """Return a row once the node has acted, or no longer answers."""
    if reply.failure is not None:
        return msgspec.structs.replace(planned, error=reply.failure)
    return _filled(planned, reply.value(Done))


def _without_absent(rows: Mapping[str, NodeRemoval]) -> dict[str, NodeRemoval]:
    """Return rows in which a node that has none of what is removed elsewhere is not a failure."""
    return {
        key: msgspec.structs.replace(row, error=None) if _is_absent(row.error) else row
        for key, row in rows.items()
    }


def _is_absent(failure: Failure | None) -> TypeGuard[Failure]:
    return failure is not None and failure.exit_code == ExitCode.NO_MODEL
