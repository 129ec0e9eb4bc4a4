"""Repos copied to another cache, hashed on the way, and put there by one rename.

What is copied is staged in a folder of its own at the destination, where nothing looks for repos
and the next run finds every complete file. The copy has the source's names, modes and times.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat as modes
from collections import defaultdict
from collections.abc import Iterator, Mapping

from vlmcache.cache import layout
from vlmcache.cache.hashing import hash_file
from vlmcache.cache.moved import leads_back
from vlmcache.cache.state import Repo, SharedBlob
from vlmcache.cache.tree import CacheTree, StaleError, is_root, stale
from vlmcache.change import place as change_place
from vlmcache.change.plan import Plan, RemoveTree
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.change.remove import execute
from vlmcache.change.shared_store import SharedStore
from vlmcache.change.tree import Tree, sync_folder
from vlmcache.commands.move.files import (
    OnProgress,
    OpenedFile,
    copy_attributes,
    copy_file,
    walk,
    where_possible,
)
from vlmcache.commands.move.values import SourceDamagedError
from vlmcache.errors import CacheError

_NO_HASH = "0" * 64
_NO_HARD_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


class Copier:
    """Copies repos of one cache to one destination, both reached by the folders that were opened.

    Args:
        source: the cache; its root is a real path.
        target: the other cache; its folder must exist.
        same_disk: give files a second name instead of copying them, if that is possible.
    """

    on_progress: OnProgress
    """Is set before repos are staged."""

    def __init__(self, source: CacheTree, target: Tree, *, same_disk: bool = False) -> None:
        self.source = source
        self.target = target
        self.same_disk = same_disk
        self.staged = Tree(target)
        # What is copied has its source's owner; until it is complete, nobody else may read it.
        self.staged.gives = False
        self.staging = layout.staged_path(target.root)
        self.staged_blobs = layout.staged_path(target.root, layout.SHARED_STORE)
        self.copied = 0
        """Bytes written at the destination."""

    def stage(self, repo: Repo, shared: Mapping[str, SharedBlob]) -> None:
        """Copy all of a repo that is not at the destination yet.

        Args:
            repo: as it was scanned.
            shared: the cache's store, of which what the repo links to is copied.

        Raises:
            SourceDamagedError: the content of a file has another hash than its name says.
            CacheError: what is at the destination belongs to another user.
            OSError: the system refuses.
        """
        self.staged.make_folders(self.staging, 0o700)
        if is_root() and self.staged.stat(self.staging).st_uid != 0:
            # Its owner could swap what is staged, and root would give them another's files.
            raise CacheError(
                f"another user's move is unfinished: {self.staging}",
                "let them continue it, or take it back with --undo",
            )
        hashes = _hashes_of(repo)
        for shared_hash, expected in _shared_hashes_of(repo).items():
            if shared_hash in shared:
                self._stage_shared(shared[shared_hash], expected)
        target = os.path.join(self.staging, repo.folder)
        source = walk(self.source, repo.path)
        if not leads_back(self.target.root, repo.folder, self.source.root):
            self._reclaim(repo.folder, source)
        staged = walk(self.staged, target) if self.staged.exists(target) else {}
        self._remove_others(target, source, staged)
        folders = [name for name, status in source.items() if modes.S_ISDIR(status.st_mode)]
        for name in ["", *folders]:
            self.staged.make_folders(os.path.join(target, name) if name else target, 0o700)
        links = _links_of(repo)
        firsts: dict[tuple[int, int], str] = {}
        # Links first: where the filesystem has none, that shows before the long copies.
        for name in sorted(source, key=lambda name: not modes.S_ISLNK(source[name].st_mode)):
            status = source[name]
            path, place = os.path.join(repo.path, name), os.path.join(target, name)
            if modes.S_ISLNK(status.st_mode):
                self._link(links.get(path) or self.source.readlink(path), place, status)
            elif modes.S_ISREG(status.st_mode):
                key = status.st_dev, status.st_ino
                first = firsts.setdefault(key, place) if status.st_nlink > 1 else place
                if first == place or not self._second_name(
                    self.staged, first, place, self.staged.stat(first)
                ):
                    self._stage_file(path, place, status, hashes.get(path))
        for name in [*reversed(folders), ""]:
            place = os.path.join(target, name) if name else target
            status = source[name] if name else self.source.stat(repo.path)
            with self.staged.folder(place) as descriptor:
                copy_attributes(place if descriptor is None else descriptor, status)
                sync_folder(place if descriptor is None else descriptor)

    def place(self, repo: Repo) -> None:
        """Put a staged repo at its place at the destination, its shared blobs before it.

        Raises:
            CacheError: the destination has no store for shared blobs, and a folder in its place.
            OSError: the system refuses.
        """
        references = defaultdict(list)
        for blob in repo.blobs.values():
            if blob.shared is not None:
                references[blob.shared].append(f"{repo.folder}/{layout.BLOBS}/{blob.name}")
        with contextlib.ExitStack() as locks:
            # Held until the repo is in place: without it the hub would take the blobs for unused.
            for shared_hash, names in sorted(references.items()):
                locks.enter_context(self._published(shared_hash, names))
            place = os.path.join(self.target.root, repo.folder)
            if leads_back(self.target.root, repo.folder, self.source.root):
                # The repo comes back to where it has left a link.
                self.target.unlink(place)
            self.target.rename(os.path.join(self.staging, repo.folder), place)
        change_place.tag_cache(self.target)

    def unplace(self, folder: str) -> None:
        """Move a repo that was placed back to the staging folder, since its source stays.

        Raises:
            OSError: the system refuses.
        """
        placed, staged = (os.path.join(top, folder) for top in (self.target.root, self.staging))
        self.target.rename(placed, staged)

    def _reclaim(self, folder: str, source: Mapping[str, os.stat_result]) -> None:
        """Reuse a repo that an interrupted move has placed while its source is still here."""
        placed = os.path.join(self.target.root, folder)
        if not self.target.exists(placed):
            return
        is_link = modes.S_ISLNK(self.target.stat(placed).st_mode)
        if is_link or set(walk(self.target, placed)) - set(source):
            raise CacheError(
                f"the destination has its own copy, with other files: {placed}",
                "remove it there, or move to another folder",
            )
        staged = os.path.join(self.staging, folder)
        self._remove([staged] if self.staged.exists(staged) else [])
        self.unplace(folder)

    def _remove_others(
        self,
        target: str,
        source: Mapping[str, os.stat_result],
        staged: Mapping[str, os.stat_result],
    ) -> None:
        """Remove what an earlier run has staged and the source does not have."""
        wrong: list[str] = []
        for name, status in staged.items():
            kind = modes.S_IFMT(source[name].st_mode) if name in source else None
            inside = any(name.startswith(folder + os.sep) for folder in wrong)
            if kind != modes.S_IFMT(status.st_mode) and not inside:
                wrong.append(name)
        self._remove([os.path.join(target, name) for name in wrong])

    def _remove(self, paths: list[str]) -> None:
        why = "left by an interrupted move"
        plan = Plan(tuple(RemoveTree(path, "leftover", None, why, 0, None) for path in paths))
        for outcome in execute(plan, self.target).undone:
            raise OSError(errno.EIO, outcome.detail or "it cannot be removed", outcome.path)

    def finish(self) -> None:
        """Remove the staging folder, if nothing is left in it."""
        for path in (self.staged_blobs, self.staging):
            with contextlib.suppress(OSError):
                self.target.rmdir(path)

    def _stage_file(
        self, source: str, target: str, status: os.stat_result, expected: str | None
    ) -> None:
        """Make the copy of a file at the destination, or find that it is there already."""
        if not (
            self.same_disk and expected and self._second_name(self.source, source, target, status)
        ):
            opener = functools.partial(self.source.open, expected=(status.st_dev, status.st_ino))
            wanted = expected or hash_file(source, _NO_HASH, opener)
            if not self._holds(target, status.st_size, wanted):
                opened = OpenedFile(source, opener(source))
                copy_file(opened, self.staged, target, wanted, self.on_progress)
                self.copied += status.st_size
        self.on_progress(source, status.st_size)

    def _holds(self, path: str, size: int, wanted: str) -> bool:
        """Return whether a file at the destination has a content."""
        with contextlib.suppress(FileNotFoundError, StaleError):
            if self.target.stat(path).st_size == size:
                return hash_file(path, wanted, self.target.open) == wanted
        return False

    def _is_there(self, path: str, status: os.stat_result) -> bool:
        """Return whether a path of the destination is a name of that very file."""
        with contextlib.suppress(OSError):
            return os.path.samestat(self.target.stat(path), status)
        return False

    def _clear(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.staged.unlink(path)

    def _link(self, target: str, place: str, status: os.stat_result) -> None:
        """Make a path of the staged repo a link, with the owner and times of its source."""
        with contextlib.suppress(OSError):
            if self.staged.readlink(place) == target:
                return
        self._clear(place)
        self.staged.symlink(target, place)
        # They show when a model was downloaded and used.
        times = status.st_atime_ns, status.st_mtime_ns
        with self.staged.parent(place) as (name, folder):
            with where_possible():
                os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)
            if is_root():
                with where_possible():
                    owner, group = status.st_uid, status.st_gid
                    os.chown(name, owner, group, dir_fd=folder, follow_symlinks=False)

    def _second_name(
        self, tree: CacheTree, source: str, target: str, status: os.stat_result
    ) -> bool:
        if self._is_there(target, status):
            return True
        self._clear(target)
        try:
            self.staged.link(source, target, tree)
        except OSError as error:
            if error.errno not in _NO_HARD_LINK:
                raise
            return False
        if not self._is_there(target, status):
            self._clear(target)
            raise stale(source)
        return True

    # The shared store, by the protocol of huggingface_hub 2.4 (`utils/_shared_blobs.py`).

    def _stage_shared(self, blob: SharedBlob, expected: str | None) -> None:
        place = layout.shared_blob_path(self.target.root, blob.hash)
        status = self.source.stat(blob.path)
        if self.target.exists(place):
            if self._is_there(place, status) or self._holds(
                place, blob.size, expected or hash_file(blob.path, _NO_HASH, self.source.open)
            ):
                self.on_progress(blob.path, blob.size)
                return
            raise SourceDamagedError(
                f"the destination's shared blob is damaged: {place}",
                f"'vlmcache verify --repair --cache-dir {self.target.root}' repairs it",
            )
        self.staged.make_folders(self.staged_blobs, 0o700)
        target = os.path.join(self.staged_blobs, blob.hash)
        self._stage_file(blob.path, target, status, expected)
        with self.staged.folder(self.staged_blobs) as descriptor:
            sync_folder(self.staged_blobs if descriptor is None else descriptor)

    @contextlib.contextmanager
    def _published(self, shared_hash: str, references: list[str]) -> Iterator[None]:
        """Put a shared blob into the destination's store, and hold its lock."""
        store = SharedStore(RemovalTree(self.target))
        store.prepare()
        place = store.path_of(shared_hash)
        self.target.make_folders(os.path.dirname(place))
        with store.held(place):
            store.add_references(place, references)
            if not self.target.exists(place):
                self.target.rename(os.path.join(self.staged_blobs, shared_hash), place)
            yield


def _hashes_of(repo: Repo) -> dict[str, str]:
    """Return path -> hash of the content of each file of which blob names or listings name it."""
    hashes = {repo.blob_path(name): name for name in repo.blobs if layout.is_etag(name)}
    for revision in repo.revisions:
        for file in revision.files:
            listed = (revision.tree or {}).get(file.name)
            if listed is None or not layout.is_etag(listed.etag):
                continue
            if file.kind == "copy":
                hashes.setdefault(revision.file_path(file.name), listed.etag)
            elif file.blob is not None:
                hashes.setdefault(repo.blob_path(file.blob), listed.etag)
    return hashes


def _shared_hashes_of(repo: Repo) -> dict[str, str | None]:
    """Return hash in the shared store -> hash of the content, which is the blob's name."""
    return {
        blob.shared: blob.name if layout.is_etag(blob.name) else None
        for blob in repo.blobs.values()
        if blob.shared is not None
    }


def _links_of(repo: Repo) -> dict[str, str]:
    """Return path -> target of the links that the hub writes relative to themselves."""
    return {
        revision.file_path(file.name): layout.link_target(file.blob, file.name.count("/"))
        for revision in repo.revisions
        for file in revision.files
        if file.kind == "link" and file.blob is not None
    }
