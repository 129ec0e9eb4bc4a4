"""How much memory a load may take on this machine, and whether a model fits into it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vlmcache.cache.weights import MemoryEstimate, Precision, rescale, weights_bytes, with_overhead
from vlmcache.errors import NotEnoughMemoryError
from vlmcache.load.source import Source, read_tensors
from vlmcache.units import size_text

_CGROUPS = "/sys/fs/cgroup"
_SMALLER: tuple[Precision, ...] = ("fp16", "int8", "int4")


def available_memory() -> int:
    """Return the bytes that a new process can take: the machine's, or less in a control group."""
    import psutil

    free = int(psutil.virtual_memory().available)
    return min([free, *_cgroup_rooms(), *_process_limits()])


def _process_limits() -> Iterator[int]:
    """Yield what a process may have of addresses and data, where that is limited."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit != resource.RLIM_INFINITY:
            yield limit


def _cgroup_rooms() -> Iterator[int]:
    """Yield what is left below each memory limit of this process's groups, of both versions."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            lines = [line.strip().split(":", 2) for line in file]
    except (OSError, UnicodeDecodeError):
        return
    for number, controllers, group in (line for line in lines if len(line) == 3):
        if number == "0":
            root, limit_file, used_file, stat = _CGROUPS, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root, stat = os.path.join(_CGROUPS, "memory"), "total_"
            limit_file, used_file = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        parts = [part for part in group.split("/") if part]
        for depth in range(len(parts), -1, -1):
            folder = os.path.join(root, *parts[:depth])
            limit = _number(os.path.join(folder, limit_file))
            used = _number(os.path.join(folder, used_file))
            if limit is not None and used is not None:
                yield max(0, limit - used + _reclaimable(folder, f"{stat}inactive_file"))


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(folder: str, field: str) -> int:
    """Return the bytes of files in memory that count for the group and that it can drop."""
    try:
        with open(os.path.join(folder, "memory.stat"), encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == field:
                    return int(value)
    except (OSError, ValueError):
        pass
    return 0


def estimate(source: Source, precision: Precision | None = None) -> MemoryEstimate:
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


def check_fits(source: Source, need: MemoryEstimate, free: int, device: str) -> None:
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
