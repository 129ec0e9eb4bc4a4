"""A fleet of many nodes, simulated: the planner is the real one, the transfers are arithmetic."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from vlmcache.commands.fleet.planner import HUB, Bounds, Planner, Stock


class Speeds(NamedTuple):
    """Bytes in a second."""

    link: float = 1e9
    """Of a node's link, in each direction."""
    hub: float = 1e9
    """Of the hub, to all nodes together."""


class Outcome(NamedTuple):
    """What was sent, and how long it took."""

    nodes: int
    size: int
    """Bytes of the model."""
    seconds: float
    rounds: int
    """How often a content was sent on at the most, the hub's own sending included."""
    from_hub: int
    """Bytes that the hub sent."""
    up: Counter[str]
    """Node -> bytes that it sent."""
    down: Counter[str]
    """Node -> bytes that it received."""
    links: Counter[tuple[str, str]]
    """Sender and receiver -> bytes between them."""
    hub_sendings: Counter[str]
    """Content -> how often the hub began to send it."""

    def copies(self, speeds: Speeds) -> float:
        """Return the time in those that one copy of the model takes over one link."""
        return self.seconds / (self.size / min(speeds))


class _Flight:
    def __init__(self, size: float, source: str, now: float) -> None:
        self.left = size
        self.source = source
        self.since = now
        self.rate = 0.0
        self.version = 0


class Simulation:
    """Nodes that pull a model, each of them with the same link.

    Each transfer gets an equal share of its sender's and of its receiver's link, the smaller one.

    Args:
        count: of nodes.
        sizes: content -> its bytes.
        speeds: of links and hub.
        bounds: of the planner.
        stocks: what nodes have; nothing if not given.
    """

    def __init__(
        self,
        count: int,
        sizes: Mapping[str, int],
        speeds: Speeds | None = None,
        bounds: Bounds | None = None,
        stocks: Mapping[str, Stock] | None = None,
    ) -> None:
        self.speeds = speeds or Speeds()
        self.nodes = [f"node-{number}" for number in range(count)]
        self.sizes = sizes
        wanted = Stock((), tuple(sizes))
        self.planner = Planner(sizes, stocks or dict.fromkeys(self.nodes, wanted), bounds)
        self._now = 0.0
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._sends: dict[str, dict[tuple[str, str], None]] = {}
        self._receives: dict[str, dict[tuple[str, str], None]] = {}
        self._queue: list[tuple[float, int, tuple[str, str], int]] = []
        self._counter = 0
        self._links: Counter[tuple[str, str]] = Counter()
        self._hub_sendings: Counter[str] = Counter()

    def run(self) -> Outcome:
        """Return what became of it, once nothing is left to do."""
        self._assign()
        while self._queue:
            at, _, key, version = heapq.heappop(self._queue)
            flight = self._flights.get(key)
            if flight is None or flight.version != version:
                continue
            self._now = at
            self._end(key, flight)
            self.planner.done(*key)
            self._assign()
        up: Counter[str] = Counter()
        down: Counter[str] = Counter()
        for (source, reader), count in self._links.items():
            up[source] += count
            down[reader] += count
        hub = up.pop(HUB, 0)
        return Outcome(
            len(self.nodes),
            sum(self.sizes.values()),
            self._now,
            self.planner.rounds,
            hub,
            up,
            down,
            self._links,
            self._hub_sendings,
        )

    def _assign(self) -> None:
        touched: dict[tuple[str, str], None] = {}
        for node, parcel, source in self.planner.next():
            key = node, parcel
            self._flights[key] = _Flight(self.sizes[parcel], source, self._now)
            self._sends.setdefault(source, {})[key] = None
            self._receives.setdefault(node, {})[key] = None
            if source == HUB:
                self._hub_sendings[parcel] += 1
            touched.update(self._sends[source])
            touched.update(self._receives[node])
        self._share(touched)

    def _end(self, key: tuple[str, str], flight: _Flight) -> None:
        del self._flights[key]
        del self._sends[flight.source][key]
        del self._receives[key[0]][key]
        self._links[flight.source, key[0]] += self.sizes[key[1]]
        self._share({**self._sends[flight.source], **self._receives[key[0]]})

    def _share(self, keys: Mapping[tuple[str, str], None]) -> None:
        for key in keys:
            flight = self._flights[key]
            speed = self.speeds.hub if flight.source == HUB else self.speeds.link
            up = speed / len(self._sends[flight.source])
            rate = min(up, self.speeds.link / len(self._receives[key[0]]))
            if math.isclose(rate, flight.rate):
                continue
            flight.left -= flight.rate * (self._now - flight.since)
            flight.rate, flight.since = rate, self._now
            flight.version += 1
            self._counter += 1
            at = self._now + max(0.0, flight.left) / rate
            heapq.heappush(self._queue, (at, self._counter, key, flight.version))


def most_rounds(count: int) -> int:
    """Return how many rounds a fleet may take."""
    return math.ceil(math.log2(count)) + 2
