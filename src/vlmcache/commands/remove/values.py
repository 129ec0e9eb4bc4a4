"""What `rm` and `clean` are asked for and answer with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from vlmcache.change.in_use import InUseError, in_use_words
from vlmcache.change.plan import Kept, Plan, Receipt, Remove, RemoveTree
from vlmcache.errors import ChangedError, ExitCode, PartlyError, VlmcacheError
from vlmcache.home.copies import KeptCopy
from vlmcache.units import size_text


class UnconfirmedError(VlmcacheError):
    """Nobody said yes."""

    code = "unconfirmed"
    exit_code = ExitCode.UNCONFIRMED


class RemovalError(VlmcacheError):
    """None of it was done."""

    code = "not-removed"
    exit_code = ExitCode.FAILED


class SideCache(msgspec.Struct, frozen=True):
    """A cache of the hub's libraries beside the hub cache: `xet` chunks, remote code `modules`.

    size_on_disk counts what that library wrote there, and nothing else of the folder.
    """

    name: str
    path: str
    exists: bool
    size_on_disk: int


class UnknownUse(msgspec.Struct, frozen=True):
    """Old revisions that stay only because their last use is unknown.

    size is what removing them would free, command what removes them.
    """

    size: int
    command: str


class Removal(msgspec.Struct, frozen=True):
    """What `vlmcache rm` and `vlmcache clean` answer.

    receipt is absent where nothing was carried out. in_use: what processes use, and who they are.
    missed_by: bytes that could not be freed of those asked for. hidden_processes: processes of
    other users that could not be looked into. copies: kept quantised copies that go with their
    models; they lie outside the cache, so that plan and receipt do not count them.
    """

    plan: Plan
    receipt: Receipt | None = None
    in_use: tuple[Kept, ...] = ()
    missed_by: int = 0
    hidden_processes: int = 0
    side_caches: tuple[SideCache, ...] = ()
    copies: tuple[KeptCopy, ...] = ()
    cache: str = ""
    """The hub cache."""
    unknown_use: UnknownUse | None = None


Confirm: TypeAlias = Callable[[Removal], bool]


class Wishes(msgspec.Struct, frozen=True):
    """What `clean` is asked for in addition to waste. Sizes are bytes, durations seconds.

    partials: unfinished downloads that nobody has written to for an hour, needed or not. evict:
    configured models that may be evicted like any other. keep: models of which nothing goes. xet,
    modules: empty that side cache.
    """

    older_than: float | None = None
    max_size: int | None = None
    free: int | None = None
    duplicates: bool = False
    everything: bool = False
    evict: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    xet: bool = False
    modules: bool = False
    partials: bool = False


def ask(removal: Removal, confirm: Confirm | None) -> None:
    """Let whoever is asked confirm the plan, if anybody is."""
    if removal.plan.actions and confirm is not None and not confirm(removal):
        raise UnconfirmedError("not confirmed: nothing was removed")


def problem(removal: Removal) -> VlmcacheError | None:
    """Return the failure that a removal has to tell of, or `None` if all went as asked."""
    receipt = removal.receipt
    if receipt is None:
        blocked = [kept for kept in removal.in_use if kept.path not in _kept_paths(removal)]
        return _in_use_error(blocked) if blocked else _shortfall(removal)
    by_result: dict[str, list[str]] = {}
    for outcome in receipt.outcomes:
        by_result.setdefault(outcome.result, []).append(outcome.detail or outcome.path)
    done = "done" in by_result or "absent" in by_result or receipt.freed > 0
    failed = by_result.get("failed")
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        words = f"{len(failed)} of {len(receipt.outcomes)} could not be removed: {failed[0]}{more}"
        hint = "'vlmcache doctor' may tell why"
        return PartlyError(words, hint) if done else RemovalError(words, hint)
    if "stale" in by_result:
        stale = len(by_result["stale"])
        return ChangedError(
            f"the cache changed since the plan was made: {stale} left alone", "run it again"
        )
    if "busy" in by_result:
        words = f"{len(by_result['busy'])} came into use meanwhile and stay: {by_result['busy'][0]}"
        later = "'vlmcache clean' removes the rest, once that has ended"
        return PartlyError(words, later) if done else InUseError(words)
    return _shortfall(removal)


def _kept_paths(removal: Removal) -> set[str]:
    return {kept.path for kept in removal.plan.kept}


def _in_use_error(blocked: Sequence[Kept]) -> InUseError:
    words = in_use_words(blocked)
    return InUseError(f"nothing was removed: {words}", "--force removes it nevertheless")


def _shortfall(removal: Removal) -> PartlyError | None:
    if not removal.missed_by:
        return None
    stays = {kept.repo or kept.path: kept.reason for kept in removal.plan.kept}
    configured = any(reason.startswith("configured") for reason in stays.values())
    why = "nothing else can be removed"
    if stays:
        shown = [f"{name} ({reason})" for name, reason in list(stays.items())[:3]]
        more = f" and {len(stays) - 3} more" if len(stays) > 3 else ""
        why = f"{', '.join(shown)}{more} stay{'s' if len(stays) == 1 else ''}"
    return PartlyError(
        f"{size_text(removal.missed_by)} short of what was asked for: {why}",
        "name a configured model to let it be evicted, or 'vlmcache rm' it" if configured else None,
    )


_ALONG = frozenset({"ref", "tree", "no-exist", "blob", "lock", "locks", "folder"})
"""Kinds of what goes along with a repo or revision."""


def ids(removal: Removal) -> list[str]:
    """Return one line for each repo or path that goes or went, for `--quiet`.

    What goes along with something of the same repo has no line of its own.
    """
    outcomes = removal.receipt.outcomes if removal.receipt else ()
    gone = {one.path for one in outcomes if one.result in ("done", "absent")}
    actions = [
        action
        for action in removal.plan.actions
        if isinstance(action, Remove | RemoveTree)
        and (removal.receipt is None or action.path in gone)
    ]
    named = {action.repo for action in actions if action.kind not in _ALONG}
    names: dict[str, None] = {}
    for action in actions:
        if action.kind in _ALONG and action.repo in named:
            continue
        commit = action.commit if action.kind == "snapshot" else None
        repo = action.repo or action.path
        names[f"{repo}@{commit}" if commit else repo] = None
    return list(names)
