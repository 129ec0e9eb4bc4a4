"""Names that mean one file on a filesystem that ignores the case of letters."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from vlmcache.cache import layout
from vlmcache.cache.mounts import mount_of, nearest_folder
from vlmcache.errors import CacheError

_IGNORING = frozenset({"exfat", "hfsplus", "msdos", "vfat"})
"""Filesystems that always ignore case."""


def ignores_case(path: str) -> bool:
    """Return whether the filesystem of a path, which need not exist, takes `a` and `A` for one.

    Nothing is written: an existing entry is looked up by its name in the other case.
    """
    place = nearest_folder(os.path.abspath(path))
    try:
        listed = sorted(os.listdir(place))
        above = os.path.dirname(place)
        if os.stat(above).st_dev == os.stat(place).st_dev:
            listed += [os.path.join(os.pardir, os.path.basename(place))]
        for name in listed:
            folder, last = os.path.split(os.path.join(place, name))
            other = last.swapcase()
            if other == last or other in (listed if folder == place else os.listdir(folder)):
                continue
            entry = os.lstat(os.path.join(folder, last))
            try:
                return os.path.samestat(entry, os.lstat(os.path.join(folder, other)))
            except FileNotFoundError:
                return False
    except OSError:
        return False
    mount = mount_of(place)
    return mount is not None and mount.type in _IGNORING


def clash(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two of the names that are one where case is ignored; `None` if no two are.

    Folders may differ by case: their contents end up in one folder. Names have forward slashes.
    """
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(folded(name), name)
        if other != name:
            return other, name
    for name in sorted(seen.values()):
        for end, letter in enumerate(name):
            other = seen.get(folded(name[:end]), "") if letter == "/" else ""
            if other:
                return other, name
    return None


def refuse_clash(names: Iterable[str], place: str) -> None:
    """Make sure that a cache can hold files that differ by case, before the first is written.

    Args:
        names: paths of files in the cache, with forward slashes.
        place: the cache; it need not exist.

    Raises:
        CacheError: two of the names are one there.
    """
    pair = clash(names)
    if pair is not None and ignores_case(place):
        raise CacheError(
            f"'{pair[0]}' and '{pair[1]}' differ only by case, and the filesystem of {place} holds "
            "only one of them: nothing was written",
            "name a folder on a filesystem that tells them apart",
        )


def paths_of(
    folder: str, snapshots: Mapping[str, Iterable[str]], refs: Iterable[str]
) -> Iterator[str]:
    """Yield the paths of a repo's files and refs in a cache.

    Args:
        folder: the repo's folder.
        snapshots: commit -> names of files.
        refs: names of refs.
    """
    for commit, names in snapshots.items():
        yield from (f"{folder}/{layout.SNAPSHOTS}/{commit}/{name}" for name in names)
    yield from (f"{folder}/{layout.REFS}/{ref}" for ref in refs)


def folded(name: str) -> str:
    """Return a name without what a filesystem may ignore: case and Unicode composition."""
    return unicodedata.normalize("NFC", name).casefold()
