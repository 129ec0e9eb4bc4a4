"""The disk that weights are on: how fast it is, and with how many readers at once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

from vlmcache.cache.mounts import drive_of, mount_of, nearest_folder
from vlmcache.home.journal import Journal
from vlmcache.load import reader
from vlmcache.load.report import Disk
from vlmcache.paths import real_path

_COUNTS = (1, 2, 4)
"""The numbers of readers that are tried."""
_GAIN = 1.05
"""How many times as fast more readers must be to be preferred."""
_NETWORK_READERS = 4
"""Each request to a server waits for the round trip; several requests wait at the same time."""
_MEASURED_BYTES = 2_000_000_000
_MEASURED_SECONDS = 4.0
_SYSFS = "/sys/dev/block"
_FEWEST_BYTES = 64_000_000
"""Bytes per number of readers below which a measurement says nothing about the next model."""


def readers_for(home: str, paths: Sequence[str]) -> int:
    """Return how many readers at once suit the disk of some files.

    It is the number that was measured; without one it is 1 on rotational disks, 4 on a network.

    Args:
        home: vlmcache's own folder.
        paths: the files; the first one's disk counts.
    """
    disk = _identity(paths[0]) if paths else None
    if disk is None:
        return reader.READERS
    with Journal(home) as journal:
        measured = journal.readers(disk)
    if measured in _COUNTS:
        return measured
    mount = mount_of(paths[0])
    if mount is not None and mount.network:
        return _NETWORK_READERS
    return 1 if is_rotational(paths[0]) else reader.READERS


def remember_readers(home: str, paths: Sequence[str], disk: Disk) -> None:
    """Remember how many readers suited the disk of some files, if enough was read to say so."""
    name = _identity(paths[0])
    if name is not None and disk.bytes >= len(_COUNTS) * _FEWEST_BYTES:
        with Journal(home) as journal:
            journal.record_readers(name, disk.readers)


def _identity(path: str) -> str | None:
    """Return a name for a file's filesystem that outlasts a boot; `None` if there is none."""
    drive = drive_of(path)
    return None if drive is None else drive.uuid or f"{drive.type} {drive.source}"


def measure_disk(paths: Sequence[str]) -> Disk | None:
    """Return how fast some files come from their disk; `None` if they cannot be evicted.

    At most 2 GB are read in at most 4 s by one thread, then by two and by four. The files are
    evicted before each and afterwards.
    """
    if not reader.can_evict():
        return None
    reader.evict(paths)
    resident = reader.resident_fraction(paths)
    if resident is None or resident > 0.02:
        return None
    runs = {count: _timed(paths, count) for count in _COUNTS}
    speeds = {count: speed for count, (speed, _) in runs.items()}
    if not all(speeds.values()):
        return None
    enough = max(speeds.values()) / _GAIN
    fewest = min(count for count, speed in speeds.items() if speed >= enough)
    several = max(speed for count, speed in speeds.items() if count > 1)
    return Disk(speeds[1], several, sum(size for _, size in runs.values()), fewest)


def _timed(paths: Sequence[str], readers: int) -> tuple[float, int]:
    """Read files and evict them; return the bytes per second, and the bytes."""
    reading = reader.Readers(paths, readers, _MEASURED_BYTES)
    begun = time.perf_counter()
    reading.start()
    reading.run_for(_MEASURED_SECONDS)
    reading.halt()
    reading.wait()
    seconds = time.perf_counter() - begun
    reader.evict(paths)
    return reading.bytes / seconds, reading.bytes


def is_rotational(path: str, sysfs: str = _SYSFS) -> bool:
    """Return whether a path is on a disk that rotates, which is slow to read in two places.

    Disks of virtual machines always claim to rotate, so they do not count.
    """
    for folder in _block_folders(path, sysfs):
        rotates = line_of(os.path.join(folder, "queue", "rotational"))
        if rotates is not None:
            return rotates == "1" and "/virtio" not in folder
    return False


def disk_name(path: str) -> str | None:
    """Return the model of the drive below a path, or the drive's name (Linux's sysfs)."""
    block = None
    for folder in _block_folders(path):
        block = block or os.path.basename(folder)
        model = line_of(os.path.join(folder, "device", "model"))
        if model is not None:
            return model
    return block


def _block_folders(path: str, sysfs: str = _SYSFS) -> Iterator[str]:
    """Yield the sysfs folders of the device below a path and of the device that it is part of."""
    if not hasattr(os, "major"):
        return
    device = os.stat(path if os.path.isfile(path) else nearest_folder(path)).st_dev
    mount = mount_of(path)
    if os.major(device) == 0 and mount is not None and mount.source.startswith("/dev/"):
        # A filesystem with subvolumes has a number of its own; its source is the device.
        with contextlib.suppress(OSError):
            device = os.stat(mount.source).st_rdev
    link = os.path.join(sysfs, f"{os.major(device)}:{os.minor(device)}")
    if os.path.exists(link):
        block = real_path(link)
        yield block
        yield os.path.dirname(block)


def line_of(path: str, name: str = "") -> str | None:
    """Return the rest of the first line of a file in /proc or /sys that begins with a name."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(name):
                return line.removeprefix(name).strip(": \t\n")
    return None
