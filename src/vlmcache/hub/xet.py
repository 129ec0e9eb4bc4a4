"""Transfers through Xet, the Hub's storage of chunks: in a process of their own.

hf_xet waits and retries for minutes in silence, panics, prints, and has threads that cannot be
stopped. A process can be ended at any time, and from then on nothing more is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from vlmcache import log
from vlmcache.errors import reason_of
from vlmcache.hub import library
from vlmcache.units import size_text

_COMMAND = "import sys; sys.path[:] = sys.argv[1:]; from vlmcache.hub.xet_child import main; main()"
_TICK = 0.1
_START = 60.0
"""Seconds that the process gets to import the libraries, which can be on a network drive."""
_LATE = 6
"""How many times longer to wait for clients that report bytes only once 64 MB are written."""
_EXIT = 5.0
"""Seconds to wait for the process after it was killed."""


class XetError(Exception):
    """Xet does not work here."""


class Xet:
    """Xet in one run of a command: used until it fails for the first time.

    Args:
        note: called with what a person would want to know.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._over = False

    def available(self) -> bool:
        """Return whether Xet can be tried: it is installed, switched on, and has not failed yet."""
        program = os.path.basename(sys.executable or "")
        embedded = getattr(sys, "frozen", False) or not program.startswith("python")
        return not self._over and not embedded and library.has_xet()

    def fetch(self, file: library.XetFile, moved: Callable[[int], None], timeout: float) -> int:
        """Download a file.

        Args:
            file: the file.
            moved: called with the number of bytes that are written.
            timeout: seconds without a byte of any file, after which Xet is given up.

        Returns:
            The bytes that came over the network, as Xet reports: fewer than the file's if it has
            chunks already or has compressed them. The file's size if it does not report any.

        Raises:
            XetError: it failed, and nothing writes to the file any more.
        """
        with self._lock:
            if self._over:
                raise XetError("it failed before")
            process = self._process = self._process or _Process(self._started)
        answers = process.ask(file)
        silent, seen, transferred = 0.0, process.answered, 0
        while True:
            try:
                answer = answers.get(timeout=_TICK)
            except queue.Empty:
                silent = silent + _TICK if process.answered == seen else 0.0
                seen, bearable = process.answered, process.patience(timeout)
                if silent >= bearable:
                    process.problem = f"no byte in {bearable:g} s"
                    process.end()
                    raise XetError(process.problem) from None
                continue
            if "problem" not in answer:
                transferred = answer["transferred"]
                moved(answer["written"])
            elif answer["problem"]:
                raise XetError(answer["problem"])
            else:
                # It can only be 0 if there were chunks to reuse.
                is_reported = transferred or (process.chunks and process.early)
                return int(transferred) if is_reported else file.size

    def _started(self, chunks: int) -> None:
        if chunks:
            self._note(f"through Xet; {size_text(chunks)} in its chunk cache may be used again")

    def failed(self, problem: str) -> None:
        """Use Xet no more in this run, and say so once."""
        with self._lock:
            was_over, self._over = self._over, True
        if not was_over:
            self._note(
                f"Xet failed ({problem[:200]}); plain HTTP is used for all files of this run "
                "instead; HF_HUB_DISABLE_XET=1 leaves Xet out"
            )

    def stop(self) -> None:
        """End all that runs through Xet now."""
        with self._lock:
            self._over, process = True, self._process
        if process is not None:
            process.end()


class _Process:
    """The child that fetches, and the threads that listen to it.

    Args:
        started: called with the bytes in Xet's cache of chunks, once it can begin.
    """

    def __init__(self, started: Callable[[int], None]) -> None:
        import subprocess

        self._started = started
        self.answered = 0
        """Answers so far."""
        self.chunks = 0
        self.early: bool | None = None
        """Whether it reports bytes when they arrive; not known before it has started."""
        self.problem = "its process ended"
        """Why there is no answer once it has ended."""
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._number = 0
        self._ended = False
        path = [folder for folder in sys.path if os.path.isabs(folder)]
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            )
        except OSError as error:
            raise XetError(f"no process for it: {reason_of(error)}") from error
        for listen, stream in ((self._listen, self._child.stdout), (_log, self._child.stderr)):
            threading.Thread(target=listen, args=(stream,), daemon=True).start()

    def patience(self, timeout: float) -> float:
        """Return the seconds of silence to bear now, if a connection may be silent for some."""
        if self.early is None:
            return max(timeout, _START)
        return timeout if self.early else timeout * _LATE

    def ask(self, file: library.XetFile) -> queue.SimpleQueue[dict[str, Any]]:
        """Ask for a file, and return where the answers come."""
        answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        assert self._child.stdin is not None
        with self._lock:
            self._number += 1
            self._waiting[self._number] = answers
            if self._ended:
                answers.put({"problem": self.problem})
            # A process that has ended says so to `_listen`.
            with contextlib.suppress(OSError, ValueError):
                line = json.dumps(file._asdict() | {"id": self._number})
                self._child.stdin.write(line.encode() + b"\n")
                self._child.stdin.flush()
        return answers

    def end(self) -> None:
        """End the process: from now on it writes nothing more."""
        import subprocess

        self._child.kill()
        # A process that waits for a dead disk does not even die.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_EXIT)

    def _listen(self, stream: IO[bytes]) -> None:
        """Pass answers on, each to whoever waits for it."""
        # A line that is not an answer ends it: something else has written to its output.
        with stream, contextlib.suppress(ValueError, TypeError, LookupError):
            for line in stream:
                answer = json.loads(line)
                self.answered += 1
                if "chunks" in answer:
                    self.chunks, self.early = answer["chunks"], answer["early"]
                    self._started(self.chunks)
                else:
                    self._waiting[answer["id"]].put(answer)
        self.end()
        with self._lock:
            self._ended = True
            for answers in self._waiting.values():
                answers.put({"problem": self.problem})
        with contextlib.suppress(OSError):
            assert self._child.stdin is not None
            self._child.stdin.close()


def _log(stream: IO[bytes]) -> None:
    """Keep what Xet prints from the terminal."""
    with stream:
        for line in stream:
            log.debug("xet", "%s", line.decode(errors="replace").rstrip())
