"""Runs of complete processes in turn, and the table that compares them."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks import quiet

BIN = Path(sys.executable).parent


TIMED = "from time import perf_counter as now\n{setup}\nstart = now()\n{work}\nprint(now() - start)"
"""A program that times a part of itself and prints the seconds, in place of its start-up."""


class Row(NamedTuple):
    """One row of the table: our figure compared with the peer's or with the limit."""

    what: str
    ratio: float
    target: float | None
    """The most that the ratio may be; `None` for no target."""
    ours: str
    theirs: str
    runs: tuple[Sequence[float], Sequence[float]] = ((), ())
    """The figures of each pair, ours and the other's, in seconds or bytes."""
    ratios: Sequence[float] = ()
    """The ratio of each pair, if it is not ours divided by the other's."""
    busy: int = 0
    """How many pairs were measured although the machine was not quiet."""

    @property
    def spread(self) -> tuple[float, float] | None:
        """The least and the largest ratio of a pair; `None` for what was counted once."""
        ratios = self.ratios or [mine / other for mine, other in zip(*self.runs, strict=True)]
        return (min(ratios), max(ratios)) if ratios else None

    @property
    def verdict(self) -> str:
        """Whether the target is met; unclear if some pairs meet it and others do not."""
        if self.target is None:
            return ""
        least, most = self.spread or (self.ratio, self.ratio)
        if least <= self.target < most:
            return "unclear"
        return "met" if self.ratio <= self.target else "missed"


_T = TypeVar("_T")


class Rounds(dict[str, list[_T]]):
    """Name of a side -> its figure in each round."""

    busy: int = 0
    """How many rounds were measured although the machine was not quiet."""


class Setting(NamedTuple):
    """How to measure a part of the table."""

    folder: Path
    """An empty folder on the disk that is measured."""
    common: Path
    """A folder for what several parts need, which is made once."""
    size: int
    """Bytes to work with."""
    pairs: int
    seconds: float
    """How long to watch."""


def rounds(
    sides: Mapping[str, Callable[[], _T]], count: int, wait: Callable[[], bool] = quiet.wait
) -> Rounds[_T]:
    """Let all sides run once to warm up, then in turn for some rounds, on a quiet machine.

    The order changes from round to round, so that no side always runs after the same other one.

    Args:
        sides: name -> function that runs the side and returns its figure.
        count: how many rounds count.
        wait: waits for a quiet machine, and returns whether it is quiet.
    """
    for work in sides.values():
        work()
    figures: Rounds[_T] = Rounds((name, []) for name in sides)
    for number in range(count):
        figures.busy += not wait()
        for name in list(sides) if number % 2 else reversed(list(sides)):
            figures[name].append(sides[name]())
    return figures


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Run a command; return the seconds from start to end, or those that it has printed.

    It runs in the root folder: in a clone it would read the config.yaml, which no peer does.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.DEVNULL, env=environment, cwd="/"
        )
        process.wait()
        seconds = time.perf_counter() - started
        output.seek(0)
        printed = output.read(64)
    if len(printed) < 32 and re.fullmatch(rb"[0-9.e-]+\n", printed):
        seconds = float(printed)
    if process.returncode != 0:
        raise RuntimeError(f"exit {process.returncode}: {' '.join(command)}")
    return seconds


def in_turn(
    commands: Mapping[str, Sequence[str]],
    pairs: int,
    environment: Mapping[str, str] | None = None,
) -> Rounds[float]:
    """Run commands as `rounds` does; return the seconds of each."""
    sides = {name: partial(run, command, environment) for name, command in commands.items()}
    return rounds(sides, pairs)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of each pair, on which a machine's drift has no effect."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def values_row(
    what: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    target: float | None,
    peer: str,
    busy: int = 0,
) -> Row:
    """Return the row that compares seconds measured in pairs."""
    return Row(
        what,
        median_ratio(ours, theirs),
        target,
        f"{statistics.median(ours):.3g} s",
        f"{peer} {statistics.median(theirs):.3g} s",
        (ours, theirs),
        busy=busy,
    )


def seconds_row(
    what: str, runs: Rounds[float], ours: str, theirs: str, target: float | None
) -> Row:
    """Return the row that compares the times of two commands."""
    return values_row(what, runs[ours], runs[theirs], target, theirs, runs.busy)


def beyond_row(
    what: str, ours: Sequence[float], theirs: Sequence[float], most: float, peer: str, busy: int
) -> Row:
    """Return the row that says how many seconds more ours take than the other's."""
    more = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    seconds = f"{statistics.median(ours):.3g} s"
    return Row(
        f"{what} (seconds)",
        statistics.median(more),
        most,
        seconds,
        f"{peer} {statistics.median(theirs):.3g} s",
        (ours, theirs),
        more,
        busy,
    )


def memory_row(what: str, runs: Rounds[int], ours: str, theirs: str, target: float | None) -> Row:
    """Return the row that compares the peak memory of two commands."""
    mine, other = runs[ours], runs[theirs]
    return Row(
        what,
        median_ratio(mine, other),
        target,
        f"{statistics.median(mine) / 1e6:.0f} MB",
        f"{theirs} {statistics.median(other) / 1e6:.0f} MB",
        (mine, other),
        busy=runs.busy,
    )


def worst_row(what: str, seconds: Sequence[float], most: float, busy: int) -> Row:
    """Return the row of the largest of some seconds, which no peer is compared with."""
    worst = max(seconds)
    return Row(what, worst, most, f"{worst:.3g} s", "seconds, the worst", busy=busy)


def peak_memory(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Return the most bytes that a command and the processes it starts hold at the same time.

    Shared pages count once (PSS). The memory is read a hundred times per second; shorter peaks are
    missed on both sides of a pair.
    """
    most = 0
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        while process.poll() is None:
            most = max(most, sum(map(_proportional, quiet.with_children(process.pid))))
            time.sleep(0.01)
    if process.returncode != 0:
        raise RuntimeError(f"exit {process.returncode}: {' '.join(command)}")
    return most


def _proportional(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss: *([0-9]+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def machine() -> str:
    """Return a description of the machine that the figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory / 1e9:.0f} GB of memory, "
        f"{platform.platform()}, Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table for both a terminal and Markdown."""
    lines = [("what", "ratio", "of the pairs", "at most", "", "vlmcache", "beside")]
    lines += [
        (
            row.what,
            _figure(row.ratio),
            _range(row),
            "" if row.target is None else f"{row.target:.3g}",
            row.verdict,
            row.ours,
            row.theirs,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(7)]
    lines.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
    return "\n".join(
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def _figure(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 or not ratio else f"{ratio:.1g}"


def _range(row: Row) -> str:
    parts = [f"{_figure(row.spread[0])}-{_figure(row.spread[1])}"] if row.spread else []
    return ", ".join([*parts, f"{row.busy} busy"] if row.busy else parts)
