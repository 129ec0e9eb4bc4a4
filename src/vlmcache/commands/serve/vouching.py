"""Which contents may be sent: those that were found to have their hash.

A content that is not known to be good is hashed before its first byte is sent, once for all who ask
for it. Whoever asks meanwhile waits a little, and is then asked to come back later.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable

from vlmcache import log
from vlmcache.cache.hashing import Check, Identity, Judged, Opener, cores, hash_all
from vlmcache.home.journal import Journal
from vlmcache.progress import Stopped

PATIENCE = 5.0
"""Seconds that a request waits for a hash: clients give an answer ten seconds to begin."""
MAX_AGE = 7 * 86400.0
"""Seconds for which a file that did not change counts as verified, as for `verify`."""
_REMEMBER_EVERY = 5.0
_STOPPED_AFTER = 10.0
"""Seconds in which a hash notices that it is to end, on the slowest of disks."""
_SLOWEST = 50e6
"""Bytes per second that a hash is expected to make before its pace is known."""


class StillHashingError(Exception):
    """The content is being hashed.

    Args:
        seconds: how long that will take, estimated.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class NotGoodError(Exception):
    """The content has another hash, or could not be read."""


class ReplacedError(Exception):
    """Another file has taken the place of the one that is asked about."""


class _Hashing:
    """A hash in progress."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.done = 0
        self.begun: float | None = None
        self.future: asyncio.Future[Judged | None]

    def left(self) -> float:
        """Return the seconds that are left, estimated."""
        pace = _SLOWEST
        if self.begun is not None and self.done:
            pace = max(1.0, self.done / max(time.monotonic() - self.begun, 0.001))
        return (self.size - self.done) / pace


class Vouching:
    """Knows which files are good, and finds it out.

    Args:
        home: our own folder, whose journal remembers what `verify` and earlier servers found.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        with Journal(home) as journal:
            self._known = journal.verified()
        self._pool = concurrent.futures.ThreadPoolExecutor(cores(), "hashing")
        self._running: dict[tuple[Identity, str], _Hashing] = {}
        self._fresh: list[tuple[Identity, str]] = []
        self._bad: set[tuple[Identity, str]] = set()
        self._lock = threading.Lock()
        self._remembered_at = time.monotonic()
        self._closing = False
        self.hashed = 0
        """Bytes that were hashed."""

    def close(self) -> None:
        """Stop hashing, and remember what was found."""
        self._closing = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._remember()

    async def stop(self) -> None:
        """Let what is being hashed end, in the loop that waits for it."""
        self._closing = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        futures = [hashing.future for hashing in self._running.values()]
        if futures:
            await asyncio.wait(futures, timeout=_STOPPED_AFTER)

    @property
    def damaged(self) -> int:
        """How many files were found to be damaged."""
        return len(self._bad)

    @property
    def running(self) -> int:
        """How many contents are being hashed or wait for it."""
        return len(self._running)

    def knows(self, identity: Identity, etag: str) -> bool:
        """Return whether a file was found to have a content, not too long ago."""
        at = self._known.get((identity, etag))
        # A time in the future cannot be trusted.
        return at is not None and 0 <= time.time() - at < MAX_AGE

    def vouch(self, identity: Identity, etag: str) -> None:
        """Take note that a file was just found to have a content."""
        with self._lock:
            self._known[identity, etag] = time.time()
            self._fresh.append((identity, etag))

    async def check(self, path: str, etag: str, identity: Identity, opener: Opener) -> None:
        """Make sure that a file has the content that a hash names.

        Args:
            path: the file.
            etag: the hash.
            identity: the file that was opened to be sent.
            opener: opens it.

        Raises:
            StillHashingError: it takes longer than a client waits.
            NotGoodError: it does not, or cannot be read.
            ReplacedError: another file has its place by now.
        """
        key = (identity, etag)
        if self.knows(identity, etag):
            return
        if key in self._bad:
            raise NotGoodError
        hashing = self._running.get(key)
        if hashing is None:
            hashing = self._running[key] = _Hashing(identity.size)
            work = self._work(Check(path, etag), hashing, opener)
            hashing.future = asyncio.get_running_loop().run_in_executor(self._pool, work)
            hashing.future.add_done_callback(lambda _: self._running.pop(key, None))
        try:
            judged = await asyncio.wait_for(asyncio.shield(hashing.future), PATIENCE)
        except (TimeoutError, asyncio.TimeoutError):
            raise StillHashingError(hashing.left()) from None
        if judged is None or not judged.good:
            raise NotGoodError
        if judged.identity != identity:
            raise ReplacedError

    def _work(self, check: Check, hashing: _Hashing, opener: Opener) -> Callable[[], Judged | None]:
        def advanced(_: Check, position: int) -> None:
            hashing.done = position
            if self._closing:
                raise Stopped

        def work() -> Judged | None:
            hashing.begun = time.monotonic()
            try:
                with contextlib.closing(hash_all([check], 1, advanced, opener=opener)) as answers:
                    judged = next(answers)
            except Stopped:
                return None
            self._note(judged)
            return judged

        return work

    def _note(self, judged: Judged) -> None:
        identity = judged.identity
        if judged.actual is None or identity is None:
            log.info("serve", "not sent: %s: %s", judged.check.path, judged.problem)
            return
        now = time.time()
        with self._lock:
            self.hashed += identity.size
            if judged.good:
                self._known[identity, judged.check.expected] = now
                self._fresh.append((identity, judged.check.expected))
        if not judged.good:
            self._bad.add((identity, judged.check.expected))
            log.info("serve", "damaged, and not sent: %s", judged.check.path)
            with Journal(self._home) as journal:
                journal.record_damaged([identity], now)
        elif time.monotonic() - self._remembered_at > _REMEMBER_EVERY:
            self._remember()

    def _remember(self) -> None:
        with self._lock:
            fresh, self._fresh = self._fresh, []
            self._remembered_at = time.monotonic()
        if fresh:
            with Journal(self._home) as journal:
                journal.record_verified(fresh, time.time())
