"""The lines that show how far a load test is while it runs (no rich)."""

from __future__ import annotations

import time
from collections.abc import Callable

from vlmcache.load.steps import Step
from vlmcache.load.words import exact_seconds

_WIDEST_BAR = 40


class Progressing:
    """The latest step, with the elapsed time and the time that is left.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = self._since = clock()
        self._step = Step("")

    def on_step(self, step: Step) -> None:
        """Show a step from now on."""
        self._since = self._clock()
        self._step = step

    def lines(self, width: int, bar: tuple[str, str]) -> list[str]:
        """Return the step, how far the work is, and the figures so far."""
        step = self._step
        # The count has a line of its own, so that a narrow terminal shortens only the step's text.
        counted = f"trial {step.number} of {step.of}  " if step.of else ""
        room = min(_WIDEST_BAR, width - len(counted) - len(self._times()) - 3)
        drawn = ""
        if step.of and room >= 10:
            done = round(room * self._fraction())
            drawn = f"{bar[0] * done}{bar[1] * (room - done)}  "
        lines = [step.text, f"{counted}{drawn}{self._times()}"]
        return [*lines, f"so far: {self._figures()}"] if step.figures else lines

    def line(self) -> str:
        """Return the same in one line."""
        step = self._step
        counted = f"trial {step.number} of {step.of}: " if step.of else ""
        figures = f"; so far {self._figures()}" if step.figures else ""
        return f"{counted}{step.text}{figures}; {self._times()}" if step.text else ""

    def _times(self) -> str:
        elapsed = _clock_text(self._clock() - self._begun)
        left = self._left()
        return elapsed if left is None else f"{elapsed}, about {_clock_text(left)} left"

    def _left(self) -> float | None:
        left = self._step.left
        # A step that takes longer than estimated has an unknown time left.
        return None if left is None else max(1.0, left - (self._clock() - self._since))

    def _fraction(self) -> float:
        step, left = self._step, self._left()
        elapsed = self._clock() - self._begun
        if left is None:
            return (step.number - 1) / step.of
        return elapsed / (elapsed + left)

    def _figures(self) -> str:
        return ", ".join(
            f"{kind} {exact_seconds(seconds)}" for kind, seconds in self._step.figures.items()
        )


def _clock_text(seconds: float) -> str:
    """Return a duration as a clock shows it: `0:20`, `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
