"""The store of blobs that repos share, by the protocol of huggingface_hub 2.4.

The client's `utils/_shared_blobs.py` has the store's marker, a lock and a manifest for each blob.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat as modes
import uuid
from collections.abc import Collection, Iterator

from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.tree import StaleError
from vlmcache.change.attempt import Attempt
from vlmcache.change.locks import Lock
from vlmcache.change.partials import write_all
from vlmcache.change.place import put, replacing, write_file
from vlmcache.change.plan import ReleaseShared
from vlmcache.change.tree import RemovalTree
from vlmcache.errors import CacheError

_MARKER_TEMPORARY = re.compile(re.escape(layout.SHARED_MARKER) + r"\.[0-9a-f]{8}\.tmp")
_MANIFEST_LIMIT = 64_000_000
_FOR_ALL = 0o666
"""Mode of locks and manifests, whatever the umask: every user of the cache writes to them."""


class SharedStore:
    """The shared blobs of one cache.

    Args:
        cache_dir: the hub cache.
        tree: how the cache is reached, and what of it is in use.
    """

    def __init__(self, cache_dir: str, tree: RemovalTree | None = None) -> None:
        self.tree = tree or RemovalTree(cache_dir)
        self.root = self.tree.root
        self.folder = os.path.join(self.root, layout.SHARED_STORE)
        self._links: dict[str, set[str]] = {}

    def path_of(self, shared_hash: str) -> str:
        """Return the path of a shared blob."""
        return layout.shared_blob_path(self.root, shared_hash)

    def target_of(self, blob: str) -> str | None:
        """Return the shared blob that a repo's blob is a link to, `None` if it is no such link."""
        try:
            shared_hash = layout.shared_hash_of(os.readlink(blob))
        except OSError:
            return None
        return None if shared_hash is None else self.path_of(shared_hash)

    def prepare(self) -> None:
        """Make the store, marked as the client marks it.

        Raises:
            CacheError: a folder of that name is there and is not marked.
            OSError: the system refuses.
        """
        marker = os.path.join(self.folder, layout.SHARED_MARKER)
        os.makedirs(self.folder, exist_ok=True)
        try:
            with open(marker, encoding="utf-8") as file:
                if file.read(64) == layout.SHARED_MARKER_TEXT and not os.path.islink(marker):
                    return
        except FileNotFoundError:
            pass
        # As the client does: what a kill has left of the marker is removed, all else is a
        # stranger's.
        names = os.listdir(self.folder)
        begun = [name for name in names if _MARKER_TEMPORARY.fullmatch(name)]
        if os.path.islink(self.folder) or len(begun) < len(names):
            raise CacheError(
                f"not the hub's store of shared blobs, and in its place: {self.folder}",
                "rename it, or name another folder",
            )
        for name in begun:
            os.unlink(os.path.join(self.folder, name))
        write_file(marker, layout.SHARED_MARKER_TEXT.encode(), 0o444)

    @contextlib.contextmanager
    def held(self, path: str) -> Iterator[None]:
        """Hold a shared blob's lock as the hub takes it: a file that every user may lock.

        Args:
            path: the shared blob's.

        Raises:
            TakenError: another process holds it.
            OSError: the system refuses.
        """
        lock = Lock(self.tree, path + layout.LOCK_SUFFIX, _FOR_ALL)
        lock.take()
        try:
            yield
        finally:
            lock.release()

    def references(self, path: str) -> set[str] | None:
        """Return the references that a shared blob's manifest lists, `None` if it is unreadable."""
        manifest = path + layout.MANIFEST_SUFFIX
        if os.path.islink(manifest):
            return None
        try:
            return set(read_bytes(manifest, _MANIFEST_LIMIT).decode().splitlines())
        except (OSError, UnicodeDecodeError):
            return None

    def add_references(self, path: str, references: Collection[str]) -> None:
        """Let a shared blob's manifest list references; their bytes are on the disk then.

        The blob's lock is held by the caller.
        """
        listed = self.references(path) or set()
        lines = [f"{name}\n" for name in references if name not in listed]
        if not lines:
            return
        manifest = path + layout.MANIFEST_SUFFIX
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with self.tree.parent(manifest) as (name, parent):
            descriptor = os.open(name, flags, _FOR_ALL, dir_fd=parent)
            try:
                _open_to_all(descriptor)
                write_all(descriptor, "".join(lines).encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def return_blob(self, blob: str, path: str) -> None:
        """Let a blob's content take the place of a wrong shared one, and link to it.

        At each instant both names lead to some content, and the blob's own to the right one.

        Args:
            blob: the repo's blob, a file.
            path: the shared blob's.

        Raises:
            OSError: the system refuses.
        """
        unique = uuid.uuid4().hex[:8]

        def second_name(temporary: str) -> None:
            os.link(blob, temporary)
            # As the client does: what many repos use, nobody may write to.
            os.chmod(temporary, 0o444)

        folder, name = os.path.split(path)
        put(path, os.path.join(folder, f".{name}.{unique}.shared"), second_name)
        folder, name = os.path.split(blob)
        link = functools.partial(os.symlink, os.path.relpath(path, folder))
        put(blob, os.path.join(folder, f".{name}.{unique}.new"), link)

    # Removal.

    @contextlib.contextmanager
    def held_to_release(self, path: str) -> Iterator[None]:
        """Hold the lock of a shared blob that is there.

        Raises:
            TakenError: another process holds it.
            OSError: the system refuses, or the blob is not there.
        """
        with self.tree.parent(path) as (name, parent):
            os.stat(name, dir_fd=parent)
        with self.held(path):
            yield

    def read_links(self) -> None:
        """See which repo blobs link to the store now, over every repo of the cache.

        Raises:
            OSError: a repo cannot be read, so that nothing can be said.
        """
        self._links = {}
        with os.scandir(self.root) as entries:
            repos = [entry for entry in entries if layout.parse_repo_folder(entry.name) is not None]
        for repo in repos:
            try:
                with os.scandir(os.path.join(repo.path, layout.BLOBS)) as entries:
                    blobs = [entry for entry in entries if entry.is_symlink()]
            except (FileNotFoundError, NotADirectoryError):
                continue
            for blob in blobs:
                shared_hash = layout.shared_hash_of(os.readlink(blob.path))
                if shared_hash is None:
                    continue
                if repo.is_symlink():
                    # A repo that lies elsewhere has its store next to it there.
                    real = os.path.realpath(blob.path)
                    if os.path.exists(real) and real != os.path.realpath(self.path_of(shared_hash)):
                        continue
                reference = f"{repo.name}/{layout.BLOBS}/{blob.name}"
                self._links.setdefault(shared_hash, set()).add(reference)

    def release(self, action: ReleaseShared, attempt: Attempt) -> None:
        """Rewrite the manifest without what is gone, or unlink the blob if nothing is left.

        What counts are the links of all repos, as they were read; the manifest is made to agree
        with them. The blob's lock is held by the caller.

        Raises:
            StaleError: a repo links to it.
            TakenError: a process uses it.
            OSError: the system refuses.
        """
        path = action.path
        links = self._links.get(action.hash, set())
        with self.tree.entry(path) as entry:
            if not modes.S_ISREG(entry.status.st_mode):
                raise StaleError("it is not a regular file")
            if links:
                if self.references(path) not in (None, links):
                    self._rewrite(path + layout.MANIFEST_SUFFIX, links, attempt)
                if action.last:
                    raise StaleError("a repo links to it by now")
                return
            self.tree.refuse_use(entry.status)
            entry.unlink(attempt)
        with contextlib.suppress(FileNotFoundError):
            self.tree.unlink(path + layout.MANIFEST_SUFFIX, None, attempt)

    def _rewrite(self, manifest: str, references: set[str], attempt: Attempt) -> None:
        content = "".join(f"{reference}\n" for reference in sorted(references)).encode()
        with self.tree.entry(manifest) as entry:
            with replacing(manifest, _FOR_ALL, folder=entry.folder) as descriptor:
                _open_to_all(descriptor)
                write_all(descriptor, content)
            after = os.stat(entry.name, dir_fd=entry.folder)
            attempt.freed += allocated_bytes(entry.status) - allocated_bytes(after)


def _open_to_all(descriptor: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.fchmod(descriptor, _FOR_ALL)
