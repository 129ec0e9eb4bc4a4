"""How much memory this process can still take: the machine's, or less by limits of its groups.

Linux's control groups are described at https://docs.kernel.org/admin-guide/cgroup-v2.html and
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from vlmcache.cache.mounts import Mount, mounts

PROCESS = "/proc/self"
_LONGEST = 100_000
"""The most characters that are read from a file of the kernel."""


class _Files(NamedTuple):
    """How a version of control groups names its files and the lines of memory.stat."""

    limits: tuple[str, ...]
    used: str
    prefix: str
    dirty: tuple[str, ...]


_VERSIONS = {
    # Above memory.high the kernel slows a group down until it is below it again.
    "cgroup2": _Files(
        ("memory.max", "memory.high"), "memory.current", "", ("file_dirty", "file_writeback")
    ),
    # Groups below count too, in the lines that begin with total_.
    "cgroup": _Files(
        ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_", ("dirty", "writeback")
    ),
}


def available_memory(process: str = PROCESS) -> int:
    """Return the bytes that this process can still take without anything being killed.

    Clean pages of files count as free: the kernel drops them when memory is needed.

    Args:
        process: the folder that describes its groups and mounts, as in /proc.
    """
    free = [system_memory().available, *group_rooms(process), *_process_limits()]
    return max(0, min(free))


class SystemMemory(NamedTuple):
    """The memory of the machine, in bytes."""

    total: int
    available: int


def system_memory() -> SystemMemory:
    """Return how much memory the machine has, and how much of it can be had."""
    import psutil

    try:
        memory = psutil.virtual_memory()
    except OSError:  # without /proc
        page = os.sysconf("SC_PAGE_SIZE")
        return SystemMemory(
            os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
        )
    return SystemMemory(memory.total, memory.available)


def group_rooms(process: str = PROCESS) -> Iterator[int]:
    """Yield the bytes left below each memory limit of the process's groups, of both versions.

    A group's limit holds for all groups below it. If this process is in a container and cannot see
    its group, the limits are where the container's groups are mounted.
    """
    lines = [line.split(":", 2) for line in _text(os.path.join(process, "cgroup")).splitlines()]
    own = {
        "cgroup2" if number == "0" else "cgroup": group
        for number, controllers, group in (line for line in lines if len(line) == 3)
        if number == "0" or "memory" in controllers.split(",")
    }
    for mount in mounts(os.path.join(process, "mountinfo")):
        if mount.type not in own or (mount.type == "cgroup" and "memory" not in mount.options):
            continue
        names = _VERSIONS[mount.type]
        for folder in _folders(mount, own[mount.type]):
            yield from _rooms(folder, names)


def _folders(mount: Mount, group: str) -> Iterator[str]:
    """Yield the folders of a group and of those above it, as far as they are mounted."""
    root = mount.root.rstrip("/")
    parts: list[str] = []
    if group == root or group.startswith(f"{root}/"):
        parts = [part for part in group[len(root) :].split("/") if part]
    if ".." in parts:
        # Outside the process's namespace.
        parts = []
    for depth in range(len(parts), -1, -1):
        yield os.path.join(mount.point, *parts[:depth])


def _rooms(folder: str, names: _Files) -> Iterator[int]:
    used = _number(os.path.join(folder, names.used))
    if used is None:
        return
    lines = (line.split() for line in _text(os.path.join(folder, "memory.stat")).splitlines())
    stat = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}

    def amount(*words: str) -> int:
        return sum(stat.get(f"{names.prefix}{word}", 0) for word in words)

    # Locked pages and those of shared memory are on neither of these lists.
    files = amount("inactive_file", "active_file")
    clean = max(0, files - amount(*names.dirty))
    for name in names.limits:
        limit = _number(os.path.join(folder, name))
        if limit is not None:
            yield max(0, limit - max(0, used - clean))


def _process_limits() -> Iterator[int]:
    """Yield the bytes of addresses and of data that this process may still take, if limited."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    import psutil

    try:
        taken = psutil.Process().memory_info()
    except psutil.Error:  # without /proc
        return
    for name, size in (("RLIMIT_AS", taken.vms), ("RLIMIT_DATA", getattr(taken, "data", 0))):
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit != resource.RLIM_INFINITY:
            yield max(0, limit - size)


def _number(path: str) -> int | None:
    """Return the number in a file; `None` for a word, such as `max`, or without the file."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST)
    except OSError:
        return ""
