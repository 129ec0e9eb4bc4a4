"""Runs of whole processes in turn, and the table that sets them beside each other."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

BIN = Path(sys.executable).parent


TIMED = "from time import perf_counter as now\n{setup}\nstart = now()\n{work}\nprint(now() - start)"
"""A program that times a part of itself and prints the seconds, in place of its start-up."""


class Run(NamedTuple):
    """One finished process: its seconds, and its largest resident memory in bytes.

    The seconds are those from start to end, or those that a timed program has printed.
    """

    seconds: float
    memory: int


class Row(NamedTuple):
    """One line of the table: the ratio of ours to the peer's or to the limit.

    A target is the most that the ratio may be, `None` where there is none. runs are the figures of
    each pair, ours and the other's, in seconds or bytes.
    """

    what: str
    ratio: float
    target: float | None
    ours: str
    theirs: str
    runs: tuple[Sequence[float], Sequence[float]] = ((), ())

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.ratio <= self.target else "missed"


class Setting(NamedTuple):
    """How to measure: in an empty folder on the disk in question, so many bytes, pairs, seconds."""

    folder: Path
    size: int
    pairs: int
    seconds: float


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end; fail if it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.DEVNULL, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        output.seek(0)
        told = output.read(64)
    if len(told) < 32 and re.fullmatch(rb"[0-9.e-]+\n", told):
        seconds = float(told)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"exit {process.returncode}: {' '.join(command)}")
    return Run(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def in_turn(
    commands: Mapping[str, Sequence[str]],
    pairs: int,
    environment: Mapping[str, str] | None = None,
) -> dict[str, list[Run]]:
    """Run each command once to warm up, then all of them in turn, `pairs` times."""
    for command in commands.values():
        run(command, environment)
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(pairs):
        for name, command in commands.items():
            runs[name].append(run(command, environment))
    return runs


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios pair by pair, which drift of the machine leaves alone."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def seconds_row(
    what: str, runs: Mapping[str, list[Run]], ours: str, theirs: str, target: float | None
) -> Row:
    """Return the line that compares the times of two commands."""
    mine, other = ([one.seconds for one in runs[name]] for name in (ours, theirs))
    return Row(
        what,
        median_ratio(mine, other),
        target,
        f"{statistics.median(mine):.3f} s",
        f"{theirs} {statistics.median(other):.3f} s",
        (mine, other),
    )


def memory_row(
    what: str, runs: Mapping[str, list[Run]], ours: str, theirs: str, target: float
) -> Row:
    """Return the line that compares the peak memories of two commands."""
    mine, other = ([float(one.memory) for one in runs[name]] for name in (ours, theirs))
    return Row(
        what,
        median_ratio(mine, other),
        target,
        f"{statistics.median(mine) / 1e6:.0f} MB",
        f"{theirs} {statistics.median(other) / 1e6:.0f} MB",
        (mine, other),
    )


def values_row(
    what: str, ours: Sequence[float], theirs: Sequence[float], target: float | None, peer: str
) -> Row:
    """Return the line that compares seconds measured in pairs."""
    return Row(
        what,
        median_ratio(ours, theirs),
        target,
        f"{statistics.median(ours):.3g} s",
        f"{peer} {statistics.median(theirs):.3g} s",
        (ours, theirs),
    )


def machine() -> str:
    """Return what has to be known of a machine to read its figures."""
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
    """Return the rows as a table that reads well as text and as Markdown."""
    lines = [("what", "ratio", "at most", "", "vlmcache", "beside")]
    lines += [
        (
            row.what,
            f"{row.ratio:.2f}" if row.ratio >= 0.1 or not row.ratio else f"{row.ratio:.1g}",
            "" if row.target is None else f"{row.target:.3g}",
            row.verdict,
            row.ours,
            row.theirs,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    lines.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
    return "\n".join(
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
