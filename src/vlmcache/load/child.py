"""Child processes: started fresh, asked one thing, with crashes distinguished from answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from vlmcache.errors import CrashedError, SpaceError, unloadable
from vlmcache.load import worker

_STDERR_LINES = 3


def run_child(request: dict[str, Any], model: str | None = None) -> dict[str, Any]:
    """Run a task of the worker in a fresh process and return its answer.

    Raises:
        SpaceError: the disk was too full for what the child was to write.
        UnloadableError: the child reported another failure, or ended without an answer.
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    with tempfile.TemporaryFile() as stderr:
        started = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-c", worker.COMMAND, json.dumps(request | {"started": started})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )
        try:
            output, _ = child.communicate()
        except BaseException:
            child.kill()
            child.wait()
            raise
        try:
            answer: dict[str, Any] = json.loads(output)
        except ValueError:
            stderr.seek(0)
            lines = stderr.read().decode(errors="replace").strip().splitlines()
            last_lines = lines[-_STDERR_LINES:] or ["it said nothing"]
            raise crash(model, child.returncode, last_lines) from None
    if "error" in answer:
        error = answer["error"]
        if error["code"] == SpaceError.code:
            raise SpaceError(error["message"], error["hint"])
        raise unloadable(**error)
    return answer


def crash(model: str | None, code: int, last_lines: Sequence[str]) -> CrashedError:
    """Return the error of a child that ended without an answer.

    Args:
        model: what it was to load; `None` where it only looked at the devices.
        code: its exit code, negative for a signal.
        last_lines: the last lines of its standard error.
    """
    what = f"the process that loaded {model}" if model else "the process that imported torch"
    if code >= 0:
        words = " ".join(" ".join(last_lines).split())
        return CrashedError(f"{what} ended with code {code}: {words[-300:]}")
    name = signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
    if -code == getattr(signal, "SIGKILL", None):
        return CrashedError(
            f"{what} was killed ({name}), most likely by the kernel for want of memory",
            "--precision int8 or int4 takes less; journalctl -k tells what the kernel did",
        )
    return CrashedError(
        f"{what} crashed ({name})", "try --loader plain, or another version of torch"
    )
