"""A plan of removals carried out: at the places that models were moved to, then in the cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection

from vlmcache.cache.moved import read_moves, record_path
from vlmcache.change.plan import Outcome, Plan, Receipt, ReleaseShared, Remove, RemoveTree
from vlmcache.errors import VlmcacheError


def apply_removals(
    plan: Plan,
    cache_dir: str,
    places: Collection[str],
    *,
    in_use: Collection[tuple[int, int]] = (),
    force: bool = False,
) -> Receipt:
    """Carry a plan of removals out: first at the places that models were moved to, then here.

    A link stays as long as what it leads to, so that a second run finds what is left to finish.

    Args:
        plan: its actions lie in the cache or at the places.
        cache_dir: the cache.
        places: folders to which `move` has brought models.
        in_use: (device, inode) of files that processes use.
        force: remove in spite of locks and uses.
    """
    from vlmcache.change.moved_note import write_moves
    from vlmcache.change.remove import execute

    receipts: list[Receipt] = []
    left = [
        action for action in plan.actions if isinstance(action, Remove | RemoveTree | ReleaseShared)
    ]
    for place in sorted(places):
        inside = place.rstrip(os.sep) + os.sep
        inner = [action for action in left if action.path.startswith(inside)]
        left = [action for action in left if not action.path.startswith(inside)]
        if inner:
            receipts.append(execute(Plan(tuple(inner)), place, in_use=in_use, force=force))
    stay: list[Outcome] = []
    kept_there = {outcome.path: outcome for receipt in receipts for outcome in receipt.undone}
    for action in list(left):
        parent, folder = os.path.split(action.path)
        if not isinstance(action, Remove) or action.kind != "link" or parent != cache_dir:
            continue
        targets = (os.path.join(place, folder) for place in places)
        target = next((kept_there[path] for path in targets if path in kept_there), None)
        if target is not None:
            paths = (action.path, record_path(cache_dir, folder))
            left = [other for other in left if other.path not in paths]
            why = f"what it leads to stays: {target.path}"
            stay.append(Outcome("remove", action.path, target.result, detail=why))
    receipts.append(execute(Plan(tuple(left)), cache_dir, in_use=in_use, force=force))
    for place in places:
        noted = read_moves(place)
        kept = {
            folder: move
            for folder, move in noted.items()
            if os.path.lexists(os.path.join(place, folder))
            or move.cache != os.path.realpath(cache_dir)
            or os.path.lexists(os.path.join(cache_dir, folder))
        }
        if kept != noted:
            # A note that stays of what is gone does no harm.
            with contextlib.suppress(OSError, VlmcacheError):
                write_moves(place, kept)
    outcomes = (*(outcome for receipt in receipts for outcome in receipt.outcomes), *stay)
    return Receipt(outcomes, sum(receipt.freed for receipt in receipts))
