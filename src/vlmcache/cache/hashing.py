"""Hashing of files whose content should have a known hash: on all cores, at disk speed.

The Hub names a blob by the sha256 of its content (LFS and Xet files), or by git's blob sha1.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Generator, Sequence
from io import FileIO
from typing import NamedTuple

import msgspec

from vlmcache.cache import page_cache
from vlmcache.cache.reading import open_quietly
from vlmcache.errors import ChangedError, reason_of
from vlmcache.progress import Stopped
from vlmcache.threads import results

BLOCK = 1 << 20
"""Bytes that are copied at a time while they are hashed."""
_PIECE = 1 << 18
"""Bytes that are read and hashed at a time: few enough to stay in the core's own cache.

With 1 MB it takes 2 % longer on an idle machine and an eighth longer on a busy one.
"""
_STRETCH = 32
"""Pieces that are read ahead of the hash at a time, and given back after it."""


class Identity(NamedTuple):
    """What stays the same while nobody writes to a file. Times are nanoseconds since the epoch.

    Only the system sets the change time: it shows a write that restored the modification time.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Check(msgspec.Struct, frozen=True):
    """A file whose content should have a hash: 64 hex digits of sha256, or 40 of git's sha1."""

    path: str
    expected: str


class Judged(msgspec.Struct, frozen=True):
    """The result of a check.

    actual: the content's own hash; `None` if it could not be read: problem says why.
    """

    check: Check
    identity: Identity | None
    actual: str | None = None
    problem: str | None = None

    @property
    def good(self) -> bool:
        """Whether the content is what it should be."""
        return self.actual == self.check.expected


class ContentChangedError(ChangedError):
    """Somebody wrote to the file while it was read."""

    def __init__(self, path: str) -> None:
        super().__init__(f"the file was written to while it was read: {path}", "run it again")


Opener = Callable[[str], int]
"""Opens a file for reading and returns its descriptor."""
OnProgress = Callable[[Check, int], None]
"""Called from several threads with a check and how many bytes of its file are hashed so far."""


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def identify(path: str) -> Identity:
    """Return the identity of the file that a path leads to.

    Raises:
        OSError: there is none.
    """
    return _identity(os.stat(path))


def identify_open(descriptor: int) -> Identity:
    """Return the identity of an open file, by its descriptor."""
    return _identity(os.fstat(descriptor))


def _identity(stat: os.stat_result) -> Identity:
    return Identity(
        stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, getattr(stat, "st_ctime_ns", 0)
    )


def new_hash(expected: str, size: int) -> hashlib._Hash:
    """Return a new hash object of the kind by which a blob of that name and length is named."""
    if len(expected) == 64:
        return hashlib.sha256(usedforsecurity=False)
    # git hashes a header in front of the content (`git help hash-object`).
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def hash_file(path: str, expected: str, opener: Opener = open_quietly) -> str:
    """Return the hash of a file's content, of the same kind as the expected one.

    Args:
        path: the file.
        expected: the hash.
        opener: opens it: `CacheTree.open_content` for files in a cache.

    Raises:
        OSError: it cannot be read.
        ContentChangedError: it was written to while it was read.
    """
    with os.fdopen(opener(path), "rb", buffering=0) as file:
        return _digest(Check(path, expected), file, bytearray(_PIECE), None, threading.Event())[1]


def hash_all(
    checks: Sequence[Check],
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    *,
    opener: Opener = open_quietly,
) -> Generator[Judged, None, None]:
    """Hash files in several threads and yield each as it is done, in no order.

    What was not in the page cache before is not left there. Close the iterator to stop early.

    Args:
        checks: the files; best with the longest first, so that no core idles at the end.
        workers: threads; one per core if not given.
        on_progress: is called with the progress.
        opener: opens them: `CacheTree.open_content` for files in a cache.
    """
    stopped = threading.Event()
    own = threading.local()

    def judge(check: Check) -> Judged:
        if not hasattr(own, "buffer"):
            own.buffer = bytearray(_PIECE)
        return _judge(check, opener, own.buffer, on_progress, stopped)

    return results(checks, judge, workers or cores(), stopped)


def _judge(
    check: Check,
    opener: Opener,
    buffer: bytearray,
    on_progress: OnProgress | None,
    stopped: threading.Event,
) -> Judged:
    for last in (False, True):
        try:
            with os.fdopen(opener(check.path), "rb", buffering=0) as file:
                identity, actual = _digest(check, file, buffer, on_progress, stopped)
            if actual == check.expected or identify(check.path) == identity or last:
                return Judged(check, identity, actual)
        except ContentChangedError:
            if last:
                return Judged(check, None, problem="it changed while it was read")
        except OSError as error:
            return Judged(check, None, problem=f"it cannot be read: {reason_of(error)}")
        # Another file has taken its place meanwhile: check that one.
    raise AssertionError("unreachable")


def _digest(
    check: Check,
    file: FileIO,
    buffer: bytearray,
    on_progress: OnProgress | None,
    stopped: threading.Event,
) -> tuple[Identity, str]:
    descriptor = file.fileno()
    identity = _identity(os.fstat(descriptor))
    size = identity.size
    digest = new_hash(check.expected, size)
    stretch = len(buffer) * _STRETCH
    resident = page_cache.resident_blocks(descriptor, size, stretch) or ()
    view = memoryview(buffer)
    position = given_back = 0
    if resident and not resident[0]:
        page_cache.read_ahead(descriptor, 0, stretch)
    # A file that grows as fast as it is read would never end.
    while position <= size and (count := file.readinto(buffer)):
        if stopped.is_set():
            raise Stopped
        number, within = divmod(position, stretch)
        if within == 0 and number + 1 < len(resident) and not resident[number + 1]:
            page_cache.read_ahead(descriptor, (number + 1) * stretch, stretch)
        digest.update(view[:count])
        position += count
        if position >= min(size, (number + 1) * stretch):
            if number < len(resident) and not resident[number]:
                page_cache.give_back(descriptor, given_back, position - given_back)
            given_back = position
            if on_progress is not None:
                on_progress(check, position)
    if on_progress is not None:
        on_progress(check, position)
    if position != size or _identity(os.fstat(descriptor))[:4] != identity[:4]:
        raise ContentChangedError(check.path)
    return identity, digest.hexdigest()
