"""The process that fetches through Xet: it reads what to fetch, and answers, in lines of JSON.

What libraries print goes to standard error. It ends with the process that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

from vlmcache.errors import reason_of
from vlmcache.hub import library

_LOCK = threading.Lock()


def main() -> None:
    """Fetch what is asked for on standard input until that ends."""
    # Ctrl-C reaches the whole group; the parent says what it means here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        _send(answers, chunks=library.xet_chunks(), early=library.xet_reports_early())
        for line in sys.stdin:
            threading.Thread(target=_fetch, args=(answers, json.loads(line)), daemon=True).start()
    finally:
        # Some threads of hf_xet never end: none is waited for.
        os._exit(0)


def _fetch(answers: int, asked: dict[str, Any]) -> None:
    """Fetch one file, and report the progress and how it ended."""
    number = asked.pop("id")

    def moved(written: int, transferred: int) -> None:
        _send(answers, id=number, written=written, transferred=transferred)

    bar = library.XetBar(moved)
    try:
        library.xet_get(library.XetFile(**asked), bar)
    except BaseException as error:  # a panic of Rust code is no Exception
        problem = f"{type(error).__name__}: {reason_of(error)}"
        _send(answers, id=number, problem=problem)
    else:
        _send(answers, id=number, problem="")


def _send(answers: int, **answer: Any) -> None:
    line = json.dumps(answer).encode() + b"\n"
    with _LOCK:
        try:
            while line:
                line = line[os.write(answers, line) :]
        except OSError:
            os._exit(1)  # the parent has ended
