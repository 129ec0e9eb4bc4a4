"""Whether a disk has room for what is to be pulled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.mounts import nearest_folder
from vlmcache.change.plan import Fetch, Link, Plan
from vlmcache.config import Limits
from vlmcache.errors import SpaceError
from vlmcache.units import size_text

if TYPE_CHECKING:
    from vlmcache.change.abilities import Needs

_FILES_OF_AN_ESTIMATE = 30
"""How many files a model is taken to have of which only a size is known."""


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


def without_fetches(plan: Plan, planned: set[tuple[str, str]]) -> Plan:
    """Return a plan that only links what plans before it fetch: revisions share blobs.

    Args:
        plan: of one revision.
        planned: (repo, etag) of what is fetched before; what this plan fetches is added.
    """
    fetches = {
        (action.repo, action.etag): action for action in plan.actions if isinstance(action, Fetch)
    }
    again = fetches.keys() & planned
    planned.update(fetches)
    reason = "the same content as in another revision"
    actions = [
        Link(action.repo, action.file, action.path, action.etag, reason)
        if isinstance(action, Fetch) and (action.repo, action.etag) in again
        else action
        for action in plan.actions
    ]
    needs = plan.needs - sum(fetches[key].size - fetches[key].have for key in again)
    return msgspec.structs.replace(plan, actions=tuple(actions), needs=max(0, needs))


def abilities_needed(cache_dir: str, plans: Sequence[Plan]) -> Needs:
    """Return what downloads ask of the cache's filesystem."""
    # `status`, which knows this module too, tries no filesystem.
    from vlmcache.change.abilities import Needs

    actions = [action for plan in plans for action in plan.actions]
    files = [action for action in actions if isinstance(action, Fetch | Link)]
    names = [os.path.relpath(file.path, cache_dir).replace(os.sep, "/") for file in files]
    return Needs(names, max((file.size for file in files if isinstance(file, Fetch)), default=0))


def find_shortage(cache_dir: str, limits: Limits, plans: Sequence[Plan]) -> Shortage | None:
    """Return the disk that downloads would leave too full, or `None`.

    At least `min_free` must stay free; a pull that needs nothing is never refused. What is pulled
    of a repo that was moved to another drive counts on that drive. Each file takes complete blocks
    of the disk, and what is written with it takes some too.
    """
    needs: dict[int, int] = {}
    places: dict[int, str] = {}
    for plan in plans:
        fetched = [action for action in plan.actions if isinstance(action, Fetch)]
        if plan.needs <= 0 or not fetched:
            continue
        folder = os.path.join(cache_dir, layout.folder_of(fetched[0].repo))
        place = nearest_folder(folder)
        device = os.stat(place).st_dev
        needs[device] = needs.get(device, 0) + plan.needs + _blocks(plan) * _block_size(place)
        places[device] = place
    for device, need in needs.items():
        free = shutil.disk_usage(places[device]).free
        if need + limits.min_free > free:
            return Shortage(places[device], need, free, limits.min_free)
    return None


def _blocks(plan: Plan) -> int:
    """Return the most blocks of a disk that a plan takes beyond the bytes that it fetches."""
    fetches = sum(
        1 if action.file else _FILES_OF_AN_ESTIMATE
        for action in plan.actions
        if isinstance(action, Fetch)
    )
    # A file ends within a block, and has a link, a lock and a row of the listing. In addition there
    # are a ref, the listing and the folders: the repo with four in it, the snapshot, two for locks.
    return 3 * fetches + len(plan.actions) + 10


def _block_size(place: str) -> int:
    return os.statvfs(place).f_frsize if hasattr(os, "statvfs") else 4096


def same_disk(path: str, other: str) -> bool:
    """Return whether two paths are, or would be, on one filesystem."""
    return os.stat(nearest_folder(path)).st_dev == os.stat(nearest_folder(other)).st_dev
