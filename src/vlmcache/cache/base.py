"""Bases as a scan sees them: where the links of a repo lead, and whether that is mounted."""

from __future__ import annotations

import os
import stat as modes
from typing import NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.base_record import BaseAt, BaseRecord
from vlmcache.cache.mounts import mount_points
from vlmcache.cache.moved import looks_unmounted, trusted_owners
from vlmcache.cache.state import Away
from vlmcache.cache.tree import CacheTree, base_record, open_in_base


class InBase(NamedTuple):
    """What a link into a base leads to."""

    base: BaseAt
    status: os.stat_result | None
    """Of the content; `None` if it is not there."""
    error: OSError | None = None
    """Why that is not known, if it is not."""


class RepoBases:
    """What is recorded of the bases of one repo, read when the first link asks for it.

    Args:
        cache_dir: the cache's folder.
        folder: the name of the repo's folder.
    """

    def __init__(self, cache_dir: str, folder: str) -> None:
        self._tree = CacheTree(cache_dir)
        self._folder = folder
        self._owned = base_record(self._tree, folder)

    @property
    def record(self) -> BaseRecord | None:
        """What is recorded."""
        return self._owned.record if self._owned is not None else None

    def find(self, path: str, target: str) -> InBase | None:
        """Return what a blob's link leads to; `None` if no record of ours says that it does.

        Args:
            path: the link.
            target: what it says.
        """
        if self._owned is None:
            return None
        base = self._owned.record.base_of(target, self._folder, os.path.basename(path))
        if base is None:
            return None
        try:
            if self._owned.owner in trusted_owners():
                status = os.stat(path)
            else:
                descriptor = open_in_base(self._tree, path)
                try:
                    status = os.fstat(descriptor)
                finally:
                    os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return InBase(base, None)
        except PermissionError as error:
            return InBase(base, None, error)
        except OSError as error:
            own = self._owned.owner in trusted_owners()
            return InBase(base, None, error) if own else None
        return InBase(base, status if modes.S_ISREG(status.st_mode) else None)


def recorded_bases(cache_dir: str, *, trusted: bool = False) -> dict[str, tuple[str, ...]]:
    """Return repo folder -> the bases that are recorded of it, whether the repo is there or not.

    Args:
        cache_dir: the cache.
        trusted: whether only root's records and this user's count.
    """
    tree = CacheTree(cache_dir)
    try:
        names = tree.names(os.path.join(cache_dir, layout.LOCKS))
    except OSError:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        folder = name.removesuffix(layout.BASE_SUFFIX)
        if folder == name or layout.parse_repo_folder(folder) is None:
            continue
        owned = base_record(tree, folder)
        if owned is not None and (not trusted or owned.owner in trusted_owners()):
            found[folder] = tuple(base.folder for base in owned.record.bases)
    return found


def bases_beneath(cache_dir: str, configured: str | None) -> list[str]:
    """Return the folders of a cache's bases: the configured one, then those that are recorded.

    Args:
        cache_dir: the cache.
        configured: what the user's own configuration names.
    """
    recorded = [
        folder for one in recorded_bases(cache_dir, trusted=True).values() for folder in one
    ]
    own = os.path.realpath(cache_dir)
    folders = dict.fromkeys([*([configured] if configured else []), *recorded])
    return [folder for folder in folders if os.path.realpath(folder) != own]


def base_away(base: BaseAt, cache_dir: str, folder: str) -> Away | None:
    """Return where a base is that does not have what links lead to, if it is not there itself.

    A base that is mounted and does not hold a model has lost it: then that is missing.

    Args:
        base: the base.
        cache_dir: the cache that has the links.
        folder: the name of a repo's folder that was in the base.
    """
    absent = not os.path.isdir(base.folder)
    if base.drive is None:
        unmounted = absent or looks_unmounted(base.folder, cache_dir)
        return Away(base.folder, base=True) if unmounted else None
    points = list(mount_points(base.drive))
    if base.drive.mount_point in points:
        return Away(base.folder, base=True) if absent else None
    below = os.path.relpath(base.folder, base.drive.mount_point)
    places = (os.path.normpath(os.path.join(point, below)) for point in points)
    found = (
        place
        for place in places
        if place != base.folder and os.path.isdir(os.path.join(place, folder, layout.BLOBS))
    )
    return Away(base.folder, base.drive, next(found, None), base=True)
