"""One removal that is kept in several trashes: of the cache, and of places of moved models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from vlmcache.change.place import disk_failure
from vlmcache.change.plan import Receipt, Removing
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.change.trash import Keep, TrashWriter


class TrashWriters:
    """What keeps one removal: in the trash of the cache, and in those of places.

    Raises:
        CacheError, SpaceError: a trash cannot be written; nothing was changed.
    """

    def __init__(self, keep: Keep, parts: Mapping[RemovalTree, Sequence[Removing]]) -> None:
        self.keep = keep
        self._writers: dict[RemovalTree, TrashWriter] = {}
        *others, cache = parts
        # That of the cache is first: it is the one that is listed, and names the others.
        for tree in (cache, *others):
            places = [other.root for other in others] if tree is cache else []
            part_of = None if tree is cache else keep.cache
            self._writers[tree] = TrashWriter(tree, keep, places, part_of)
            try:
                self._writers[tree].begin(parts[tree], always=bool(places))
            except OSError as error:
                self.finish(Receipt(()))
                failure = disk_failure(error, tree.root)
                raise failure.saying(
                    f"nothing was removed, since the trash cannot be written: {failure.message}",
                    "--no-trash frees at once",
                ) from error

    def of(self, tree: RemovalTree) -> TrashWriter:
        """Return what keeps the part of a cache or place."""
        return self._writers[tree]

    def finish(self, receipt: Receipt) -> Receipt:
        """Complete the records, and return the receipt with what to name to `undo`."""
        kept = receipt.trashed or any(writer.renamed for writer in self._writers.values())
        receipt = msgspec.structs.replace(receipt, trash_id=self.keep.id if kept else None)
        for writer in reversed(self._writers.values()):
            writer.finish(receipt, always=bool(writer.places) and bool(kept))
        return receipt
