"""A terminal of its own for one command, and the person before it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import time

import pyte

from tests.kit.commands import Vlmcache


class Screen:
    """A terminal of its own, on which one command runs."""

    def __init__(
        self,
        vlmcache: Vlmcache,
        *arguments: str,
        size: tuple[int, int] = (60, 24),
        **variables: str,
    ) -> None:
        columns, lines = size
        self.sent = b""
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._ours, self._theirs = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self._theirs)
        os.set_blocking(self._ours, False)
        script = 'exec <"$0" >"$0" 2>&1; exec "$@"'
        # The leader of a session takes the first terminal that it opens for its own.
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", script, os.ttyname(self._theirs), *vlmcache.command, *arguments],
            env=vlmcache.environment | {"TERM": "xterm-256color", "LANG": "C.UTF-8"} | variables,
            cwd=vlmcache.folder,
            start_new_session=True,
        )

    def resize(self, columns: int, lines: int) -> None:
        """Let the terminal have another size from now on."""
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def read(self) -> str:
        """Take what was sent, and return what is shown."""
        try:
            while part := os.read(self._ours, 1 << 16):
                self.sent += part
                self._stream.feed(part)
        except BlockingIOError:
            pass
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def wait_for(self, *texts: str) -> str:
        """Wait until one of the texts is shown, and return what is."""
        deadline = time.monotonic() + 60
        while not any(text in (shown := self.read()) for text in texts):
            assert self.process.poll() is None, shown
            assert time.monotonic() < deadline, shown
            time.sleep(0.02)
        return shown

    def press(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._ours, keys)

    def answer(self, keys: str, question: str = "): ") -> str:
        """Type a line, wait for the next question, and return what was sent from then on."""
        self.read()
        before = len(self.sent)
        self.press(f"{keys}\n".encode())
        deadline = time.monotonic() + 60
        while True:
            self.read()
            # The echo of what was typed comes first, with the end of its line.
            said = self.sent[before:].decode().replace("\r\n", "\n").partition("\n")[2]
            if said.endswith(question):
                return said
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """Wait for the end, and return the exit code and what is shown then."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read()
            time.sleep(0.02)
        shown = self.read()
        assert termios.tcgetattr(self._theirs) == self.before
        os.close(self._ours)
        os.close(self._theirs)
        code = self.process.returncode
        assert code is not None, shown
        return code, shown
