"""Which models `clean --to` moves to another drive, from the state of a cache alone (pure)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from vlmcache.cache.entries import is_stale
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.usage import LastUse, Usage
from vlmcache.change.plan import Action, Kept, Move, Plan, RemoveTree, joined
from vlmcache.change.removals import Key, Protected
from vlmcache.change.waste import busy_repos, kept_in_use
from vlmcache.commands.move.plan import Destination, MoveChoice, move_of, plan_move
from vlmcache.commands.move.survey import refusal_of
from vlmcache.commands.remove.plan import LINKED_OUTSIDE, with_links_outside
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.units import size_text

_LEFT_HERE = 8192
"""Bytes of disk that a link and the record of a move may take in the cache."""


class ArchiveFacts(msgspec.Struct, frozen=True):
    """What the choice is made from, in addition to the state of the cache."""

    now: float
    """Seconds since the epoch."""
    free_now: int | None
    """Bytes free on the cache's disk."""
    room: int
    """Bytes free on the other drive."""
    last_used: Mapping[Key, LastUse]
    """(repo folder, commit) -> last use; a revision that is missing was never used."""
    configured: Protected
    """Revisions that config.yaml names: their models are moved last."""
    kept: Protected
    """Revisions whose models are not moved."""
    usage: Usage
    """Who uses what now."""
    rest: Sequence[str] = ()
    """Folders of repos that an interrupted move has brought over and not finished."""


class Archiving(NamedTuple):
    """What is to be done, in one plan.

    Args:
        plan: the removals of waste, then the moves.
        folders: the repos that are moved, in order.
        missed: bytes by which the plan misses the goal.
    """

    plan: Plan
    folders: Sequence[str]
    missed: int


def plan_archiving(
    state: CacheState,
    destination: Destination,
    options: CleanOptions,
    facts: ArchiveFacts,
    waste: Plan,
) -> Archiving:
    """Return the plan that moves the least recently used models until the goal is reached.

    Args:
        state: the cache; its `dir` is a real path.
        destination: the other cache.
        options: the age and the sizes that are the goal.
        facts: what else is known.
        waste: what is removed in any case.
    """
    goal = goal_of(state, options, facts.free_now, waste)
    candidates, kept = _candidates(state, destination, facts, waste)
    chosen: dict[str, str] = {}
    counted, room = set(destination.state.shared), facts.room
    gained = too_old = 0
    for repo in candidates:
        why = _why(repo, options, facts, needed=gained < goal)
        if why is None:
            continue
        move = move_of(state, destination, repo, {*counted})
        if move.needs > room:
            words = f"does not fit: {size_text(move.needs)} needed at {destination.path}"
            kept.append(Kept(repo.path, repo.id, f"{words}, {size_text(room)} free"))
            too_old += repo.by_class.total if why != _LEAST_RECENT else 0
            continue
        counted.update(move.shared)
        room -= move.needs
        chosen[repo.folder] = why
        gained += _gain(state, repo, chosen)
    moves = plan_move(state, destination, MoveChoice([*chosen], facts.rest), link=True)
    removed = {action.path for action in waste.actions}
    actions = tuple(
        _because(action, chosen) for action in moves.actions if action.path not in removed
    )
    missed = max(0, too_old, goal - gained)
    if not kept and len(chosen) == len(candidates) and missed <= state.by_class.metadata:
        missed = 0  # folders and links stay in a cache without content
    if not missed and options.older_than is None:
        # The goal is reached without the others.
        kept = [stay for stay in kept if stay.reason.startswith(("does not fit", "in use"))]
    stays = {stay.path for stay in waste.kept}
    moves = Plan(
        actions,
        sum(getattr(action, "frees", 0) for action in actions),
        moves.needs,
        tuple(stay for stay in kept if stay.path not in stays),
    )
    return Archiving(joined([waste, moves]), [*chosen], missed)


def goal_of(state: CacheState, options: CleanOptions, free_now: int | None, waste: Plan) -> int:
    """Return how many bytes the sizes ask for that the removal of waste does not give back."""
    inside = os.path.join(state.dir, "")
    freed = sum(
        getattr(action, "frees", 0) for action in waste.actions if action.path.startswith(inside)
    )
    goal = 0
    if options.max_size is not None:
        goal = max(goal, state.size_on_disk - options.max_size - freed)
    if options.free is not None and free_now is not None:
        goal = max(goal, options.free - free_now - freed)
    return goal


_LEAST_RECENT = "least recently used"


def _why(repo: Repo, options: CleanOptions, facts: ArchiveFacts, *, needed: bool) -> str | None:
    """Return why a repo is moved, `None` if it is not."""
    age = facts.now - _used_at(repo, facts)
    if options.older_than is not None and age > options.older_than:
        return f"unused for {int(age // 86400)} days"
    return _LEAST_RECENT if needed else None


def _candidates(
    state: CacheState, destination: Destination, facts: ArchiveFacts, waste: Plan
) -> tuple[list[Repo], list[Kept]]:
    """Return the repos that may be moved, the next one first, and which may not and why."""
    gone = {
        action.path
        for action in waste.actions
        if isinstance(action, RemoveTree) and action.kind == "repo"
    }
    busy, linked = busy_repos(state, facts.usage), with_links_outside(state)
    candidates: list[Repo] = []
    kept: list[Kept] = []
    for repo in state.repos:
        if repo.linked_to is not None or repo.path in gone or not repo.revisions:
            continue
        if repo.folder in busy:
            kept.append(kept_in_use(repo.path, repo, busy[repo.folder]))
            continue
        why = _why_stays(repo, destination, facts, linked)
        if why is None:
            candidates.append(repo)
        else:
            kept.append(Kept(repo.path, repo.id, why))
    configured = {repo.folder for repo in candidates if _protects(facts.configured, repo)}
    candidates.sort(
        key=lambda repo: (repo.folder in configured, _used_at(repo, facts), repo.folder)
    )
    return candidates, kept


def _why_stays(
    repo: Repo, destination: Destination, facts: ArchiveFacts, linked: Protected
) -> str | None:
    if any(not is_stale(partial, facts.now) for partial in repo.partials):
        return "a download into it was written to within the last hour"
    kept = _protects(facts.kept, repo)
    if kept is not None:
        return kept
    if all(linked.why(repo.folder, revision.commit) for revision in repo.revisions):
        return LINKED_OUTSIDE
    refusal = refusal_of(repo, destination)
    return None if refusal is None else refusal.message.removeprefix(f"{repo.id} ")


def _protects(protected: Protected, repo: Repo) -> str | None:
    whys = (protected.why(repo.folder, revision.commit) for revision in repo.revisions)
    return next(filter(None, whys), None)


def _used_at(repo: Repo, facts: ArchiveFacts) -> float:
    """Return when a revision of a repo was last used, in seconds since the epoch."""
    keys = ((repo.folder, revision.commit) for revision in repo.revisions)
    return max((facts.last_used[key].at for key in keys if key in facts.last_used), default=0.0)


def _gain(state: CacheState, repo: Repo, chosen: Mapping[str, str]) -> int:
    """Return what the cache's disk gets back by the move of a repo, the last of those chosen."""
    gain = repo.by_class.total - _LEFT_HERE
    for name in {blob.shared for blob in repo.blobs.values() if blob.shared in state.shared}:
        shared = state.shared[name or ""]
        if shared.links <= 1 and {user.partition("/")[0] for user in shared.users} <= set(chosen):
            gain += shared.allocated + shared.manifest_allocated
    return gain


def _because(action: Action, chosen: Mapping[str, str]) -> Action:
    """Return an action of a move; a move says why the repo was chosen."""
    if isinstance(action, Move):
        why = chosen[os.path.basename(action.path)]
        return msgspec.structs.replace(action, reason=f"{why}; {action.reason}")
    return action
