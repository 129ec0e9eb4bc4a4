"""Bases as a scan sees them: where the links of a repo lead, and whether that is mounted."""

from __future__ import annotations

import itertools
import os
import stat as modes
from typing import NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.base_record import BaseAt, BaseRecord
from vlmcache.cache.mounts import paths_now
from vlmcache.cache.moved import looks_unmounted
from vlmcache.cache.state import Away
from vlmcache.cache.tree import CacheTree, base_record, open_in_base, trusted_owners
from vlmcache.paths import real_path


class InBase(NamedTuple):
    """What a link into a base leads to."""

    base: BaseAt
    status: os.stat_result | None
    """Of the content; `None` if it does not exist or cannot be reached."""
    error: OSError | None = None
    """Why it cannot be reached."""


class RepoBases:
    """What is recorded about the bases of one repo.

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
        """Return what a blob's link into a base leads to; `None` if no record names that base.

        Args:
            path: the link.
            target: what it says.
        """
        if self._owned is None:
            return None
        base = self._owned.record.base_of(target, self._folder, os.path.basename(path))
        if base is None:
            return None
        trusted = self._owned.owner in trusted_owners()
        try:
            if trusted:
                status = os.stat(path)
            else:
                descriptor = open_in_base(self._tree, path)
                try:
                    status = os.fstat(descriptor)
                finally:
                    os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return InBase(base, None)
        except OSError as error:
            known = trusted or isinstance(error, PermissionError)
            return InBase(base, None, error) if known else None
        return InBase(base, status if modes.S_ISREG(status.st_mode) else None)


def recorded_bases(cache_dir: str, *, trusted: bool = False) -> dict[str, tuple[str, ...]]:
    """Return repo folder -> its recorded bases, whether the repo exists or not.

    Args:
        cache_dir: the cache.
        trusted: whether only the records of root and of this user count.
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
    """Return the folders of a cache's bases: the configured one, then the recorded ones.

    Args:
        cache_dir: the cache.
        configured: the base that the user's own configuration names.
    """
    recorded = recorded_bases(cache_dir, trusted=True).values()
    own = real_path(cache_dir)
    folders = dict.fromkeys([*filter(None, [configured]), *itertools.chain(*recorded)])
    return [folder for folder in folders if real_path(folder) != own]


def base_away(base: BaseAt, cache_dir: str, folder: str) -> Away | None:
    """Return where a base should be, if links lead to nothing because it is not mounted.

    If the base is mounted, it has lost what the links lead to, and that is missing.

    Args:
        base: the base.
        cache_dir: the cache that holds the links.
        folder: the name of a repo's folder that was in the base.
    """
    absent = not os.path.isdir(base.folder)
    if base.drive is None:
        unmounted = absent or looks_unmounted(base.folder, cache_dir)
        return Away(base.folder, base=True) if unmounted else None
    places = paths_now(base.drive, base.folder)
    if base.drive.mount_point in places:
        return Away(base.folder, base=True) if absent else None
    usable = (
        place
        for place in places.values()
        if place != base.folder and os.path.isdir(os.path.join(place, folder, layout.BLOBS))
    )
    return Away(base.folder, base.drive, next(usable, None), base=True)
