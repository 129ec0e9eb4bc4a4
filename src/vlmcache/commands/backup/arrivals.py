"""Putting what is restored into a cache: each blob under its lock, and linked while that is held.

Neither a download nor a `clean` at the same time can then remove a blob that is about to be linked.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from vlmcache.cache import layout
from vlmcache.cache.hashing import ContentChangedError, hash_file
from vlmcache.change import partials
from vlmcache.change import place as change_place
from vlmcache.change.abilities import probe
from vlmcache.change.arriving import discard_partials
from vlmcache.change.tree import Tree
from vlmcache.commands.backup.contents import SavedBlob, SavedRepo
from vlmcache.commands.backup.values import BackupError
from vlmcache.hub.locks import blob_lock
from vlmcache.progress import Progress, StopToken


class BlobSource(Protocol):
    """Where a blob's bytes come from."""

    def __call__(self, start: int) -> Iterator[bytes]:
        """Yield all bytes from an offset on, and at most a few beyond the blob's length."""


class Arrivals:
    """One repo of a cache, into which blobs are restored.

    Args:
        cache: the hub cache.
        repo: the parts of it that are restored.
        stop_token: stops the work.
        progress: shows which lock is waited for.
    """

    def __init__(
        self, cache: Tree, repo: SavedRepo, stop_token: StopToken, progress: Progress
    ) -> None:
        self.repo = repo
        self._cache = cache
        self._folder = os.path.join(cache.root, repo.folder)
        self._tree, self._home = cache, self._folder
        self._stop_token = stop_token
        self._progress = progress
        self._links: dict[str, list[tuple[str, str]]] = {}
        for commit, files in repo.snapshots.items():
            for file, name in files.items():
                self._links.setdefault(name, []).append((commit, file))

    def prepare(self) -> None:
        """Make the repo's folder, and keep the listings of its revisions.

        Raises:
            CacheError: a part of the layout is a link, through which nothing is written.
            OSError: the system refuses.
        """
        self._tree, self._home = change_place.home_of(self._cache, self._folder)
        change_place.prepare_repo(self._tree, self._home)
        self._tree.make_folders(layout.blob_path(self._home, ""))
        for commit, files in self.repo.trees.items():
            complete = files.keys() <= self.repo.snapshots.get(commit, {}).keys()
            change_place.write_tree(self._tree, self._home, commit, files, complete=complete)

    def path(self, name: str) -> str:
        """Return where a blob belongs."""
        return layout.blob_path(self._folder, name)

    def content(self, name: str) -> str:
        """Return the file with a blob's content; on systems without links, one of a snapshot."""
        blob = layout.blob_path(self._home, name)
        copies = (
            layout.file_path(layout.snapshot_path(self._home, commit), file)
            for commit, file in self._links.get(name, ())
        )
        if os.path.lexists(blob):
            return blob
        size = self.repo.blobs[name].size
        return next((path for path in copies if _has_copy(path, size)), blob)

    def fetch(
        self,
        name: str,
        source: BlobSource,
        moved: Callable[[int], None],
        *,
        distrusted: bool,
        resumed: bool,
    ) -> int:
        """Make sure that a blob is there, and linked into each snapshot that needs it.

        Args:
            name: the blob's name.
            source: where its bytes come from, if it is not there yet.
            moved: is called with the number of bytes that are there.
            distrusted: whether its content is compared too, and not its length only.
            resumed: whether the bytes that have arrived are kept when the work is interrupted, so
                that a restore or a download can continue.

        Returns:
            How many bytes were taken from the source.

        Raises:
            BackupError: the source's bytes do not match the hash; they are not kept.
            OSError: the system refuses.
        """
        blob = self.repo.blobs[name]
        lock = layout.lock_path(self._cache.root, self.repo.folder, name)
        waiting = partial(self._progress.waiting, self.repo.id, name)
        with blob_lock(self._cache, lock, self._stop_token, waiting):
            taken = 0
            content = self.content(name)
            # The lock's previous holder may have done the work.
            if not self._is_there(content, blob, read=distrusted):
                taken = self._receive(name, blob, source, moved, resumed=resumed)
                content = layout.blob_path(self._home, name)
            self._spread(name, content)
        return taken

    def _spread(self, name: str, content: str) -> None:
        """Give every snapshot the content that it needs: by links, or else by copies.

        Without links the blob itself becomes the last copy, as with the client, so that a content
        which one snapshot needs once is not stored twice.
        """
        blob, places = layout.blob_path(self._home, name), list(self._links.get(name, ()))
        if content != blob and probe(self._tree, os.path.dirname(blob)).symlinks is not False:
            self._tree.rename(content, blob)
            content = blob
        if content == blob:
            places = [
                (commit, file)
                for commit, file in places
                if not change_place.place_link(self._tree, self._home, commit, file, name)
            ]
        for number, (commit, file) in enumerate(places, start=1):
            path = layout.file_path(layout.snapshot_path(self._home, commit), file)
            # Only `content` was checked, so all others are made from it.
            if path != content:
                move = content == blob and number == len(places)
                change_place.place_copy(self._tree, self._home, commit, file, content, move=move)

    def _receive(
        self,
        name: str,
        blob: SavedBlob,
        source: BlobSource,
        moved: Callable[[int], None],
        *,
        resumed: bool,
    ) -> int:
        final = layout.blob_path(self._home, name)
        unfinished = final + layout.PARTIAL_SUFFIX
        unique = f".{name}.{uuid.uuid4().hex[:8]}.new"
        place = unfinished if resumed else layout.blob_path(self._home, unique)
        try:
            taken = self._fill(place, blob, source, moved)
        except BaseException:
            if not resumed or not change_place.file_size(place):
                self._tree.discard(place)
            raise
        self._tree.rename(place, final)
        # Nothing needs or writes an interrupted download now: its lock is held here.
        discard_partials(self._tree, unfinished, name)
        return taken

    def _fill(
        self, place: str, blob: SavedBlob, source: BlobSource, moved: Callable[[int], None]
    ) -> int:
        taken = 0
        with partials.opened(self._tree, place) as descriptor:
            arriving = partials.ResumableFile(descriptor, blob.hash, blob.size, moved)
            begun = partials.usable(descriptor, blob.size)
            arriving.resume(begun, self._stop_token.check)
            while True:
                for block in source(arriving.position):
                    self._stop_token.check()
                    taken += len(block)
                    if arriving.position + len(block) > blob.size:
                        break
                    arriving.add(block)
                if arriving.position == blob.size and arriving.is_complete:
                    os.fsync(descriptor)
                    return taken
                arriving.restart()
                if not begun:
                    raise BackupError(
                        f"the backup is damaged: {self.repo.name}: the content of {blob.hash} is "
                        "not what its hash says"
                    )
                # The unfinished file that was there before may have been damaged.
                begun = 0

    def _is_there(self, path: str, blob: SavedBlob, *, read: bool) -> bool:
        """Return whether a blob is at its place.

        Args:
            path: its place.
            blob: what it should be.
            read: whether to compare its content too, and not its length only.
        """
        with contextlib.suppress(OSError, ContentChangedError):
            same_size = change_place.file_size(path) == blob.size
            opener = self._tree.open_content
            return same_size and (not read or hash_file(path, blob.hash, opener) == blob.hash)
        return False


def _has_copy(path: str, size: int) -> bool:
    return not os.path.islink(path) and change_place.file_size(path) == size
