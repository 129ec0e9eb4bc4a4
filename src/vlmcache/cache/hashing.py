"""Hashing of files that should have the content that a hash names: on all cores, at disk speed.

The Hub names a blob by the sha256 of its content (LFS and Xet files), or by git's blob sha1.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import msgspec

from vlmcache.cache import page_cache
from vlmcache.cache.reading import open_quietly
from vlmcache.errors import ChangedError

BLOCK = 1 << 20
"""Bytes hashed at a time: few enough to stay in the processor's own cache meanwhile."""
_STRETCH = 8
"""Blocks that are read ahead of the hash, and given back after it, at a time."""
_LEAVE_AFTER = 3.0
"""Seconds that threads get to end when the work is stopped."""


class Identity(NamedTuple):
    """What a file is as long as nobody has written to it. Times are nanoseconds since the epoch.

    The change time is set by the system alone: a write that puts back the modification time shows.
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
    """What became of a check.

    actual: the content's own hash, `None` where it was not or could not be read; problem says why.
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
    """Someone wrote to the file while it was read."""

    def __init__(self, path: str) -> None:
        super().__init__(f"it was written to while it was read: {path}", "run it again")


class _Stopped(Exception):  # noqa: N818 - not a failure: someone asked for it
    pass


Moved = Callable[[Check, int], None]
"""Called from several threads with the number of bytes of a check's file that are hashed by now."""


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def identify(path: str) -> Identity:
    """Return what the file is that a path leads to.

    Raises:
        OSError: there is none.
    """
    return _identity(os.stat(path))


def _identity(stat: os.stat_result) -> Identity:
    return Identity(
        stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, getattr(stat, "st_ctime_ns", 0)
    )


def new_hash(expected: str, size: int) -> hashlib._Hash:
    """Return the hash, nothing hashed yet, by which a blob of that name and length is named."""
    if len(expected) == 64:
        return hashlib.sha256(usedforsecurity=False)
    # git hashes a header in front of the content (`git help hash-object`).
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def hash_file(path: str, expected: str) -> str:
    """Return the hash of a file's content, of the kind that the expected one is.

    Raises:
        OSError: it cannot be read.
        ContentChangedError: it was written to meanwhile.
    """
    return _digest(Check(path, expected), bytearray(BLOCK), None, threading.Event())[1]


def hash_all(
    checks: Sequence[Check], workers: int | None = None, moved: Moved | None = None
) -> Generator[Judged, None, None]:
    """Hash files in several threads and yield each as it is done, in no order.

    What was not in the page cache before is not left there. Close the iterator to stop early.

    Args:
        checks: the files; the longest are best named first, so that no core idles at the end.
        workers: threads; one a core if not given.
        moved: is called with the progress.
    """
    results: queue.SimpleQueue[Judged | Exception] = queue.SimpleQueue()
    pending = iter(checks)
    lock = threading.Lock()
    stopped = threading.Event()

    def work() -> None:
        buffer = bytearray(BLOCK)
        while not stopped.is_set():
            with lock:
                check = next(pending, None)
            if check is None:
                return
            try:
                results.put(_judge(check, buffer, moved, stopped))
            except Exception as error:
                results.put(error)

    # Daemons, since a disk that does not answer must not hold up the process's end.
    count = max(1, min(workers or cores(), len(checks)))
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        left = len(checks)
        while left:
            try:
                # With a bound, since a wait without one keeps signals out on Windows.
                judged = results.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(judged, Exception):
                raise judged
            left -= 1
            yield judged
    finally:
        stopped.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(_LEAVE_AFTER)


def _judge(
    check: Check, buffer: bytearray, moved: Moved | None, stopped: threading.Event
) -> Judged:
    for last in (False, True):
        try:
            identity, actual = _digest(check, buffer, moved, stopped)
            if actual == check.expected or identify(check.path) == identity or last:
                return Judged(check, identity, actual)
        except ContentChangedError:
            if last:
                return Judged(check, None, problem="it changed while it was read")
        except OSError as error:
            return Judged(check, None, problem=f"it cannot be read: {error.strerror or error}")
        # Another file has taken its place meanwhile: that one counts.
    raise AssertionError("unreachable")


def _digest(
    check: Check, buffer: bytearray, moved: Moved | None, stopped: threading.Event
) -> tuple[Identity, str]:
    with open(open_quietly(check.path), "rb", buffering=0) as file:
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
                raise _Stopped
            number, within = divmod(position, stretch)
            if within == 0 and number + 1 < len(resident) and not resident[number + 1]:
                page_cache.read_ahead(descriptor, (number + 1) * stretch, stretch)
            digest.update(view[:count])
            position += count
            if number < len(resident) and position >= min(size, (number + 1) * stretch):
                if not resident[number]:
                    page_cache.give_back(descriptor, given_back, position - given_back)
                given_back = position
                if moved is not None:
                    moved(check, position)
        if moved is not None:
            moved(check, position)
        if position != size or _identity(os.fstat(descriptor))[:4] != identity[:4]:
            raise ContentChangedError(check.path)
        return identity, digest.hexdigest()
