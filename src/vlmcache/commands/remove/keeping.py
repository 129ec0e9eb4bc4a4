"""Whether a removal is kept in the trash, decided before anybody is asked."""

from __future__ import annotations

from collections.abc import Collection

from vlmcache.cache.state import CacheState
from vlmcache.change.plan import Plan, Remove, RemoveTree
from vlmcache.change.space import free_bytes
from vlmcache.change.trash import KEPT_KINDS, Keep, can_keep
from vlmcache.commands.remove.facts import removed_revisions
from vlmcache.commands.remove.values import Keeping, Removal
from vlmcache.config import Limits, Session
from vlmcache.errors import CacheError
from vlmcache.paths import real_path
from vlmcache.units import size_text


def decide_keeping(
    session: Session, plan: Plan, places: Collection[str], wanted: bool | None, *, asked: bool
) -> Keeping:
    """Return whether what a plan removes is kept in the trash.

    Args:
        session: the cache, and how long its trash keeps.
        plan: the plan.
        places: the folders of moved models that it removes from.
        wanted: whether it was asked for; if not given, a removal that a person confirms is kept as
            long as enough is free without what it would free.
        asked: whether a person confirms it.

    Raises:
        CacheError: it was asked for, and is impossible.
    """
    kept = any(getattr(action, "kind", "") in KEPT_KINDS for action in plan.actions)
    days = session.config.trash_days
    if wanted is False or not kept or (wanted is None and not (asked and days)):
        return Keeping()
    folders = [session.cache.dir, *places]
    unable = next((folder for folder in folders if not can_keep(folder)), None)
    if wanted:
        if unable is not None:
            raise CacheError(
                f"nothing can be kept: there is no place for the trash of {unable}",
                "--no-trash frees at once; 'vlmcache doctor' shows the permissions",
            )
        return Keeping(True, days or Limits().trash_days)
    if unable is not None:
        return Keeping(why_not=f"there is no place for the trash of {unable}")
    bound = session.config.comfortable_for
    free = min((free_bytes(folder) or 0 for folder in folders), default=0)
    if free <= bound:
        return Keeping(
            why_not=f"{size_text(free)} is free, not more than the comfortable {size_text(bound)}"
        )
    return Keeping(True, days)


def keep_of(removal: Removal, state: CacheState, places: Collection[CacheState]) -> Keep | None:
    """Return what the record in the trash says of a removal; `None` if nothing is kept."""
    if not removal.trash.kept:
        return None
    revisions = removed_revisions(state, removal.plan)
    for place in places:
        revisions |= removed_revisions(place, removal.plan)
    names = dict.fromkeys(
        action.repo or action.path
        for action in removal.plan.actions
        if isinstance(action, Remove | RemoveTree) and action.kind in KEPT_KINDS
    )
    return Keep(
        removal.trash.days,
        tuple(removal.ids or names),
        real_path(state.dir),
        tuple(sorted(revisions)),
    )
