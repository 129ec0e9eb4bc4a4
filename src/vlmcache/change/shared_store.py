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
from typing import TYPE_CHECKING

from vlmcache import late
from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.tree import StaleError
from vlmcache.change.locks import Lock
from vlmcache.change.plan import Attempt, ReleaseShared
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.change.tree import write_all
from vlmcache.errors import CacheError

if TYPE_CHECKING:
    from vlmcache.change.trash import TrashWriter

_MARKER_TEMPORARY = late.pattern(re.escape(layout.SHARED_MARKER) + r"\.[0-9a-f]{8}\.tmp")
MANIFEST_LIMIT = 64_000_000
"""Bytes of a manifest that make sense."""
_FOR_ALL = 0o666
"""Mode of locks and manifests, whatever the umask: every user of the cache writes to them."""


class SharedStore:
    """The shared blobs of one cache.

    Args:
        cache: the hub cache, or a tree that has it open.
    """

    def __init__(self, cache: str | RemovalTree) -> None:
        self.tree = cache if isinstance(cache, RemovalTree) else RemovalTree(cache)
        self.root = self.tree.root
        self.folder = os.path.join(self.root, layout.SHARED_STORE)
        self._links: dict[str, set[str]] = {}

    def path_of(self, shared_hash: str) -> str:
        """Return the path of a shared blob."""
        return layout.shared_blob_path(self.root, shared_hash)

    def target_of(self, blob: str) -> str | None:
        """Return the shared blob that a repo's blob is a link to, `None` if it is not one."""
        try:
            shared_hash = layout.shared_hash_of(self.tree.readlink(blob))
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
        unmarked = CacheError(
            f"not the hub's store of shared blobs, and in its place: {self.folder}",
            "rename it, or name another folder",
        )
        try:
            self.tree.make_folders(self.folder)
            with contextlib.suppress(FileNotFoundError):
                if self.tree.read(marker, 64) == layout.SHARED_MARKER_TEXT.encode():
                    return
        except StaleError:
            raise unmarked from None
        # As the client does: what a kill has left of the marker is removed, all else is a
        # stranger's.
        names = self.tree.names(self.folder)
        if not all(map(_MARKER_TEMPORARY.fullmatch, names)):
            raise unmarked
        for name in names:
            self.tree.discard(os.path.join(self.folder, name))
        self.tree.write(marker, layout.SHARED_MARKER_TEXT.encode(), 0o444)

    @contextlib.contextmanager
    def held(self, path: str, *, remove_made: bool = False) -> Iterator[None]:
        """Hold a shared blob's lock as the hub takes it: a file that every user may lock.

        Args:
            path: the shared blob's.
            remove_made: whether a lock file that was not there is removed again.

        Raises:
            InUseError: another process holds it.
            OSError: the system refuses.
        """
        name = path + layout.LOCK_SUFFIX
        with contextlib.ExitStack() as taken:
            # The client with an older filelock takes the second where there are no locks.
            for place in (name, name + layout.SOFT_SUFFIX):
                lock = Lock(self.tree, place, _FOR_ALL)
                lock.take()
                taken.callback(lock.release, remove=remove_made and lock.made)
                if not lock.soft:
                    break
            yield

    def references(self, path: str) -> set[str] | None:
        """Return the references that a shared blob's manifest lists, `None` if it is unreadable."""
        try:
            content = self.tree.read(path + layout.MANIFEST_SUFFIX, MANIFEST_LIMIT)
            return set(content.decode().splitlines())
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
        descriptor = self.tree.edit_or_create(path + layout.MANIFEST_SUFFIX, _FOR_ALL)
        try:
            _open_to_all(descriptor)
            os.lseek(descriptor, 0, os.SEEK_END)
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
            self.tree.link(blob, temporary)
            # As the client does: what many repos use, nobody may write to.
            self.tree.chmod(temporary, 0o444)

        folder, name = os.path.split(path)
        self.tree.put(path, os.path.join(folder, f".{name}.{unique}.shared"), second_name)
        folder, name = os.path.split(blob)
        link = functools.partial(self.tree.symlink, os.path.relpath(path, folder))
        self.tree.put(blob, os.path.join(folder, f".{name}.{unique}.new"), link)

    # Removal.

    @contextlib.contextmanager
    def held_to_release(self, path: str) -> Iterator[None]:
        """Hold the lock of a shared blob that is there.

        Raises:
            InUseError: another process holds it.
            OSError: the system refuses, or the blob is not there.
        """
        with self.tree.parent(path) as (name, parent):
            os.stat(name, dir_fd=parent)
        with self.held(path, remove_made=True):
            yield

    def read_links(self) -> None:
        """See which repo blobs link to the store now, over every repo of the cache.

        Raises:
            OSError: a repo cannot be read, so that nothing can be said.
        """
        self._links = {}
        for repo in self.tree.names(self.root):
            if layout.parse_repo_folder(repo) is None:
                continue
            folder = os.path.join(self.root, repo, layout.BLOBS)
            try:
                # A repo that lies elsewhere has its store next to it there.
                if self.tree.home(folder)[0].root != self.root:
                    continue
                for name, target in self.tree.links(folder).items():
                    shared_hash = layout.shared_hash_of(target)
                    if shared_hash is not None:
                        reference = f"{repo}/{layout.BLOBS}/{name}"
                        self._links.setdefault(shared_hash, set()).add(reference)
            except (FileNotFoundError, NotADirectoryError):
                continue

    def release(
        self, action: ReleaseShared, attempt: Attempt, trash: TrashWriter | None = None
    ) -> None:
        """Rewrite the manifest without what is gone, or unlink the blob if nothing is left.

        What counts are the links of all repos, as they were read; the manifest is made to agree
        with them. The blob's lock is held by the caller.

        What is kept in the trash keeps its references too: the client frees no shared blob that a
        manifest says is needed.

        Raises:
            StaleError: a repo links to it.
            InUseError: a process uses it.
            OSError: the system refuses.
        """
        path = action.path
        links = self._links.get(action.hash, set())
        with self.tree.entry(path) as entry:
            if not modes.S_ISREG(entry.status.st_mode):
                raise StaleError("it is not a regular file")
            if links and trash is not None:
                return
            if links:
                if self.references(path) not in (None, links):
                    self._rewrite(path + layout.MANIFEST_SUFFIX, links, attempt)
                if action.last:
                    raise StaleError("a repo links to it by now")
                return
            self.tree.refuse_use(entry.status)
            self.tree.refuse_open(entry)
            if trash is not None:
                trash.rename(entry)
                attempt.trashed += action.frees
            else:
                entry.unlink(attempt)
        with contextlib.suppress(FileNotFoundError):
            if trash is None:
                self.tree.remove_file(path + layout.MANIFEST_SUFFIX, None, attempt)
            else:
                with self.tree.entry(path + layout.MANIFEST_SUFFIX) as entry:
                    trash.rename(entry)

    def _rewrite(self, manifest: str, references: set[str], attempt: Attempt) -> None:
        content = "".join(f"{reference}\n" for reference in sorted(references)).encode()
        with self.tree.entry(manifest) as entry:
            with self.tree.replacing(manifest, _FOR_ALL) as descriptor:
                _open_to_all(descriptor)
                write_all(descriptor, content)
            after = os.stat(entry.name, dir_fd=entry.folder)
            attempt.freed += allocated_bytes(entry.status) - allocated_bytes(after)


def _open_to_all(descriptor: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.fchmod(descriptor, _FOR_ALL)
