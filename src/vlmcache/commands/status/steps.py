"""What recommendations are made of: the commands, the downloads, and the room on the disk."""

from __future__ import annotations

import shlex

import msgspec

from vlmcache import units
from vlmcache.cache.state import Finding
from vlmcache.change.plan import Plan
from vlmcache.commands.status.values import Recommendation
from vlmcache.config import Session, options_in_force
from vlmcache.units import size_text


class Advice:
    """Commands for the same cache and configuration."""

    def __init__(self, session: Session) -> None:
        self.options = options_in_force(session.config, session.cache)

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

    name: what to type for the model. known: whether the plan tells how much is fetched; otherwise
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


class Room(msgspec.Struct, frozen=True):
    """The bytes of the cache and of its disk, and the limits that they are held against."""

    size_on_disk: int
    free: int | None
    min_free: int
    comfortable_free: int
    max_size: int | None

    @property
    def bound(self) -> int | None:
        """What should be free, `None` if it is."""
        if self.free is None or self.free >= max(self.comfortable_free, self.min_free):
            return None
        return self.min_free if self.free < self.min_free else self.comfortable_free

    @property
    def low(self) -> str:
        """How little is free, in words."""
        free = size_text(self.free or 0)
        if (self.free or 0) < self.min_free:
            return f"{free} free, below the minimum of {size_text(self.min_free)}"
        return f"{free} free, under the comfortable {size_text(self.comfortable_free)}"
