"""What `undo` and `trash` return."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from vlmcache.cache.state import Finding
from vlmcache.change.plan import TRY_AGAIN, Receipt
from vlmcache.change.trash_undo import Step
from vlmcache.errors import PartlyError, VlmcacheError
from vlmcache.report import Report
from vlmcache.units import counted


class NothingToUndoError(VlmcacheError):
    """No removal in the trash is the one that is to be undone."""

    code = "nothing-to-undo"


class NameTakenError(VlmcacheError):
    """Something else has the name of what is to be restored."""

    code = "name-taken"


class RestoredItem(msgspec.Struct, frozen=True):
    """One thing that a removal has put into the trash."""

    path: str
    """Its place in the cache."""
    kind: str
    repo: str | None
    step: Step
    """restore: it is renamed to its place. merge: its place is taken by the same, or by a part of
    it. there: it is in the cache already. missing: it is neither there nor in the trash."""


class UndoReport(Report, frozen=True):
    """What `vlmcache undo` would restore, or has restored."""

    id: str
    removed_at: datetime
    names: tuple[str, ...]
    """The models, revisions or paths that were removed."""
    size: int
    """Bytes on disk that the trash keeps of it."""
    items: tuple[RestoredItem, ...]
    receipt: Receipt | None = None
    findings: tuple[Finding, ...] = ()
    """What is restored and not complete."""
    cache: str = ""

    @property
    def ids(self) -> list[str]:
        """Each model, revision or path that is or would be restored."""
        return list(self.names)

    @property
    def problem(self) -> VlmcacheError | None:
        """What could not be restored."""
        undone = self.receipt.undone if self.receipt is not None else []
        if undone:
            first = undone[0]
            return PartlyError(
                f"{len(undone)} of {counted(len(self.items), 'item')} could not be restored: "
                f"{first.detail or first.path}",
                "what is left is in the trash: run it again",
            )
        if self.findings:
            return PartlyError(self.findings[0].detail, self.findings[0].remedy)
        return super().problem


class TrashedRemoval(msgspec.Struct, frozen=True):
    """One removal in the trash. Sizes are bytes."""

    id: str
    removed_at: datetime
    expires_at: datetime
    """From then on the next command that changes the cache removes it."""
    days_left: float
    names: tuple[str, ...]
    """The models, revisions or paths that were removed."""
    size_on_disk: int
    frees: int
    """What emptying the trash of it gives back; less than its size if others link to the same."""
    path: str
    complete: bool
    """Whether the removal came to its end; `undo` restores one that was interrupted too."""
    places: tuple[str, ...] = ()
    """Places of moved models that have a part of it."""
    receipt: Any = None
    """What the removal had reported."""


class TrashReport(Report, frozen=True):
    """What is in the trash of a cache, and what emptying it has given back."""

    cache: str
    removals: tuple[TrashedRemoval, ...]
    """The latest first."""
    size_on_disk: int
    frees: int
    receipt: Receipt | None = None

    @property
    def ids(self) -> list[str]:
        """The id of each removal."""
        return [removal.id for removal in self.removals]

    @property
    def problem(self) -> VlmcacheError | None:
        """What could not be emptied."""
        undone = self.receipt.undone if self.receipt is not None else []
        if not undone:
            return super().problem
        first = undone[0]
        return PartlyError(
            f"{len(undone)} of {counted(len(self.removals), 'removal')} could not be emptied: "
            f"{first.detail or first.path}",
            "run it again" if first.result == "stale" else TRY_AGAIN,
        )
