"""How work in progress is reported, slowed down and stopped."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import NamedTuple

from vlmcache.units import counted, size_text


class Progress:
    """Receives the progress of a command, from several threads. This base class shows nothing."""

    noun = "model"
    """What the work is divided into, in the singular."""

    def planned(self, done: str, sizes: Mapping[str, int], have: Mapping[str, int]) -> None:
        """All that is to be done is known: model -> bytes, and model -> bytes done already.

        `done` says what has happened to the bytes that are done: `on disk`, `verified`.
        """

    def started(self, repo: str, sizes: Mapping[str, int], have: int) -> None:
        """Work on a model begins: file name -> bytes, and the bytes that are done already."""

    def moved(self, repo: str, file: str, position: int) -> None:
        """`position` bytes of a file are done now; fewer than before if it starts again."""

    def waiting(self, repo: str, file: str, holder: str | None) -> None:  # noqa: ARG002
        """Another process downloads a file and is waited for; `None` once the wait is over."""
        if holder is not None:
            self.note(f"waiting for {holder}, which downloads the same file ({file})")

    def ended(self, repo: str) -> None:
        """Work on a model has ended, whether it succeeded or failed."""

    def finished(self) -> None:
        """All that was planned has ended."""

    def note(self, text: str) -> None:
        """Something that a person would want to know while waiting."""

    def summary(self) -> str:
        """Return how much is done and what is left; nothing if that is not known."""
        return ""


scanned: ContextVar[Callable[[int, int], None] | None] = ContextVar("scanned", default=None)
"""Is called during the scan of a very large cache: repos read, and repos in all."""


class FileShare(NamedTuple):
    """A file that is being worked on, as it is shown. Sizes are bytes."""

    name: str
    done: int
    size: int


class ModelShare:
    """How much of one model is done. Sizes are bytes."""

    def __init__(self, size: int, have: int = 0) -> None:
        self.size = size
        self.have = have
        self.sizes: dict[str, int] = {}
        self.positions: dict[str, int] = {}
        self.is_active = False
        self.is_complete = False

    @property
    def done(self) -> int:
        """The bytes that are done now."""
        if self.is_complete:
            return self.size
        # Until work on a file begins, its earlier bytes are known only as a part of the sum.
        return min(self.size, max(self.have, sum(self.positions.values())))

    def files(self) -> list[FileShare]:
        """Return the files that are being worked on."""
        return [
            FileShare(name, self.positions[name], size)
            for name, size in self.sizes.items()
            if name in self.positions and self.positions[name] < size
        ]


class Tally(Progress):
    """Adds up what is done, for each model and for all."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.models: dict[str, ModelShare] = {}
        self.holders: dict[tuple[str, str], str] = {}
        """Model and file -> who downloads the file, in words."""
        self._done = ""
        self._is_planned = False

    def planned(self, done: str, sizes: Mapping[str, int], have: Mapping[str, int]) -> None:
        """Start again from nothing."""
        with self.lock:
            self._done, self._is_planned = done, True
            self.holders = {}
            self.models = {
                model: ModelShare(size, have.get(model, 0)) for model, size in sizes.items() if size
            }

    def started(self, repo: str, sizes: Mapping[str, int], have: int) -> None:
        """Begin a model, which counts from now on if it was not planned."""
        with self.lock:
            total = sum(sizes.values())
            if total == 0:
                return
            if not self._is_planned:
                self.models, self._done = {}, ""
            share = self.models.setdefault(repo, ModelShare(total))
            # Several revisions or variants of one repo are worked on one after the other.
            earlier = sum(share.sizes.values())
            share.size = max(share.size, earlier + total)
            share.have = max(share.have, have) if not earlier else earlier + have
            share.sizes |= sizes
            share.is_active, share.is_complete = True, False

    def moved(self, repo: str, file: str, position: int) -> None:
        """Record a position."""
        with self.lock:
            share = self.models.get(repo)
            if share is not None and file in share.sizes:
                share.positions[file] = position

    def waiting(self, repo: str, file: str, holder: str | None) -> None:
        """Record who is waited for."""
        with self.lock:
            if holder is None:
                self.holders.pop((repo, file), None)
            else:
                self.holders[repo, file] = holder

    def ended(self, repo: str) -> None:
        """End a model."""
        with self.lock:
            share = self.models.get(repo)
            if share is not None:
                share.is_complete = share.done >= share.size
                share.is_active = False

    def finished(self) -> None:
        """End; what was done is still known."""
        with self.lock:
            self._is_planned = False
            self.holders = {}

    @property
    def done(self) -> int:
        """The bytes that are done now."""
        with self.lock:
            return sum(share.done for share in self.models.values())

    @property
    def total(self) -> int:
        """The bytes that are to be done in all."""
        with self.lock:
            return sum(share.size for share in self.models.values())

    @property
    def is_midway(self) -> bool:
        """Whether a file has begun and is not complete.

        Work that has not moved a byte yet may be busy with something else, and is not stalled.
        """
        with self.lock:
            active = [share for share in self.models.values() if share.is_active]
            return any(file.done for share in active for file in share.files())

    @property
    def models_text(self) -> str:
        """How many models are complete: `2 of 3 models`."""
        with self.lock:
            complete = sum(share.done >= share.size for share in self.models.values())
            return f"{complete} of {counted(len(self.models), self.noun)}"

    def summary(self) -> str:
        """Return how much is done and what is left."""
        with self.lock:
            total, done = self.total, self.done
            if not total:
                return ""
            amount = f"{size_text(done)} of {size_text(total)} {self._done}".rstrip()
            models = f"; {self.models_text} complete" if len(self.models) > 1 else ""
            return f"{amount}, {size_text(total - done)} left{models}"


class Rate:
    """How fast a number grows, over the last seconds."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> float:
        """Record a number at a time in seconds, and return its growth per second."""
        samples = self._samples
        samples.append((now, done))
        # The last sample before that stays: a pause must not leave a single one.
        while len(samples) > 2 and samples[1][0] <= now - self._seconds:
            samples.popleft()
        past = self.seconds
        return max(0.0, (done - samples[0][1]) / past) if past > 0 else 0.0

    @property
    def seconds(self) -> float:
        """Over how many seconds the growth was measured."""
        return self._samples[-1][0] - self._samples[0][0]


class FileOf(NamedTuple):
    """A file that a command reads or writes."""

    model: str
    """The model that it belongs to."""
    name: str
    """Its name for people."""
    size: int
    """Its length in bytes."""


@contextlib.contextmanager
def planned(
    progress: Progress, done: str, sizes: Mapping[str, int], have: Mapping[str, int] | None = None
) -> Iterator[None]:
    """Show how much of a command's work is done while the block runs; see `Progress.planned`."""
    progress.planned(done, sizes, have or {})
    try:
        yield
    finally:
        progress.finished()


@contextlib.contextmanager
def files_shown(
    progress: Progress, done: str, files: Mapping[str, FileOf]
) -> Iterator[Callable[[str, int], None]]:
    """Show the progress of work on the files of several models, in whatever order it is done.

    Args:
        progress: shows it.
        done: what has happened to the bytes that are done.
        files: path -> the file.

    Yields:
        A function to call with a file's path and how many of its bytes are done.
    """
    models: dict[str, dict[str, int]] = {}
    names: dict[str, str] = {}
    for path, file in files.items():
        sizes_of = models.setdefault(file.model, {})
        # Two revisions may each have a file of the same name.
        names[path] = file.name if file.name not in sizes_of else path
        sizes_of[names[path]] = file.size

    def moved(path: str, position: int) -> None:
        if path in names:
            progress.moved(files[path].model, names[path], position)

    sizes = {model: sum(parts.values()) for model, parts in models.items()}
    with planned(progress, done, sizes):
        for model, parts in models.items():
            progress.started(model, parts, 0)
        try:
            yield moved
        finally:
            for model in models:
                progress.ended(model)


@contextlib.contextmanager
def continued_by(progress: Progress, hint: str) -> Iterator[None]:
    """Let an interruption carry what is done, what is left, and how to continue.

    `cli.main`, which shows all failures, takes both from the arguments of the exception.
    """
    try:
        yield
    except BaseException as interruption:
        if not isinstance(interruption, Exception):
            interruption.args = (hint, progress.summary())
        raise


class Stopped(Exception):  # noqa: N818 - not a failure: someone asked for it
    """The work was asked to stop."""


class StopToken:
    """Asks work to stop; the work checks it now and then."""

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
        """Count `count` more bytes, and return the seconds to wait before they move."""
        if not self.rate:
            return 0.0
        with self._lock:
            now = time.monotonic()
            # A quarter of a second of unused rate, at most, may be used later.
            self._free_at = max(self._free_at, now - 0.25) + count / self.rate
            return self._free_at - now
