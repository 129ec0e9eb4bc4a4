"""The methods of a node that `fleet pull` calls; see `actor.METHODS`."""

from __future__ import annotations

import os

import msgspec

from vlmcache.commands.fleet.actor import Worker
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


def known(worker: Worker, request: bytes) -> KnownModels:
    """Return which models are complete on a node."""
    asked = msgspec.json.decode(request, type=ModelsRequest)
    return known_here(worker.cache.session, asked.models)


def survey(worker: Worker, request: bytes) -> NodeStock:
    """Return what a node has."""
    asked = msgspec.json.decode(request, type=Survey)
    holdings = Holdings(worker.cache.session, asked.name, asked.limit_rate)
    # The session knows that the hub is not to be asked. The hub's client, which is not imported
    # yet, would refuse other nodes too.
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.pop(name, None)
    worker.kept["pull"] = holdings
    return holdings.survey(asked.models)


def open_node(worker: Worker, request: bytes) -> Sender:
    """Let a node serve."""
    asked = msgspec.json.decode(request, type=Opening)
    return _holdings(worker).open(asked.host, asked.parcels, asked.given, asked.peers)


def fetch(worker: Worker, request: bytes) -> Nothing:
    """Let a node begin to fetch."""
    asked = msgspec.json.decode(request, type=Errand)
    _holdings(worker).fetch(asked.parcel, asked.sender)
    return Nothing()


def cancel(worker: Worker, request: bytes) -> Nothing:
    """Let a node stop fetching."""
    _holdings(worker).cancel(msgspec.json.decode(request, type=Errand).parcel)
    return Nothing()


def check(worker: Worker, request: bytes) -> Checked:
    """Let a node read what it has."""
    key = msgspec.json.decode(request, type=Errand).parcel
    return Checked(key, _holdings(worker).check(key))


def news(worker: Worker, request: bytes) -> News:
    """Return what has happened on a node."""
    return _holdings(worker).news(msgspec.json.decode(request, type=NewsWanted).wait)


def finish(worker: Worker, request: bytes) -> Finished:  # noqa: ARG001
    """Let a node link what it has, and serve no more."""
    holdings = _holdings(worker)
    try:
        return holdings.finish()
    finally:
        holdings.close()
