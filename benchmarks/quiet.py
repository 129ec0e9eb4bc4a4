"""Waits until nobody else uses the machine, within bounds.

The kernel's load average and its pressure over ten seconds hold what the benchmarks themselves did
a moment ago. Waiting for both to fall by themselves would take two minutes before each pair, so
what was ours is left out of the load, and the pressure is also taken from a pause in which nothing
of ours runs.
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
"""Share of the time in which something waits for a processor."""
PAUSE = 1.0
LONGEST = 15.0
"""Seconds that are waited for one pair."""
LONGEST_IN_ALL = 180.0
"""Seconds that are waited in one run of the benchmarks."""

_MINUTE = 60.0
_PRESSURE = Path("/proc/pressure/cpu")


_TICKS = os.sysconf("SC_CLK_TCK")


def with_children(pid: int) -> list[int]:
    """Return a process, the processes it has started, those that these have, and so on."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found


def _seconds_of(pid: int) -> float:
    """Return the processor time of a process that runs, and of those it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS


class Machine:
    """What the kernel says of the machine's business, and the clock."""

    def load(self) -> float:
        """Return the load average of the last minute."""
        return os.getloadavg()[0]

    def stalled(self) -> float | None:
        """Return the seconds in which something has waited for a processor, since the start."""
        try:
            text = _PRESSURE.read_text()
        except OSError:
            return None
        found = re.search(r"^some .*total=([0-9]+)", text, re.MULTILINE)
        return int(found[1]) / 1e6 if found else None

    def used(self) -> float:
        """Return the processor time of this process, and of those it has started."""
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
    """Says before each pair whether the machine is quiet, after waiting for it.

    Args:
        machine: whose figures count.
        longest: seconds that are waited for one pair.
        in_all: seconds that are waited for all of them.
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
        # The pause that finds a quiet machine is part of the measuring.
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
        """Add what we have used since to our part, as the kernel counts a load of one minute."""
        now, used = self.machine.now(), self.machine.used()
        passed = now - self._at
        if passed > 0:
            kept = math.exp(-passed / _MINUTE)
            self.own = self.own * kept + (used - self._used) / passed * (1 - kept)
        self._at, self._used = now, used


_of_this_run = [Quiet(Machine())]


def bound(seconds: float) -> None:
    """Say how long is waited in all from now on."""
    _of_this_run[0].left = seconds


def wait() -> bool:
    """Wait, within the bounds of this run, until the machine is quiet; return whether it is."""
    return _of_this_run[0].wait()
