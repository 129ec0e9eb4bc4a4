"""More connections for one large file, if a single one is measured to be slow.

The file is still written from front to back by one thread: what comes over the other connections
waits in memory, in pieces of bounded size, until its turn.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from vlmcache.errors import HubError, VlmcacheError, reason_of
from vlmcache.hub.client import Client
from vlmcache.hub.retry import ExpiredError, TroubleError, bad_answer
from vlmcache.progress import Stopped


class Rules(msgspec.Struct, frozen=True):
    """When more connections are tried, and how far they run ahead.

    Attributes:
        least: bytes that must still be missing.
        slow: bytes per second of waiting, above which a single connection is left alone.
        watch: seconds that a speed is measured; longer each time that more did not help.
        gain: how many times as fast all together must be for the others to stay.
        lag: seconds after which a piece that all the others wait for is fetched again.
        piece: bytes of one request.
        ahead: bytes that may wait in memory for each connection except the first.
        most: connections except the first, of all files together.
    """

    least: int = 64_000_000
    slow: int = 100_000_000
    watch: float = 2.0
    gain: float = 1.2
    lag: float = 3.0
    piece: int = 4 << 20
    ahead: int = 6 << 20
    most: int = 4


RULES = Rules()


class Spare:
    """Counts the connections that no file needs for itself.

    Args:
        count: those that are idle from the start.
    """

    def __init__(self, count: int = 0) -> None:
        self._idle = count
        self._lent = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        """Add a connection that no file needs any more."""
        with self._lock:
            self._idle += 1

    def take(self, most: int) -> int:
        """Return how many may be used now; never more than `most` are in use together."""
        with self._lock:
            count = max(0, min(self._idle, most - self._lent))
            self._idle -= count
            self._lent += count
            return count

    def give_back(self) -> None:
        """Give back a connection that was taken: it is idle again."""
        with self._lock:
            self._idle += 1
            self._lent -= 1


class _Piece:
    """A part of the file on its way; `data` has arrived from offset `first` to `end`."""

    def __init__(self, start: int, stop: int) -> None:
        self.start = self.first = self.end = start
        self.stop = stop
        self.data: deque[bytes] = deque()
        self.trouble: TroubleError | None = None


class Ranges:
    """Additional connections for one file; none until the first proves slow.

    One thread, which writes the file, calls all methods; close it in the end. It is one long
    class, since all of it is one state that one lock guards.

    Args:
        client: the hub.
        address: where the hub is asked for the file.
        size: the file's length in bytes.
        starts: returns the offset from which an answer sends the file, asked for from the offset
            given, or raises TroubleError.
        spare: connections that may be used.
        checked: as for `Client.opened`.
    """

    def __init__(
        self,
        client: Client,
        address: str,
        size: int,
        starts: Callable[[Any, int], int],
        spare: Spare,
        *,
        checked: bool = False,
    ) -> None:
        self.received = 0
        """Bytes that came over all connections."""
        self._client = client
        self._address = self._final = address
        self._size = size
        self._starts = starts
        self._spare = spare
        self._checked = checked
        self._rules = RULES
        self._watch = self._rules.watch
        self._possible = True
        self._pieces: deque[_Piece] = deque()
        self._changed = threading.Condition()
        self._position = self._next = self._window = 0
        self._taking = self._own_used = False
        # Since when nothing but the first piece is on its way.
        self._held_up_since: float | None = None
        self._measure()

    def opened(self, response: Any) -> None:
        """Take note that the first connection begins to send."""
        if response.headers.get("Accept-Ranges") == "none":
            self._possible = False
        self._final = str(response.url)
        if not self._taking:
            self._measure()

    def arrived(self, count: int) -> None:
        """Take note that the first connection has brought so many bytes."""
        self._waited += time.monotonic() - self._waiting_since
        with self._changed:
            self.received += count

    def reached(self, position: int) -> bool:
        """Take note that what the first connection brought is in the file, up to a position.

        Returns:
            Whether the bytes that follow have begun to arrive over other connections.
        """
        now = self._waiting_since = time.monotonic()
        self._judge()
        if self._pieces or self._taking:
            with self._changed:
                piece = self._piece_at(position)
                return piece is not None and piece.end > position
        elapsed = now - self._since
        if elapsed >= self._watch:
            count = self.received - self._from
            rate = self._client.throttle.rate
            # A disk or a bound on the rate that holds the file up would hold up all connections.
            slow = count < self._rules.slow * self._waited
            slow = slow and (rate is None or count < 0.8 * rate * elapsed)
            self._measure()
            if self._possible and slow and self._size - position >= self._rules.least:
                self._start(position, count / elapsed)
        return False

    def gap_end(self, position: int) -> int:
        """Return where the next bytes begin that have arrived; the file's end if there are none."""
        with self._changed:
            self._piece_at(position)
            starts = (p.start for p in self._pieces if p.data and p.start > position)
            return next(starts, self._size)

    def read(self, position: int) -> Iterator[bytes]:
        """Yield what follows a position, as far as it has arrived or is on its way without a gap.

        Raises:
            TroubleError: a connection failed; what came before was yielded.
            Stopped: the work was asked to stop.
        """
        while (data := self._take(position)) is not None:
            position += len(data)
            yield data
            self._judge()

    def close(self) -> None:
        """Drop everything that has arrived or is on its way, and stop."""
        with self._changed:
            self._taking = self._possible = False
            self._pieces.clear()
            self._changed.notify_all()

    def _measure(self, goal: float | None = None) -> None:
        """Measure the speed from now on: since when, from which count, and what it must reach."""
        # `_waited` counts those seconds in which the first connection brought nothing.
        self._since = self._waiting_since = time.monotonic()
        self._from, self._waited, self._goal = self.received, 0.0, goal

    def _judge(self) -> None:
        """Take no more pieces if they have not made the file arrive faster."""
        elapsed = time.monotonic() - self._since
        if self._goal is None or elapsed < self._watch:
            return
        if (self.received - self._from) / elapsed < self._goal:
            self._give_up()
        self._goal = None

    def _give_up(self) -> None:
        """Take no more pieces; those on their way still count."""
        with self._changed:
            if self._taking:
                self._taking = False
                self._watch *= 2
                self._changed.notify_all()

    def _start(self, position: int, speed: float) -> None:
        count = self._spare.take(self._rules.most)
        if not count:
            return
        with self._changed:
            self._position = position
            # The first connection continues for a moment, until it is known whether others work.
            self._next = position + min(self._rules.piece, int(speed / 2) + 1)
            self._window = count * self._rules.ahead
            self._taking = True
            self._own_used = False
        self._measure(goal=self._rules.gain * speed)
        for _ in range(count):
            self._begin_thread(borrowed=True)

    def _begin_thread(self, *, borrowed: bool) -> None:
        # Daemons, since a thread that waits for the network must not hold up the process's end.
        threading.Thread(target=self._fetch_all, args=(borrowed,), daemon=True).start()

    def _fetch_all(self, borrowed: bool) -> None:
        try:
            while (piece := self._next_piece()) is not None:
                self._fetch(piece)
        except Stopped:
            pass
        finally:
            if borrowed:
                self._spare.give_back()

    def _next_piece(self) -> _Piece | None:
        """Wait until there is room in memory, and return what to fetch next."""
        with self._changed:
            while True:
                self._client.stop_token.check()
                start = max(self._next, self._position)
                stop = min(start + self._rules.piece, self._size)
                if not self._taking or start >= self._size:
                    return None
                if stop <= self._position + self._window:
                    break
                self._changed.wait(0.2)
            self._next = stop
            piece = _Piece(start, stop)
            self._pieces.append(piece)
            return piece

    def _fetch(self, piece: _Piece) -> None:
        """Fetch a piece, or note why that failed."""
        try:
            final = self._final
            try:
                self._receive(piece, final)
            except ExpiredError:
                if final == self._address:
                    raise
                if self._final == final:
                    self._final = self._address
                self._receive(piece, self._final)
        except TroubleError as trouble:
            self._failed(piece, trouble)
        except VlmcacheError as error:
            self._failed(piece, TroubleError(error))
        except Stopped:
            raise
        except Exception as error:
            problem = HubError(
                f"a part of a file failed: {type(error).__name__}: {reason_of(error)}"
            )
            self._failed(piece, TroubleError(problem))

    def _failed(self, piece: _Piece, trouble: TroubleError) -> None:
        with self._changed:
            # The first connection follows, of which this failure says nothing: it is never final.
            piece.trouble = TroubleError(trouble.error, trouble.wait, lasting=False)
            self._changed.notify_all()
        self._give_up()

    def _receive(self, piece: _Piece, address: str) -> None:
        client = self._client
        headers = {"Range": f"bytes={piece.start}-{piece.stop - 1}"}
        signed = address != self._address
        with client.opened(
            address, headers=headers, signed=signed, checked=self._checked
        ) as response:
            if response.status_code != 206:
                self._possible = False
                raise TroubleError(bad_answer(response))
            if self._starts(response, piece.start) != piece.start:
                raise TroubleError(bad_answer(response))
            if not signed:
                self._final = str(response.url)
            for data in client.pieces(response):
                client.throttle.take(len(data))
                with self._changed:
                    self.received += len(data)
                    if piece not in self._pieces:
                        return
                    if piece.end + len(data) > piece.stop:
                        raise TroubleError(bad_answer(response))
                    piece.data.append(data)
                    piece.end += len(data)
                    self._changed.notify_all()
        if piece.end < piece.stop:
            raise TroubleError(
                HubError(
                    f"a connection to {client.name} ended at {piece.end} of {self._size} bytes",
                    "pull again to continue from there",
                )
            )

    def _piece_at(self, position: int) -> _Piece | None:
        """Return the piece that holds a position, and drop those before it."""
        self._position = position
        while self._pieces and self._pieces[0].stop <= position:
            self._pieces.popleft()
        self._changed.notify_all()
        if self._pieces and self._pieces[0].start <= position:
            return self._pieces[0]
        return None

    def _take(self, position: int) -> bytes | None:
        """Wait for the next bytes; `None` if they are not on their way."""
        with self._changed:
            while True:
                piece = self._piece_at(position)
                if piece is None:
                    if self._pieces or not self._taking or not self._next <= position < self._size:
                        return None
                else:
                    self._use_own()
                    while piece.data:
                        data = piece.data.popleft()
                        piece.first += len(data)
                        if piece.first > position:
                            # The first connection may have brought the beginning of it.
                            return data[max(0, len(data) - (piece.first - position)) :]
                    if piece.trouble is not None:
                        self._pieces.popleft()
                        raise piece.trouble
                    if self._is_held_up():
                        # Its connection is slower than all others: the first one fetches the rest.
                        self._held_up_since = None
                        self._pieces.popleft()
                        return None
                self._changed.wait(0.2)
                self._client.stop_token.check()

    def _is_held_up(self) -> bool:
        """Whether all pieces but the first arrived a while ago, and there is no room for more."""
        full = self._next + self._rules.piece > self._position + self._window
        others = len(self._pieces) > 1 and all(p.end == p.stop for p in list(self._pieces)[1:])
        now = time.monotonic()
        if not others or not (full or self._next >= self._size):
            self._held_up_since = None
            return False
        self._held_up_since = self._held_up_since or now
        return now - self._held_up_since >= self._rules.lag

    def _use_own(self) -> None:
        """Start a connection in place of the first one, which has ended."""
        if self._taking and not self._own_used:
            self._own_used = True
            self._begin_thread(borrowed=False)
