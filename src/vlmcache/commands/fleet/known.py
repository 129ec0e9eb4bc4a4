"""Models that a node has complete: the hub need not be asked again what it knows of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.state import Finding
from vlmcache.commands.fleet.fetching import client_of_sources
from vlmcache.commands.fleet.parcels import WantedModel
from vlmcache.commands.pull.plan import FileSelection
from vlmcache.commands.pull.prepare import prepare_pull
from vlmcache.commands.pull.values import PlannedModel
from vlmcache.config import ModelConfig, Session
from vlmcache.home.journal import read_restricted

NOT_ASKED = "hub-not-asked"


class RequestedModel(msgspec.Struct, frozen=True):
    """A model that every node is to have."""

    key: str
    repo: str
    revision: str
    selection: FileSelection

    @classmethod
    def of(cls, model: ModelConfig, selection: FileSelection) -> RequestedModel:
        """Return a model of the driver's configuration, with the selection of its files."""
        if model.variant is not None:
            selection = msgspec.structs.replace(selection, variant=model.variant)
        return cls(model.key, model.repo, model.revision, selection)


class ModelsRequest(msgspec.Struct, frozen=True):
    """The models that a node is asked about."""

    models: tuple[RequestedModel, ...]


class KnownModel(msgspec.Struct, frozen=True):
    """A model that a node has complete, and the findings about it."""

    model: WantedModel
    findings: tuple[Finding, ...] = ()


class KnownModels(msgspec.Struct, frozen=True):
    """Each model that was asked about; `None` if the node does not have it complete."""

    models: tuple[KnownModel | None, ...]


def known_here(session: Session, models: Sequence[RequestedModel]) -> KnownModels:
    """Return which models are complete here, as a pull without the network judges it."""
    return KnownModels(tuple(_known(session, model) for model in models))


def _known(session: Session, asked: RequestedModel) -> KnownModel | None:
    model = ModelConfig(
        asked.key, asked.repo, asked.revision, variant=asked.selection.variant, configured=False
    )
    client = client_of_sources(session, [])
    try:
        part = prepare_pull(client, session.cache.dir, model, asked.selection)
    finally:
        client.stop()
    order = part.order
    if order is None or order.plan.actions or order.new_listing or order.repos:
        # The driver asks people whether the other repos that a model needs are wanted.
        return None
    if not all(layout.is_etag(order.files[name].etag) for name in order.wanted):
        return None
    restrictions = read_restricted(session.environment)
    restriction = restrictions.get(layout.split_name(order.repo), "")
    findings = tuple(f for f in part.findings if f.code != NOT_ASKED)
    return KnownModel(wanted_of(part, asked.selection, restriction), findings)


def wanted_of(part: PlannedModel, selection: FileSelection, restriction: str | None) -> WantedModel:
    """Return a prepared model as one that every node is to have."""
    order, model = part.order, part.model
    assert order is not None
    return WantedModel(
        model.key,
        order.repo,
        model.revision,
        order.commit,
        dict(order.files),
        order.wanted,
        restriction,
        model.variant or selection.variant,
        selection.is_plain,
        part.needed_by.repo if part.needed_by is not None else None,
    )


def by_commit(models: Iterable[KnownModel | None]) -> dict[str, KnownModel]:
    """Return commit -> what a node knows of a model there, what most nodes have first."""
    known = [model for model in models if model is not None]
    counts = Counter(model.model.commit for model in known)
    firsts = {model.model.commit: model for model in reversed(known)}
    return {commit: firsts[commit] for commit, _ in counts.most_common()}
