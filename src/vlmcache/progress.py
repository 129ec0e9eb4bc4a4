"""How work in progress is reported, slowed down and stopped."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar


class Progress:
    """Receives the progress of a transfer, from several threads. This base class shows nothing."""

    def started(self, repo: str, sizes: Mapping[str, int], have: int) -> None:
        """A repo's transfer begins: file name -> bytes, and the bytes that are there already."""

    def moved(self, repo: str, file: str, position: int) -> None:
        """`position` bytes of a file are there now; fewer than before if it starts again."""

    def ended(self, repo: str) -> None:
        """A repo's transfer is over, whether it succeeded or failed."""

    def note(self, text: str) -> None:
        """Something that a person would want to know while waiting."""


scanned: ContextVar[Callable[[int, int], None] | None] = ContextVar("scanned", default=None)
"""Is called with how many repos of a very large cache are read, and how many there are."""


class Sum:
    """Bytes that are there, over all files of a repo."""

    def __init__(self) -> None:
        self.positions: dict[str, int] = {}
        self.total = 0
        self.have = 0

    def begin(self, sizes: Mapping[str, int], have: int) -> None:
        """Begin anew: file name -> bytes, and the bytes already there."""
        self.positions = {}
        self.total = sum(sizes.values())
        self.have = have

    @property
    def done(self) -> int:
        """The bytes that are there now."""
        # Until its transfer begins, a file's earlier bytes are known only in sum.
        return max(self.have, sum(self.positions.values()))


class Stopped(Exception):  # noqa: N818 - not a failure: someone asked for it
    """The work was asked to stop."""


class StopToken:
    """Asks work to stop; whoever does the work checks it now and then."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def check(self) -> None:
        """Do nothing unless the work was asked to stop.

        Raises:
            Stopped: it was.
        """
        self.sleep(0.0)

    def sleep(self, seconds: float) -> None:
        """Wait, but only until the work is asked to stop.

        Raises:
            Stopped: it was.
        """
        if self.stopped.wait(seconds) if seconds > 0 else self.stopped.is_set():
            raise Stopped


class Throttle:
    """Keeps all transfers together below a rate.

    Args:
        rate: bytes per second; unlimited if not given.
    """

    def __init__(self, rate: int | None = None) -> None:
        self.rate = rate
        self.stop_token = StopToken()
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait until `count` more bytes may be received.

        Raises:
            Stopped: the work was asked to stop.
        """
        self.stop_token.sleep(self.wait_for(count))

    def wait_for(self, count: int) -> float:
        """Let `count` more bytes be counted, and return the seconds to wait before they move."""
        if not self.rate:
            return 0.0
        with self._lock:
            now = time.monotonic()
            # Up to a quarter of a second of unused rate may be used later.
            self._free_at = max(self._free_at, now - 0.25) + count / self.rate
            return self._free_at - now


LONG_FILE = 16 << 20
"""Length in bytes from which on a file's own progress is shown: others end before anyone reads."""


@contextlib.contextmanager
def long_files(
    progress: Progress, label: str, sizes: Mapping[str, int], names: Mapping[str, str]
) -> Iterator[Callable[[str, int], None]]:
    """Show the progress of long files.

    Args:
        progress: shows it.
        label: what is done, or the repo to which it is done.
        sizes: path of each file -> its length in bytes.
        names: path of a file -> what people know it by; its path if not given.

    Yields:
        What is called with a file's path, and how many of its bytes are done.
    """
    long = {path: names.get(path, path) for path, size in sizes.items() if size >= LONG_FILE}

    def moved(path: str, position: int) -> None:
        if path in long:
            progress.moved(label, long[path], position)

    progress.started(label, {long[path]: sizes[path] for path in long}, 0)
    try:
        yield moved
    finally:
        progress.ended(label)
