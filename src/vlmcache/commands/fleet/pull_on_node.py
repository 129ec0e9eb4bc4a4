"""The methods of a node that `fleet pull` calls; see `actor.METHODS`."""

from __future__ import annotations

import os

import msgspec

from vlmcache.commands.fleet.actor import Worker
from vlmcache.commands.fleet.fetching import OFFLINE_VARIABLES
from vlmcache.commands.fleet.holdings import Holdings
from vlmcache.commands.fleet.known import KnownModels, ModelsRequest, known_here
from vlmcache.commands.fleet.parcels import (
    Checked,
    Errand,
    Finished,
    News,
    NewsWanted,
    NodeStock,
    Nothing,
    Opening,
    Sender,
    Survey,
)


def _holdings(worker: Worker) -> Holdings:
    holdings = worker.kept["pull"]
    assert isinstance(holdings, Holdings)
    return holdings


def known_models(worker: Worker, request: bytes) -> KnownModels:
    """Return which models are complete on the node."""
    asked = msgspec.json.decode(request, type=ModelsRequest)
    return known_here(worker.cache.session, asked.models)


def survey(worker: Worker, request: bytes) -> NodeStock:
    """Return what the node has."""
    asked = msgspec.json.decode(request, type=Survey)
    holdings = Holdings(worker.cache.session, asked.name, asked.limit_rate)
    # The session remembers not to ask the hub. The hub's client, which is not imported yet, would
    # refuse to ask other nodes too.
    for name in OFFLINE_VARIABLES:
        os.environ.pop(name, None)
    worker.kept["pull"] = holdings
    return holdings.survey(asked.models)


def open_node(worker: Worker, request: bytes) -> Sender:
    """Let the node serve."""
    asked = msgspec.json.decode(request, type=Opening)
    return _holdings(worker).open(asked.host, asked.parcels, asked.given, asked.peers)


def fetch_parcel(worker: Worker, request: bytes) -> Nothing:
    """Let the node begin to fetch a parcel."""
    asked = msgspec.json.decode(request, type=Errand)
    _holdings(worker).fetch(asked.parcel, asked.sender)
    return Nothing()


def cancel_parcel(worker: Worker, request: bytes) -> Nothing:
    """Let the node stop fetching a parcel."""
    _holdings(worker).cancel(msgspec.json.decode(request, type=Errand).parcel)
    return Nothing()


def check_parcel(worker: Worker, request: bytes) -> Checked:
    """Let the node read a parcel that it has."""
    key = msgspec.json.decode(request, type=Errand).parcel
    return Checked(key, _holdings(worker).check(key))


def news(worker: Worker, request: bytes) -> News:
    """Return what has happened on the node."""
    return _holdings(worker).news(msgspec.json.decode(request, type=NewsWanted).wait)


def finish(worker: Worker, request: bytes) -> Finished:  # noqa: ARG001
    """Let the node link what it has, and stop serving."""
    holdings = _holdings(worker)
    try:
        return holdings.finish()
    finally:
        holdings.close()
