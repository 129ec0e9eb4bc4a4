"""The conditions of a measurement: files that are cold or warm, memory, disk and machine."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Sequence

from vlmcache.cache.free_memory import system_memory
from vlmcache.cache.hashing import cores
from vlmcache.cache.mounts import mount_of
from vlmcache.cache.state import Finding
from vlmcache.load import reader
from vlmcache.load.disk import disk_name, line_of
from vlmcache.load.report import Accelerator, Machine, Temperature
from vlmcache.paths import real_path

COLD_AT_MOST = 0.01
"""Part of the weight files that may be in memory before a cold trial."""
WARM_AT_LEAST = 0.98
"""Part of the weight files that must be in memory before a warm trial."""
_COPIED_BYTES = 64_000_000
_COPIES = 3
_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "fastsafetensors",
    "runai-model-streamer",
)


def set_temperature(
    paths: Sequence[str], temperature: Temperature, what: str = "weights"
) -> tuple[float | None, str | None]:
    """Bring files to a temperature.

    Args:
        paths: the files.
        temperature: `warm` or `cold`.
        what: what the files are, in words.

    Returns:
        The part of the files that is in memory then, and why that is not the temperature: a
        sentence, or `None` if it is.
    """
    if temperature == "warm":
        reader.ReadAhead(paths).wait()
        resident = reader.resident_fraction(paths)
        if resident is not None and resident < WARM_AT_LEAST:
            return (
                resident,
                f"only {resident:.0%} of the {what} stay in memory: there is too little memory",
            )
        return resident, None
    if not reader.can_evict():
        return None, f"{sys.platform} has no way to evict files from memory"
    # Libraries are many files, written long ago. One that is not on the disk yet stays in memory,
    # which shows below.
    reader.evict(paths, write=what == "weights")
    resident = reader.resident_fraction(paths)
    if resident is None:
        return (
            None,
            f"the {what} are another user's, so the kernel does not say what is in memory",
        )
    if resident > COLD_AT_MOST:
        mount = mount_of(paths[0])
        if mount is not None and mount.type in ("tmpfs", "ramfs"):
            return resident, f"the {what} are on {mount.type}, which is memory"
        return resident, (
            f"{resident:.0%} of the {what} stay in memory after eviction: a process uses them"
        )
    return resident, None


@functools.cache
def library_files() -> tuple[str, ...]:
    """Return the files that importing torch and transformers may read: all in their folders."""
    folders = set()
    for name in ("torch", "transformers"):
        spec = importlib.util.find_spec(name)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            folders.add(os.path.dirname(real_path(folder)))
    return tuple(
        path
        for folder in sorted(folders)
        for parent, _, names in os.walk(folder)
        for path in (os.path.join(parent, name) for name in names)
        if os.path.isfile(path) and not os.path.islink(path)
    )


def counts_reads(path: str) -> bool:
    """Return whether the kernel counts reads of this filesystem as reads of a block device."""
    return os.major(os.stat(path).st_dev) != 0


def memory_speed() -> float:
    """Return how many bytes a second one thread copies in memory."""
    source, target = bytearray(_COPIED_BYTES), memoryview(bytearray(_COPIED_BYTES))
    best = 0.0
    # The first copy pays for the pages.
    for _ in range(_COPIES + 1):
        begun = time.perf_counter()
        target[:] = source
        best = max(best, _COPIED_BYTES / (time.perf_counter() - begun))
    return best


def describe_machine(
    accelerators: tuple[Accelerator, ...],
    folder: str,
    more: dict[str, str] | None = None,
    *,
    bytecode: bool | None = None,
) -> Machine:
    """Return the conditions of measurements on files below a folder.

    Args:
        accelerators: as a child process found them.
        folder: the folder that the measured files are in.
        more: versions that are not in any package's metadata.
        bytecode: whether the libraries' compiled bytecode is kept.
    """
    mount = mount_of(folder)
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return Machine(
        system=platform.platform(),
        cpu=line_of("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        cores=cores(),
        memory=system_memory().total,
        accelerators=accelerators,
        filesystem=mount.type if mount else None,
        disk=disk_name(folder),
        versions=versions | (more or {}),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        memory_speed=memory_speed(),
        bytecode=bytecode,
    )


def findings_of(machine: Machine | None) -> tuple[Finding, ...]:
    """Return the conditions of a machine that slow every load on it."""
    if machine is None or machine.bytecode is not False:
        return ()
    spec = importlib.util.find_spec("torch")
    folder = os.path.dirname(os.path.dirname((spec.origin if spec else None) or ""))
    return (
        Finding(
            "no-bytecode",
            "warning",
            None,
            folder,
            "torch and transformers are compiled anew by every process that imports them",
            f"unset PYTHONDONTWRITEBYTECODE; or once: python -m compileall -q {folder}",
        ),
    )


def peak_memory() -> int | None:
    """Return the most bytes that this process had in memory, mapped files included."""
    peak = line_of("/proc/self/status", "VmHWM:")
    if peak is not None:
        return int(peak.split()[0]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
