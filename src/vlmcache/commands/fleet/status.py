"""`fleet status`: what each node has of each model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from vlmcache.change.plan import Failure
from vlmcache.commands.fleet.asking import Work, ask_all
from vlmcache.commands.fleet.calls import Fleet, Node
from vlmcache.commands.fleet.requests import CacheOnNode, StatusRequest
from vlmcache.commands.fleet.values import FleetStatus, ModelOnNode, NodeStatus
from vlmcache.config import Config, parse_name, without_addresses
from vlmcache.errors import UsageError
from vlmcache.progress import Progress


def status_of_nodes(
    fleet: Fleet, models: Sequence[str], progress: Progress, *, check: bool
) -> FleetStatus:
    """Return what nodes have of models.

    Args:
        fleet: the nodes.
        models: names that each node understands; if there are none, what any node has configured,
            and if none has, what is in any cache.
        progress: shows who is waited for.
        check: count it as a problem if the nodes do not all have the same models, complete.
    """
    request = StatusRequest(tuple(models))
    replies = ask_all(fleet, Work("status"), {node.id: request for node in fleet.nodes}, progress)
    stocks: dict[str, CacheOnNode] = {}
    failures: dict[str, Failure] = {}
    for key, reply in replies.items():
        if reply.failure is None:
            stocks[key] = reply.value(CacheOnNode)
        else:
            failures[key] = reply.failure
    return merged(fleet.nodes, stocks, failures, checked=check)


def merged(
    nodes: Sequence[Node],
    stocks: Mapping[str, CacheOnNode],
    failures: Mapping[str, Failure],
    *,
    checked: bool = False,
) -> FleetStatus:
    """Return one report of what nodes have answered (pure).

    A model that one node reports is looked up on all of them.
    """
    named = {model.id: model for stock in stocks.values() for model in stock.models}
    if not named:
        named = {repo.id: repo for stock in stocks.values() for repo in stock.repos}
    rows = []
    for node in nodes:
        stock = stocks.get(node.id)
        if stock is None:
            rows.append(NodeStatus(node=node.name, address=node.address, error=failures[node.id]))
            continue
        rows.append(
            NodeStatus(
                node=node.name,
                address=node.address,
                free=stock.free,
                models=tuple(_found(stock, model) for model in named.values()),
                cache=stock.cache,
                size_on_disk=stock.size_on_disk,
                total=stock.total,
            )
        )
    return FleetStatus(tuple(rows), tuple(named), checked)


def _found(stock: CacheOnNode, wanted: ModelOnNode) -> ModelOnNode:
    """Return a model as a node has it."""
    for model in (*stock.models, *stock.repos):
        if model.id == wanted.id:
            return model
    return ModelOnNode(
        wanted.repo, wanted.revision, wanted.variant, expected_size=wanted.expected_size
    )


def names_for_nodes(config: Config, names: Sequence[str]) -> tuple[str, ...]:
    """Return names as nodes with another configuration understand them: a repo for each key.

    Raises:
        UsageError: a name is a path on this machine.
    """
    return tuple(_name(config, name) for name in without_addresses(config, names))


def _name(config: Config, text: str) -> str:
    if text.startswith(("./", "../", "~")) and not os.path.isabs(text):
        raise UsageError(f"not a name of a model: '{text}'", "a path on nodes begins with a slash")
    parts = parse_name(text)
    model = config.models.get(text) or config.models.get(parts.name)
    if model is None:
        return text
    revision = parts.revision or (model.revision if model.revision != "main" else None)
    variant = parts.variant or model.variant
    name = model.repo + (f"@{revision}" if revision else "")
    return name + (f":{variant}" if variant else "")
