"""The keyboard of a terminal, read while something else runs."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from vlmcache.commands.watch.watch import wait

RESIZED = "resized"
SUSPEND = "suspend"

_KEY = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\x1b])?|.", re.DOTALL)
"""One key; a key that is not a character sends a sequence (see ECMA-48)."""
_NAMES = {
    **dict.fromkeys(("\x1b[A", "\x1bOA"), "up"),
    **dict.fromkeys(("\x1b[B", "\x1bOB"), "down"),
    **dict.fromkeys(("\x1b[H", "\x1bOH", "\x1b[1~", "\x1b[7~"), "home"),
    **dict.fromkeys(("\x1b[F", "\x1bOF", "\x1b[4~", "\x1b[8~"), "end"),
    **dict.fromkeys(("\r", "\n"), "enter"),
    **dict.fromkeys(("\x7f", "\b"), "backspace"),
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b": "escape",
}
_SEQUENCE_SECONDS = 0.03
"""How long the rest of a sequence may take after its first character, which is a key itself."""


def keys_of(text: str) -> list[str]:
    """Return the keys that a terminal has sent: characters, or names such as `up` and `escape`.

    Keys that are neither are left out.
    """
    keys = (_NAMES.get(key, key) for key in _KEY.findall(text))
    return [key for key in keys if key in _NAMES.values() or key.isprintable()]


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block is over, so that all of it is done."""
    # To mask them is not enough: another thread would receive them, and Python handle them here.
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for waiting in received:
            signal.raise_signal(waiting)


class Keyboard:
    """Single keys, changes of size and Ctrl-Z, from the terminal on stdin.

    Between `open` and `close` keys arrive at once and unseen. Without a terminal on stdin, or in
    the background, there are no keys.
    """

    def __init__(self) -> None:
        self._settings: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._happened: list[str] = []
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)

    @property
    def listens(self) -> bool:
        """Whether keys can arrive."""
        return self._settings is not None

    def open(self) -> None:
        """Begin to listen."""
        self.grab()
        if sys.platform != "win32":
            for number in (signal.SIGWINCH, signal.SIGTSTP):
                self._handlers[number] = signal.signal(number, self._signalled)

    def close(self) -> None:
        """Put everything back; again does no harm."""
        with signals_deferred():
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers.clear()
            self.release()
            self._wake.close()
            self._waker.close()

    def grab(self) -> None:
        """Let keys arrive at once, without echo; Ctrl-C and Ctrl-Z keep their meaning."""
        if sys.platform == "win32" or not sys.stdin.isatty():
            return
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        try:
            if os.tcgetpgrp(descriptor) != os.getpgrp():
                return
            with signals_deferred():
                self._settings = termios.tcgetattr(descriptor)
                tty.setcbreak(descriptor)
        except (OSError, termios.error):
            self._settings = None

    def release(self) -> None:
        """Give the terminal back as it was."""
        if sys.platform == "win32" or self._settings is None:
            return
        import termios

        with signals_deferred(), contextlib.suppress(termios.error):
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._settings)
        self._settings = None

    def wait(self, seconds: float, wake: socket.socket | None) -> list[str]:
        """Wait for keys or for the socket to be readable.

        Returns:
            The keys pressed as `keys_of` names them, and `RESIZED` or `SUSPEND` if that happened.
        """
        watched: list[Any] = [self._wake]
        if wake is not None:
            watched.append(wake)
        if self.listens:
            watched.append(sys.stdin)
        ready, _, _ = select.select(watched, [], [], seconds)
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                while self._wake.recv(64):
                    pass
        happened, self._happened = self._happened, []
        if sys.stdin in ready:
            read = os.read(sys.stdin.fileno(), 64)
            if read.endswith(b"\x1b") and select.select([sys.stdin], [], [], _SEQUENCE_SECONDS)[0]:
                read += os.read(sys.stdin.fileno(), 64)
            if not read:
                # The terminal is gone: no key will ever come, and select would return at once.
                self._settings = None
            happened += keys_of(read.decode(errors="ignore"))
        return happened

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        self._happened.append(RESIZED if number == signal.SIGWINCH else SUSPEND)
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"\0")


def suspend() -> None:
    """Stop this process as Ctrl-Z would have, and return when it continues."""
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_for_reader(seconds: float, wake: socket.socket | None) -> None:
    """Wait for the socket to be readable, or for so many seconds.

    Raises:
        BrokenPipeError: nobody reads stdout.
    """
    if not hasattr(select, "poll"):
        wait(seconds, wake)
        return
    poll = select.poll()
    # No event is asked for: a pipe that lost its reader reports that unasked.
    poll.register(sys.stdout.fileno(), 0)
    if wake is not None:
        poll.register(wake, select.POLLIN)
    for descriptor, event in poll.poll(seconds * 1000):
        if descriptor == sys.stdout.fileno() and event & (select.POLLERR | select.POLLHUP):
            raise BrokenPipeError
