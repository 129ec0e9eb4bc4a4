"""Whether a hub answers, and how soon: learned from one question, used for the next ones."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

from vlmcache.config import Environment
from vlmcache.errors import UnreachableError
from vlmcache.hub import settings
from vlmcache.hub.retry import Patience

_MOST_GROWN = 2
"""How often the time for an answer is made longer: with huggingface_hub's 10 s, to 30 and 90 s."""


class Contact:
    """What a run knows about whether the hub answers. Used by several threads.

    Args:
        patience: how long to try.
        environment: says how long the user wants to wait for an answer.
    """

    def __init__(self, patience: Patience, environment: Environment) -> None:
        self._patience = patience
        self._growth, self._growth_of_files = (
            1.0 if environment.get(variable) else patience.growth
            for variable in (settings.ANSWER_TIMEOUT, settings.DATA_TIMEOUT)
        )
        self.slow = self.slow_files = 0
        """How often a question, or a file, had to be asked for again: the answer was slow."""
        self._heard = -math.inf
        """When the last answer began."""
        self._silence: tuple[int, UnreachableError] | None = None
        """How often something was tried in vain, and why: nothing is tried as often again."""

    @property
    def silent(self) -> bool:
        """Whether the hub is known not to answer."""
        return self._silence is not None

    def answer_timeout(self, usual: float, slow: int | None = None) -> float:
        """Return how long to wait for an answer, in seconds.

        Args:
            usual: as long as huggingface_hub waits.
            slow: how often the answer has taken longer; what other questions found if not given.
        """
        first = self._patience.answer_timeout or usual
        return first * self._growth ** min(self.slow if slow is None else slow, _MOST_GROWN)

    def data_timeout(self, usual: float, slow: int | None = None) -> float:
        """Return how long to wait for bytes of a file: a mirror may have to fetch it first.

        Args:
            usual: as long as huggingface_hub waits.
            slow: how often they have taken longer; what other files found if not given.
        """
        first = self._patience.data_timeout or usual
        grown = self.slow_files if slow is None else slow
        return first * self._growth_of_files ** min(grown, _MOST_GROWN)

    def waits_longer(self, slow: int) -> bool | None:
        """Return whether a file gets more time that was slow so often; `None` if it never does."""
        return slow <= _MOST_GROWN if self._growth_of_files > 1 else None

    def heard(self) -> None:
        """Take note of an answer."""
        self._heard, self._silence = time.monotonic(), None

    @contextlib.contextmanager
    def tried(self, asks: int | None = None) -> Iterator[None]:
        """Let something be tried, unless it failed before, and remember if it fails now.

        Args:
            asks: how often it would be tried. A quick question that failed does not keep the next
                from being asked patiently.

        Raises:
            UnreachableError: nothing came from the hub, now or before.
        """
        count = self._patience.asks if asks is None else asks
        if self._silence is not None and count <= self._silence[0]:
            error = self._silence[1]
            raise UnreachableError(error.message, error.hint)
        begun = time.monotonic()
        try:
            yield
        except UnreachableError as error:
            if self._heard < begun:
                self._silence = (count, error)
            raise
