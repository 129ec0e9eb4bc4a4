"""What leaves the trash other than by `undo`: what has expired, is pulled, or is in the way."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.state import TreeFile
from vlmcache.cache.trash import Trashed, blob_paths, find_needs, weigh
from vlmcache.cache.tree import CacheTree
from vlmcache.change.known import forget_revisions
from vlmcache.change.plan import REFUSALS, Attempt, Outcome, ReleaseShared
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.change.shared_store import SharedStore
from vlmcache.change.trash import empty, removals_in, trash_folders
from vlmcache.change.trash_undo import take_back_blob
from vlmcache.config import Session
from vlmcache.paths import real_path


class Emptied(NamedTuple):
    """What was removed from the trash for good."""

    outcomes: tuple[Outcome, ...] = ()
    freed: int = 0


def parts_of(tree: CacheTree, trashed: Trashed) -> list[tuple[str, Trashed | None]]:
    """Return the other places that have a part of a removal, with that part if it is there.

    A record may name any place: only what says itself that it is of this cache counts.
    """
    found: list[tuple[str, Trashed | None]] = []
    ours = real_path(tree.root)
    for place in trashed.record.places if trashed.record is not None else ():
        part = None
        if os.path.isabs(place):
            for removal in removals_in(place, trashed.id):
                if removal.record is not None and removal.record.part_of == ours:
                    part = removal
        found.append((place, part))
    return found


def empty_trash(session: Session, trash: Sequence[Trashed], *, rest: bool = True) -> Emptied:
    """Remove from the trash for good, and what the journal and others remember of it.

    Args:
        session: the cache.
        trash: the removals, as `removals_in` returns them.
        rest: whether what an interrupted emptying has left is removed too.
    """
    tree = RemovalTree(session.cache.dir)
    outcomes: list[Outcome] = []
    freed = 0
    for trashed in trash:
        for place, part in parts_of(tree, trashed):
            if part is not None:
                done, gave = empty(CacheTree(place), [part])
                outcomes += done
                freed += gave
    done, gave = empty(tree, trash, rest)
    outcomes += done
    freed += gave
    _release(tree, trash)
    removed = {
        revision
        for trashed in trash
        for revision in (trashed.record.revisions if trashed.record is not None else ())
    }
    forget_revisions(session.environment, session.cache.dir, removed)
    return Emptied(tuple(outcomes), freed)


def _release(tree: RemovalTree, trash: Iterable[Trashed]) -> None:
    """Take off the manifests of shared blobs what was removed for good."""
    paths = {
        os.path.join(tree.root, item.path)
        for trashed in trash
        for item in (trashed.record.items if trashed.record is not None else ())
        if item.kind == "shared" and layout.SHARED_HASH.fullmatch(os.path.basename(item.path))
    }
    if not paths:
        return
    needed = find_needs(removals_in(tree)).shared
    store = SharedStore(tree)
    for path in sorted(paths):
        shared = os.path.basename(path)
        if path != store.path_of(shared) or shared in needed:
            continue
        action = ReleaseShared(path, shared, (), "the trash was emptied", 0)
        with contextlib.suppress(*REFUSALS), store.held_to_release(path):
            store.read_links()
            store.release(action, Attempt(action))


def expire(session: Session) -> None:
    """Remove what was in the trash long enough; a command that changes the cache begins with it."""
    with contextlib.suppress(OSError):
        trash = removals_in(session.cache.dir)
        now, days = time.time(), session.config.trash_days
        old = [trashed for trashed in trash if trashed.is_expired(now, days)]
        if old:
            log.info("trash", "expired: %s", ", ".join(trashed.id for trashed in old))
        if old or (not trash and trash_folders(CacheTree(session.cache.dir))):
            empty_trash(session, old)


def _on_disk_of(session: Session, place: str) -> list[tuple[Trashed, int]]:
    """Return the removals in the trash on the disk of a path, and what each would give back."""
    device = os.stat(nearest_folder(place)).st_dev
    return [
        (trashed, weigh(trashed.path).frees)
        for trashed in removals_in(session.cache.dir)
        if os.lstat(trashed.path).st_dev == device
    ]


def in_trash(session: Session, place: str) -> int:
    """Return the bytes that emptying the trash would give back to the disk of a path."""
    try:
        return sum(frees for _, frees in _on_disk_of(session, place))
    except OSError:
        return 0


def empty_for(session: Session, place: str, goal: int) -> Emptied:
    """Remove from the trash, the oldest first, until a disk has room; nothing if it never would.

    Args:
        session: the cache.
        place: a path on the disk, which need not exist.
        goal: bytes that are to be free on it.
    """
    outcomes: list[Outcome] = []
    freed = 0
    with contextlib.suppress(OSError):
        trash = _on_disk_of(session, place)
        short = goal - shutil.disk_usage(nearest_folder(place)).free
        if 0 < short <= sum(frees for _, frees in trash):
            for trashed, _ in trash:
                log.info("trash", "emptied to make room: %s", trashed.id)
                done = empty_trash(session, [trashed], rest=False)
                outcomes += done.outcomes
                freed += done.freed
                if shutil.disk_usage(nearest_folder(place)).free >= goal:
                    break
    return Emptied(tuple(outcomes), freed)


def take_back_blobs(cache: str, folder: str, files: Iterable[TreeFile]) -> set[str]:
    """Take back from the trash what would otherwise be downloaded.

    Args:
        cache: the hub cache.
        folder: the name of the repo's folder, which is not a link.
        files: the listed files whose blobs are missing.

    Returns:
        The blobs that are in the cache again.
    """
    trash = removals_in(cache)
    if not trash or os.path.islink(os.path.join(cache, folder)):
        return set()
    tree = RemovalTree(cache)
    store = SharedStore(tree)
    listed = {file.etag: file for file in files}
    taken: set[str] = set()
    for trashed in reversed(trash):
        found = blob_paths(trashed, folder)
        for etag in listed.keys() & found.keys() - taken:
            source, size = found[etag], listed[etag].content_size
            path = layout.blob_path(os.path.join(tree.root, folder), etag)
            with contextlib.suppress(OSError):
                shared = None
                with contextlib.suppress(OSError):
                    shared = layout.shared_hash_of(trashed.tree.readlink(source))
                if shared is not None:
                    # The link is of use once its content is in the store.
                    if not _take_shared(store, trash, shared, size):
                        continue
                elif trashed.tree.stat(source).st_size != size:
                    continue
                if take_back_blob(tree, trashed, source, path):
                    taken.add(etag)
    return taken


def take_back_missing(tree: RemovalTree, paths: Iterable[str]) -> None:
    """Take shared blobs back into the store that a removal needs and another one has taken."""
    store = SharedStore(tree)
    for path in paths:
        name = os.path.basename(path)
        if layout.SHARED_HASH.fullmatch(name) and path == store.path_of(name):
            _take_shared(store, removals_in(tree), name, None)


def _take_shared(
    store: SharedStore, trash: Sequence[Trashed], shared: str, size: int | None
) -> bool:
    """Take a shared blob back into the store, and return whether it is there.

    Args:
        store: the cache's.
        trash: the removals that may have it.
        shared: its hash.
        size: its length; any if not given.
    """
    tree, path = store.tree, store.path_of(shared)
    with contextlib.suppress(OSError):
        return size in (None, tree.stat(path).st_size)
    for trashed in trash:
        sources = {os.path.join(tree.root, item.path): source for item, source in trashed.items()}
        if path in sources and size in (None, trashed.tree.stat(sources[path]).st_size):
            manifest = path + layout.MANIFEST_SUFFIX
            others = [(sources[manifest], manifest)] if manifest in sources else []
            return take_back_blob(tree, trashed, sources[path], path, *others)
    return False
