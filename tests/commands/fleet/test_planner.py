"""The planner of `fleet pull`: who fetches what from whom."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs import fleet_pull
from tests.kit.fleet_simulation import Simulation, Speeds, most_rounds
from vlmcache.commands.fleet.planner import HUB, Assignment, Bounds, Planner, Stock

COUNTS = (2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 100, 257, 1000)
MODELS = {
    "one file": {"weights": 5_000_000_000},
    "five shards": {f"shard-{number}": 1_000_000_000 for number in range(5)},
    "odd sizes": {f"file-{number}": 40_000_000 * number**2 + 1 for number in range(12)},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "count", [pytest.param(n, marks=pytest.mark.full if n > 300 else ()) for n in COUNTS]
)
def test_hub_sends_one_copy_and_time_grows_with_the_logarithm(count: int, model: str) -> None:
    sizes = MODELS[model]
    speeds = Speeds()
    outcome = Simulation(count, sizes, speeds).run()
    total = sum(sizes.values())
    assert outcome.from_hub == total
    assert set(outcome.hub_sendings.values()) == {1}
    assert outcome.rounds <= most_rounds(count)
    assert outcome.copies(speeds) <= most_rounds(count)
    assert all(outcome.down[f"node-{number}"] == total for number in range(count))
    assert sum(outcome.up.values()) == total * (count - 1)


@pytest.mark.full
def test_the_page_shows_what_the_simulation_says() -> None:
    runs = fleet_pull.simulated()
    text = fleet_pull.PAGE.read_text(encoding="utf-8")
    again = "make it anew: python -m docs.generate fleet-pull"
    assert text == fleet_pull.page(text, runs), again
    assert fleet_pull.PLOT.read_text(encoding="utf-8") == fleet_pull.plot(runs), again


@pytest.mark.parametrize("count", [4, 64, 1000])
def test_a_slow_hub_is_never_waited_for_longer_than_for_one_copy_and_the_last_rounds(
    count: int,
) -> None:
    speeds = Speeds(1e9, 5e7)
    outcome = Simulation(count, MODELS["one file"], speeds).run()
    copy = outcome.size / speeds.hub
    assert outcome.seconds <= copy + most_rounds(count) * outcome.size / speeds.link


def test_what_a_node_holds_is_never_fetched_from_the_hub() -> None:
    stock = Stock(("a",), ("a", "b"))
    planner = Planner({"a": 5, "b": 5}, {"one": stock, "two": Stock((), ("a", "b"))})
    assert planner.next() == [Assignment("two", "a", "one"), Assignment("one", "b", HUB)]


def test_whoever_has_begun_most_of_a_parcel_fetches_it_from_the_hub() -> None:
    stocks = {
        "one": Stock((), ("a",)),
        "two": Stock((), ("a",), {"a": 4}),
        "three": Stock((), ("a",), {"a": 3}),
    }
    assert Planner({"a": 5}, stocks).next() == [Assignment("two", "a", HUB)]


def test_nodes_that_do_not_reach_the_hub_get_everything_from_others() -> None:
    stocks = {"in": Stock((), ("a",), {"a": 4}, reaches_hub=False), "out": Stock((), ("a",))}
    planner = Planner({"a": 5}, stocks)
    assert planner.next() == [Assignment("out", "a", HUB)]
    planner.done("out", "a")
    assert planner.next() == [Assignment("in", "a", "out")]


def test_readers_of_a_lost_node_are_named_and_continue_from_another() -> None:
    stocks = {
        "one": Stock(("a",), ("a",)),
        "two": Stock(("a",), ("a",)),
        "three": Stock((), ("a",)),
    }
    planner = Planner({"a": 5}, stocks)
    assert planner.next() == [Assignment("three", "a", "one")]
    assert planner.away("one") == [("three", "a")]
    assert planner.next() == []
    planner.failed("three", "a")
    assert planner.next() == [Assignment("three", "a", "two")]


def test_what_only_a_lost_node_had_is_sent_again_to_the_reader_that_has_most_of_it() -> None:
    stocks = {"one": Stock(("a",), ("a",)), "two": Stock((), ("a",)), "three": Stock((), ("a",))}
    planner = Planner({"a": 5}, stocks)
    assert planner.next() == [Assignment("two", "a", "one")]
    planner.moved("two", "a", 3)
    planner.away("one")
    # The third node is not sent all of it, while the second may have most of it.
    assert planner.next() == []
    planner.failed("two", "a")
    assert planner.next() == [Assignment("two", "a", HUB)]


def test_another_node_takes_over_from_one_that_was_lost_while_the_hub_sent() -> None:
    planner = Planner({"a": 5}, {"one": Stock((), ("a",)), "two": Stock((), ("a",))})
    assert planner.next() == [Assignment("one", "a", HUB)]
    assert planner.away("one") == []
    assert planner.next() == [Assignment("two", "a", HUB)]


def test_a_node_that_sent_wrong_bytes_sends_that_parcel_to_nobody_until_it_is_repaired() -> None:
    stocks = {"one": Stock(("a",), ("a",)), "two": Stock((), ("a",)), "three": Stock((), ("a",))}
    planner = Planner({"a": 5}, stocks)
    assert planner.next() == [Assignment("two", "a", "one")]
    planner.failed("two", "a")
    planner.suspect("one", "a")
    assert planner.next() == [Assignment("three", "a", HUB)]
    planner.checked("one", "a", good=False)
    planner.done("three", "a")
    first = planner.next()
    assert [assignment.source for assignment in first] == ["three"]
    planner.done(first[0].node, "a")
    assert len(planner.next()) == 1
    assert set(planner.incomplete) == {"one", "two"} - {first[0].node}


def test_a_node_whose_disk_is_full_sends_what_it_has() -> None:
    stocks = {"one": Stock(("a",), ("a", "b")), "two": Stock((), ("a", "b"))}
    planner = Planner({"a": 5, "b": 4}, stocks)
    planner.full("one")
    assert planner.next() == [Assignment("two", "a", "one"), Assignment("two", "b", HUB)]
    planner.done("two", "a")
    planner.done("two", "b")
    assert planner.next() == []
    assert planner.incomplete == {"one": ["b"]}


class Fleet:
    """Nodes whose transfers go as chance has it, and what must always hold of them."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        count, parcels = chance.randint(1, 9), chance.randint(1, 6)
        self.sizes = {f"p{number}": chance.randint(1, 9) for number in range(parcels)}
        self.stocks = {f"n{number}": self._stock() for number in range(count)}
        uploads, downloads, asks = (chance.randint(1, 2) for _ in range(3))
        self.bounds = Bounds(uploads, downloads, asks, chance.randint(1, 4))
        self.planner = Planner(self.sizes, self.stocks, self.bounds)
        self.has = {node: set(stock.complete) for node, stock in self.stocks.items()}
        self.flights: dict[tuple[str, str], str] = {}
        self.stopping: set[tuple[str, str]] = set()
        self.to_check: set[tuple[str, str]] = set()
        self.bad: set[tuple[str, str]] = set()
        self.shunned: set[tuple[str, str, str]] = set()
        self.away: set[str] = set()
        self.full: set[str] = set()
        self.unhubbed = {node for node, stock in self.stocks.items() if not stock.reaches_hub}
        self.hub_sent: Counter[str] = Counter()

    def _stock(self) -> Stock:
        names, chance = sorted(self.sizes), self.chance
        held = [name for name in names if chance.random() < 0.2]
        wanted = [name for name in names if chance.random() < 0.9]
        begun = {name: self.sizes[name] // 2 for name in names if chance.random() < 0.1}
        return Stock(held, wanted, begun, reaches_hub=chance.random() < 0.9)

    def step(self, *, faults: bool) -> None:
        self.begin()
        if self.flights and self.chance.random() < 0.7:
            self.land(faults=faults)
        elif self.to_check:
            node, parcel = min(self.to_check)
            if node in self.away and faults:
                return
            self.to_check.remove((node, parcel))
            good = (node, parcel) not in self.bad
            self.bad.discard((node, parcel))
            if not good:
                self.has[node].discard(parcel)
                self.shunned -= {(n, parcel, node) for n in self.stocks}
            self.planner.checked(node, parcel, good=good)
        elif faults:
            self.fault()
        elif self.flights:
            self.land(faults=False)

    def finish(self) -> None:
        """Continue without faults until nothing is left to do."""
        self.begin()
        while self.flights or self.to_check:
            self.step(faults=False)
            self.begin()

    def begin(self) -> None:
        for node, parcel, source in self.planner.next():
            assert (node, parcel) not in self.flights
            assert parcel in self.stocks[node].wanted
            assert parcel not in self.has[node]
            assert not {node, source} & self.away
            assert node not in self.full
            if source == HUB:
                assert node not in self.unhubbed
                self.hub_sent[parcel] += 1
            else:
                assert parcel in self.has[source]
                assert (source, parcel) not in self.to_check
                assert (node, parcel, source) not in self.shunned
            self.flights[node, parcel] = source
        sends = Counter(self.flights.values())
        assert sends.pop(HUB, 0) <= self.bounds.hub
        assert all(count <= self.bounds.uploads for count in sends.values())
        receives = Counter(node for (node, _), source in self.flights.items() if source != HUB)
        assert all(count <= self.bounds.downloads for count in receives.values())
        asks = Counter(node for (node, _), source in self.flights.items() if source == HUB)
        assert all(count <= self.bounds.from_hub for count in asks.values())

    def land(self, *, faults: bool) -> None:
        key = self.chance.choice(sorted(self.flights))
        node, parcel = key
        source = self.flights.pop(key)
        luck = self.chance.random() if faults else 1.0
        if key in self.stopping:
            self.stopping.remove(key)
            self.shunned.add((node, parcel, source))
            self.planner.failed(node, parcel)
        elif luck < 0.1:
            shuns = self.chance.random() < 0.5
            if shuns:
                self.shunned.add((node, parcel, source))
            self.planner.failed(node, parcel, shuns=shuns)
        elif luck < 0.2 and source != HUB:
            self.shunned.add((node, parcel, source))
            if self.chance.random() < 0.5:
                self.bad.add((source, parcel))
            self.planner.failed(node, parcel)
            self.planner.suspect(source, parcel)
            self.to_check.add((source, parcel))
            for other in [k for k, s in self.flights.items() if s == source and k[1] == parcel]:
                self.stopping.add(other)
        else:
            self.has[node].add(parcel)
            self.planner.done(node, parcel)

    def fault(self) -> None:
        node = self.chance.choice(sorted(self.stocks))
        luck = self.chance.random()
        if luck < 0.5 and node not in self.away:
            self.away.add(node)
            self.flights = {key: s for key, s in self.flights.items() if key[0] != node}
            self.stopping = {key for key in self.stopping if key[0] != node}
            self.stopping |= set(self.planner.away(node))
        elif luck < 0.75:
            self.full.add(node)
            self.planner.full(node)
        else:
            self.unhubbed.add(node)
            self.planner.unreachable(node)

    def check_end(self) -> None:
        """Nothing is left that anybody could do."""
        assert self.planner.is_idle
        for node, parcels in self.planner.incomplete.items():
            for parcel in parcels:
                assert parcel not in self.has[node]
                if node in self.away | self.full:
                    continue
                askable = {
                    other
                    for other in self.stocks
                    if parcel in self.has[other]
                    and other not in self.away
                    and (node, parcel, other) not in self.shunned
                }
                assert not askable
                assert node in self.unhubbed or (node, parcel, HUB) in self.shunned
        for node, stock in self.stocks.items():
            left = set(stock.wanted) - self.has[node]
            assert left == set(self.planner.incomplete.get(node, ()))


@given(st.randoms(use_true_random=False))
def test_every_wanted_parcel_arrives_wherever_somebody_can_send_it(chance: random.Random) -> None:
    fleet = Fleet(chance)
    for _ in range(chance.randint(0, 80)):
        fleet.step(faults=True)
    fleet.finish()
    fleet.check_end()


@given(st.randoms(use_true_random=False))
def test_without_failures_the_hub_sends_once_what_nobody_has_and_nothing_else(
    chance: random.Random,
) -> None:
    fleet = Fleet(chance)
    fleet.finish()
    fleet.check_end()
    held = {parcel for stock in fleet.stocks.values() for parcel in stock.complete}
    assert all(count == 1 for count in fleet.hub_sent.values())
    assert not held & fleet.hub_sent.keys()
