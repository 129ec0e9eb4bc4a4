"""`trash`: what is in it, and emptying it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TypeAlias

import msgspec

from vlmcache.cache.trash import DAY, Trashed, weigh
from vlmcache.change.plan import Receipt
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.change.space import FreeSpace
from vlmcache.change.trash import removals_in
from vlmcache.change.trash_room import empty_trash, parts_of
from vlmcache.commands.trash.values import TrashedRemoval, TrashReport
from vlmcache.config import Session

Confirm: TypeAlias = Callable[[TrashReport], bool]


def trash(
    session: Session, *, empty: bool = False, dry_run: bool = False, confirm: Confirm | None = None
) -> TrashReport:
    """Return what is in the trash of the cache; empty it if that is asked for.

    Args:
        session: the cache.
        empty: remove all of it for good.
        dry_run: only say what that would remove.
        confirm: is given the report, and raises or returns whether to continue.
    """
    cache = session.cache.dir
    tree = RemovalTree(cache)
    removals = removals_in(cache)
    now, days = time.time(), session.config.trash_days
    rows = tuple(_row(tree, trashed, now, days) for trashed in reversed(removals))
    report = TrashReport(
        cache, rows, sum(row.size_on_disk for row in rows), sum(row.frees for row in rows)
    )
    if not empty or dry_run:
        return report
    if rows and confirm is not None and not confirm(report):
        return report
    space = FreeSpace(cache)
    done = empty_trash(session, removals)
    receipt = space.measured(Receipt(done.outcomes, done.freed))
    return msgspec.structs.replace(report, receipt=receipt)


def _row(tree: RemovalTree, trashed: Trashed, now: float, days: int) -> TrashedRemoval:
    parts = [part for _, part in parts_of(tree, trashed) if part is not None]
    weights = [weigh(part.path) for part in (trashed, *parts)]
    record = trashed.record
    expires = trashed.removed_at + days * DAY if record is None else record.expires_at
    return TrashedRemoval(
        trashed.id,
        datetime.fromtimestamp(trashed.removed_at, timezone.utc),
        datetime.fromtimestamp(expires, timezone.utc),
        max(0.0, expires - now) / DAY,
        record.names if record is not None else (),
        sum(weight.size_on_disk for weight in weights),
        sum(weight.frees for weight in weights),
        trashed.path,
        record is not None and record.done,
        record.places if record is not None else (),
        record.receipt if record is not None else None,
    )
