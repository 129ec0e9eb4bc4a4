"""Waits until no other program uses the machine, within bounds.

The kernel's load average and its pressure over ten seconds include what the benchmarks themselves
did a moment ago. Waiting for both to fall would take two minutes before each pair, so our part is
left out of the load, and the pressure is measured in a pause in which nothing of ours runs.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
import time
from pathlib import Path

MOST_LOAD = 0.3
MOST_PRESSURE = 0.02
"""Share of the time in which some process waits for a processor."""
PAUSE = 1.0
LONGEST = 15.0
"""The most seconds to wait before one pair."""
LONGEST_IN_ALL = 180.0
"""The most seconds to wait in one run of the benchmarks."""

_MINUTE = 60.0
_PRESSURE = Path("/proc/pressure/cpu")
_TICKS = os.sysconf("SC_CLK_TCK")


def with_children(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    pids = [pid]
    for parent in pids:
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                pids += map(int, children.read_text().split())
    return pids


def _seconds_of(pid: int) -> float:
    """Return the processor seconds of a running process and of its ended children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS


class Machine:
    """The kernel's figures on how busy the machine is, and a clock."""

    def load(self) -> float:
        """Return the load average of the last minute."""
        return os.getloadavg()[0]

    def stalled(self) -> float | None:
        """Return the seconds since the start in which some process waited for a processor."""
        try:
            text = _PRESSURE.read_text()
        except OSError:
            return None
        match = re.search(r"^some .*total=([0-9]+)", text, re.MULTILINE)
        return int(match[1]) / 1e6 if match else None

    def used(self) -> float:
        """Return the processor seconds of this process and its descendants."""
        both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        own = sum(sum(resource.getrusage(who)[:2]) for who in both)
        return own + sum(map(_seconds_of, with_children(os.getpid())[1:]))

    def now(self) -> float:
        """Return seconds of a clock."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


class Quiet:
    """Waits before each pair until the machine is quiet.

    Args:
        machine: the machine.
        longest: the most seconds to wait before one pair.
        in_all: the most seconds to wait before all of them.
    """

    def __init__(
        self, machine: Machine, longest: float = LONGEST, in_all: float = LONGEST_IN_ALL
    ) -> None:
        self.machine = machine
        self.longest = longest
        self.left = in_all
        self.own = 0.0
        """The part of the load average that is ours."""
        self._at, self._used = machine.now(), machine.used()

    def wait(self) -> bool:
        """Wait until the machine is quiet; return whether it is."""
        begun = self.machine.now()
        end = begun + min(self.longest, self.left)
        while not (quiet := self._is_quiet()) and self.machine.now() < end:
            pass
        # The pause that shows a quiet machine does not count as waiting.
        self.left = max(0.0, self.left - max(0.0, self.machine.now() - begun - PAUSE))
        return quiet

    def _is_quiet(self) -> bool:
        self._count_own()
        before, begun = self.machine.stalled(), self.machine.now()
        self.machine.pause(PAUSE)
        after, ended = self.machine.stalled(), self.machine.now()
        self._count_own()
        pressure = 0.0
        if before is not None and after is not None and ended > begun:
            pressure = (after - before) / (ended - begun)
        return self.machine.load() - self.own < MOST_LOAD and pressure < MOST_PRESSURE

    def _count_own(self) -> None:
        """Update our part of the load, as the kernel computes the average of one minute."""
        now, used = self.machine.now(), self.machine.used()
        passed = now - self._at
        if passed > 0:
            kept = math.exp(-passed / _MINUTE)
            self.own = self.own * kept + (used - self._used) / passed * (1 - kept)
        self._at, self._used = now, used


_of_this_run = [Quiet(Machine())]


def bound(seconds: float) -> None:
    """Set the most seconds to wait from now on."""
    _of_this_run[0].left = seconds


def wait() -> bool:
    """Wait, within the bounds of this run, until the machine is quiet; return whether it is."""
    return _of_this_run[0].wait()
