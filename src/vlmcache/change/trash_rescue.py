"""What removals in the trash need of what is removed for good: it is renamed into the trash."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Collection

from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.trash import TrashNeeds, find_needs
from vlmcache.change.plan import REFUSALS, Attempt, ReleaseShared
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.change.trash import TrashWriter, removals_in


class Rescue:
    """Keeps what removals in the trash need of a cache.

    Args:
        tree: the cache.
    """

    def __init__(self, tree: RemovalTree) -> None:
        self.tree = tree

    @functools.cached_property
    def needs(self) -> TrashNeeds:
        """What removals in the trash need of the cache."""
        return find_needs(removals_in(self.tree))

    def of_shared(self, action: ReleaseShared) -> TrashWriter | None:
        """Return what keeps a shared blob that only the trash needs; `None` if that does not."""
        blobs = self.needs.blobs
        references = [
            (folder, name)
            for folder, _, name in (reference.split("/", 2) for reference in action.references)
        ]
        needed_by = next(filter(None, map(blobs.get, references)), None)
        needed_by = self.needs.shared.get(action.hash, needed_by)
        for trashed in removals_in(self.tree, needed_by) if needed_by is not None else ():
            path = os.path.relpath(action.path, self.tree.root)
            return TrashWriter.adding(self.tree, trashed, [path, path + layout.MANIFEST_SUFFIX])
        return None

    def keep(self, attempt: Attempt, folder: str, names: Collection[str], blobs: str) -> None:
        """Rename blobs that removals in the trash need into it, as far as the system lets.

        What cannot be kept there, as on a full disk, is removed: that was asked for.

        Args:
            attempt: what removes them.
            folder: the name of their repo's folder.
            names: their names.
            blobs: the folder in which they are by now.
        """
        needed: dict[str, list[str]] = {}
        for name in names:
            needed_by = self.needs.blobs.get((folder, name))
            if needed_by is not None:
                needed.setdefault(needed_by, []).append(name)
        for removal, group in needed.items():
            paths = {layout.blob_path(folder, name): os.path.join(blobs, name) for name in group}
            with contextlib.suppress(*REFUSALS):
                for trashed in removals_in(self.tree, removal):
                    writer = TrashWriter.adding(self.tree, trashed, list(paths), "blob")
                    for item, path in paths.items():
                        with self.tree.entry(path) as entry:
                            self.tree.refuse_use(entry.status)
                            writer.rename(entry, item)
                            attempt.trashed += allocated_bytes(entry.status)
