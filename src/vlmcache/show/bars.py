"""Progress on a terminal: bars."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TextIO

from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

from vlmcache.progress import Progress, Sum
from vlmcache.show.console import console
from vlmcache.show.text import printable

_NAME_WIDTH = 40


class Bars(Progress):
    """One bar a file that is on its way, and one for all."""

    def __init__(self, stream: TextIO) -> None:
        self._out = console(stream)
        self._lock = threading.Lock()
        self._sum = Sum()
        self._sizes: Mapping[str, int] = {}
        self._progress: RichProgress | None = None
        self._all: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}

    def started(self, repo: str, sizes: Mapping[str, int], have: int) -> None:
        """Begin to show."""
        if not sizes:
            return
        with self._lock:
            self._sum.begin(sizes, have)
            self._sizes = sizes
            self._tasks = {}
            self._progress = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(compact=True),
                console=self._out,
                transient=True,
                expand=True,
            )
            self._all = self._progress.add_task(
                _short(printable(repo)), total=self._sum.total, completed=have
            )
            self._progress.start()

    def moved(self, repo: str, file: str, position: int) -> None:  # noqa: ARG002
        """Take note of a position."""
        with self._lock:
            progress, all_files = self._progress, self._all
            if progress is None or all_files is None or file not in self._sizes:
                return
            self._sum.positions[file] = position
            if position >= self._sizes[file]:
                task = self._tasks.pop(file, None)
                if task is not None:
                    progress.remove_task(task)
            elif file in self._tasks:
                progress.update(self._tasks[file], completed=position)
            else:
                self._tasks[file] = progress.add_task(
                    "  " + _short(printable(file)), total=self._sizes[file], completed=position
                )
            progress.update(all_files, completed=self._sum.done)

    def ended(self, repo: str) -> None:  # noqa: ARG002
        """Stop showing."""
        with self._lock:
            progress, self._progress = self._progress, None
        if progress is not None:
            progress.stop()

    def note(self, text: str) -> None:
        """Print a line."""
        self._out.print(f"vlmcache: {printable(text)}", style="yellow", soft_wrap=True)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"…{name[-_NAME_WIDTH + 1 :]}"
