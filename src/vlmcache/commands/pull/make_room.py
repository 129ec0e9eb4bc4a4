"""`pull --make-room`, and what helps if there is no room.

Commands are imported in functions, since most pulls need no room.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.scan import scan
from vlmcache.commands.pull.room import Shortage, same_disk
from vlmcache.commands.pull.values import PlannedModel, PullOptions
from vlmcache.config import Session

if TYPE_CHECKING:
    from vlmcache.commands.remove.values import Removal


def make_room(
    session: Session, planned: Sequence[PlannedModel], shortage: Shortage, options: PullOptions
) -> Removal | None:
    """Evict what was not used for a long time, but nothing of the models asked for.

    Returns:
        The removal; its receipt is absent with `--dry-run`. `None` if the disk that is short is not
        the cache's, if evicting everything that may be evicted would not be enough, or if a working
        folder's `min_free` asks for more than the user's own: then nothing is removed.
    """
    from vlmcache.commands.remove.clean import clean
    from vlmcache.commands.remove.values import CleanOptions

    location = session.cache
    if not same_disk(shortage.place, location.dir) or shortage.min_free > session.config.evict_for:
        return None
    folders = set(os.listdir(location.dir)) if os.path.isdir(location.dir) else set()
    repos = [part.model.repo for part in planned]
    keep = tuple(repo for repo in repos if layout.repo_folder("model", repo) in folders)
    wanted = CleanOptions(free=shortage.goal, keep=keep)
    proposed = clean(session, wanted, dry_run=True)
    # Of a folder that does not exist yet, nothing is missed, and nothing can be removed.
    enough = not proposed.missed_by and proposed.plan.frees >= shortage.short
    if options.dry_run or not enough:
        return proposed if enough else None
    return clean(session, wanted, confirm=options.confirm)


def what_helps(
    session: Session,
    names: Sequence[str],
    planned: Sequence[PlannedModel],
    shortage: Shortage,
    options: PullOptions,
) -> str:
    """Return the hint of a pull that there is no room for: only what its plan says would help."""
    from vlmcache.commands.remove.facts import Known
    from vlmcache.commands.status.recommend import what_makes_room

    config, location = session.config, session.cache
    proposal = msgspec.structs.replace(options, dry_run=True)
    if not options.make_room and make_room(session, planned, shortage, proposal):
        again = options.command(session, names)
        return f"'{again} --make-room' proposes what to evict; or lower min_free"
    known = Known(session.environment, scan(location.dir))
    repos = {part.model.repo for part in planned}
    helps = what_makes_room(known, session, shortage, repos)
    if shortage.min_free <= config.evict_for and same_disk(shortage.place, location.dir):
        return f"evicting would not make enough room, and so nothing was evicted; {helps}"
    return helps
