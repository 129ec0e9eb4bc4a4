"""How far a load test is: its step, which trial of how many, and the time left (pure)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple


class Step(NamedTuple):
    """A step of a load test that begins now. Times are seconds."""

    text: str
    """The step in a few words."""
    number: int = 0
    """Which of the planned trials it is, from 1 on; 0 for none."""
    of: int = 0
    """How many trials there are, made and planned."""
    left: float | None = None
    """The estimated time left, this step included."""
    figures: Mapping[str, float] = {}
    """Kind of load -> median of this model's trials so far."""


OnStep = Callable[[Step], None]
"""Is called at the beginning of each step."""


class TrialSchedule:
    """The trials that are planned and those that were made.

    They are counted by run (a model with a loader) and kind of load.
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
        """Set how many trials of a kind are still to come."""
        self._planned[run, kind] = trials

    def drop(self, run: Hashable) -> None:
        """Plan no more trials of a run."""
        self._planned = {key: count for key, count in self._planned.items() if key[0] != run}

    def took(self, run: Hashable, kind: str, seconds: float) -> None:
        """Count a trial that was made, and the seconds that it took with its preparation."""
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
