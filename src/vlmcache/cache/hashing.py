"""Hashing of files that should have the content that a hash names: on all cores, at disk speed.

The Hub names a blob by the sha256 of its content (LFS and Xet files), or by git's blob sha1.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from io import FileIO
from typing import NamedTuple

import msgspec

from vlmcache.cache import page_cache
from vlmcache.cache.reading import open_quietly
from vlmcache.errors import ChangedError
from vlmcache.progress import Stopped
from vlmcache.threads import results

BLOCK = 1 << 20
"""Bytes hashed at a time: few enough to stay in the processor's own cache meanwhile."""
_STRETCH = 8
"""Blocks that are read ahead of the hash, and given back after it, at a time."""
_AHEAD = 3
"""Blocks that a thread reads ahead of the hash of a file, where a core has nothing else to do."""


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


Opener = Callable[[str], int]
"""Opens a file for reading and returns its descriptor."""
OnProgress = Callable[[Check, int], None]
"""Is called, from several threads, with how many bytes of a check's file are hashed by now."""


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


def hash_file(path: str, expected: str, opener: Opener = open_quietly) -> str:
    """Return the hash of a file's content, of the kind that the expected one is.

    Args:
        path: the file.
        expected: the hash.
        opener: opens it: `CacheTree.open_content` for what is in a cache.

    Raises:
        OSError: it cannot be read.
        ContentChangedError: it was written to meanwhile.
    """
    with os.fdopen(opener(path), "rb", buffering=0) as file:
        return _digest(Check(path, expected), file, bytearray(BLOCK), None, threading.Event())[1]


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
        checks: the files; the longest are best named first, so that no core idles at the end.
        workers: threads; one a core if not given.
        on_progress: is called with the progress.
        opener: opens them: `CacheTree.open_content` for what is in a cache.
    """
    stopped = threading.Event()
    own = threading.local()
    shared = _Cores(workers or cores(), len(checks))

    def judge(check: Check) -> Judged:
        if not hasattr(own, "buffer"):
            own.buffer = bytearray(BLOCK)
        shared.begin()
        try:
            return _judge(check, opener, own.buffer, on_progress, stopped, shared)
        finally:
            shared.give_back()

    return results(checks, judge, shared.count, stopped)


class _Cores:
    """Who uses the cores: one for each file, and a second one for some when no file waits.

    Args:
        count: how many there are.
        waiting: files that are to be hashed.
    """

    def __init__(self, count: int, waiting: int) -> None:
        self.count = count
        self._waiting = waiting
        self._used = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A file is begun with."""
        with self._lock:
            self._waiting -= 1
            self._used += 1

    def take(self) -> bool:
        """Take a core that no file waits for; return whether there is one."""
        with self._lock:
            free = not self._waiting and self._used < self.count
            self._used += free
        return free

    def give_back(self) -> None:
        """A core is not used any longer."""
        with self._lock:
            self._used -= 1


def _blocks(
    file: FileIO, buffer: bytearray, shared: _Cores | None
) -> Generator[memoryview, None, None]:
    """Yield a file's content, each block until the next one is asked for."""
    view = memoryview(buffer)
    while shared is None or not shared.take():
        count = file.readinto(view)
        if not count:
            return
        yield view[:count]
    try:
        yield from _blocks_ahead(file, buffer)
    finally:
        shared.give_back()


def _blocks_ahead(file: FileIO, buffer: bytearray) -> Generator[memoryview, None, None]:
    """As `_blocks`: a thread reads ahead, since the hash alone keeps one core busy."""
    free: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[bytearray, int] | OSError | None] = queue.SimpleQueue()
    free.put(buffer)
    for _ in range(_AHEAD):
        free.put(bytearray(len(buffer)))

    def read() -> None:
        try:
            while (into := free.get()) is not None and (count := file.readinto(into)):
                full.put((into, count))
            full.put(None)
        except OSError as error:
            full.put(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while (block := full.get()) is not None:
            if isinstance(block, OSError):
                raise block
            filled, count = block
            yield memoryview(filled)[:count]
            free.put(filled)
    finally:
        free.put(None)
        # The file is closed next, and its number may then be another file's.
        thread.join()


def _judge(
    check: Check,
    opener: Opener,
    buffer: bytearray,
    on_progress: OnProgress | None,
    stopped: threading.Event,
    shared: _Cores,
) -> Judged:
    for last in (False, True):
        try:
            with os.fdopen(opener(check.path), "rb", buffering=0) as file:
                identity, actual = _digest(check, file, buffer, on_progress, stopped, shared)
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
    check: Check,
    file: FileIO,
    buffer: bytearray,
    on_progress: OnProgress | None,
    stopped: threading.Event,
    shared: _Cores | None = None,
) -> tuple[Identity, str]:
    descriptor = file.fileno()
    identity = _identity(os.fstat(descriptor))
    size = identity.size
    digest = new_hash(check.expected, size)
    stretch = len(buffer) * _STRETCH
    resident = page_cache.resident_blocks(descriptor, size, stretch) or ()
    position = given_back = 0
    if resident and not resident[0]:
        page_cache.read_ahead(descriptor, 0, stretch)
    with contextlib.closing(_blocks(file, buffer, shared)) as blocks:
        for block in blocks:
            if stopped.is_set():
                raise Stopped
            number, within = divmod(position, stretch)
            if within == 0 and number + 1 < len(resident) and not resident[number + 1]:
                page_cache.read_ahead(descriptor, (number + 1) * stretch, stretch)
            digest.update(block)
            position += len(block)
            if position >= min(size, (number + 1) * stretch):
                if number < len(resident) and not resident[number]:
                    page_cache.give_back(descriptor, given_back, position - given_back)
                given_back = position
                if on_progress is not None:
                    on_progress(check, position)
            # A file that grows as fast as it is read would never end.
            if position > size:
                break
    if on_progress is not None:
        on_progress(check, position)
    if position != size or _identity(os.fstat(descriptor))[:4] != identity[:4]:
        raise ContentChangedError(check.path)
    return identity, digest.hexdigest()
