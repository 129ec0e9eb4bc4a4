"""One folder or file copied and hashed, its links, times and modes kept."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat as modes
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from vlmcache.cache import layout, page_cache
from vlmcache.cache.hashing import new_hash
from vlmcache.cache.reading import open_quietly
from vlmcache.cache.state import Repo
from vlmcache.change.partials import copy_block

OnProgress = Callable[[str, int], None]
"""Is called with a source's path and how many of its bytes are copied."""

_BLOCK = 8 << 20
_SYNC_EVERY = 8
"""Blocks after which what was written is brought to the disk, so that memory does not fill up."""

_COPYING = ".copying"

NO_HASH = "0" * 64
NO_HARD_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


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
    """Return path in the repo -> hash of the content, if blob names or listings name it."""
    hashes: dict[str, str] = {}
    for name in repo.blobs:
        if layout.is_etag(name):
            hashes[os.path.join(layout.BLOBS, name)] = name
    for revision in repo.revisions:
        for file in revision.files:
            listed = (revision.tree or {}).get(file.name)
            if listed is None or not layout.is_etag(listed.etag):
                continue
            parts = [layout.BLOBS, file.blob] if file.blob is not None else None
            if file.kind == "copy":
                parts = [layout.SNAPSHOTS, revision.commit, *file.name.split("/")]
            if parts is not None:
                hashes.setdefault(os.path.join(*parts), listed.etag)
    return hashes


def shared_hashes_of(repo: Repo) -> dict[str, str | None]:
    """Return hash in the shared store -> hash of the content, which is the blob's name."""
    return {
        blob.shared: blob.name if layout.is_etag(blob.name) else None
        for blob in repo.blobs.values()
        if blob.shared is not None
    }


def links_of(repo: Repo) -> dict[str, str]:
    """Return path in the repo -> target of links that the hub writes relative to themselves."""
    links: dict[str, str] = {}
    for revision in repo.revisions:
        for file in revision.files:
            if file.kind == "link" and file.blob is not None:
                name = os.path.join(layout.SNAPSHOTS, revision.commit, *file.name.split("/"))
                links[name] = layout.link_target(file.blob, file.name.count("/"))
    return links


def link(target: str, place: str) -> None:
    """Make a path a link to a target."""
    with contextlib.suppress(OSError):
        if os.readlink(place) == target:
            return
    if os.path.lexists(place):
        os.unlink(place)
    os.symlink(target, place)


def hard_link(source: str, place: str) -> None:
    """Make a path another name of a file."""
    if os.path.lexists(place):
        os.unlink(place)
    os.link(source, place)


def is_same(path: str, other: str) -> bool:
    """Return whether two paths lead to one file."""
    try:
        return os.path.samefile(path, other)
    except OSError:
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


def copy_file(source: str, target: str, expected: str, on_progress: OnProgress) -> str:
    """Copy a file, by the filesystem itself if it can, and hash what is copied.

    The target appears by one rename, complete and on the disk, if the hash is the expected one.
    What of the source was not in the page cache is not left there, and of the target nothing is.

    Args:
        source: a regular file.
        target: the copy's path; only this user may read it at first.
        expected: the hash, of the kind that is to be made.
        on_progress: is called with the progress.

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
        _copy_blocks(source, reader, writer, digest, on_progress)
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
    source: str, reader: int, writer: int, digest: hashlib._Hash, on_progress: OnProgress
) -> None:
    size = os.fstat(reader).st_size
    resident = page_cache.resident_blocks(reader, size, _BLOCK) or ()
    by_kernel = hasattr(os, "copy_file_range")
    position = number = synced = 0
    with ThreadPoolExecutor(1) as pool:
        hashed: Future[None] | None = None
        while position < size:
            count, block = copy_block(reader, writer, min(_BLOCK, size - position), by_kernel)
            if not count:
                by_kernel = False
                continue
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
