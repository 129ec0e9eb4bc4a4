"""The benchmarks wait for a quiet machine within bounds, and judge rows by all of their pairs."""

from __future__ import annotations

from itertools import count

import pytest

from benchmarks.__main__ import PAGE, PARTS
from benchmarks.pages import written
from benchmarks.pairs import Row, beyond_row, rounds, table, values_row, worst_row
from benchmarks.quiet import LONGEST, Machine, Quiet


class Simulated(Machine):
    """A machine whose time passes only in pauses."""

    def __init__(self, loads: list[float], stalls: float = 0.0, own: float = 0.0) -> None:
        self.loads = loads
        self.stalls = stalls
        self.own = own
        self.time = 100.0

    def load(self) -> float:
        return self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]

    def stalled(self) -> float | None:
        return self.time * self.stalls

    def used(self) -> float:
        return self.own

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float) -> None:
        self.time += seconds


def test_a_quiet_machine_is_checked_once() -> None:
    machine = Simulated([0.1])
    assert Quiet(machine).wait()
    assert machine.time == 101


def test_a_pair_waits_until_the_load_has_fallen() -> None:
    machine = Simulated([2.0, 1.0, 0.2])
    assert Quiet(machine).wait()
    assert machine.time == 103


@pytest.mark.parametrize(("load", "stalls"), [(2.0, 0.0), (0.0, 0.5), (2.0, 0.5)])
def test_waiting_for_a_machine_that_stays_busy_is_bounded(load: float, stalls: float) -> None:
    machine = Simulated([load], stalls)
    quiet = Quiet(machine, in_all=2.5 * LONGEST)
    for _ in range(20):
        assert not quiet.wait()
    # Each look takes a pause, even if nothing is left to wait.
    assert machine.time - 100 < 2.5 * LONGEST + 20 * 2


def test_the_load_that_the_benchmarks_made_themselves_is_left_out() -> None:
    machine = Simulated([0.9])
    quiet = Quiet(machine)
    machine.time += 60.0
    machine.own += 60.0
    assert quiet.wait()
    machine.time += 600.0
    assert not quiet.wait()


def test_a_kernel_without_pressure_is_judged_by_its_load() -> None:
    machine = Simulated([0.1])
    machine.stalled = lambda: None  # type: ignore[method-assign]
    assert Quiet(machine).wait()


def test_the_first_round_does_not_count_and_busy_rounds_are_marked() -> None:
    numbers, answers = count(), [True, False, False]
    found = rounds({"ours": lambda: next(numbers), "other": lambda: -1}, 3, lambda: answers.pop(0))
    assert found == {"ours": [1, 2, 3], "other": [-1, -1, -1]}
    assert found.busy == 2


def test_the_order_of_the_sides_changes_from_round_to_round() -> None:
    ran: list[str] = []
    rounds({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, 2, lambda: True)
    assert ran == ["a", "b", "b", "a", "a", "b"]


@pytest.mark.parametrize(
    ("ours", "target", "verdict"),
    [
        ([1.0, 1.1, 1.2], 1.2, "met"),
        ([1.0, 1.1, 1.2], 1.15, "unclear"),
        ([1.0, 1.1, 1.2], 1.05, "unclear"),
        ([1.0, 1.1, 1.2], 0.9, "missed"),
        ([1.0, 1.1, 1.2], None, ""),
    ],
)
def test_a_row_whose_pairs_lie_on_both_sides_of_its_target_is_unclear(
    ours: list[float], target: float | None, verdict: str
) -> None:
    assert values_row("row", ours, [1.0] * 3, target, "peer").verdict == verdict


def test_what_is_counted_is_met_or_missed() -> None:
    assert Row("requests", 1, 1, "1", "a count").verdict == "met"
    assert Row("requests", 2, 1, "2", "a count").verdict == "missed"
    assert worst_row("delay", [0.1, 0.3], 0.25, 0).verdict == "missed"


def test_seconds_beyond_a_peer_are_differences_pair_by_pair() -> None:
    row = beyond_row("again", [0.12, 0.13, 0.2], [0.1, 0.1, 0.1], 0.05, "--help", 0)
    assert row.ratio == pytest.approx(0.03)
    assert row.spread == pytest.approx((0.02, 0.1))
    assert row.verdict == "unclear"


def test_the_table_shows_the_range_and_how_many_pairs_were_busy() -> None:
    row = values_row("a row", [1.0, 3.0], [2.0, 4.0], 0.8, "peer", busy=1)
    assert "| 0.50-0.75, 1 busy |" in table([row])


def test_every_part_can_be_chosen_alone() -> None:
    assert {"help", "status", "scan", "verify", "load", "pull", "watch"} <= PARTS.keys()


def test_the_table_is_written_between_its_marks_and_nothing_else_changes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    once = written(page, "the table")
    assert written(once, "the table") == once
    assert "\nthe table\n" in once
    assert once.split("<!-- /measured -->")[1] == page.split("<!-- /measured -->")[1]
    with pytest.raises(SystemExit):
        written("a page without marks", "the table")
