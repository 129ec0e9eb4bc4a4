"""One action of a removal: what keeps it from being done, and what became of it."""

from __future__ import annotations

import os
from typing import Literal, TypeAlias

from vlmcache import log
from vlmcache.cache.tree import StaleError
from vlmcache.change.plan import Outcome, ReleaseShared, Remove, RemoveTree
from vlmcache.errors import InUseError

Result: TypeAlias = Literal["done", "absent", "stale", "busy", "failed"]
Removing: TypeAlias = Remove | RemoveTree | ReleaseShared


class TakenError(InUseError):
    """Some process uses it now."""


class Attempt:
    """An action, what became of it, and the bytes of disk that it has given back so far."""

    def __init__(self, action: Removing) -> None:
        self.action = action
        self.freed = 0
        self.outcome: Outcome | None = None

    def note(self, result: Result, detail: str | None = None) -> None:
        """Keep what became of the action by now."""
        name = str(self.action.__struct_config__.tag)
        write = log.debug if result in ("done", "absent") else log.info
        why = f": {detail}" if detail else ""
        write("remove", "%s: %s '%s'%s", result, name, self.action.path, why)
        self.outcome = Outcome(name, self.action.path, result, self.freed, detail=detail)


REFUSALS = (TakenError, OSError)


def result_of(error: Exception, path: str) -> tuple[Result, str | None]:
    """Return what became of an action at a path that ended in one of `REFUSALS`, and why."""
    if isinstance(error, FileNotFoundError):
        return "absent", None
    if isinstance(error, OSError):
        return "stale" if isinstance(error, StaleError) else "failed", refusal(error, path)
    return "busy", str(error)


def refusal(error: OSError, path: str) -> str:
    """Return in words why something was not done at a path."""
    if error.errno is None:
        return str(error)
    named = error.filename
    # Names relative to an open folder would say nothing to the user.
    complete = isinstance(named, str) and os.path.isabs(named)
    return f"{error.strerror or error}: {named if complete else path}"
