"""A cache to which many small entries are added at once: one sync of a folder for all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from vlmcache.cache.tree import CacheTree, name_path
from vlmcache.change.tree import MOST_OPEN, Tree, sync_folder

_MOST_KEPT = min(32, MOST_OPEN)


class BatchTree(Tree):
    """A cache whose folders stay open, and are brought to the disk together by `sync`.

    One thread uses it, for a short time and while it holds locks: a folder that gets another name
    meanwhile is still the one that is written to. Close it in the end.

    Args:
        tree: the cache.
    """

    def __init__(self, tree: CacheTree) -> None:
        super().__init__(tree)
        self._kept: dict[str, int] = {}
        self._changed: dict[str, None] = {}
        """Folders with entries that may not be on the disk, in the order they were written to."""

    @contextlib.contextmanager
    def parent(self, path: str) -> Iterator[tuple[str, int | None]]:
        """Yield a path's last name and its folder, as `CacheTree.parent` does."""
        folder, name = os.path.split(path)
        if folder not in self._kept:
            with super().parent(path) as (name, entered):
                if entered is None or len(self._kept) >= _MOST_KEPT:
                    yield name, entered
                    return
                self._kept[folder] = os.dup(entered)
        try:
            yield name, self._kept[folder]
        except OSError as error:
            name_path(error, path, name)
            raise

    def home(self, path: str) -> tuple[BatchTree, str]:
        """Return this tree: it is made for what really lies in it."""
        return self, path

    def make_folders(self, path: str, mode: int = 0o777, like: CacheTree | None = None) -> None:
        """Make a folder and those above it, as far as they are not there."""
        if path not in self._kept:
            super().make_folders(path, mode, like)

    def changed(self, path: str, folder: int | None) -> None:  # noqa: ARG002 - it is kept open
        """Remember that a folder has to be brought to the disk."""
        self._changed[os.path.dirname(path)] = None

    def sync(self) -> None:
        """Bring all entries that were made and renamed to the disk.

        Raises:
            OSError: the system refuses.
        """
        for folder in list(self._changed):
            with self.folder(folder) as descriptor:
                sync_folder(folder if descriptor is None else descriptor)
            del self._changed[folder]

    def close(self) -> None:
        """Let go of the folders."""
        while self._kept:
            os.close(self._kept.popitem()[1])
