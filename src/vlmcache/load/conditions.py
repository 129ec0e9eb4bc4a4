"""The conditions of a measurement: files that are cold or warm, and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence

from vlmcache.cache.hashing import cores
from vlmcache.cache.mounts import mount_of, nearest_folder
from vlmcache.load import reader
from vlmcache.load.report import Accelerator, Machine, Temperature

COLD_AT_MOST = 0.01
"""Part of the weight files that may be in memory before a cold trial."""
WARM_AT_LEAST = 0.98
"""Part of the weight files that must be in memory before a warm trial."""
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
    paths: Sequence[str], temperature: Temperature
) -> tuple[float | None, str | None]:
    """Bring files to a temperature; return the part of them in memory then, and what is wrong.

    What is wrong is a sentence, or `None` where the trial is under the conditions it names.
    """
    if temperature == "warm":
        reader.ReadAhead(paths).start().wait()
        resident = reader.resident_fraction(paths)
        if resident is not None and resident < WARM_AT_LEAST:
            return (
                resident,
                f"only {resident:.0%} of the weights stay in memory: there is too little",
            )
        return resident, None
    if not reader.can_evict():
        return None, f"{sys.platform} has no way to evict files from memory"
    reader.evict(paths)
    resident = reader.resident_fraction(paths)
    if resident is None:
        return (
            None,
            "the weight files are another user's, so the kernel does not tell what is in memory",
        )
    if resident > COLD_AT_MOST:
        mount = mount_of(paths[0])
        if mount is not None and mount.type in ("tmpfs", "ramfs"):
            return resident, f"the weights are on {mount.type}, which is memory"
        return resident, (
            f"{resident:.0%} of the weights stay in memory after eviction: a process uses them"
        )
    return resident, None


def counts_reads(path: str) -> bool:
    """Return whether the kernel counts reads of this filesystem as reads of a block device."""
    return os.major(os.stat(path).st_dev) != 0


def describe_machine(accelerators: tuple[Accelerator, ...], folder: str) -> Machine:
    """Return the conditions of measurements on files below a folder."""
    import psutil

    mount = mount_of(folder)
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        system=platform.platform(),
        cpu=_cpu_name(),
        cores=cores(),
        memory=int(psutil.virtual_memory().total),
        accelerators=accelerators,
        filesystem=mount.type if mount else None,
        disk=_disk_name(folder),
        versions=versions,
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _disk_name(folder: str) -> str | None:
    """Return the model of the drive below a folder, or the drive's name (Linux's sysfs)."""
    device = os.stat(nearest_folder(folder)).st_dev
    if not hasattr(os, "major"):
        return None
    link = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    if not os.path.exists(link):
        return None
    block = os.path.realpath(link)
    for candidate in (block, os.path.dirname(block)):
        try:
            with open(os.path.join(candidate, "device", "model"), encoding="utf-8") as file:
                return file.read().strip()
        except OSError:
            continue
    return os.path.basename(block)
