"""A process that has imported torch and transformers, forked wherever a test needs them.

Importing them takes seconds; a fork of a process that has done so takes milliseconds. Nothing is
computed before the fork, so that the children have no threads to miss: a process with threads
refuses to serve. A child that takes too long prints where each of its threads is, and is ended.

Run as a program it listens on a socket, its only argument. Each connection sends the three streams
of a child and what it is to run, and is answered with its exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import gc
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

_HERE = str(Path(__file__).parents[2])
_MODULES = (
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "accelerate",
    "vlmcache.load.models",
    "vlmcache.load.outcome",
    "vlmcache.load.processors",
    "bitsandbytes",
)
VARIABLE = "VLMCACHE_TEST_FORKS"
"""Names the socket, for processes that are forked and fork themselves."""
DEADLINE = "VLMCACHE_TEST_FORK_DEADLINE"
"""By when a fork must end, on the clock that all processes of a machine share."""
_MOST_SECONDS = 500.0
"""What a fork may take: less than pytest gives a test, which would not say where a child is."""
_EARLIER = 15.0
"""Seconds by which the fork of a fork must end before it."""
_ONE_THREAD = dict.fromkeys(
    (f"{name}_NUM_THREADS" for name in ("OMP", "MKL", "OPENBLAS", "RAYON")), "1"
)
SAID = io.StringIO()
"""What bitsandbytes said when it was imported."""
WITHOUT = "VLMCACHE_TEST_WITHOUT"
"""Names packages, with commas, that a fork finds not installed."""


def run(
    code: str,
    *arguments: str,
    environment: dict[str, str],
    folder: Path | str,
    streams: tuple[int, int, int],
) -> int:
    """Run Python code in a fork, as `python -c` would, and return its exit code."""
    path = _socket()
    mine = os.environ.get(DEADLINE)
    deadline = float(mine) - _EARLIER if mine else time.monotonic() + _MOST_SECONDS
    request: dict[str, Any] = {
        "code": code,
        "arguments": arguments,
        "environment": environment | {VARIABLE: path, DEADLINE: str(deadline)},
        "folder": str(folder),
    }
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(path)
        socket.send_fds(channel, [b"x"], list(streams))
        channel.sendall(json.dumps(request).encode())
        channel.shutdown(socket.SHUT_WR)
        answer = channel.makefile().read()
    assert answer, "the process that forks has ended"
    return int(answer)


def finished(
    code: str, *arguments: str, environment: dict[str, str], folder: Path | str
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fork, and return what `subprocess.run` would return of it."""
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        open(os.devnull) as nothing,
    ):
        streams = (nothing.fileno(), output.fileno(), errors.fileno())
        code_ = run(code, *arguments, environment=environment, folder=folder, streams=streams)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(["python"], code_, *texts)


class Subprocess:
    """Stands for the module `subprocess` in `vlmcache.load.worker`: its children are forks."""

    PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL

    @staticmethod
    def run(command: list[str], *, env: dict[str, str], stderr: Any, **_rest: Any) -> Any:
        """Do what `subprocess.run` does for a child of a load test."""
        with tempfile.TemporaryFile() as output, open(os.devnull) as nothing:
            streams = (nothing.fileno(), output.fileno(), stderr.fileno())
            _, _, words, *arguments = command
            ended = run(words, *arguments, environment=env, folder=os.getcwd(), streams=streams)
            output.seek(0)
            return subprocess.CompletedProcess(command, ended, output.read(), b"")


@functools.cache
def _socket() -> str:
    """Return the socket of the process, which is started now if no other process has started it."""
    if VARIABLE not in os.environ:
        folder = tempfile.mkdtemp(prefix="forks-")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.forks", f"{folder}/socket"],
            cwd=_HERE,
            env=kept | {"HF_HOME": folder, "HF_HUB_OFFLINE": "1"} | _ONE_THREAD,
            stdout=subprocess.PIPE,
        )
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        atexit.register(process.communicate)
        atexit.register(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return f"{folder}/socket"
    return os.environ[VARIABLE]


def _serve(path: str) -> None:
    import importlib

    sys.path.insert(0, _HERE)
    sys.modules["tests.kit.forks"] = sys.modules["__main__"]
    handler = logging.StreamHandler(SAID)
    logging.getLogger("bitsandbytes").addHandler(handler)
    for name in _MODULES:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if name == "vlmcache.load.models":
                module.silence_bitsandbytes()
    logging.getLogger("bitsandbytes").removeHandler(handler)
    from vlmcache.load import reader, worker

    # The children of load tests and of quantizing are forks, too.
    vars(worker)["subprocess"] = Subprocess
    reader.end_with_parent()
    # A lock that a thread held at the fork would be held forever in the child.
    threads = psutil.Process().num_threads()
    assert threads == 1, f"{threads} threads after the imports"
    # The children collect only what is theirs, and share the pages of what is not.
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print("ready", flush=True)
        while True:
            channel, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                with channel:
                    _answer(channel)
                os._exit(0)
            channel.close()


def _answer(channel: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(channel, 1, 3)
    parts = []
    while part := channel.recv(1 << 16):
        parts.append(part)
    request = json.loads(b"".join(parts))
    _say_where_on(streams[2])
    child = os.fork()
    if child == 0:
        channel.close()
        _be(request, streams)
    _end_at(float(request["environment"][DEADLINE]), child)
    _, status = os.waitpid(child, 0)
    channel.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _end_at(deadline: float, child: int) -> None:
    """Let a child that has not ended by then print where it is and end."""
    kinds = iter([signal.SIGXCPU])

    def end(_number: int, _frame: Any) -> None:
        os.kill(child, next(kinds, signal.SIGKILL))

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline - time.monotonic()), 5.0)


def _say_where_on(stream: int) -> None:
    faulthandler.register(signal.SIGXCPU, file=stream, all_threads=True, chain=True)


def _be(request: dict[str, Any], streams: list[int]) -> None:
    """Be the process that was asked for; does not return."""
    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        _say_where_on(2)
        for stream in streams:
            os.close(stream)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        _read_environment_anew()
        sys.argv[:] = ["-c", *request["arguments"]]
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _read_environment_anew() -> None:
    """Set what the libraries have read from the environment when they were imported."""
    home = os.environ.get("HF_HOME")
    for name, module in list(sys.modules.items()):
        ours = name.startswith(("transformers", "huggingface_hub"))
        if home and ours and "HF_MODULES_CACHE" in vars(module):
            module.HF_MODULES_CACHE = f"{home}/modules"  # type: ignore[attr-defined]
    for package in filter(None, os.environ.get(WITHOUT, "").split(",")):
        sys.modules[package] = None  # type: ignore[assignment]
    for path in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if path and path not in sys.path:
            sys.path.insert(0, path)


if __name__ == "__main__":
    _serve(sys.argv[1])
