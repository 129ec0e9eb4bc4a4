"""Repos brought to another cache: copied, hashed on the way, put there by one rename.

What is copied is gathered in a folder of its own at the destination, where nothing looks for repos
and whatever is whole is found by the next run. The copy has the source's names, modes and times.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat as modes
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from vlmcache.cache import layout, page_cache
from vlmcache.cache.drives import drive_of
from vlmcache.cache.hashing import hash_file, new_hash
from vlmcache.cache.moves import (
    FORMAT,
    RECORD_FORMAT,
    Move,
    Note,
    RepoRecord,
    is_trusted,
    leads_back,
    note_path,
    record_path,
)
from vlmcache.cache.reading import open_quietly, read_bytes
from vlmcache.cache.scan import allocated_bytes
from vlmcache.cache.state import Repo, SharedBlob
from vlmcache.change import placing
from vlmcache.change.execute import execute
from vlmcache.change.partials import write_all
from vlmcache.change.plan import Plan, RemoveTree
from vlmcache.errors import CacheError, ExitCode, VlmcacheError

Moved = Callable[[str, int], None]
"""Is told a source's path and how many of its bytes are copied by now."""

_BLOCK = 8 << 20
_SYNC_EVERY = 8
"""Blocks after which what was written is brought to the disk, so that memory does not fill up."""
_MANIFEST_LIMIT = 64_000_000
_COPYING = ".copying"
_TEMPORARY = ".00000000.tmp"
"""Always the same name, so that one that a kill left behind goes with the next note."""
_NO_HASH = "0" * 64
_NOT_HERE = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
)
"""Why the kernel copies nothing by itself: `copy_file_range(2)`."""
_NO_HARD_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


class SourceDamagedError(VlmcacheError):
    """What is to be moved is not what its hash says."""

    code = "damaged"
    exit_code = ExitCode.DAMAGE


class Copier:
    """Brings repos of one cache to one destination.

    Args:
        cache_dir: the cache's real path.
        destination: the other cache's real path; it must be there.
        moved: is told of the progress.
        same_disk: give files a second name instead of copying them, where that can be.
    """

    def __init__(
        self, cache_dir: str, destination: str, moved: Moved, *, same_disk: bool = False
    ) -> None:
        self.cache_dir = cache_dir
        self.destination = destination
        self.moved = moved
        self.same_disk = same_disk
        self.gathering = os.path.join(destination, layout.MOVING)
        self.copied = 0
        """Bytes written at the destination."""

    def gather(self, repo: Repo, shared: Mapping[str, SharedBlob]) -> None:
        """Copy all of a repo that is not there yet.

        Args:
            repo: as it was scanned.
            shared: the cache's store, of which comes what the repo links to.

        Raises:
            SourceDamagedError: something is not what its hash says.
            CacheError: what is at the destination is not ours to change.
            OSError: the system refuses.
        """
        os.makedirs(self.gathering, mode=0o700, exist_ok=True)
        hashes = _hashes(repo)
        for one, expected in _shared_hashes(repo).items():
            if one in shared:
                self._gather_shared(shared[one], expected)
        target = os.path.join(self.gathering, repo.folder)
        source = _walk(repo.path)
        if not leads_back(self.destination, repo.folder, self.cache_dir):
            self._take_back(repo.folder, source)
        there = _walk(target) if os.path.lexists(target) else {}
        self._remove_others(target, source, there)
        os.makedirs(target, exist_ok=True)
        links = _links(repo)
        # Links first: where the filesystem has none, that shows before the long copies.
        order = {True: 0, False: 2}
        folders = [name for name, status in source.items() if modes.S_ISDIR(status.st_mode)]
        for name in folders:
            os.makedirs(os.path.join(target, name), exist_ok=True)
        firsts: dict[tuple[int, int], str] = {}
        for name in sorted(source, key=lambda one: order[modes.S_ISLNK(source[one].st_mode)]):
            status = source[name]
            path, place = os.path.join(repo.path, name), os.path.join(target, name)
            if modes.S_ISLNK(status.st_mode):
                _link(links.get(name) or os.readlink(path), place)
                _keep_times(place, status, follow=False)
            elif modes.S_ISREG(status.st_mode):
                key = status.st_dev, status.st_ino
                first = firsts.setdefault(key, name) if status.st_nlink > 1 else name
                if first == name:
                    self._bring(path, place, status, hashes.get(name))
                elif not _is_same(os.path.join(target, first), place):
                    _hard_link(os.path.join(target, first), place)
        for name in [*reversed(folders), ""]:
            place = os.path.join(target, name) if name else target
            _keep_mode(place, source.get(name) or os.stat(repo.path))
            placing.sync_folder(place)

    def place(self, repo: Repo) -> None:
        """Let a repo that is gathered appear at the destination, its shared blobs before it.

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
            # Held until the repo is there: till then the hub would take the blobs for unused.
            for shared_hash in sorted(references):
                locks.enter_context(self._published(shared_hash, references[shared_hash]))
            place = self._place_of(repo.folder)
            if leads_back(self.destination, repo.folder, self.cache_dir):
                # The repo comes back to where it has left a link.
                os.unlink(place)
            os.rename(os.path.join(self.gathering, repo.folder), place)
            placing.sync_folder(self.destination)
        placing.sync_folder(self.gathering)
        placing.tag_cache(self.destination)

    def take_away(self, folder: str) -> None:
        """Let a repo that was placed be gathered only, since its source stays.

        Raises:
            OSError: the system refuses.
        """
        os.rename(self._place_of(folder), os.path.join(self.gathering, folder))
        placing.sync_folder(self.destination)

    def _place_of(self, folder: str) -> str:
        return os.path.join(self.destination, folder)

    def _take_back(self, folder: str, source: Mapping[str, os.stat_result]) -> None:
        """Take up a repo that an interrupted move has placed while its source is still here."""
        placed = self._place_of(folder)
        if not os.path.lexists(placed):
            return
        if os.path.islink(placed) or set(_walk(placed)) - set(source):
            raise CacheError(
                f"the destination has its own copy, with other files: {placed}",
                "remove it there, or move to another folder",
            )
        if os.path.lexists(os.path.join(self.gathering, folder)):
            self._remove([os.path.join(self.gathering, folder)])
        self.take_away(folder)

    def _remove_others(
        self,
        target: str,
        source: Mapping[str, os.stat_result],
        there: Mapping[str, os.stat_result],
    ) -> None:
        """Remove what an earlier run has gathered and what is no longer in the source."""
        wrong: list[str] = []
        for name, status in there.items():
            same = name in source and modes.S_IFMT(source[name].st_mode) == modes.S_IFMT(
                status.st_mode
            )
            if not same and not any(name.startswith(one + os.sep) for one in wrong):
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
        """Remove the folder in which was gathered, if nothing is left in it."""
        for path in (os.path.join(self.gathering, layout.SHARED_STORE), self.gathering):
            with contextlib.suppress(OSError):
                os.rmdir(path)

    # Single files.

    def _bring(
        self, source: str, target: str, status: os.stat_result, expected: str | None
    ) -> None:
        """Let a file be at the destination with the content that its hash names."""
        if self.same_disk and expected is not None and self._second_name(source, target):
            self.moved(source, status.st_size)
            return
        wanted = expected or hash_file(source, _NO_HASH)
        if placing.file_size(target) != status.st_size or hash_file(target, wanted) != wanted:
            actual = copy_file(source, target, wanted, self.moved)
            self.copied += status.st_size
            if actual != wanted:
                raise SourceDamagedError(
                    f"damaged, so not moved: {source}",
                    "'vlmcache verify --repair' mends it",
                )
        self.moved(source, status.st_size)
        _keep_mode(target, status)

    def _second_name(self, source: str, target: str) -> bool:
        if _is_same(source, target):
            return True
        try:
            _hard_link(source, target)
        except OSError as error:
            if error.errno not in _NO_HARD_LINK:
                raise
            return False
        return True

    # The shared store, by the protocol of huggingface_hub 2.4 (`utils/_shared_blobs.py`).

    def _gather_shared(self, blob: SharedBlob, expected: str | None) -> None:
        place = os.path.join(self.destination, *layout.shared_path(blob.hash).split("/"))
        if os.path.lexists(place):
            if placing.file_size(place) == blob.size and (
                _is_same(place, blob.path)
                or hash_file(place, expected or _NO_HASH)
                == (expected or hash_file(blob.path, _NO_HASH))
            ):
                self.moved(blob.path, blob.size)
                return
            raise SourceDamagedError(
                f"the destination's shared blob is damaged: {place}",
                f"'vlmcache verify --repair --cache-dir {self.destination}' mends it",
            )
        folder = os.path.join(self.gathering, layout.SHARED_STORE)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        target = os.path.join(folder, blob.hash)
        self._bring(blob.path, target, os.stat(blob.path), expected)
        placing.sync_folder(folder)

    @contextlib.contextmanager
    def _published(self, shared_hash: str, references: list[str]) -> Iterator[None]:
        """Let a shared blob be in the destination's store, and hold its lock."""
        store = os.path.join(self.destination, layout.SHARED_STORE)
        placing.prepare_store(self.destination)
        place = os.path.join(self.destination, *layout.shared_path(shared_hash).split("/"))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with _store_lock(place):
            manifest = place + layout.MANIFEST_SUFFIX
            listed = _listed(manifest)
            _append(manifest, [name for name in references if name not in listed])
            if not os.path.lexists(place):
                gathered = os.path.join(self.gathering, layout.SHARED_STORE, shared_hash)
                os.rename(gathered, place)
            placing.sync_folder(os.path.dirname(place))
            placing.sync_folder(store)
            yield


def _walk(top: str) -> dict[str, os.stat_result]:
    """Return path below a folder -> what is there, folders before what they hold.

    Raises:
        OSError: a folder cannot be read, or there is something that is no file, folder or link.
    """
    found: dict[str, os.stat_result] = {}
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(os.path.join(top, prefix)) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                status = entry.stat(follow_symlinks=False)
                name = os.path.join(prefix, entry.name)
                found[name] = status
                if modes.S_ISDIR(status.st_mode):
                    pending.append(name)
                elif not modes.S_ISREG(status.st_mode) and not modes.S_ISLNK(status.st_mode):
                    raise OSError(errno.EINVAL, "no file, folder or link", entry.path)
    return found


def _hashes(repo: Repo) -> dict[str, str]:
    """Return path in the repo -> hash of the content, where blob names or listings tell it."""
    found: dict[str, str] = {}
    for name in repo.blobs:
        if layout.is_etag(name):
            found[os.path.join(layout.BLOBS, name)] = name
    for revision in repo.revisions:
        for file in revision.files:
            listed = (revision.tree or {}).get(file.name)
            if listed is None or not layout.is_etag(listed.etag):
                continue
            parts = [layout.BLOBS, file.blob] if file.blob is not None else None
            if file.kind == "copy":
                parts = [layout.SNAPSHOTS, revision.commit, *file.name.split("/")]
            if parts is not None:
                found.setdefault(os.path.join(*parts), listed.etag)
    return found


def _shared_hashes(repo: Repo) -> dict[str, str | None]:
    """Return hash in the shared store -> hash of the content, which is the blob's name."""
    return {
        blob.shared: blob.name if layout.is_etag(blob.name) else None
        for blob in repo.blobs.values()
        if blob.shared is not None
    }


def _links(repo: Repo) -> dict[str, str]:
    """Return path in the repo -> target of links that the hub writes relative to themselves."""
    found: dict[str, str] = {}
    for revision in repo.revisions:
        for file in revision.files:
            if file.kind == "link" and file.blob is not None:
                name = os.path.join(layout.SNAPSHOTS, revision.commit, *file.name.split("/"))
                found[name] = layout.link_target(file.blob, file.name.count("/"))
    return found


def _link(target: str, place: str) -> None:
    with contextlib.suppress(OSError):
        if os.readlink(place) == target:
            return
    if os.path.lexists(place):
        os.unlink(place)
    os.symlink(target, place)


def _hard_link(source: str, place: str) -> None:
    if os.path.lexists(place):
        os.unlink(place)
    os.link(source, place)


def _is_same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def _keep_mode(place: str, status: os.stat_result) -> None:
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
    _keep_times(place, status, follow=True)


def _keep_times(place: str, status: os.stat_result, *, follow: bool) -> None:
    # They tell when a model was downloaded and used.
    with _where_possible():
        times = status.st_atime_ns, status.st_mtime_ns
        os.utime(place, ns=times, follow_symlinks=follow)


@contextlib.contextmanager
def _where_possible() -> Iterator[None]:
    try:
        yield
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def copy_file(source: str, target: str, expected: str, moved: Moved) -> str:
    """Copy a file, by the filesystem itself where it can, and hash what is copied.

    The target appears by one rename, whole and on the disk, if the hash is the expected one. What
    of the source was not in the page cache is not left there, and of the target nothing is.

    Args:
        source: a regular file.
        target: the copy's path; only this user may read it at first.
        expected: the hash, of the kind that is to be made.
        moved: is told of the progress.

    Returns:
        The hash.

    Raises:
        OSError: the system refuses.
    """
    temporary = target + _COPYING
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with contextlib.ExitStack() as stack:
        reader = open_quietly(source)
        stack.callback(os.close, reader)
        writer = os.open(temporary, flags, 0o600)
        stack.callback(os.close, writer)
        size = os.fstat(reader).st_size
        digest = new_hash(expected, size)
        _copy_blocks(source, reader, writer, size, digest, moved)
        os.fsync(writer)
        page_cache.give_back(writer, 0, size)
        actual = digest.hexdigest()
    # Not before both are closed: Windows removes and renames no open file.
    if actual != expected:
        os.unlink(temporary)
    else:
        os.replace(temporary, target)
    return actual


def _copy_blocks(
    source: str, reader: int, writer: int, size: int, digest: hashlib._Hash, moved: Moved
) -> None:
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
                # Some filesystems answer with nothing where they cannot.
                by_kernel = count > 0
            block: bytes | None = None
            if not by_kernel:
                block = os.read(reader, min(_BLOCK, size - position))
                if not block:
                    raise OSError(errno.EIO, "the file became shorter meanwhile", source)
                write_all(writer, block)
                count = len(block)
            if hashed is not None:
                hashed.result()
            hashed = None
            if position + count < size:
                hashed = pool.submit(_hash, digest, writer, position, count, block)
            else:
                _hash(digest, writer, position, count, block)
            position += count
            number += 1
            if number <= len(resident) and not resident[number - 1]:
                page_cache.give_back(reader, position - count, count)
            if number % _SYNC_EVERY == 0 and hashed is not None:
                hashed.result()
                os.fsync(writer)
                page_cache.give_back(writer, synced, position - synced)
                synced = position
            moved(source, position)
        if hashed is not None:
            hashed.result()


def _hash(
    digest: hashlib._Hash, descriptor: int, position: int, count: int, block: bytes | None
) -> None:
    """Hash a block: as it was read, or as it reads at the destination where the kernel copied."""
    while block is None and count:
        part = os.pread(descriptor, count, position)
        if not part:
            raise OSError(errno.EIO, "the copy is shorter than what was copied")
        digest.update(part)
        position += len(part)
        count -= len(part)
    if block is not None:
        digest.update(block)


@contextlib.contextmanager
def _store_lock(place: str) -> Iterator[None]:
    """Hold a shared blob's lock as the hub takes it: a file that every user may lock."""
    import filelock

    path = place + layout.LOCK_SUFFIX
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o666)
    with contextlib.suppress(OSError, AttributeError):
        os.fchmod(descriptor, 0o666)
    os.close(descriptor)
    with filelock.FileLock(path, mode=0o666):
        yield


def _listed(manifest: str) -> set[str]:
    try:
        return set(read_bytes(manifest, _MANIFEST_LIMIT).decode().splitlines())
    except (OSError, UnicodeDecodeError):
        return set()


def _append(manifest: str, references: list[str]) -> None:
    if not references:
        return
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(manifest, flags, 0o666)
    try:
        with contextlib.suppress(OSError, AttributeError):
            os.fchmod(descriptor, 0o666)
        write_all(descriptor, "".join(f"{name}\n" for name in references).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_moves(destination: str, moves: Mapping[str, Move]) -> None:
    """Note at a destination what moves have brought there; nothing noted leaves no file.

    Raises:
        CacheError: there is a note that is not to be trusted, and so not to be replaced.
        OSError: the system refuses.
    """
    path = note_path(destination)
    if os.path.lexists(path) and not is_trusted(destination):
        raise CacheError(f"another user's: {path}", "move to another folder")
    if not moves:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    content = msgspec.json.encode(Note(FORMAT, dict(sorted(moves.items()))))
    placing.write_file(path, content, 0o644, temporary=path + _TEMPORARY)


def write_record(cache_dir: str, folder: str, destination: str) -> None:
    """Record in a cache where one of its repos goes.

    Args:
        cache_dir: the real path of the cache.
        folder: the name of the repo's folder.
        destination: the real path of the folder to which it is moved.

    Raises:
        OSError: the system refuses.
    """
    path = record_path(cache_dir, folder)
    locks = os.path.dirname(path)
    record = RepoRecord(RECORD_FORMAT, cache_dir, destination, drive_of(destination))
    try:
        content = msgspec.json.encode(record)
    except UnicodeEncodeError:
        return  # a name that JSON cannot hold; the link itself still says where the repo is
    try:
        os.mkdir(locks)
    except FileExistsError:
        pass
    else:
        placing.sync_folder(cache_dir)
    placing.write_file(path, content, 0o644, temporary=path + _TEMPORARY)


def remove_record(cache_dir: str, folder: str) -> None:
    """Remove what is recorded of a repo, if anything is.

    Raises:
        OSError: the system refuses.
    """
    path = record_path(cache_dir, folder)
    for name in (path, path + _TEMPORARY):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def record_size(cache_dir: str, folder: str) -> int:
    """Return the bytes of disk that the record of a repo and the folder of records occupy."""
    path = record_path(cache_dir, folder)
    found = 0
    for name in (os.path.dirname(path), path, path + _TEMPORARY):
        with contextlib.suppress(OSError):
            found += allocated_bytes(os.lstat(name))
    return found
