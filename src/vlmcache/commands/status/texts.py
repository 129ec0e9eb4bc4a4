"""What recommendations say, in words."""

from __future__ import annotations

from collections.abc import Sequence

from vlmcache.change.plan import Plan, ReleaseShared, Remove, RemoveTree
from vlmcache.commands.status.steps import PendingDownload
from vlmcache.units import duration_text, size_text

_CLASSES = {
    "partial": "unfinished downloads",
    "blob": "blobs that no snapshot links to",
    "snapshot": "revisions",
    "repo": "models",
    "file": "second weight formats",
    "stray": "leftovers",
    "leftover": "leftovers",
}


def to_download(downloads: Sequence[PendingDownload]) -> str:
    """Return what downloads take, in words."""
    noun = "model" if len(downloads) == 1 else "models"
    known = [one for one in downloads if one.known]
    size = sum(one.plan.needs for one in known)
    words = f"{len(downloads)} {noun} to download"
    if not size:
        return words
    return f"{words}, {size_text(size)}{' or more' if len(known) < len(downloads) else ''}"


def freed_by_kind(plan: Plan) -> str:
    """Return what a plan frees by kind, the largest first, and the models that are evicted."""
    frees: dict[str, int] = {}
    removed = [one for one in plan.actions if isinstance(one, Remove | RemoveTree)]
    # A revision's blobs go for the same reason as the revision itself.
    revisions = {(one.repo, one.reason) for one in removed if one.kind == "snapshot"}
    for action in plan.actions:
        name = "blobs of the shared store"
        if isinstance(action, Remove | RemoveTree):
            name = _CLASSES.get(action.kind, "listings and locks")
            if (action.repo, action.reason) in revisions:
                name = "revisions"
        elif not isinstance(action, ReleaseShared):
            continue
        frees[name] = frees.get(name, 0) + action.frees
    largest = sorted(frees, key=lambda name: -frees[name])
    words = ", ".join(f"{size_text(frees[name])} of {name}" for name in largest if frees[name])
    whole = sorted({one.repo for one in removed if one.repo and one.kind in ("repo", "snapshot")})
    if not whole:
        return words
    more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
    return f"{words} ({', '.join(whole[:3])}{more})"


def last_use(age: float | None) -> str:
    """Return when something was last used, from the seconds since then."""
    if age is None:
        return "last use unknown"
    return "used just now" if age < 60 else f"last used {duration_text(age)} ago"
