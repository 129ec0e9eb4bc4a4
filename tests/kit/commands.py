"""The command line as users run it: a process of its own."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vlmcache.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a finished process left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Vlmcache:
    """Runs `vlmcache` in a folder with exactly these variables."""

    environment: dict[str, str]
    folder: Path
    command: tuple[str, ...] = field(default=(sys.executable, "-m", "vlmcache"))

    def __call__(self, *arguments: str, **variables: str) -> Done:
        """Run to the end, with an empty stdin and without a terminal."""
        done = subprocess.run(
            [*self.command, *arguments],
            env=self.environment | variables,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start and return the running process, its streams as pipes."""
        return subprocess.Popen(
            [*self.command, *arguments],
            env=self.environment | variables,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def on_terminal(self, *arguments: str, **variables: str) -> str:
        """Run to the end on a terminal of 80 columns, and return what is sent to it."""
        import fcntl
        import pty
        import struct
        import termios

        parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        process = subprocess.Popen(
            [*self.command, *arguments],
            env=self.environment | {"TERM": "xterm-256color"} | variables,
            cwd=self.folder,
            stdin=child,
            stdout=child,
            stderr=child,
        )
        os.close(child)
        sent = b""
        while True:
            try:
                piece = os.read(parent, 65536)
            except OSError:
                break
            if not piece:
                break
            sent += piece
        process.wait(timeout=60)
        os.close(parent)
        return sent.decode()

    def config(self, text: str, name: str = "config.yaml") -> Path:
        """Write a configuration into the working folder and return its path."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


def is_failure(written: str | bytes) -> bool:
    """Return whether stderr has one failure and nothing else: what happened, and perhaps a hint."""
    text = written.decode() if isinstance(written, bytes) else written
    return re.fullmatch(r"error: [^\n]+\n(hint: [^\n]+\n)?", text) is not None


def offline_without_torch(vlmcache: Vlmcache, folder: Path) -> None:
    """Keep commands offline, and from importing torch, which is slow."""
    trap = folder / "trap"
    trap.mkdir()
    (trap / "torch.py").write_text("raise ImportError('not in this test')\n")
    vlmcache.environment.update(HF_HUB_OFFLINE="1", PYTHONPATH=str(trap))


def take_variables(vlmcache: Vlmcache, patch: pytest.MonkeyPatch) -> None:
    """Give this process the variables of a command, for `run_here`."""
    for name, value in vlmcache.environment.items():
        if name.startswith(("HF_", "VLMCACHE_", "HOME", "PYTHONPATH")):
            patch.setenv(name, value)


def run_here(*arguments: str, encoding: str = "utf-8") -> Done:
    """Run the command line in this process and its environment, as the console script does."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(3)]
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        texts = []
        for stream in streams[1:]:
            stream.flush()
            stream.seek(0)
            texts.append(stream.read())
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, *texts)
