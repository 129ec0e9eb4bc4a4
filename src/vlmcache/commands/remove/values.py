"""What `rm` and `clean` are asked for, and what they return."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.owners import cache_of, denial
from vlmcache.cache.state import Finding
from vlmcache.change.move_results import DriveUse, MovedRepo, moved_words
from vlmcache.change.plan import (
    TRY_AGAIN,
    Action,
    Failure,
    Kept,
    Move,
    Outcome,
    PlaceLink,
    Plan,
    Receipt,
    Remove,
    RemoveTree,
    in_use_words,
)
from vlmcache.errors import (
    ChangedError,
    ExitCode,
    InUseError,
    PartlyError,
    VlmcacheError,
)
from vlmcache.home.copies import KeptCopy
from vlmcache.report import Report
from vlmcache.units import and_more, counted, size_text

ALONG = frozenset(
    {"ref", "record", "folder", "blob", "tree", "no-exist", "shared", "lock", "locks"}
)
"""Kinds of what is removed along with a repo or revision."""


class RemovalError(VlmcacheError):
    """Nothing was removed."""

    code = "not-removed"
    exit_code = ExitCode.FAILED


class SideCache(msgspec.Struct, frozen=True):
    """A cache of the hub's libraries next to the hub cache: `xet` chunks, remote code `modules`."""

    name: str
    path: str
    exists: bool
    size_on_disk: int
    """Bytes of what that library wrote there, and of nothing else in the folder."""


class UnknownUse(msgspec.Struct, frozen=True):
    """Old revisions that stay only because their last use is unknown."""

    size: int
    """Bytes that removing them would free."""
    command: str
    """What removes them."""


class Keeping(msgspec.Struct, frozen=True):
    """Whether what is removed is kept in the trash."""

    kept: bool = False
    days: int = 0
    """For how long, if it is."""
    why_not: str | None = None
    """Why it is freed at once, if it would be kept otherwise."""


class RemoveOptions(msgspec.Struct, frozen=True):
    """How `rm` removes what was named."""

    revision: str | None = None
    """The revision to remove of each model; the complete repo if not given."""
    force: bool = False
    """Whether to remove what a process uses."""
    include: tuple[str, ...] = ()
    """Patterns of the only files to remove; all files if there are none."""
    trash: bool | None = None
    """Whether to keep it in the trash; if `None`, what a person confirms is kept if there is room.
    """


class CleanOptions(msgspec.Struct, frozen=True):
    """What `clean` is asked for in addition to waste. Sizes are bytes, durations seconds."""

    older_than: float | None = None
    """Evict revisions that were not used for so long."""
    max_size: int | None = None
    """Evict until the cache occupies no more than this."""
    free: int | None = None
    """Evict until the disk has this much free."""
    duplicates: bool = False
    """Remove second weight formats of revisions that load without them."""
    everything: bool = False
    """Remove all that is the hub's."""
    evict: tuple[str, ...] = ()
    """Configured models that may be evicted like any other."""
    keep: tuple[str, ...] = ()
    """Models of which nothing is removed."""
    xet: bool = False
    """Empty the cache of Xet chunks."""
    modules: bool = False
    """Empty the cache of remote code."""
    partials: bool = False
    """Remove unfinished downloads that nobody has written to for an hour, needed or not."""
    trash: bool | None = None
    """Whether to keep in the trash what is removed."""
    to: str | None = None
    """A folder on another drive, to which models are moved instead of being evicted."""

    @property
    def evicts(self) -> bool:
        """Whether an age or a size is asked for, to which models have to give way."""
        return (self.older_than, self.max_size, self.free) != (None, None, None)


class Archive(msgspec.Struct, frozen=True):
    """Where `clean --to` moves models, and what became of each."""

    destination: str
    """Its real path; a hub cache of its own."""
    repos: tuple[MovedRepo, ...]
    """The models, the least recently used first."""
    free: int | None = None
    """Bytes free there when the plan was made; `None` if the system does not say."""
    drives: tuple[DriveUse, ...] = ()
    """What became of the room on each drive; empty if nothing was done."""
    seconds: float = 0.0
    """How long the moves took."""
    error: Failure | None = None
    """Why nothing could be moved, if that is so."""

    @property
    def problem(self) -> VlmcacheError | None:
        """Why a model that was to be moved stays, `None` if none does."""
        failed = [(repo.repo, repo.error) for repo in self.repos if repo.error is not None]
        if self.error is not None and not failed:
            return PartlyError(f"not moved: {self.error.message}", self.error.hint)
        if not failed:
            return None
        repo_id, error = failed[0]
        more = f"{repo_id}{and_more(len(failed) - 1)}: "
        if error.message.startswith(f"{repo_id} ") and len(failed) == 1:
            more = ""
        return PartlyError(f"not moved: {more}{error.message}", error.hint)

    def owns(self, action: Action) -> bool:
        """Return whether an action of the plan is part of a move."""
        return isinstance(action, Move | PlaceLink) or action.reason == moved_words(
            self.destination
        )


class Removal(Report, frozen=True):
    """What `vlmcache rm` and `vlmcache clean` planned, and what they removed."""

    plan: Plan
    receipt: Receipt | None = None
    """What became of the plan, if it was carried out."""
    in_use: tuple[Kept, ...] = ()
    """What processes use, and who they are."""
    missed_by: int = 0
    """Bytes that could not be freed of those asked for."""
    hidden_processes: int = 0
    """Processes of other users whose open files cannot be seen."""
    contained: bool = False
    """Whether processes outside this container cannot be seen either."""
    side_caches: tuple[SideCache, ...] = ()
    copies: tuple[KeptCopy, ...] = ()
    """Kept quantized copies that are removed with their models. They lie outside the cache, so that
    plan and receipt do not count them."""
    cache: str = ""
    """The hub cache."""
    unknown_use: UnknownUse | None = None
    findings: tuple[Finding, ...] = ()
    """Which models that stay need what is removed."""
    trash: Keeping = Keeping()
    archive: Archive | None = None
    """What is moved to another drive; `None` unless models are to give way by that."""

    @property
    def removals(self) -> tuple[Action, ...]:
        """The actions of the plan after which something is gone, and not at another place."""
        owns = self.archive.owns if self.archive is not None else lambda _: False
        return tuple(action for action in self.plan.actions if not owns(action))

    @property
    def ids(self) -> list[str]:
        """Each repo or path that is or would be removed.

        What is removed along with something of the same repo has no line of its own.
        """
        outcomes = self.receipt.outcomes if self.receipt else ()
        gone = {outcome.path for outcome in outcomes if outcome.result in ("done", "absent")}
        actions = [
            action
            for action in self.plan.actions
            if isinstance(action, Remove | RemoveTree)
            and (self.receipt is None or action.path in gone)
        ]
        named = {action.repo for action in actions if action.kind not in ALONG}
        names: dict[str, None] = {}
        for action in actions:
            if action.kind in ALONG and action.repo in named:
                continue
            commit = action.commit if action.kind == "snapshot" else None
            repo = action.repo or action.path
            names[f"{repo}@{commit}" if commit else repo] = None
        return list(names)

    @property
    def in_one_line(self) -> str:
        """What was freed, or would be."""
        archive = self.archive
        if not self.plan.actions and (archive is None or not archive.repos):
            return "nothing to remove" if archive is None else "nothing to remove or to move"
        if self.receipt is None:
            return f"would free {size_text(self.plan.frees)}"
        moved = [repo for repo in archive.repos if repo.state == "moved"] if archive else []
        words = f"moved {counted(len(moved), 'model')}, " if moved else ""
        return f"{words}freed {size_text(self.receipt.freed)}"

    @property
    def problem(self) -> VlmcacheError | None:
        """What kept the plan from being carried out as asked, `None` if nothing did."""
        if "_problem" in self.__dict__:
            return super().problem
        if self.receipt is not None:
            if self.receipt.stopped is not None:
                return PartlyError(
                    self.receipt.stopped, "remove what keeps the space first, then run it again"
                )
            moved = self.archive.problem if self.archive is not None else None
            return moved or _receipt_problem(self.receipt, self.cache) or self._shortfall()
        kept = {kept.path for kept in self.plan.kept}
        blocked = [used for used in self.in_use if used.path not in kept]
        if not blocked:
            return self._shortfall()
        return InUseError(
            f"nothing was removed: {in_use_words(blocked)}",
            "stop that first; --force removes it anyway",
        )

    def _shortfall(self) -> PartlyError | None:
        if not self.missed_by:
            return None
        stays = {kept.repo or kept.path: kept.reason for kept in self.plan.kept}
        configured = any(reason.startswith(("configured", "shipped")) for reason in stays.values())
        why = "nothing else can be removed"
        if stays:
            shown = [f"{name} ({reason})" for name, reason in list(stays.items())[:3]]
            why = (
                f"{', '.join(shown)}{and_more(len(stays) - 3)} stay{'s' if len(stays) == 1 else ''}"
            )
        hint = "name one of these models to let it be evicted"
        if self.archive is not None:
            configured = True
            hint = f"make room at {self.archive.destination}, or name another folder with --to"
        return PartlyError(
            f"{size_text(self.missed_by)} short of what was asked for: {why}",
            hint if configured else None,
        )


Confirm: TypeAlias = Callable[[Removal], bool]


def is_of_locks(outcome: Outcome) -> bool:
    """Return whether an outcome says only that locks stay, as they do if what they are of stays."""
    return f"{os.sep}{layout.LOCKS}{os.sep}" in outcome.path and outcome.result != "failed"


def _receipt_problem(receipt: Receipt, cache_dir: str) -> VlmcacheError | None:
    by_result: dict[str, list[str]] = {}
    for outcome in receipt.outcomes:
        if not is_of_locks(outcome):
            by_result.setdefault(outcome.result, []).append(outcome.detail or outcome.path)
    done = "done" in by_result or "absent" in by_result or receipt.freed > 0
    failed = by_result.get("failed")
    if failed:
        more = and_more(len(failed) - 1)
        words = f"{len(failed)} of {len(receipt.outcomes)} could not be removed: {failed[0]}{more}"
        hint = TRY_AGAIN
        # The path that was refused, which can be in the leftovers by now.
        refused = failed[0].partition(": ")[2] or failed[0]
        denied = denial(
            refused, cache_of(refused) or cache_dir, to_write=True, linked_from=cache_dir
        )
        if denied is not None:
            words, hint = f"{words}: {denied.words}", denied.remedy
        return PartlyError(words, hint) if done else RemovalError(words, hint)
    if "busy" in by_result:
        busy = by_result["busy"]
        words = f"left alone, since it came into use: {busy[0]}{and_more(len(busy) - 1)}"
        later = "'vlmcache clean' removes the rest, once that has ended"
        again = "run it again once that has ended"
        return PartlyError(words, later) if done else InUseError(words, again)
    if "stale" in by_result:
        stale = len(by_result["stale"])
        return ChangedError(
            f"the cache changed since the plan was made: {stale} left alone", "run it again"
        )
    return None
