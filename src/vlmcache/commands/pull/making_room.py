"""How room is made for a pull: the trash is emptied, models are evicted; or what else helps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState
from vlmcache.change.plan import Outcome, Plan
from vlmcache.commands.pull.room import Shortage, find_shortage, same_disk
from vlmcache.commands.pull.values import PlannedModel, PullOptions
from vlmcache.config import Session, cached_repos
from vlmcache.errors import VlmcacheError
from vlmcache.units import exact_size

if TYPE_CHECKING:
    from vlmcache.commands.remove.values import Removal


class Room(NamedTuple):
    """What was done to make room for downloads."""

    outcomes: tuple[Outcome, ...] = ()
    plan: Plan = Plan(())
    """What is evicted, or would be."""
    error: VlmcacheError | None = None
    """Why the downloads cannot begin."""


def room_for(
    session: Session,
    names: Sequence[str],
    planned: Sequence[PlannedModel],
    plans: Sequence[Plan],
    options: PullOptions,
) -> Room:
    """Make room for downloads, as far as the options allow; only plan it with `--dry-run`.

    Args:
        session: what the command works on.
        names: what was typed for the models.
        planned: the models.
        plans: what is to be done for them.
        options: those of the pull.
    """
    shortage, outcomes = _shortage(session, plans, options)
    removal = None
    if shortage is not None and options.make_room:
        removal = _make_room(session, planned, shortage, options)
    receipt = removal.receipt if removal is not None else None
    if receipt is not None:
        shortage, emptied = _shortage(session, plans, options)
        outcomes += receipt.outcomes + emptied
    plan = removal.plan if removal is not None else Plan(())
    # A dry run that would make room is short of nothing.
    if shortage is None or (options.dry_run and removal):
        return Room(outcomes, plan)
    from vlmcache.change.trash_room import in_trash

    if options.dry_run and in_trash(session, shortage.place) >= shortage.short:
        return Room(outcomes, plan)
    stopped = receipt.stopped if receipt is not None else None
    hint = stopped or _what_helps(session, names, planned, shortage, options)
    return Room(outcomes, plan, shortage.error(hint))


def _shortage(
    session: Session, plans: Sequence[Plan], options: PullOptions
) -> tuple[Shortage | None, tuple[Outcome, ...]]:
    """Return the disk that is short even if the trash is emptied, and what became of the trash.

    The trash is emptied, oldest first, if that makes enough room.
    """
    location, limits = session.cache, session.config.limits
    shortage = find_shortage(location.dir, limits, plans)
    if shortage is None or options.dry_run:
        return shortage, ()
    from vlmcache.change.trash_room import empty_for

    emptied = empty_for(session, shortage.place, shortage.goal).outcomes
    return find_shortage(location.dir, limits, plans) if emptied else shortage, emptied


def _make_room(
    session: Session, planned: Sequence[PlannedModel], shortage: Shortage, options: PullOptions
) -> Removal | None:
    """Evict what was not used for a long time, but nothing of the models asked for.

    What the trash keeps counts as free: it is to be emptied afterwards if the disk is still short.

    Returns:
        The removal; its receipt is absent with `--dry-run`. `None` if the disk that is short is not
        the cache's, if there is an archive (then no model is deleted), if evicting everything that
        may be evicted would not be enough, or if a working folder's `min_free` asks for more than
        the user's own: then nothing is removed.
    """
    from vlmcache.change.trash_room import in_trash
    from vlmcache.commands.remove.clean import clean
    from vlmcache.commands.remove.values import CleanOptions

    if session.config.archive is not None or not _may_evict(session, shortage):
        return None
    keep = _asked_for(session, planned)
    kept = in_trash(session, shortage.place)
    wanted = CleanOptions(free=shortage.goal - kept, keep=keep)
    proposed = clean(session, wanted, dry_run=True)
    # In a folder that does not exist yet, no goal is missed, and nothing can be removed.
    enough = not proposed.missed_by and proposed.plan.frees >= shortage.short - kept
    if options.dry_run or not enough:
        return proposed if enough else None
    return clean(session, wanted, confirm=options.confirm)


def _may_evict(session: Session, shortage: Shortage) -> bool:
    """Return whether removing models helps that disk, and is for a limit of the user's own."""
    is_own_limit = shortage.min_free <= session.config.evict_for
    return is_own_limit and same_disk(shortage.place, session.cache.dir)


def _asked_for(session: Session, planned: Sequence[PlannedModel]) -> tuple[str, ...]:
    """Return the repos of the cache that are asked for, or needed by what is."""
    asked = {part.model.repo.casefold() for part in planned}
    orders = (part.order for part in planned if part.order is not None)
    asked |= {need.id.casefold() for order in orders for need in order.repos}
    return tuple(name for name in cached_repos(session.cache) if name.casefold() in asked)


def _moved_to_archive(
    session: Session, planned: Sequence[PlannedModel], shortage: Shortage
) -> str | None:
    """Return the hint that names the user's archive; `None` if it has no part in this."""
    archive = session.config.archive
    if archive is None or not _may_evict(session, shortage):
        return None
    from vlmcache.commands.move.archive import clean_to
    from vlmcache.commands.remove.values import CleanOptions
    from vlmcache.commands.status.steps import Advice

    keep = _asked_for(session, planned)
    try:
        wanted = CleanOptions(free=shortage.goal, keep=keep, to=archive)
        proposed = clean_to(session, wanted, dry_run=True)
    except VlmcacheError as error:
        return f"no model is moved to the archive {archive}: {error.message}"
    if proposed.missed_by:
        return f"moving models to the archive {archive} would not make enough room"
    words = ["--free", exact_size(shortage.goal)]
    for name in keep:
        words += ["--keep", name]
    return f"'{Advice(session).command('clean', *words)}' moves models to {archive}"


def _what_helps(
    session: Session,
    names: Sequence[str],
    planned: Sequence[PlannedModel],
    shortage: Shortage,
    options: PullOptions,
) -> str:
    """Return the hint of a pull that there is no room for: only what its plan says would help."""
    if (moving := _moved_to_archive(session, planned, shortage)) is not None:
        return moving
    proposal = msgspec.structs.replace(options, dry_run=True)
    if not options.make_room and _make_room(session, planned, shortage, proposal):
        again = options.command(session, names)
        return f"'{again} --make-room' proposes what to evict; or lower min_free"
    repos = {part.model.repo for part in planned}
    helps = what_frees_room(session, scan(session.cache.dir), shortage, repos)
    if options.make_room and _may_evict(session, shortage):
        return f"evicting would not make enough room, so nothing was evicted; {helps}"
    return helps


def what_frees_room(
    session: Session, state: CacheState, shortage: Shortage, repos: Collection[str]
) -> str:
    """Return the hint for downloads that there is no room for, if nothing is evicted for them.

    Args:
        session: what the command works on.
        state: the cache, as it was scanned.
        shortage: the disk that is short.
        repos: those to be downloaded.
    """
    from vlmcache.change.known import Known
    from vlmcache.commands.status.recommend import what_makes_room

    return what_makes_room(Known(session.environment, state), session, shortage, repos)
