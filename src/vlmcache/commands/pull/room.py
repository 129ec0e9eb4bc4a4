"""Whether a disk has room for what is to be pulled, and making some."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.scan import scan
from vlmcache.change.plan import Fetch, Plan
from vlmcache.commands.pull.values import PlannedModel, PullOptions
from vlmcache.config import Limits, Session
from vlmcache.errors import SpaceError
from vlmcache.units import size_text

if TYPE_CHECKING:
    from vlmcache.commands.remove.values import Removal


class Shortage(NamedTuple):
    """A disk that has no room for downloads: what they need of it and what is free, in bytes."""

    place: str
    need: int
    free: int
    min_free: int

    @property
    def goal(self) -> int:
        """The bytes that have to be free for the downloads to begin."""
        return self.need + self.min_free

    @property
    def short(self) -> int:
        """The bytes that are missing."""
        return self.goal - self.free

    def error(self, hint: str) -> SpaceError:
        """Return the refusal, with the numbers and what to do."""
        return SpaceError(
            f"not enough space: the download needs {size_text(self.need)} and "
            f"{size_text(self.min_free)} must stay free, but {size_text(self.free)} is free: "
            f"{size_text(self.short)} short",
            hint,
        )


def find_shortage(cache_dir: str, limits: Limits, plans: Sequence[Plan]) -> Shortage | None:
    """Return the disk that downloads would leave too full, or `None`.

    At least `min_free` must stay free; a pull that needs nothing is never refused. What is pulled
    of a repo that was moved to another drive counts on that drive.
    """
    needs: dict[int, int] = {}
    places: dict[int, str] = {}
    for plan in plans:
        fetched = [action for action in plan.actions if isinstance(action, Fetch)]
        if plan.needs <= 0 or not fetched:
            continue
        folder = os.path.join(cache_dir, layout.repo_folder("model", fetched[0].repo))
        place = nearest_folder(folder)
        device = os.stat(place).st_dev
        needs[device] = needs.get(device, 0) + plan.needs
        places[device] = place
    for device, need in needs.items():
        free = shutil.disk_usage(places[device]).free
        if need + limits.min_free > free:
            return Shortage(places[device], need, free, limits.min_free)
    return None


def same_disk(one: str, other: str) -> bool:
    """Return whether two paths are, or would be, on one filesystem."""
    return os.stat(nearest_folder(one)).st_dev == os.stat(nearest_folder(other)).st_dev


def make_room(
    session: Session, planned: Sequence[PlannedModel], shortage: Shortage, options: PullOptions
) -> Removal | None:
    """Evict what was not used for a long time, but nothing of the models asked for.

    Returns:
        The removal; its receipt is absent with `--dry-run`. `None` if the disk that is short is not
        the cache's, if evicting everything that may be evicted would not be enough, or if a working
        folder's `min_free` asks for more than the user's own: then nothing is removed.
    """
    # Imported only here, since most pulls need no room.
    from vlmcache.commands.remove.clean import clean
    from vlmcache.commands.remove.values import Wishes

    location = session.cache
    if not same_disk(shortage.place, location.dir) or shortage.min_free > session.config.evict_for:
        return None
    folders = set(os.listdir(location.dir)) if os.path.isdir(location.dir) else set()
    repos = [part.model.repo for part in planned]
    keep = tuple(repo for repo in repos if layout.repo_folder("model", repo) in folders)
    wishes = Wishes(free=shortage.goal, keep=keep)
    where = session.environment, session.config, location
    proposed = clean(*where, wishes, dry_run=True)
    if options.dry_run or proposed.missed_by:
        return None if proposed.missed_by else proposed
    return clean(*where, wishes, confirm=options.confirm)


def what_helps(
    session: Session,
    names: Sequence[str],
    planned: Sequence[PlannedModel],
    shortage: Shortage,
    options: PullOptions,
) -> str:
    """Return the hint of a pull that there is no room for: only what its plan says would help."""
    # Imported only here, since most pulls need no room.
    from vlmcache.commands.remove.facts import Known
    from vlmcache.commands.status.recommend import what_makes_room

    config, location = session.config, session.cache
    if shortage.min_free > config.evict_for:
        return (
            f"{config.path} asks for more free space than your own configuration, and nothing is "
            "evicted for that: lower its min_free"
        )
    proposal = msgspec.structs.replace(options, dry_run=True)
    if not options.make_room and make_room(session, planned, shortage, proposal):
        again = options.command(session, names)
        return f"'{again} --make-room' proposes what to evict; or lower min_free"
    known = Known(session.environment, scan(location.dir))
    repos = {part.model.repo for part in planned}
    helps = what_makes_room(known, config, location, shortage, repos)
    if same_disk(shortage.place, location.dir):
        return f"evicting would not make enough room, and so nothing was evicted; {helps}"
    return helps
