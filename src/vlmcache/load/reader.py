"""Filling the page cache ahead of a loader, by threads or by a process of its own.

The process that reads ahead runs this file without site-packages, so only the standard library and
`cache.page_cache` are imported here.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vlmcache.cache import page_cache
from vlmcache.cache.page_cache import PAGE, can_evict, evict, resident_bytes, resident_fraction

__all__ = [
    "PAGE",
    "READERS",
    "STEP",
    "ReadAhead",
    "Readers",
    "can_evict",
    "end_with_parent",
    "evict",
    "resident_bytes",
    "resident_fraction",
]

STEP = 32 * 1024 * 1024
"""Bytes that a reader reads at once; enough that a disk never waits for the next request."""
READERS = 2
"""Threads that read at once if nothing better is known for a disk."""

_PR_SET_PDEATHSIG = 1
_NICE = 10
_COMMAND = (
    "import sys; sys.path.append(sys.argv.pop(1)); from vlmcache.load.reader import main; main()"
)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The folder that the package is imported from."""


class Readers:
    """Threads that read files into memory, in the order in which they are named.

    Each reads a contiguous part of each file: threads that read small pieces in turn are slower
    than one thread, since the disk sees no sequence.
    A file that cannot be read is left to the loader, which reports the error.

    Args:
        paths: the files.
        count: threads.
        limit: the most bytes to read, from the beginning of the first file on; all if not given.
    """

    def __init__(
        self, paths: Sequence[str], count: int = READERS, limit: int | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._halted = threading.Event()
        self.bytes = 0
        files = list(_lengths(paths, limit))
        self._threads = [
            threading.Thread(target=self._run, args=(_parts(files, number, count),), daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Begin to read and return at once."""
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Return when everything was read."""
        for thread in self._threads:
            thread.join()

    def run_for(self, seconds: float) -> bool:
        """Wait until everything was read, or so long; return whether there is more to read."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return any(thread.is_alive() for thread in self._threads)

    def halt(self) -> None:
        """Let each thread end after its current step."""
        self._halted.set()

    def _run(self, parts: Sequence[_Part]) -> None:
        for path, begin, end, limit in parts:
            with contextlib.suppress(OSError), io.FileIO(path) as file:
                for at in range(begin, end, STEP):
                    if self._halted.is_set():
                        return
                    # The kernel reads beyond what it is asked for, but not beyond the limit.
                    exact = limit is not None and limit - at < 2 * STEP
                    got = page_cache.bring(file, at, min(STEP, end - at), exact=exact)
                    with self._lock:
                        self.bytes += got


class ReadAhead:
    """Reads files into memory in a process of its own, from when it is made.

    Imports and the mapping of libraries would wait for threads: on two cores a cold load of 4 GB
    took 7 to 12 s with threads and about 6 s with a process.

    Args:
        paths: the files, the first wanted first.
        limit: the most bytes to read; all if not given.
        count: threads that read at once.
    """

    def __init__(
        self, paths: Sequence[str], limit: int | None = None, count: int = READERS
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: Readers | None = None
        self.seconds: float | None = None
        """How long the reading took, once it has ended."""
        self._complete = not any(longer for _, _, longer in _lengths(paths, limit))
        program = sys.executable or ""
        if not getattr(sys, "frozen", False) and os.path.basename(program).startswith("python"):
            arguments = [_PACKAGE, str(count), "" if limit is None else str(limit), *paths]
            # Isolated and without site-packages, an interpreter starts in a few milliseconds.
            with contextlib.suppress(OSError):
                self._process = subprocess.Popen(
                    [program, "-I", "-S", "-c", _COMMAND, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
        if self._process is None:
            # An application that embeds Python has no interpreter that can be started.
            self._readers = Readers(paths, count, limit)
            self._readers.start()

    def is_done(self) -> bool:
        """Return whether all bytes of the files were read, which a limit may prevent."""
        return self._complete and self._process is not None and self._process.poll() is not None

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
        """End the reading at once."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._readers is not None:
            self._readers.halt()


def end_with_parent() -> None:
    """Let the kernel kill this process when the process that started it ends."""
    library = page_cache.libc()
    if library is not None and sys.platform.startswith("linux"):
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class _Part(NamedTuple):
    """The part of a file that one reader reads."""

    path: str
    begin: int
    end: int
    limit: int | None
    """The offset up to which the file is read, if not to its end."""


def main() -> None:
    """Read ahead, as the process that `ReadAhead` starts."""
    begun = time.monotonic()
    end_with_parent()
    if hasattr(os, "nice"):
        # It must not take a processor from the imports that it runs next to.
        os.nice(_NICE)
    count, limit, *paths = sys.argv[1:]
    readers = Readers(paths, int(count), int(limit) if limit else None)
    readers.start()
    readers.wait()
    print(time.monotonic() - begun)


def _lengths(paths: Sequence[str], limit: int | None) -> Iterator[tuple[str, int, bool]]:
    """Yield each file, how many of its bytes are to be read, and whether it is longer."""
    for path in paths:
        try:
            length = size = os.path.getsize(path)
        except OSError:
            continue
        if limit is not None:
            size = min(size, limit)
            limit -= size
        yield path, size, size < length


def _parts(files: Sequence[tuple[str, int, bool]], number: int, count: int) -> list[_Part]:
    """Return one reader's parts of files (see `_lengths`), in whole huge pages."""
    parts = []
    for path, size, longer in files:
        pages = -(-size // page_cache.HUGE_PAGE)
        begin, end = (pages * part // count * page_cache.HUGE_PAGE for part in (number, number + 1))
        if begin < end:
            parts.append(_Part(path, begin, min(end, size), size if longer else None))
    return parts
