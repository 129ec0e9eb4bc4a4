"""What a person is shown to choose from, and the plan of each choice."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from vlmcache.change.plan import Plan, freed_by

IsKept: TypeAlias = Callable[[Plan], bool]
"""Returns whether what a plan removes is kept in the trash at first."""


class Offered(msgspec.Struct, frozen=True):
    """One thing that can be chosen, or that is listed to say why it cannot be."""

    name: str
    """What to type for the repo; of a part of it, with the commit or the file."""
    what: str
    """In a word or two: `model`, `old revision`, `in use`."""
    size: int
    """Bytes that it occupies; of a part of a repo, those that removing it alone frees."""
    last_used: float | None = None
    """Seconds since the epoch; `None` if that is not known."""
    guard: str = ""
    """Why it is chosen only by its own number or name, or not at all."""
    barred: bool = False
    """Whether it cannot be chosen at all."""


class Offer:
    """What is offered, the largest first, and what choosing some of it removes.

    Args:
        cache_dir: the hub cache.
        things: what is offered.
        plan_of: returns the plan that removes what has these numbers, from 0 on, and nothing else.
        is_kept: returns whether what a plan removes is kept in the trash at first.
    """

    def __init__(
        self,
        cache_dir: str,
        things: Sequence[Offered],
        plan_of: Callable[[Sequence[int]], Plan],
        is_kept: IsKept = lambda _plan: False,
    ) -> None:
        self.cache_dir = cache_dir
        self.things = tuple(things)
        self.is_kept = is_kept
        self._plan_of = plan_of
        self._planned: tuple[frozenset[int], Plan] | None = None

    def plan(self, numbers: Sequence[int]) -> Plan:
        """Return the plan that removes what has these numbers, what they share once."""
        wanted = frozenset(numbers)
        if self._planned is None or self._planned[0] != wanted:
            self._planned = wanted, self._plan_of(sorted(wanted))
        return self._planned[1]

    def frees(self, numbers: Sequence[int]) -> tuple[int, int]:
        """Return the bytes that removing these frees, and those of them on the cache's own disk."""
        plan = self.plan(numbers)
        inside = os.path.join(self.cache_dir, "")
        here = freed_by(action for action in plan.actions if action.path.startswith(inside))
        return plan.frees, here

    @property
    def free(self) -> int | None:
        """Bytes free on the cache's disk now; `None` if it does not say."""
        from vlmcache.change.space import free_bytes  # only what is shown is measured

        return free_bytes(self.cache_dir)


Choose: TypeAlias = Callable[[Offer], Sequence[int]]
"""Returns the numbers of what is chosen, from 0 on; none if that is nothing."""
