"""What became of repos that were moved, as the reports of several commands have it."""

from __future__ import annotations

from typing import Literal

import msgspec

from vlmcache.change.plan import Failure

MoveState = Literal[
    "planned", "moved", "linked", "finished", "taken-back", "relinked", "recalled", "failed"
]


def moved_words(place: str) -> str:
    """Return the reason of a removal whose repo is complete at another place."""
    return f"moved to {place}"


class MovedRepo(msgspec.Struct, frozen=True):
    """What became of one repo."""

    repo: str
    type: str
    path: str
    """Its place in the cache."""
    destination: str
    """Its new place."""
    state: MoveState
    """`planned` (`--dry-run`); `moved`; `linked` if only the link was missing after an interrupted
    move; `finished` if only the removal of what that move had set aside was; `taken-back` by
    `--undo`; `relinked` by `--relink`; `recalled` by `vlmcache recall`; `failed`."""
    size: int = 0
    """Length in bytes, shared blobs included."""
    error: Failure | None = None


class DriveUse(msgspec.Struct, frozen=True):
    """What was freed on one drive and copied to it. All figures are bytes."""

    path: str
    """The cache on it."""
    freed: int
    copied: int
    """What was written to it."""
    free: int | None
    """What is free on it now; `None` if the system does not say."""
