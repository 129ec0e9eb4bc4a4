"""How much memory a load may take on this machine, and whether a model fits into it."""

from __future__ import annotations

import os

from vlmcache.cache.weights import Memory, Precision, rescale, weights_bytes, with_overhead
from vlmcache.errors import NotEnoughMemoryError
from vlmcache.load.source import Source, read_tensors
from vlmcache.units import size_text

_CGROUPS = "/sys/fs/cgroup"
_SMALLER: tuple[Precision, ...] = ("fp16", "int8", "int4")


def available_memory() -> int:
    """Return the bytes that a new process can take: the machine's, or less in a control group."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limited = _cgroup_room()
    return free if limited is None else min(free, limited)


def _cgroup_room() -> int | None:
    """Return what is left of the tightest limit of this process's groups (cgroups version 2)."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            group = next(line[3:].strip() for line in file if line.startswith("0::"))
    except (OSError, StopIteration, UnicodeDecodeError):
        return None
    room: int | None = None
    while True:
        folder = os.path.join(_CGROUPS, group.strip("/"))
        limit = _number(os.path.join(folder, "memory.max"))
        used = _number(os.path.join(folder, "memory.current"))
        if limit is not None and used is not None:
            left = max(0, limit - used + _reclaimable(folder))
            room = left if room is None else min(room, left)
        if not group.strip("/"):
            return room
        group = os.path.dirname(group.rstrip("/"))


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(folder: str) -> int:
    """Return the bytes of files in memory that count for the group and that it can drop."""
    try:
        with open(os.path.join(folder, "memory.stat"), encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "inactive_file":
                    return int(value)
    except (OSError, ValueError):
        pass
    return 0


def estimate(source: Source, precision: Precision | None = None) -> Memory:
    """Return what a model takes once loaded.

    Raises:
        DamagedWeightsError: the weight files contradict themselves.
    """
    precision = precision or source.precision
    if source.kind == "copy" or source.quantised_by is not None:
        return with_overhead(source.bytes)
    tensors = read_tensors(source)
    if tensors:
        return with_overhead(weights_bytes(tensors, precision))
    return with_overhead(rescale(source.bytes, "bf16", precision))


def check_fits(source: Source, need: Memory, free: int, device: str) -> None:
    """Make sure that a model fits, before the kernel or the device finds that it does not.

    Raises:
        NotEnoughMemoryError: it does not; the hint names a precision at which it would.
    """
    if need.total <= free:
        return
    hint = "free some memory, or use a machine or device with more"
    for precision in _SMALLER if source.kind == "weights" else ():
        smaller = estimate(source, precision).total
        if smaller <= min(free, need.total - 1):
            hint = f"--precision {precision} takes about {size_text(smaller)}"
            break
    raise NotEnoughMemoryError(
        f"{source.model} at {source.precision} needs about {size_text(need.total)}"
        f" ({size_text(need.weights)} of weights), and {device} has {size_text(free)} free",
        hint,
    )
