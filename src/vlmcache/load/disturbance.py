"""Whether a trial had the machine to itself, by what the kernel counted while it ran.

Only Linux counts this. What is not counted is `None`, and does not make a trial disturbed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

WAITED_AT_MOST = 0.1
"""Part of its time that a trial's main thread may wait for a processor in use by others."""
OTHERS_AT_MOST = 0.1
"""Part of the processors that other processes may use while a trial runs."""
SPREAD_AT_MOST = 1.5
"""How many times as long as the fastest trial of its kind a trial may take."""

_NANOSECONDS = 1e9
_BUSY = (0, 1, 2, 5, 6, 7)
"""Columns of /proc/stat: user, nice, system, irq, softirq, steal (taken by the host)."""


class Counters(msgspec.Struct, frozen=True):
    """The kernel's counters at a moment, in seconds."""

    busy: float | None
    """How long the processors that this process may use have worked, for any process."""
    waited: float | None
    """How long this process's main thread was ready to run and did not run."""
    throttled: float
    """How long a control group's quota kept its processes from running."""


class Disturbance(NamedTuple):
    """What others did during a trial; `None` for what the kernel does not count."""

    waited: float | None
    """The most seconds for which its main thread waited for a processor in use by others."""
    others: float | None
    """The part of the processors that other processes used, 0 to 1."""


def read_counters(proc: str = "/proc", groups: str = "/sys/fs/cgroup") -> Counters:
    """Return the counters of this process and of the processors that it may use."""
    columns = _line(f"{proc}/self/schedstat").split()
    waited = int(columns[1]) / _NANOSECONDS if len(columns) == 3 else None
    throttled = sum(_throttled(folder) for folder in _group_folders(proc, groups))
    return Counters(_busy(f"{proc}/stat"), waited, throttled)


def _busy(path: str) -> float | None:
    """Return how long the processors worked; a container sees those of the whole machine."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    ticks: list[int] = []
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        for line in file:
            name, *columns = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in allowed:
                ticks += (int(columns[at]) for at in _BUSY if at < len(columns))
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def _line(path: str) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="ascii") as file:
        return file.readline()
    return ""


def _group_folders(proc: str, groups: str) -> Iterator[str]:
    """Yield the folders of this process's control groups that may limit its processors."""
    with contextlib.suppress(OSError), open(f"{proc}/self/cgroup", encoding="utf-8") as file:
        for line in file:
            number, controllers, group = line.rstrip("\n").split(":", 2)
            if number != "0" and "cpu" not in controllers.split(","):
                continue
            root = groups if number == "0" else os.path.join(groups, "cpu")
            parts = [part for part in group.split("/") if part]
            yield from (os.path.join(root, *parts[:depth]) for depth in range(len(parts), -1, -1))


def _throttled(folder: str) -> float:
    with (
        contextlib.suppress(OSError, ValueError),
        open(os.path.join(folder, "cpu.stat"), encoding="ascii") as file,
    ):
        for line in file:
            name, _, value = line.partition(" ")
            if name in ("throttled_usec", "throttled_time"):
                return int(value) / (1e6 if name == "throttled_usec" else _NANOSECONDS)
    return 0.0


def has_quota(proc: str = "/proc", groups: str = "/sys/fs/cgroup") -> bool:
    """Return whether a control group gives this process fewer processors than it may run on.

    What others do on the rest of the processors need not affect it then.
    """
    for folder in _group_folders(proc, groups):
        if _line(os.path.join(folder, "cpu.max")).split()[:1] not in ([], ["max"]):
            return True
        if _line(os.path.join(folder, "cpu.cfs_quota_us")).strip() not in ("", "-1"):
            return True
    return False


def disturbance_between(
    before: Counters, after: Counters, *, seconds: float, ours: float, cores: int, quota: bool
) -> Disturbance:
    """Return what others did between two moments.

    Args:
        before: counted before the trial's process was started; its `waited` does not matter.
        after: counted by that process, whose `waited` begins with it.
        seconds: the time between both.
        ours: seconds of processors that the trial's process and its children used.
        cores: how many processors it may use.
        quota: whether it may use them only in part; see `has_quota`.
    """
    used = None
    if before.busy is not None and after.busy is not None:
        used = max(0.0, after.busy - before.busy - ours)
    waited = after.waited
    if waited is not None:
        waited = max(0.0, waited - max(0.0, after.throttled - before.throttled))
        # Beyond the time that others used, it waited for other threads of its own process.
        waited = waited if used is None or quota else min(waited, used)
    others = None if used is None or quota or seconds <= 0 else min(1.0, used / (seconds * cores))
    return Disturbance(waited, others)


def why_disturbed(disturbance: Disturbance, seconds: float) -> str | None:
    """Return in words what disturbed a trial that took some seconds; `None` if nothing did."""
    waited, others = disturbance
    if waited is not None and waited > WAITED_AT_MOST * seconds:
        share = waited / seconds if seconds else 1.0
        return f"for {share:.0%} of its time it waited for a processor in use by others"
    if others is not None and others > OTHERS_AT_MOST:
        return f"other processes used {others:.0%} of the processors"
    return None
