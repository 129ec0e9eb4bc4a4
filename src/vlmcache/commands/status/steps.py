"""What recommendations are made of: commands, downloads, the room on the disk, and words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import msgspec

from vlmcache import units
from vlmcache.cache.state import Finding
from vlmcache.change.plan import Plan, ReleaseShared, Remove, RemoveTree
from vlmcache.commands.status.values import Recommendation
from vlmcache.config import Session, options_in_force
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


class Advice:
    """Commands for the same cache and configuration."""

    def __init__(self, session: Session) -> None:
        self.options = options_in_force(session.config, session.cache)
        self.config_path = session.config.path

    def recommend(self, text: str, name: str, *words: str, frees: int = 0) -> Recommendation:
        """Return a recommendation of one of our commands with its words."""
        return Recommendation(text, self.command(name, *words), frees)

    def command(self, name: str, *words: str) -> str:
        """Return one of our commands with its words and the options that it needs."""
        return units.command(name, *words, *self.options)

    def completed(self, finding: Finding) -> Finding:
        """Return a finding whose remedy, if that is a command, has the options that it needs."""
        remedy, options = finding.remedy or "", shlex.join(self.options)
        if not remedy.startswith("vlmcache ") or "--cache-dir " in remedy or options in remedy:
            return finding
        return msgspec.structs.replace(finding, remedy=f"{remedy} {options}")


class PendingDownload(msgspec.Struct, frozen=True):
    """What a pull would do for one model that is not complete.

    name: what to type for the model. known: whether the plan shows how much is fetched; otherwise
    it stands for one byte. repair: whether only `verify --repair` repairs it.
    """

    name: str
    repo: str
    plan: Plan
    known: bool = True
    damaged: bool = False
    repair: bool = False


class Evictable(msgspec.Struct, frozen=True):
    """A model that nothing protects: what to type for it, what `rm` would free, its last use."""

    name: str
    repo: str
    frees: int
    used: str
    recent: bool
    locked: str | None = None
    """A folder that this user would have to change and cannot."""


def to_download(downloads: Sequence[PendingDownload]) -> str:
    """Return what downloads take, in words."""
    noun = "model" if len(downloads) == 1 else "models"
    size = sum(download.plan.needs for download in downloads if download.known)
    words = f"{len(downloads)} {noun} to download"
    return f"{words}, {size_text(size)}" if size else words


def no_room(downloads: Sequence[PendingDownload]) -> str:
    """Return that downloads have no room, in words."""
    return f"no room to download {', '.join(download.name for download in downloads)}"


def not_for(path: str) -> str:
    """Return why nothing is removed for a limit that a working folder's file sets."""
    return (
        f"{path} asks for more free space than your own configuration, and nothing is removed for "
        "that: lower its min_free"
    )


def freed_by_kind(plan: Plan) -> str:
    """Return what a plan frees by kind, the largest first, and the models that are evicted."""
    frees: dict[str, int] = {}
    removed = [action for action in plan.actions if isinstance(action, Remove | RemoveTree)]
    # A revision's blobs go for the same reason as the revision itself.
    revisions = {(action.repo, action.reason) for action in removed if action.kind == "snapshot"}
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
    evicted = sorted(
        {action.repo for action in removed if action.repo and action.kind in ("repo", "snapshot")}
    )
    if not evicted:
        return words
    more = f" and {len(evicted) - 3} more" if len(evicted) > 3 else ""
    return f"{words} ({', '.join(evicted[:3])}{more})"


def last_use(age: float | None) -> str:
    """Return when something was last used, from the seconds since then."""
    if age is None:
        return "last use unknown"
    return "used just now" if age < 60 else f"last used {duration_text(age)} ago"
