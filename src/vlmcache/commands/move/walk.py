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
from vlmcache.change.partials import write_all

Moved = Callable[[str, int], None]
"""Is told a source's path and how many of its bytes are copied by now."""

_BLOCK = 8 << 20
_SYNC_EVERY = 8
"""Blocks after which what was written is brought to the disk, so that memory does not fill up."""

_COPYING = ".copying"

NO_HASH = "0" * 64
_NOT_HERE = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
)
"""Why the kernel copies nothing by itself: `copy_file_range(2)`."""
NO_HARD_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


def walk(top: str) -> dict[str, os.stat_result]:
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


def hashes_of(repo: Repo) -> dict[str, str]:
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


def shared_hashes_of(repo: Repo) -> dict[str, str | None]:
    """Return hash in the shared store -> hash of the content, which is the blob's name."""
    return {
        blob.shared: blob.name if layout.is_etag(blob.name) else None
        for blob in repo.blobs.values()
        if blob.shared is not None
    }


def links_of(repo: Repo) -> dict[str, str]:
    """Return path in the repo -> target of links that the hub writes relative to themselves."""
    found: dict[str, str] = {}
    for revision in repo.revisions:
        for file in revision.files:
            if file.kind == "link" and file.blob is not None:
                name = os.path.join(layout.SNAPSHOTS, revision.commit, *file.name.split("/"))
                found[name] = layout.link_target(file.blob, file.name.count("/"))
    return found


def link(target: str, place: str) -> None:
    """Let a path be a link to a target."""
    with contextlib.suppress(OSError):
        if os.readlink(place) == target:
            return
    if os.path.lexists(place):
        os.unlink(place)
    os.symlink(target, place)


def hard_link(source: str, place: str) -> None:
    """Let a path be another name of a file."""
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
    """Give a path the times of its source, where that is possible."""
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
