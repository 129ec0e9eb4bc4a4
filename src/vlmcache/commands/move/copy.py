"""Repos copied to another cache, hashed on the way, and put there by one rename.

What is copied is staged in a folder of its own at the destination, where nothing looks for repos
and the next run finds every complete file. The copy has the source's names, modes and times.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
from collections.abc import Iterator, Mapping

from vlmcache.cache import layout
from vlmcache.cache.hashing import hash_file
from vlmcache.cache.moved import leads_back
from vlmcache.cache.state import Repo, SharedBlob
from vlmcache.change import place as change_place
from vlmcache.change.plan import Plan, RemoveTree
from vlmcache.change.remove import execute
from vlmcache.change.shared_store import SharedStore
from vlmcache.commands.move.values import SourceDamagedError
from vlmcache.commands.move.walk import (
    NO_HARD_LINK,
    NO_HASH,
    OnProgress,
    copy_file,
    hard_link,
    hashes_of,
    is_same,
    keep_mode,
    keep_times,
    link,
    links_of,
    shared_hashes_of,
    walk,
)
from vlmcache.errors import CacheError


def _ignore(_path: str, _position: int) -> None:
    pass


class Copier:
    """Copies repos of one cache to one destination.

    Args:
        cache_dir: the cache's real path.
        destination: the other cache's real path; it must exist.
        same_disk: give files a second name instead of copying them, if that is possible.
    """

    def __init__(self, cache_dir: str, destination: str, *, same_disk: bool = False) -> None:
        self.cache_dir = cache_dir
        self.destination = destination
        self.on_progress: OnProgress = _ignore
        self.same_disk = same_disk
        self.staging = os.path.join(destination, layout.MOVING)
        self.copied = 0
        """Bytes written at the destination."""

    def stage(self, repo: Repo, shared: Mapping[str, SharedBlob]) -> None:
        """Copy all of a repo that is not at the destination yet.

        Args:
            repo: as it was scanned.
            shared: the cache's store, of which what the repo links to is copied.

        Raises:
            SourceDamagedError: something is not what its hash says.
            CacheError: what is at the destination is not ours to change.
            OSError: the system refuses.
        """
        os.makedirs(self.staging, mode=0o700, exist_ok=True)
        hashes = hashes_of(repo)
        for shared_hash, expected in shared_hashes_of(repo).items():
            if shared_hash in shared:
                self._stage_shared(shared[shared_hash], expected)
        target = os.path.join(self.staging, repo.folder)
        source = walk(repo.path)
        if not leads_back(self.destination, repo.folder, self.cache_dir):
            self._reclaim(repo.folder, source)
        staged = walk(target) if os.path.lexists(target) else {}
        self._remove_others(target, source, staged)
        os.makedirs(target, exist_ok=True)
        links = links_of(repo)
        # Links first: where the filesystem has none, that shows before the long copies.
        order = {True: 0, False: 2}
        folders = [name for name, status in source.items() if modes.S_ISDIR(status.st_mode)]
        for name in folders:
            os.makedirs(os.path.join(target, name), exist_ok=True)
        firsts: dict[tuple[int, int], str] = {}
        for name in sorted(source, key=lambda name: order[modes.S_ISLNK(source[name].st_mode)]):
            status = source[name]
            path, place = os.path.join(repo.path, name), os.path.join(target, name)
            if modes.S_ISLNK(status.st_mode):
                link(links.get(name) or os.readlink(path), place)
                keep_times(place, status, follow=False)
            elif modes.S_ISREG(status.st_mode):
                key = status.st_dev, status.st_ino
                first = firsts.setdefault(key, name) if status.st_nlink > 1 else name
                if first == name:
                    self._stage_file(path, place, status, hashes.get(name))
                elif not is_same(os.path.join(target, first), place):
                    hard_link(os.path.join(target, first), place)
        for name in [*reversed(folders), ""]:
            place = os.path.join(target, name) if name else target
            keep_mode(place, source.get(name) or os.stat(repo.path))
            change_place.sync_folder(place)

    def place(self, repo: Repo) -> None:
        """Put a staged repo at its place at the destination, its shared blobs before it.

        Raises:
            CacheError: the destination has no store for shared blobs, and a folder in its place.
            OSError: the system refuses.
        """
        references: dict[str, list[str]] = {}
        for blob in repo.blobs.values():
            if blob.shared is not None:
                name = f"{repo.folder}/{layout.BLOBS}/{blob.name}"
                references.setdefault(blob.shared, []).append(name)
        with contextlib.ExitStack() as locks:
            # Held until the repo is in place: until then the hub would take the blobs for unused.
            for shared_hash in sorted(references):
                locks.enter_context(self._published(shared_hash, references[shared_hash]))
            place = os.path.join(self.destination, repo.folder)
            if leads_back(self.destination, repo.folder, self.cache_dir):
                # The repo comes back to where it has left a link.
                os.unlink(place)
            os.rename(os.path.join(self.staging, repo.folder), place)
            change_place.sync_folder(self.destination)
        change_place.sync_folder(self.staging)
        change_place.tag_cache(self.destination)

    def unplace(self, folder: str) -> None:
        """Move a repo that was placed back to the staging folder, since its source stays.

        Raises:
            OSError: the system refuses.
        """
        os.rename(os.path.join(self.destination, folder), os.path.join(self.staging, folder))
        change_place.sync_folder(self.destination)

    def _reclaim(self, folder: str, source: Mapping[str, os.stat_result]) -> None:
        """Reuse a repo that an interrupted move has placed while its source is still here."""
        placed = os.path.join(self.destination, folder)
        if not os.path.lexists(placed):
            return
        if os.path.islink(placed) or set(walk(placed)) - set(source):
            raise CacheError(
                f"the destination has its own copy, with other files: {placed}",
                "remove it there, or move to another folder",
            )
        if os.path.lexists(os.path.join(self.staging, folder)):
            self._remove([os.path.join(self.staging, folder)])
        self.unplace(folder)

    def _remove_others(
        self,
        target: str,
        source: Mapping[str, os.stat_result],
        staged: Mapping[str, os.stat_result],
    ) -> None:
        """Remove what an earlier run has staged and what is not in the source now."""
        wrong: list[str] = []
        for name, status in staged.items():
            same = name in source and modes.S_IFMT(source[name].st_mode) == modes.S_IFMT(
                status.st_mode
            )
            if not same and not any(name.startswith(folder + os.sep) for folder in wrong):
                wrong.append(name)
        self._remove([os.path.join(target, name) for name in wrong])

    def _remove(self, paths: list[str]) -> None:
        if not paths:
            return
        why = "left by an interrupted move"
        plan = Plan(tuple(RemoveTree(path, "leftover", None, why, 0, None) for path in paths))
        for outcome in execute(plan, self.destination).outcomes:
            if outcome.result not in ("done", "absent"):
                raise OSError(errno.EIO, outcome.detail or "it cannot be removed", outcome.path)

    def finish(self) -> None:
        """Remove the staging folder, if nothing is left in it."""
        for path in (os.path.join(self.staging, layout.SHARED_STORE), self.staging):
            with contextlib.suppress(OSError):
                os.rmdir(path)

    # Single files.

    def _stage_file(
        self, source: str, target: str, status: os.stat_result, expected: str | None
    ) -> None:
        """Make a file at the destination with the content that its hash names."""
        if self.same_disk and expected is not None and self._second_name(source, target):
            self.on_progress(source, status.st_size)
            return
        wanted = expected or hash_file(source, NO_HASH)
        if change_place.file_size(target) != status.st_size or hash_file(target, wanted) != wanted:
            actual = copy_file(source, target, wanted, self.on_progress)
            self.copied += status.st_size
            if actual != wanted:
                raise SourceDamagedError(
                    f"damaged, so not moved: {source}",
                    "'vlmcache verify --repair' repairs it",
                )
        self.on_progress(source, status.st_size)
        keep_mode(target, status)

    def _second_name(self, source: str, target: str) -> bool:
        if is_same(source, target):
            return True
        try:
            hard_link(source, target)
        except OSError as error:
            if error.errno not in NO_HARD_LINK:
                raise
            return False
        return True

    # The shared store, by the protocol of huggingface_hub 2.4 (`utils/_shared_blobs.py`).

    def _stage_shared(self, blob: SharedBlob, expected: str | None) -> None:
        place = SharedStore(self.destination).path_of(blob.hash)
        if os.path.lexists(place):
            if change_place.file_size(place) == blob.size and (
                is_same(place, blob.path)
                or hash_file(place, expected or NO_HASH)
                == (expected or hash_file(blob.path, NO_HASH))
            ):
                self.on_progress(blob.path, blob.size)
                return
            raise SourceDamagedError(
                f"the destination's shared blob is damaged: {place}",
                f"'vlmcache verify --repair --cache-dir {self.destination}' repairs it",
            )
        folder = os.path.join(self.staging, layout.SHARED_STORE)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        target = os.path.join(folder, blob.hash)
        self._stage_file(blob.path, target, os.stat(blob.path), expected)
        change_place.sync_folder(folder)

    @contextlib.contextmanager
    def _published(self, shared_hash: str, references: list[str]) -> Iterator[None]:
        """Put a shared blob into the destination's store, and hold its lock."""
        store = SharedStore(self.destination)
        store.prepare()
        place = store.path_of(shared_hash)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with store.held(place):
            store.add_references(place, references)
            if not os.path.lexists(place):
                staged = os.path.join(self.staging, layout.SHARED_STORE, shared_hash)
                os.rename(staged, place)
            change_place.sync_folder(os.path.dirname(place))
            change_place.sync_folder(store.folder)
            yield
