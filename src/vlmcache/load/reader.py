"""The page cache: evict files from it, measure what it holds, and fill it ahead of a loader.

Only the standard library is imported here: the file is also run by itself, as the process that
reads ahead. What evicts and populates is Linux's; elsewhere nothing can be evicted, and reading
ahead copies through a buffer.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence

CHUNK = 16 * 1024 * 1024
"""Bytes of one read ahead; large enough that a disk is not kept waiting for the next one."""

READERS = 4
"""Threads that read at once."""

PAGE = mmap.PAGESIZE
_MADV_POPULATE_READ = 22
_MAP_FAILED = ctypes.c_void_p(-1).value
_PR_SET_PDEATHSIG = 1
_NICE = 10

_libc: ctypes.CDLL | None = None


def libc() -> ctypes.CDLL | None:
    """Return the C library, or `None` on systems without one of the POSIX kind."""
    global _libc
    if _libc is None and sys.platform != "win32":
        _libc = ctypes.CDLL(None, use_errno=True)
        _libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        _libc.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
        ]
        _libc.mmap.restype = ctypes.c_void_p
        _libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return _libc


def can_evict() -> bool:
    """Return whether this system lets a process drop a file's pages from memory."""
    return hasattr(os, "posix_fadvise")


def evict(paths: Iterable[str], *, write: bool = True) -> None:
    """Ask the kernel to drop the files' pages. Pages that a process keeps in use stay.

    Pages not yet written are written first: the kernel only drops clean ones.

    Args:
        paths: the files.
        write: whether pages are written first that may not have been.

    Raises:
        OSError: a file cannot be opened.
    """
    if not can_evict():
        return
    for path in paths:
        with io.FileIO(path) as file:
            if write:
                os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_bytes(path: str) -> int | None:
    """Return how many bytes of a file are in memory, as mincore(2) says; `None` if it cannot.

    Since Linux 5.2 the kernel answers truthfully only to those who may write the file or own it,
    and calls every page resident to others; they get `None`.
    """
    library = libc()
    if library is None or not _may_know(path):
        return None
    with io.FileIO(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return 0
        address = library.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if address in (None, _MAP_FAILED):
            return None
        try:
            pages = (ctypes.c_ubyte * (-(-size // PAGE)))()
            if library.mincore(address, size, pages) != 0:
                return None
        finally:
            library.munmap(address, size)
    resident = bytes(pages).translate(_LOWEST_BIT)
    whole = resident.count(1) * PAGE
    # The last page counts only as far as the file reaches.
    return whole - (-size % PAGE) if resident[-1] else whole


_LOWEST_BIT = bytes(number & 1 for number in range(256))


def _may_know(path: str) -> bool:
    return os.access(path, os.W_OK) or os.stat(path).st_uid == os.geteuid()


def resident_fraction(paths: Sequence[str]) -> float | None:
    """Return the part of the files' bytes that is in memory, 0 to 1; `None` if not known."""
    counts = [resident_bytes(path) for path in paths]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    total = sum(map(os.path.getsize, paths))
    return sum(known) / total if total else 0.0


class Readers:
    """Threads that bring files into memory, in the order in which they are named.

    A file that cannot be read is left to the loader, which tells what is wrong.

    Args:
        paths: the files.
        count: threads.
        limit: the most bytes to read; all if not given.
    """

    def __init__(
        self, paths: Sequence[str], count: int = READERS, limit: int | None = None
    ) -> None:
        self._chunks = _chunks(paths, limit)
        self._lock = threading.Lock()
        self._halted = threading.Event()
        self.bytes = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]

    def start(self) -> None:
        """Begin to read and return at once."""
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Return when everything was read."""
        for thread in self._threads:
            thread.join()

    def run_for(self, seconds: float) -> bool:
        """Wait so long, but only until everything was read; return whether there is more to do."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return any(thread.is_alive() for thread in self._threads)

    def halt(self) -> None:
        """Let each thread end after the chunk it is at."""
        self._halted.set()

    def _run(self) -> None:
        files: dict[str, io.FileIO] = {}
        with contextlib.ExitStack() as opened:
            while not self._halted.is_set():
                with self._lock:
                    if not self._chunks:
                        break
                    path, begin, length = self._chunks.pop()
                try:
                    if path not in files:
                        files[path] = opened.enter_context(io.FileIO(path))
                    got = _bring(files[path], begin, length)
                except OSError:
                    continue
                with self._lock:
                    self.bytes += got


class ReadAhead:
    """Brings files into memory from a process of its own, from now on, and returns at once.

    Threads would do, if imports and the mapping of libraries did not wait for them: on two cores a
    cold load of 4 GB took 7 to 12 s with threads and about 6 s with a process.

    Args:
        paths: the files, the first wanted first.
        limit: the most bytes to read; all if not given.
    """

    def __init__(self, paths: Sequence[str], limit: int | None = None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: Readers | None = None
        self.seconds: float | None = None
        """How long the reading took, once it has ended."""
        program = sys.executable or ""
        if not getattr(sys, "frozen", False) and os.path.basename(program).startswith("python"):
            # Isolated and without site-packages, an interpreter starts in a few milliseconds.
            with contextlib.suppress(OSError):
                self._process = subprocess.Popen(
                    [program, "-I", "-S", __file__, "" if limit is None else str(limit), *paths],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
        if self._process is None:
            # An application that embeds Python has no interpreter to start.
            self._readers = Readers(paths, limit=limit)
            self._readers.start()

    def is_done(self) -> bool:
        """Return whether everything was read."""
        return self._process is not None and self._process.poll() is not None

    def wait(self) -> None:
        """Return when everything was read."""
        if self._process is not None:
            output, _ = self._process.communicate()
            with contextlib.suppress(ValueError):
                self.seconds = float(output)
            self._process = None
        if self._readers is not None:
            self._readers.wait()

    def halt(self) -> None:
        """End the reading, wherever it is."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._readers is not None:
            self._readers.halt()


def end_with_parent() -> None:
    """Let the kernel end this process with the one that started it, should that be killed."""
    library = libc()
    if library is not None and sys.platform.startswith("linux"):
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _main() -> None:
    begun = time.monotonic()
    end_with_parent()
    if hasattr(os, "nice"):
        # What reads ahead must not take a processor from the imports that it is to be hidden by.
        os.nice(_NICE)
    limit, *paths = sys.argv[1:]
    readers = Readers(paths, limit=int(limit) if limit else None)
    readers.start()
    readers.wait()
    print(time.monotonic() - begun)


def _bring(file: io.FileIO, begin: int, length: int) -> int:
    """Bring a range of a file into memory and return the bytes of it that are there then.

    Linux does so without copying them anywhere (MADV_POPULATE_READ, since 5.14), which leaves the
    processor to others; elsewhere the range is read and thrown away.
    """
    library = libc()
    if library is not None and sys.platform.startswith("linux"):
        address = library.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), begin)
        if address not in (None, _MAP_FAILED):
            try:
                if library.madvise(address, length, _MADV_POPULATE_READ) == 0:
                    return length
            finally:
                library.munmap(address, length)
    buffer = memoryview(mmap.mmap(-1, length))
    file.seek(begin)
    got = 0
    while got < length:
        count = file.readinto(buffer[got:])
        if not count:
            break
        got += count
    return got


def _chunks(paths: Sequence[str], limit: int | None) -> list[tuple[str, int, int]]:
    """Return (path, begin, length) of what is to be read, the first wanted last."""
    chunks = []
    for path in paths:
        try:
            size = os.path.getsize(path)
        except OSError:
            continue
        if limit is not None:
            size = min(size, limit)
            limit -= size
        chunks += [(path, at, min(CHUNK, size - at)) for at in range(0, size, CHUNK)]
    chunks.reverse()
    return chunks


if __name__ == "__main__":
    _main()
