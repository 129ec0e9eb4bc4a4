"""Which node fetches what from which other node next (pure).

The hub sends one copy of each parcel. A node that has verified a parcel serves it at once, to one
other node at a time, so the number of nodes that have it doubles in the time of one transfer. The
planner is asked for assignments and hears what became of them; it knows no clock, no disk and no
network, and the same events always lead to the same assignments. The real run and the simulation of
`docs/fleet-pull.md` use this code.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

HUB = "hub"
"""Stands for a node where the hub is the sender."""


class Bounds(NamedTuple):
    """How much happens at the same time."""

    uploads: int = 1
    """Parcels that a node sends. One fills the link: with two, the holders would double later."""
    downloads: int = 1
    """Parcels that a node receives from other nodes."""
    from_hub: int = 1
    """Parcels that a node receives from the hub, in addition."""
    hub: int = 4
    """Parcels that the hub sends, to all nodes together. With fewer, the first is complete sooner
    and is passed on sooner."""


class Assignment(NamedTuple):
    """A parcel that a node is to fetch now."""

    node: str
    parcel: str
    source: str
    """The node that sends it, or `HUB`."""


class Stock(NamedTuple):
    """What a node has and wants, before anything begins."""

    complete: Collection[str] = ()
    """Parcels that are complete there."""
    wanted: Collection[str] = ()
    begun: Mapping[str, int] = {}
    """Parcel -> bytes of it that are there already."""
    reaches_hub: bool = True


class _Ledger:
    """Which node has, wants, sends and receives what, indexed so that each event costs little.

    The arguments are those of `Planner`.
    """

    def __init__(
        self, sizes: Mapping[str, int], stocks: Mapping[str, Stock], bounds: Bounds | None = None
    ) -> None:
        self.sizes = dict(sizes)
        self.bounds = bounds or Bounds()
        self.flights: dict[tuple[str, str], str] = {}
        """Node and parcel -> where it is being fetched from."""
        self.holders: dict[str, dict[str, int]] = {parcel: {} for parcel in sizes}
        """Parcel -> node that has it -> how often it was sent on to get there."""
        self.missing: dict[str, dict[str, None]] = {node: {} for node in stocks}
        """Node -> parcels that it wants and that are not being fetched."""
        self.longest = math.ceil(math.log2(max(1, len(stocks)))) + 2
        """How often a parcel is sent on at most, as long as there is a shorter way."""
        self._of: dict[str, dict[str, None]] = {node: {} for node in stocks}
        self._waiting: dict[str, dict[str, None]] = {parcel: {} for parcel in sizes}
        self._free: dict[str, dict[str, None]] = {parcel: {} for parcel in sizes}
        self._idle: dict[str, None] = {}
        self._sending = dict.fromkeys(stocks, 0)
        self._receiving = dict.fromkeys(stocks, 0)
        self._asking = dict.fromkeys(stocks, 0)
        self._asked = dict.fromkeys(stocks, 0)
        self._begun: dict[str, dict[str, int]] = {parcel: {} for parcel in sizes}
        self._coming: dict[str, int] = dict.fromkeys(sizes, 0)
        """Parcel -> how often the hub sends it now."""
        self._wanted = {node: frozenset(stock.wanted) for node, stock in stocks.items()}
        self._hub_sends = 0
        self._away: set[str] = set()
        self._full: set[str] = set()
        self._unhubbed = {node for node, stock in stocks.items() if not stock.reaches_hub}
        self._refused: dict[str, set[str]] = {}
        """Parcel -> nodes that the hub did not send it to."""
        self._shunned: dict[str, dict[str, set[str]]] = {}
        self._suspects: dict[tuple[str, str], int] = {}
        self._changed: dict[str, None] = dict.fromkeys(stocks)
        # The largest first, so that only short transfers are left at the end.
        order = sorted(self.sizes, key=lambda parcel: (-self.sizes[parcel], parcel))
        self._order = {parcel: number for number, parcel in enumerate(order)}
        for node, stock in stocks.items():
            for parcel in sorted(stock.complete, key=self._order.__getitem__):
                self._hold(node, parcel, 0)
            missing = set(stock.wanted) - set(stock.complete)
            for parcel in sorted(missing, key=self._order.__getitem__):
                self._want(node, parcel)
            for parcel, count in stock.begun.items():
                self._begun[parcel][node] = count

    def _hold(self, node: str, parcel: str, generation: int) -> None:
        self._of[node][parcel] = None
        self.holders[parcel][node] = generation
        self._begun[parcel].pop(node, None)
        self._settle(node)

    def _want(self, node: str, parcel: str) -> None:
        if parcel not in self._of[node]:
            self.missing[node][parcel] = None
            self._waiting[parcel][node] = None
            self._settle(node)

    def _unwait(self, node: str, parcel: str) -> None:
        self.missing[node].pop(parcel, None)
        self._waiting[parcel].pop(node, None)

    def _settle(self, node: str) -> None:
        """Update what a node can do now."""
        here = node not in self._away
        sends = here and self._sending[node] < self.bounds.uploads
        for parcel in self._of[node]:
            if sends:
                self._free[parcel][node] = None
            else:
                self._free[parcel].pop(node, None)
        receives = here and node not in self._full and bool(self.missing[node])
        if receives and self._receiving[node] < self.bounds.downloads:
            self._idle[node] = None
        else:
            self._idle.pop(node, None)
        self._changed[node] = None

    def _begin(self, node: str, parcel: str, source: str) -> Assignment:
        self._unwait(node, parcel)
        self.flights[node, parcel] = source
        if source == HUB:
            self._hub_sends += 1
            self._coming[parcel] += 1
            self._asking[node] += 1
            self._asked[node] += 1
        else:
            self._receiving[node] += 1
            self._sending[source] += 1
            self._settle(source)
        self._settle(node)
        return Assignment(node, parcel, source)

    def _land(self, node: str, parcel: str) -> str | None:
        """End a flight, and return where it came from."""
        source = self.flights.pop((node, parcel), None)
        if source == HUB:
            self._hub_sends -= 1
            self._coming[parcel] -= 1
            self._asking[node] -= 1
        elif source is not None:
            self._receiving[node] -= 1
            self._sending[source] -= 1
            self._settle(source)
        self._settle(node)
        return source


class Planner(_Ledger):
    """Decides who fetches what from whom. Every method that takes an event may be called anytime.

    Args:
        sizes: parcel -> its bytes.
        stocks: node -> what it has and wants.
        bounds: how much happens at the same time.
    """

    # What is to be done.

    def next(self) -> list[Assignment]:
        """Return what is to be begun now; it counts as begun."""
        assignments: list[Assignment] = []
        while self._changed:
            node = next(iter(self._changed))
            del self._changed[node]
            while (assignment := self._download(node) or self._upload(node)) is not None:
                assignments.append(assignment)
        assignments += self._from_hub()
        return assignments

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being fetched; right after `next`, whether nothing more can be."""
        return not self.flights

    @property
    def incomplete(self) -> dict[str, list[str]]:
        """Node -> the parcels that it wants and does not have, for every node that misses any."""
        missing = {node: list(parcels) for node, parcels in self.missing.items()}
        for node, parcel in self.flights:
            missing[node].append(parcel)
        return {node: parcels for node, parcels in missing.items() if parcels}

    @property
    def rounds(self) -> int:
        """How often a parcel was sent on at most, the hub's own sending included."""
        return max(
            (max(holders.values(), default=0) for holders in self.holders.values()), default=0
        )

    # What has happened.

    def moved(self, node: str, parcel: str, count: int) -> None:
        """A node has so many bytes of a parcel."""
        self._begun[parcel][node] = count

    def done(self, node: str, parcel: str) -> None:
        """A node has a parcel, and has verified it."""
        source = self._land(node, parcel)
        before = 0 if source in (None, HUB) else self.holders[parcel].get(source or "", 0)
        self._unwait(node, parcel)
        self._hold(node, parcel, before + (source is not None))

    def failed(self, node: str, parcel: str, *, shuns: bool = True) -> None:
        """A node did not get a parcel.

        Args:
            node: the node.
            parcel: the parcel.
            shuns: whether it never asks the same source for it again.
        """
        source = self._land(node, parcel)
        if source is None:
            return
        self._want(node, parcel)
        if source == HUB:
            if shuns:
                self._refused.setdefault(parcel, set()).add(node)
        elif shuns:
            self._shunned.setdefault(node, {}).setdefault(parcel, set()).add(source)

    def suspect(self, node: str, parcel: str) -> None:
        """Let no node receive a parcel from a node until that is `checked`."""
        generation = self.holders[parcel].pop(node, None)
        if generation is not None:
            self._suspects[node, parcel] = generation
            del self._of[node][parcel]
            self._free[parcel].pop(node, None)
            # Nodes that had to wait for this one, since it was nearer to the hub, may be next now.
            self._changed.update(self._waiting[parcel])

    def checked(self, node: str, parcel: str, *, good: bool) -> None:
        """A node has read a parcel that it sent: it is good, or has to be fetched again."""
        generation = self._suspects.pop((node, parcel), 0)
        if good:
            self._hold(node, parcel, generation)
            return
        self._begun[parcel].pop(node, None)
        for sources in self._shunned.values():
            # Once it is repaired, the node can send it again.
            sources.get(parcel, set()).discard(node)
        if parcel in self._wanted[node]:
            self._want(node, parcel)

    def unreachable(self, node: str) -> None:
        """The hub does not answer a node."""
        self._unhubbed.add(node)

    def full(self, node: str) -> None:
        """A node cannot receive anything more, such as one whose disk is full; it still sends."""
        self._full.add(node)
        self._idle.pop(node, None)

    def away(self, node: str) -> list[tuple[str, str]]:
        """A node does not answer.

        Returns:
            (node, parcel) of what was being fetched from it: to be stopped, and then reported as
            `failed`.
        """
        self._away.add(node)
        self._idle.pop(node, None)
        for parcel in self._of[node]:
            self._free[parcel].pop(node, None)
        for reader, parcel in [flight for flight in self.flights if flight[0] == node]:
            self._land(reader, parcel)
            self._want(reader, parcel)
        # Nodes that had to wait for it may be next now.
        self._changed.update(dict.fromkeys(self.missing))
        return [flight for flight, source in self.flights.items() if source == node]

    # The choice.

    def _download(self, node: str) -> Assignment | None:
        """Let a node fetch what the fewest nodes have from one of them."""
        if node not in self._idle:
            return None
        for parcel in self._rarest(self.missing[node]):
            sources = [source for source in self._free[parcel] if self._may(node, parcel, source)]
            if sources:
                shortest = min(sources, key=self.holders[parcel].__getitem__)
                return self._begin(node, parcel, shortest)
        return None

    def _upload(self, node: str) -> Assignment | None:
        """Let a node send what the fewest nodes have."""
        if node in self._away or self._sending[node] >= self.bounds.uploads:
            return None
        for parcel in self._rarest(self._of[node]):
            waiting = self._waiting[parcel]
            fewer = waiting if len(waiting) < len(self._idle) else self._idle
            more = self._idle if fewer is waiting else waiting
            for reader in fewer:
                if reader in more and self._may(reader, parcel, node):
                    return self._begin(reader, parcel, node)
        return None

    def _rarest(self, parcels: Iterable[str]) -> list[str]:
        return sorted(parcels, key=lambda parcel: (len(self.holders[parcel]), self._order[parcel]))

    def _may(self, reader: str, parcel: str, source: str) -> bool:
        if source in self._shunned.get(reader, {}).get(parcel, ()):
            return False
        generations = self.holders[parcel]
        if generations[source] + 1 <= self.longest:
            return True
        # A node that is nearer to the hub is waited for, if there is one.
        return not any(
            generation + 1 <= self.longest and self._answers(reader, parcel, other)
            for other, generation in generations.items()
        )

    def _answers(self, reader: str, parcel: str, source: str) -> bool:
        shunned = self._shunned.get(reader, {}).get(parcel, ())
        return source not in self._away and source not in shunned

    def _from_hub(self) -> Iterator[Assignment]:
        """Yield what the hub is to send: parcels that no node has, or none that can be asked."""
        # A node whose transfer is still to be stopped may have most of it.
        stopping = (
            {parcel for (_, parcel), source in self.flights.items() if source in self._away}
            if self._away
            else set()
        )
        for parcel in self._order:
            if self._hub_sends >= self.bounds.hub:
                return
            if self._waiting[parcel] and not self._coming[parcel] and parcel not in stopping:
                node = self._hub_reader(parcel)
                if node is not None:
                    yield self._begin(node, parcel, HUB)

    def _hub_reader(self, parcel: str) -> str | None:
        """Return the node to fetch a parcel from the hub: with most of it, and fewest requests."""
        waiting: Iterable[str] = self._waiting[parcel]
        if any(holder not in self._away for holder in self.holders[parcel]):
            holders = self.holders[parcel].keys() - self._away if self._shunned else set()
            waiting = [
                node
                for node, parcels in self._shunned.items()
                if node in self._waiting[parcel] and holders <= parcels.get(parcel, set())
            ]
        cannot = self._away | self._full | self._unhubbed | self._refused.get(parcel, set())
        able = [
            node
            for node in waiting
            if self._asking[node] < self.bounds.from_hub and node not in cannot
        ]
        begun = self._begun[parcel]
        return min(able, key=lambda node: (-begun.get(node, 0), self._asked[node]), default=None)
