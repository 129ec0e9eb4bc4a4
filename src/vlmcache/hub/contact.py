"""Whether a hub answers: what one question has found out, the next ones need not."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

from vlmcache.errors import UnreachableError


class Contact:
    """What a run knows of whether the hub answers. Used by several threads.

    Args:
        asks: how often something is tried if nobody says how often.
    """

    def __init__(self, asks: int) -> None:
        self._asks = asks
        self._heard = -math.inf
        """When the last answer began."""
        self._silence: tuple[int, UnreachableError] | None = None
        """How often something was tried in vain, and why nothing is tried so often again."""

    @property
    def silent(self) -> bool:
        """Whether the hub is known not to answer."""
        return self._silence is not None

    def heard(self) -> None:
        """Take note of an answer."""
        self._heard, self._silence = time.monotonic(), None

    @contextlib.contextmanager
    def tried(self, asks: int | None = None) -> Iterator[None]:
        """Let something be tried, unless it was in vain already, and remember if it is in vain now.

        Args:
            asks: how often it would be tried. One quick question in vain does not keep the next
                from being asked patiently.

        Raises:
            UnreachableError: nothing came from the hub, now or before.
        """
        count = self._asks if asks is None else asks
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
