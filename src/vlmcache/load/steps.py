"""How far a load test is: what it does now, which trial of how many, when it will end (pure)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple


class Step(NamedTuple):
    """What happens now. Seconds."""

    text: str
    """In a few words."""
    number: int = 0
    """Which trial of those planned, or which part of the work, from 1 on; 0 for neither."""
    of: int = 0
    """How many there are."""
    unit: str = "trial"
    """What is counted."""
    left: float | None = None
    """What is left from now on, as estimated from what is done."""
    figures: Mapping[str, float] = {}
    """Kind of load -> median of what was measured of this model so far."""


OnStep = Callable[[Step], None]
"""Is called with what happens now."""


class Schedule:
    """The trials that are planned and those that were made, by what they are trials of.

    A key is a pair: which model with which loader, and which kind of load.
    """

    def __init__(self) -> None:
        self.made = 0
        self._planned: dict[tuple[Hashable, str], int] = {}
        self._took: dict[tuple[Hashable, str], list[float]] = {}

    @property
    def count(self) -> int:
        """How many trials there are, made and planned."""
        return self.made + sum(self._planned.values())

    def plan(self, run: Hashable, kind: str, trials: int) -> None:
        """Plan so many trials of a kind from now on."""
        self._planned[run, kind] = trials

    def drop(self, run: Hashable) -> None:
        """Plan no more trials of a run."""
        self._planned = {key: count for key, count in self._planned.items() if key[0] != run}

    def took(self, run: Hashable, kind: str, seconds: float) -> None:
        """Count a trial that was made in so many seconds, all that goes with it included."""
        self.made += 1
        self._took.setdefault((run, kind), []).append(seconds)

    def left(self) -> float | None:
        """Return how many seconds the planned trials will take; `None` before one was made.

        A trial takes as long as others of its model and kind; before there are any, as long as
        others of its model, and before that as long as any.
        """
        if not self._took:
            return None
        return sum(count * self._expected(key) for key, count in self._planned.items())

    def _expected(self, key: tuple[Hashable, str]) -> float:
        of_run = [took for known, took in self._took.items() if known[0] == key[0]]
        near = [self._took[key]] if key in self._took else of_run or list(self._took.values())
        return statistics.mean(second for seconds in near for second in seconds)
