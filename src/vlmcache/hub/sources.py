"""Places other than the hub that can have a content: asked in their order, dropped when they fail.

Nothing that they send is believed: the hash that the listing names decides.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from vlmcache.cache.hashing import new_hash
from vlmcache.cache.state import TreeFile
from vlmcache.errors import VlmcacheError, reason_of
from vlmcache.hub.retry import TroubleError
from vlmcache.progress import Stopped, Throttle

_T = TypeVar("_T")
RevisionFiles = tuple[str, dict[str, TreeFile]]
"""The commit that a revision means, and its files."""
HUB = "hub"
"""What is named as the source if that is the hub itself."""
SILENCE = 10.0
"""Seconds without a byte after which a source is given up; a drive that slept is awake by then."""
_BLOCKS_AHEAD = 4
_WAIT = 0.1
"""Seconds between checks of whether it still makes sense to wait."""


class SourceError(Exception):
    """A source failed; the message says why."""


class Source(Protocol):
    """A place that can have contents. Used by several threads."""

    @property
    def name(self) -> str:
        """What was typed for it, without a password."""

    @property
    def kind(self) -> str:
        """`serve`, `cache`, `store`, `tar` or `ollama`."""

    @property
    def streamed(self) -> bool:
        """Whether it is read from start to end: one content at a time, in the order it has them."""

    def has(self, etag: str, size: int) -> bool:
        """Return whether it has a content of a length, as far as its own names say."""

    def order(self, etag: str) -> int:
        """Return a number that grows along a streamed source."""

    def open(self, etag: str, offset: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Yield a content from an offset on, in pieces; an empty one while it is waited for."""

    def descriptor(self, etag: str) -> int | None:
        """Return a content's own file, open, which the caller closes; `None` if it is in none."""

    def listing(self, repo: str, revision: str) -> RevisionFiles | None:
        """Return what a revision of a repo means there; `None` if the source does not have it."""


class SourceUse(msgspec.Struct, frozen=True):
    """What became of a source."""

    source: str
    """As it was named."""
    kind: str
    fetched: int = 0
    """Bytes that it has sent."""
    problem: str | None = None
    """Why it was dropped, if it was."""


class Sources:
    """The sources of a run. Safe to use from several threads.

    Args:
        throttle: limits the rate, and stops the work.
        note: called with what a person would want to know while waiting.
        silence: seconds without a byte after which a source is dropped.
    """

    def __init__(
        self, throttle: Throttle, note: Callable[[str], None], silence: float = SILENCE
    ) -> None:
        self._throttle = throttle
        self._note = note
        self._silence = silence
        self._all: list[Source] = []
        self._fetched: dict[str, int] = {}
        self._problems: dict[str, str] = {}
        self._lock = threading.Lock()
        self.first = False
        """Whether this run was asked to use them: then the hub is asked for what they and this
        cache cannot know."""
        self.came_from: dict[str, str] = {}
        """Etag -> the source that has sent the content in this run."""
        self.wrong: set[str] = set()
        """Etags of which a source has sent other bytes."""

    def use(self, sources: Iterable[Source], *, first: bool) -> None:
        """Use sources, the first of them first."""
        self._all += sources
        self.first = first

    def __bool__(self) -> bool:
        return any(source.name not in self._problems for source in self._all)

    @property
    def streamed(self) -> bool:
        """Whether contents are best fetched one after the other, in `order`."""
        return any(source.streamed for source in self._all)

    @property
    def uses(self) -> tuple[SourceUse, ...]:
        """What became of each source."""
        return tuple(
            SourceUse(
                source.name,
                source.kind,
                self._fetched.get(source.name, 0),
                self._problems.get(source.name),
            )
            for source in self._all
        )

    def order(self, etag: str) -> int:
        """Return a number that grows along the streamed sources; 0 for what none of them has."""
        return next((s.order(etag) for s in self._all if s.streamed and s.order(etag)), 0)

    def drop(self, source: Source, why: str) -> None:
        """Use a source no more, and say why."""
        why = why.removeprefix(f"{source.name} ")  # which stands before it wherever it is shown
        with self._lock:
            if source.name in self._problems:
                return
            self._problems[source.name] = why
        self._note(f"{source.name}: {why}; not used any more")

    def drop_wrong(self, source: Source, etag: str, actual: str, file: str | None = None) -> None:
        """Use a source no more that has sent another content than that of a hash."""
        self.wrong.add(etag)
        words = wrong_bytes(actual, etag)
        self.drop(source, words if file is None else f"{words}: {file}")

    def _answer(self, source: Source, question: Callable[[], _T]) -> _T | None:
        """Return what a source answers; `None` if it was dropped, or fails now and is dropped."""
        if source.name in self._problems:
            return None
        try:
            return question()
        except (OSError, VlmcacheError, TroubleError) as error:
            self._throttle.stop_token.check()
            self.drop(source, _words(error))
            return None

    def holding(self, listed: TreeFile) -> Iterator[Source]:
        """Yield the sources that have a content, as far as their names say."""
        for source in self._all:
            if self._answer(source, partial(source.has, listed.etag, listed.content_size)):
                yield source

    def origin(self, listed: TreeFile) -> str | None:
        """Return the name of the source that would be asked for a content, `None` for the hub."""
        return next((source.name for source in self.holding(listed)), None)

    def listing(self, repo: str, revision: str) -> tuple[Source, str, dict[str, TreeFile]] | None:
        """Return the first source that lists a revision, the commit, and its files."""
        for source in self._all:
            listing = self._answer(source, partial(source.listing, repo, revision))
            if listing is not None:
                # With a shared hash, content would be linked that nobody compares with its etag.
                return source, listing[0], {n: _plain(file) for n, file in listing[1].items()}
        return None

    def content(self, listed: TreeFile) -> bytes | None:
        """Return a small content that is what its hash says, `None` if no source sends it."""
        for source in self.holding(listed):
            try:
                body = b"".join(self.pieces(source, listed, 0))
            except SourceError as error:
                self.drop(source, str(error))
                continue
            digest = new_hash(listed.etag, listed.content_size)
            digest.update(body)
            if digest.hexdigest() == listed.etag:
                self.came_from[listed.etag] = source.name
                return body
            self.drop_wrong(source, listed.etag, digest.hexdigest())
        return None

    def pieces(self, source: Source, listed: TreeFile, offset: int) -> Iterator[bytes]:
        """Yield a content from an offset on to its end.

        A thread reads ahead, so that a source that hangs holds up nobody.

        Raises:
            SourceError: the source fails, falls silent, or sends less or more than is listed.
            Stopped: the work was asked to stop.
        """
        arriving: queue.Queue[bytes | Exception | None] = queue.Queue(_BLOCKS_AHEAD)
        left = threading.Event()

        def put(item: bytes | Exception | None) -> bool:
            while not left.is_set():
                try:
                    arriving.put(item, timeout=_WAIT)
                except queue.Full:
                    continue
                return True
            return False

        def read() -> None:
            try:
                with source.open(listed.etag, offset) as blocks:
                    if all(put(block) for block in blocks):
                        put(None)
            except Exception as error:
                put(error)

        threading.Thread(target=read, daemon=True).start()
        missing = listed.content_size - offset
        try:
            while (block := self._next(arriving)) is not None:
                if isinstance(block, Exception):
                    raise SourceError(_words(block)) from block
                missing -= len(block)
                if missing < 0:
                    raise SourceError(f"sends more than {listed.content_size:,} bytes")
                self._throttle.take(len(block))
                self._count(source, len(block))
                yield block
            if missing:
                raise SourceError(f"ends {missing:,} bytes too early")
        finally:
            left.set()

    def cloned(self, source: Source, count: int) -> None:
        """Take note that the filesystem has copied so many bytes."""
        self._count(source, count)

    def _count(self, source: Source, count: int) -> None:
        with self._lock:
            self._fetched[source.name] = self._fetched.get(source.name, 0) + count

    def _next(self, arriving: queue.Queue[bytes | Exception | None]) -> bytes | Exception | None:
        since = time.monotonic()
        while True:
            self._throttle.stop_token.check()
            try:
                return arriving.get(timeout=min(_WAIT, self._silence))
            except queue.Empty:
                if time.monotonic() - since >= self._silence:
                    raise SourceError(f"no byte in {self._silence:g} s") from None


def wrong_bytes(actual: str, etag: str) -> str:
    """Return that content has another hash than the one that it is listed with."""
    return f"wrong bytes (hash {actual[:12]}…, not {etag[:12]}…)"


def _words(error: Exception) -> str:
    if isinstance(error, Stopped):
        raise error
    if isinstance(error, TroubleError):
        error = error.error
    return error.message if isinstance(error, VlmcacheError) else reason_of(error)


def _plain(file: TreeFile) -> TreeFile:
    return msgspec.structs.replace(file, xet_hash=None)
