"""What `attach` and `detach` return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from vlmcache.cache.layout import typed_name
from vlmcache.change.plan import Failure, Kept, Plan, Receipt, in_use_words
from vlmcache.errors import (
    ChangedError,
    InUseError,
    PartlyError,
    SpaceError,
    VlmcacheError,
)
from vlmcache.report import Report
from vlmcache.units import and_more

AttachState = Literal["planned", "attached", "detached", "failed"]


class AttachedRepo(msgspec.Struct, frozen=True):
    """What became of one repo."""

    repo: str
    type: str
    path: str
    """Its place in the cache."""
    state: AttachState
    blobs: int = 0
    """Links into the base that were made or removed, or would be."""
    size: int = 0
    """Bytes of what is, or was, linked into the base."""
    revisions: tuple[str, ...] = ()
    error: Failure | None = None

    @property
    def name(self) -> str:
        """What to type for it."""
        return typed_name(self.type, self.repo)


class AttachReport(Report, frozen=True):
    """What `vlmcache attach` and `vlmcache detach` return."""

    cache: str
    base: str | None
    """The folder of the base; `None` if nothing is attached that could be detached."""
    repos: tuple[AttachedRepo, ...]
    plan: Plan
    receipt: Receipt | None = None
    """What was done; `None` if nothing was."""
    unchanged: int = 0
    """Repos of the base that are here, or linked, completely."""
    in_use: tuple[Kept, ...] = ()
    """What is in use, and by which processes; then nothing is detached."""

    @property
    def ids(self) -> list[str]:
        """The repos that are, or would be, changed."""
        return [repo.name for repo in self.repos if repo.error is None]

    @property
    def problem(self) -> VlmcacheError | None:
        """Why something was not done, or `None` if all went as asked."""
        if self.in_use:
            message = f"nothing was detached: {in_use_words(self.in_use)}"
            return InUseError(message, "end it, then detach again")
        if self.receipt is None or not self.receipt.undone:
            return None
        failed = [(repo.repo, repo.error) for repo in self.repos if repo.error is not None]
        if not failed:
            undone = self.receipt.undone
            is_stale = all(outcome.result == "stale" for outcome in undone)
            words = f"{undone[0].detail or undone[0].path}{and_more(len(undone) - 1)}"
            return (ChangedError if is_stale else PartlyError)(words, "run it again")
        name, error = failed[0]
        if len(failed) < len(self.repos):
            return PartlyError(
                f"{len(failed)} of {len(self.repos)} models were left out: {name}: {error.message}",
                error.hint,
            )
        kinds: dict[str, type[VlmcacheError]] = {
            kind.code: kind for kind in (SpaceError, ChangedError, InUseError)
        }
        kind = kinds.get(error.code, NotAttachedError)
        return kind(f"{name}: {error.message}", error.hint)


class NotAttachedError(VlmcacheError):
    """No model could be attached or detached."""

    code = "not-attached"


Confirm = Callable[[AttachReport], bool]
"""Called with the plan; returns whether to continue."""
