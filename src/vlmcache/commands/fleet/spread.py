"""What the planner decides is carried out: nodes are asked, and their answers are its events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from vlmcache.cache.state import Finding
from vlmcache.change.plan import Failure
from vlmcache.commands.fleet.calls import LOST, SILENT, Fleet, Node, Reply
from vlmcache.commands.fleet.parcels import (
    Checked,
    Errand,
    Finished,
    Landing,
    News,
    NewsWanted,
    NodeStock,
    Opening,
    Parcel,
    Sender,
    WantedModel,
    content_key,
)
from vlmcache.commands.fleet.planner import HUB, Planner, Stock
from vlmcache.errors import ExitCode
from vlmcache.hub.small import SMALL
from vlmcache.progress import Progress
from vlmcache.units import counted, first_of

_BUNDLE_FILES, _BUNDLE_BYTES = 64, 16_000_000
"""The most small files that are fetched together, and their bytes."""
_SILENT = 3600.0
"""Seconds that a node may take to read what it has, or to write on a slow disk."""
_NEWS_EVERY = 1.0
"""Seconds after which a node answers, even if nothing has happened there."""


class NodeState(msgspec.Struct):
    """What the driver knows of a node."""

    node: Node
    stock: NodeStock | None = None
    sender: Sender | None = None
    finished: Finished | None = None
    error: Failure | None = None
    """Why it is not complete."""
    lost: str | None = None
    """Why it does not answer, if it does not."""
    is_asked: bool = False
    """Whether it is asked for news and has not answered yet."""
    from_hub: int = 0
    from_nodes: int = 0
    sent: int = 0


def parcels_of(
    models: Sequence[WantedModel], stocks: Mapping[str, NodeStock], given: Mapping[str, bytes]
) -> list[Parcel]:
    """Return what is fetched together: large contents alone, small ones by the nodes with them."""
    parcels: list[Parcel] = []
    for repo, sizes in contents_by_repo(models).items():
        bundles: dict[frozenset[str], list[str]] = {}
        for etag, size in sizes.items():
            key = content_key(repo, etag)
            holders = frozenset(node for node, stock in stocks.items() if key in stock.contents)
            if len(holders) == len(stocks) or etag in given:
                continue
            if size > SMALL:
                parcels.append(Parcel(key, repo, (etag,), size))
            else:
                bundles.setdefault(holders, []).append(etag)
        for etags in bundles.values():
            for bundle in _bundled(etags, sizes):
                total = sum(sizes[etag] for etag in bundle)
                parcels.append(Parcel(content_key(repo, bundle[0]), repo, tuple(bundle), total))
    return parcels


def contents_by_repo(models: Sequence[WantedModel]) -> dict[str, dict[str, int]]:
    """Return repo -> etag -> bytes of what models need, which those of one repo can share."""
    contents: dict[str, dict[str, int]] = {}
    for model in models:
        sizes = contents.setdefault(model.repo, {})
        sizes |= {etag: listed.content_size for etag, listed in model.contents.items()}
    return contents


def _bundled(etags: Sequence[str], sizes: Mapping[str, int]) -> list[list[str]]:
    bundles: list[list[str]] = [[]]
    for etag in etags:
        last = bundles[-1]
        full = sum(map(sizes.__getitem__, last)) + sizes[etag] > _BUNDLE_BYTES
        if last and (full or len(last) >= _BUNDLE_FILES):
            bundles.append([])
        bundles[-1].append(etag)
    return bundles


def stock_of(stock: NodeStock, parcels: Sequence[Parcel]) -> Stock:
    """Return what a node has and wants, in parcels."""
    complete: list[str] = []
    begun: dict[str, int] = {}
    for parcel in parcels:
        keys = [content_key(parcel.repo, etag) for etag in parcel.etags]
        if stock.contents.issuperset(keys):
            complete.append(parcel.key)
        begun[parcel.key] = sum(stock.begun.get(key, 0) for key in keys)
    wanted = [parcel.key for parcel in parcels]
    return Stock(complete, wanted, begun, reaches_hub=stock.reaches_hub)


class _Spreading:
    """What is known of a run, and how it is shown.

    The arguments are those of `Spreader`.
    """

    def __init__(
        self,
        fleet: Fleet,
        states: Mapping[str, NodeState],
        models: Sequence[WantedModel],
        given: Mapping[str, bytes],
        progress: Progress,
    ) -> None:
        self._fleet = fleet
        self.states = dict(states)
        self._names = {state.node.id: name for name, state in self.states.items()}
        self._models = models
        self._given = dict(given)
        self._progress = progress
        stocks = {name: state.stock for name, state in self.states.items() if state.stock}
        self.parcels = {p.key: p for p in parcels_of(models, stocks, self._given)}
        order = list(self.parcels.values())
        self.planner = Planner(
            {parcel.key: parcel.size for parcel in order},
            {name: stock_of(stock, order) for name, stock in stocks.items()},
        )
        self._shown = {key: self._name_of(parcel) for key, parcel in self.parcels.items()}
        """Parcel -> what people know it by."""
        self._open_calls: Counter[str] = Counter()
        """Method -> calls that are not answered yet."""
        self._checking: set[tuple[str, str]] = set()
        self._errors: dict[tuple[str, str], Failure] = {}
        self.findings: list[Finding] = []
        self.sent: Counter[tuple[str, str]] = Counter()
        """Sender and receiver -> bytes."""

    def _name_of(self, parcel: Parcel) -> str:
        model = next(
            model
            for model in self._models
            if model.repo == parcel.repo and not model.contents.keys().isdisjoint(parcel.etags)
        )
        names = sorted(n for n in model.wanted if model.files[n].etag in parcel.etags)
        name = first_of(names, 1)
        return name if len(self._models) == 1 else f"{model.id}: {name}"

    def _show_plan(self) -> None:
        missing = {
            name: {self._shown[key]: self.parcels[key].size for key in self.planner.missing[name]}
            for name in self.states
        }
        totals = {name: sum(sizes.values()) for name, sizes in missing.items()}
        self._progress.noun = "node"
        self._progress.planned("fetched", totals, dict.fromkeys(totals, 0))
        for name, sizes in missing.items():
            if totals[name]:
                self._progress.started(name, sizes, 0)

    def incomplete(self) -> dict[str, Failure]:
        """Return node -> why it is not complete."""
        failures: dict[str, Failure] = {}
        left = self.planner.incomplete
        for name, state in self.states.items():
            failure = state.error
            if failure is None and state.lost is not None:
                failure = Failure(LOST, state.lost, None, int(ExitCode.PARTLY))
            if failure is None and name in left:
                failure = next(
                    (self._errors[name, key] for key in left[name] if (name, key) in self._errors),
                    None,
                ) or self._missing(left[name])
            if failure is None and state.finished is not None and state.finished.errors:
                failure = next(iter(state.finished.errors.values()))
            if failure is not None:
                failures[name] = failure
        return failures

    def _missing(self, keys: Sequence[str]) -> Failure:
        others = [error for (_, key), error in self._errors.items() if key in keys]
        if others:
            return others[0]
        missing = f"{counted(len(keys), 'file')} missing"
        return Failure("partly", missing, None, int(ExitCode.PARTLY))


class Spreader(_Spreading):
    """One run: the parcels of some models are spread over the nodes.

    Args:
        fleet: what is asked.
        states: of each node, surveyed.
        models: what every node is to have.
        given: etag -> small content that the driver has asked the hub for.
        progress: shows the progress.
    """

    def run(self) -> None:
        """Spread everything, then let each node link it; the outcome is in `states`."""
        self._show_plan()
        try:
            self._open()
            self._fetch_all()
            self._finish()
        finally:
            for name in self.states:
                self._progress.ended(name)
            self._progress.finished()

    # Before and after.

    def _open(self) -> None:
        """Let all nodes serve what they have; those that cannot are left out."""
        peers = tuple(state.node.address for state in self.states.values())
        parcels = tuple(self.parcels.values())
        for name in self.states:
            address = self.states[name].node.address
            self._call(name, "open", Opening(address, parcels, self._given, peers))
        for name, reply in self._replies("open"):
            state = self.states[name]
            if reply.failure is None:
                state.sender = reply.value(Sender)
            elif state.lost is None:
                state.error = reply.failure
                self.planner.away(name)

    def _finish(self) -> None:
        for name, state in self.states.items():
            if state.sender is not None and state.lost is None:
                self._call(name, "finish")
        for name, reply in self._replies("finish"):
            if reply.failure is None:
                self.states[name].finished = reply.value(Finished)
            else:
                self.states[name].error = self.states[name].error or reply.failure

    def _call(self, name: str, method: str, request: msgspec.Struct | None = None) -> None:
        self._open_calls[method] += 1
        silent = _SILENT if method in ("open", "check", "finish") else SILENT
        self._fleet.call(self.states[name].node, f"pull-{method}", request, silent=silent)

    def _replies(self, method: str) -> Iterator[tuple[str, Reply]]:
        """Yield the answer of each node that was asked, also of one that is lost meanwhile."""
        while self._open_calls[method]:
            for reply in self._fleet.arrived(_NEWS_EVERY):
                if self._noted(reply) == method:
                    yield self._names[reply.call.node.id], reply

    def _noted(self, reply: Reply) -> str:
        """Take note that a call was answered, and return its method."""
        method = reply.call.method.removeprefix("pull-")
        self._open_calls[method] -= 1
        if reply.lost:
            self._lost(self.states[self._names[reply.call.node.id]], reply.failure)
        return method

    # The loop.

    def _fetch_all(self) -> None:
        while True:
            for node, parcel, source in self.planner.next():
                sender = None if source == HUB else self.states[source].sender
                self._call(node, "fetch", Errand(parcel, sender))
            if self.planner.is_idle and not self._checking:
                return
            for name, state in self.states.items():
                if state.sender is not None and state.lost is None and not state.is_asked:
                    state.is_asked = True
                    self._call(name, "news", NewsWanted(_NEWS_EVERY))
            for reply in self._fleet.arrived(_NEWS_EVERY):
                self._take(reply)

    def _take(self, reply: Reply) -> None:
        state, method = self.states[self._names[reply.call.node.id]], self._noted(reply)
        if method == "news":
            state.is_asked = False
        if reply.lost:
            return
        if reply.failure is not None:
            # A call that only reports or begins something should not fail: the node is given up.
            state.error = state.error or reply.failure
            self._lost(state, reply.failure)
        elif method == "news":
            self._hear(state, reply.value(News))
        elif method == "check":
            self._take_check(state, reply.value(Checked))

    def _lost(self, state: NodeState, failure: Failure | None) -> None:
        """A node does not answer: the others continue without it."""
        if state.lost is not None:
            return
        name = state.node.name
        state.lost = failure.message if failure is not None else "no answer"
        self._progress.ended(name)
        self._progress.note(f"{name}: {state.lost}; the others continue without it")
        self._checking = {(node, parcel) for node, parcel in self._checking if node != name}
        for reader, parcel in self.planner.away(name):
            self._call(reader, "cancel", Errand(parcel))

    def _hear(self, state: NodeState, news: News) -> None:
        name = state.node.name
        for landing in news.landings:
            self._land(state, landing)
        for key, position in news.positions.items():
            self.planner.moved(name, key, position)
            self._progress.moved(name, self._shown[key], position)
        for note in news.notes:
            self._progress.note(f"{name}: {note}")

    def _land(self, state: NodeState, landing: Landing) -> None:
        node, key, source = state.node.name, landing.parcel, landing.source
        if source is None:
            state.from_hub += landing.received
        else:
            state.from_nodes += landing.received
            self.states[source].sent += landing.received
        self.sent[source or HUB, node] += landing.received
        if landing.fault is None:
            self._errors.pop((node, key), None)
            self.planner.done(node, key)
            self._progress.moved(node, self._shown[key], self.parcels[key].size)
            return
        assert landing.error is not None
        self.planner.moved(node, key, landing.have)
        self._errors[node, key] = landing.error
        if landing.fault in ("wrong", "source") and source is not None:
            self.planner.failed(node, key)
            self._suspect(source, key)
        elif landing.fault == "node":
            self.planner.failed(node, key, shuns=False)
            self.planner.full(node)
            state.error = state.error or landing.error
            self._progress.ended(node)
            self._progress.note(f"{node}: {landing.error.message}")
        elif landing.fault == "unreachable":
            self.planner.failed(node, key, shuns=False)
            self.planner.unreachable(node)
            self._progress.note(f"{node}: {landing.error.message}")
        else:
            self.planner.failed(node, key, shuns=landing.fault != "stopped")

    def _suspect(self, source: str, key: str) -> None:
        """Let the sender of a parcel that failed read it; meanwhile no node gets it from there."""
        if self.states[source].lost is not None or (source, key) in self._checking:
            return
        self.planner.suspect(source, key)
        self._checking.add((source, key))
        self._call(source, "check", Errand(key))

    def _take_check(self, state: NodeState, checked: Checked) -> None:
        name, key = state.node.name, checked.parcel
        self._checking.discard((name, key))
        self.planner.checked(name, key, good=checked.good)
        if not checked.good:
            detail = f"{name} had a damaged copy of {self._shown[key]}: it was fetched again"
            repo = self.parcels[key].repo
            self.findings.append(Finding("damaged-on-node", "warning", repo, name, detail))
            self._progress.note(detail)
