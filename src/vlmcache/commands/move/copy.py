"""Repos copied to another cache, hashed on the way, and put there by one rename.

What is copied is staged in a folder of its own at the destination, where nothing looks for repos
and the next run finds every complete file. The copy has the source's names, modes and times.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat as modes
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from vlmcache.cache import layout, page_cache
from vlmcache.cache.hashing import hash_file, new_hash
from vlmcache.cache.moved import leads_back
from vlmcache.cache.reading import open_quietly
from vlmcache.cache.state import Repo, SharedBlob
from vlmcache.change import place as change_place
from vlmcache.change.plan import Plan, RemoveTree
from vlmcache.change.remove import execute
from vlmcache.change.shared_store import SharedStore
from vlmcache.change.tree import Tree, sync_folder, write_all
from vlmcache.commands.move.values import SourceDamagedError
from vlmcache.errors import CacheError

OnProgress = Callable[[str, int], None]
"""Is called with a source's path and how many of its bytes are copied."""

_BLOCK = 8 << 20
_SYNC_EVERY = 8
"""Blocks after which what was written is brought to the disk, so that memory does not fill up."""

_COPYING = ".copying"

_NO_HASH = "0" * 64
_NOT_HERE = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
)
"""Why the kernel cannot copy a block: `copy_file_range(2)`."""
_NO_HARD_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


class Copier:
    """Copies repos of one cache to one destination.

    Args:
        cache_dir: the cache's real path.
        destination: the other cache's real path; it must exist.
        same_disk: give files a second name instead of copying them, if that is possible.
    """

    on_progress: OnProgress
    """Is set before repos are staged."""

    def __init__(self, cache_dir: str, destination: str, *, same_disk: bool = False) -> None:
        self.cache_dir = cache_dir
        self.destination = destination
        self.same_disk = same_disk
        self.staging = layout.staged_path(destination)
        self.staged_blobs = layout.staged_path(destination, layout.SHARED_STORE)
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
        folders = [name for name, status in source.items() if modes.S_ISDIR(status.st_mode)]
        for name in folders:
            os.makedirs(os.path.join(target, name), exist_ok=True)
        firsts: dict[tuple[int, int], str] = {}
        # Links first: where the filesystem has none, that shows before the long copies.
        for name in sorted(source, key=lambda name: not modes.S_ISLNK(source[name].st_mode)):
            status = source[name]
            path, place = os.path.join(repo.path, name), os.path.join(target, name)
            if modes.S_ISLNK(status.st_mode):
                link(links.get(path) or os.readlink(path), place)
                keep_times(place, status, follow=False)
            elif modes.S_ISREG(status.st_mode):
                key = status.st_dev, status.st_ino
                first = firsts.setdefault(key, place) if status.st_nlink > 1 else place
                if first == place:
                    self._stage_file(path, place, status, hashes.get(path))
                elif not is_same(first, place):
                    clear(place)
                    os.link(first, place)
        for name in [*reversed(folders), ""]:
            place = os.path.join(target, name) if name else target
            keep_mode(place, source.get(name) or os.stat(repo.path))
            sync_folder(place)

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
            # Held until the repo is in place: until then the hub would take the blobs for unused.
            for shared_hash, names in sorted(references.items()):
                locks.enter_context(self._published(shared_hash, names))
            place = os.path.join(self.destination, repo.folder)
            if leads_back(self.destination, repo.folder, self.cache_dir):
                # The repo comes back to where it has left a link.
                os.unlink(place)
            os.rename(os.path.join(self.staging, repo.folder), place)
            sync_folder(self.destination)
        sync_folder(self.staging)
        change_place.tag_cache(Tree(self.destination))

    def unplace(self, folder: str) -> None:
        """Move a repo that was placed back to the staging folder, since its source stays.

        Raises:
            OSError: the system refuses.
        """
        os.rename(os.path.join(self.destination, folder), os.path.join(self.staging, folder))
        sync_folder(self.destination)

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
        staged = os.path.join(self.staging, folder)
        self._remove([staged] if os.path.lexists(staged) else [])
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
            kind = modes.S_IFMT(source[name].st_mode) if name in source else None
            inside = any(name.startswith(folder + os.sep) for folder in wrong)
            if kind != modes.S_IFMT(status.st_mode) and not inside:
                wrong.append(name)
        self._remove([os.path.join(target, name) for name in wrong])

    def _remove(self, paths: list[str]) -> None:
        why = "left by an interrupted move"
        plan = Plan(tuple(RemoveTree(path, "leftover", None, why, 0, None) for path in paths))
        for outcome in execute(plan, self.destination).undone:
            raise OSError(errno.EIO, outcome.detail or "it cannot be removed", outcome.path)

    def finish(self) -> None:
        """Remove the staging folder, if nothing is left in it."""
        for path in (self.staged_blobs, self.staging):
            with contextlib.suppress(OSError):
                os.rmdir(path)

    def _stage_file(
        self, source: str, target: str, status: os.stat_result, expected: str | None
    ) -> None:
        """Make a file at the destination with the content that its hash names."""
        if self.same_disk and expected is not None and self._second_name(source, target):
            self.on_progress(source, status.st_size)
            return
        wanted = expected or hash_file(source, _NO_HASH)
        if change_place.file_size(target) != status.st_size or hash_file(target, wanted) != wanted:
            copy_file(source, target, wanted, self.on_progress)
            self.copied += status.st_size
        self.on_progress(source, status.st_size)
        keep_mode(target, status)

    def _second_name(self, source: str, target: str) -> bool:
        try:
            if not is_same(source, target):
                clear(target)
                os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_HARD_LINK:
                raise
            return False
        return True

    # The shared store, by the protocol of huggingface_hub 2.4 (`utils/_shared_blobs.py`).

    def _stage_shared(self, blob: SharedBlob, expected: str | None) -> None:
        place = SharedStore(self.destination).path_of(blob.hash)
        if os.path.lexists(place):
            if change_place.file_size(place) == blob.size and (
                is_same(place, blob.path)
                or hash_file(place, expected or _NO_HASH)
                == (expected or hash_file(blob.path, _NO_HASH))
            ):
                self.on_progress(blob.path, blob.size)
                return
            raise SourceDamagedError(
                f"the destination's shared blob is damaged: {place}",
                f"'vlmcache verify --repair --cache-dir {self.destination}' repairs it",
            )
        os.makedirs(self.staged_blobs, mode=0o700, exist_ok=True)
        target = os.path.join(self.staged_blobs, blob.hash)
        self._stage_file(blob.path, target, os.stat(blob.path), expected)
        sync_folder(self.staged_blobs)

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
                os.rename(os.path.join(self.staged_blobs, shared_hash), place)
            sync_folder(os.path.dirname(place))
            sync_folder(store.folder)
            yield


# Single files and folders.


def walk(top: str) -> dict[str, os.stat_result]:
    """Return path below a folder -> its status, folders before what they hold.

    Raises:
        OSError: a folder cannot be read, or something is not a file, folder or link.
    """
    statuses: dict[str, os.stat_result] = {}
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(os.path.join(top, prefix)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                status = entry.stat(follow_symlinks=False)
                name = os.path.join(prefix, entry.name)
                statuses[name] = status
                if modes.S_ISDIR(status.st_mode):
                    pending.append(name)
                elif not modes.S_ISREG(status.st_mode) and not modes.S_ISLNK(status.st_mode):
                    raise OSError(errno.EINVAL, "not a file, folder or link", entry.path)
    return statuses


def hashes_of(repo: Repo) -> dict[str, str]:
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


def shared_hashes_of(repo: Repo) -> dict[str, str | None]:
    """Return hash in the shared store -> hash of the content, which is the blob's name."""
    return {
        blob.shared: blob.name if layout.is_etag(blob.name) else None
        for blob in repo.blobs.values()
        if blob.shared is not None
    }


def links_of(repo: Repo) -> dict[str, str]:
    """Return path -> target of the links that the hub writes relative to themselves."""
    return {
        revision.file_path(file.name): layout.link_target(file.blob, file.name.count("/"))
        for revision in repo.revisions
        for file in revision.files
        if file.kind == "link" and file.blob is not None
    }


def link(target: str, place: str) -> None:
    """Make a path a link to a target."""
    if not os.path.islink(place) or os.readlink(place) != target:
        clear(place)
        os.symlink(target, place)


def clear(place: str) -> None:
    """Unlink what is at a path, if anything is."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)


def is_same(path: str, other: str) -> bool:
    """Return whether two paths lead to one file."""
    with contextlib.suppress(OSError):
        return os.path.samefile(path, other)
    return False


def keep_mode(place: str, status: os.stat_result) -> None:
    """Give a file or folder the mode, owner and times of its source, as far as that is possible.

    Raises:
        OSError: for another reason than that the filesystem has none, or they are not ours to set.
    """
    with _where_possible():
        if modes.S_IMODE(os.stat(place).st_mode) != modes.S_IMODE(status.st_mode):
            os.chmod(place, modes.S_IMODE(status.st_mode))
    if getattr(os, "geteuid", lambda: 1)() == 0:
        with _where_possible():
            os.chown(place, status.st_uid, status.st_gid)
    keep_times(place, status, follow=True)


def keep_times(place: str, status: os.stat_result, *, follow: bool) -> None:
    """Give a path the times of its source, if that is possible."""
    # They show when a model was downloaded and used.
    with _where_possible():
        os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=follow)


@contextlib.contextmanager
def _where_possible() -> Iterator[None]:
    try:
        yield
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def copy_file(source: str, target: str, expected: str, on_progress: OnProgress) -> None:
    """Copy a file, by the filesystem itself if it can, and hash what is copied.

    What of the source was not in the page cache is not left there, and of the target nothing is.

    Args:
        source: a regular file.
        target: the copy's path; only this user may read it at first.
        expected: the hash that the content should have.
        on_progress: is called with the progress.

    Raises:
        SourceDamagedError: the content has another hash; nothing is at the target then.
        OSError: the system refuses.
    """
    with (
        open(open_quietly(source), "rb", buffering=0) as reader,
        Tree(os.path.dirname(target)).replacing(
            target, 0o600, temporary=target + _COPYING
        ) as writer,
    ):
        size = os.fstat(reader.fileno()).st_size
        digest = new_hash(expected, size)
        _copy_blocks(source, reader.fileno(), writer, digest, on_progress)
        # What is not on the disk yet stays in memory.
        os.fsync(writer)
        page_cache.give_back(writer, 0, size)
        if digest.hexdigest() != expected:
            raise SourceDamagedError(
                f"damaged, so not moved: {source}", "'vlmcache verify --repair' repairs it"
            )


def _copy_blocks(
    source: str, reader: int, writer: int, digest: hashlib._Hash, on_progress: OnProgress
) -> None:
    size = os.fstat(reader).st_size
    resident = page_cache.resident_blocks(reader, size, _BLOCK) or ()
    by_kernel = hasattr(os, "copy_file_range")
    position = number = synced = 0
    with ThreadPoolExecutor(1) as pool:
        hashed: Future[None] | None = None
        while position < size:
            count = 0
            if by_kernel:
                try:
                    count = os.copy_file_range(reader, writer, min(_BLOCK, size - position))
                except OSError as error:
                    if error.errno not in _NOT_HERE:
                        raise
                # Some filesystems copy nothing and report no error.
                by_kernel = count > 0
            block = None
            if not by_kernel:
                block = os.read(reader, min(_BLOCK, size - position))
                if not block:
                    raise OSError(errno.EIO, "the file became shorter meanwhile", source)
                write_all(writer, block)
                count = len(block)
            if hashed is not None:
                hashed.result()
            hashed = pool.submit(_hash, digest, writer, position, count, block)
            position += count
            number += 1
            if number <= len(resident) and not resident[number - 1]:
                page_cache.give_back(reader, position - count, count)
            if number % _SYNC_EVERY == 0:
                hashed.result()
                os.fsync(writer)
                page_cache.give_back(writer, synced, position - synced)
                synced = position
            on_progress(source, position)
        if hashed is not None:
            hashed.result()


def _hash(
    digest: hashlib._Hash, descriptor: int, position: int, count: int, block: bytes | None
) -> None:
    """Hash a block: as it was read, or as it reads at the destination if the kernel copied it."""
    while block is None and count:
        part = os.pread(descriptor, count, position)
        if not part:
            raise OSError(errno.EIO, "the copy is shorter than what was copied")
        digest.update(part)
        position += len(part)
        count -= len(part)
    if block is not None:
        digest.update(block)
