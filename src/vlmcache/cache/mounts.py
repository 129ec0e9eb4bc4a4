"""Which filesystem a path is on, what is known about it, and where it is mounted now."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Literal

import msgspec

from vlmcache.cache.state import Drive
from vlmcache.paths import real_path

LOCAL = frozenset(
    {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "tmpfs", "xfs", "zfs"}
)
"""Filesystems that are known to record each read in the access time.

On a network drive, FUSE or an overlay a read may leave no trace, whatever the mount's options say.
"""

AccessTimes = Literal["exact", "daily", "never", "unknown"]
"""What the mount does with access times: each read counts, at most one a day, none, not known."""


_ACCESS_TIMES: dict[str, AccessTimes] = {
    "noatime": "never",
    "ro": "never",
    "relatime": "daily",
    "lazytime": "daily",
    "strictatime": "exact",
    "atime": "exact",
}
"""Option of a mount -> what it means for access times; the first that is set counts."""


class Mount(msgspec.Struct, frozen=True):
    """The filesystem that a path is on."""

    point: str
    type: str
    """Its name as the system gives it: `ext4`."""
    options: frozenset[str]
    source: str = ""
    """The device or address that it is mounted from."""
    device: int = 0
    """The number of its device, as in `st_dev`."""
    root: str = "/"
    """The folder of the filesystem that is mounted."""

    @property
    def access_times(self) -> AccessTimes:
        """What access times on this mount are worth."""
        for option, meaning in _ACCESS_TIMES.items():
            if option in self.options:
                return meaning
        # Linux names relatime and noatime in the mount table; a mount with neither updates always.
        return "exact" if sys.platform.startswith("linux") else "unknown"

    @property
    def shows_reads(self) -> bool:
        """Whether a file with an old access time was not read since."""
        return self.access_times in ("exact", "daily") and self.type in LOCAL

    @property
    def network(self) -> bool:
        """Whether other machines can change the files without this one noticing."""
        return self.type.startswith(("nfs", "cifs", "smb", "fuse.sshfs", "lustre", "gpfs", "ceph"))


def mounts(table: str = "/proc/self/mountinfo") -> Iterator[Mount]:
    """Yield the mounts of this process, later ones shadowing earlier ones (see proc(5))."""
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return
    for line in lines:
        before, separator, after = line.rstrip("\n").partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 3:
            continue
        options = frozenset(fields[5].split(",")) | frozenset(tail[2].split(","))
        major, _, minor = fields[2].partition(":")
        device = os.makedev(int(major), int(minor))
        point, root, source = _unescaped(fields[4]), _unescaped(fields[3]), _unescaped(tail[1])
        yield Mount(point, tail[0], options, source, device, root)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_of(path: str) -> Mount | None:
    """Return the mount that a path is on; `None` if the system does not say."""
    real = real_path(path)
    above = [mount for mount in mounts() if f"{real}/".startswith(mount.point.rstrip("/") + "/")]
    # Of two at the same point, the later one shadows the earlier one.
    return max(reversed(above), key=lambda mount: len(mount.point), default=None)


def nearest_folder(path: str) -> str:
    """Return the path itself, or the nearest folder above it that exists."""
    while not os.path.isdir(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


BY_UUID = "/dev/disk/by-uuid"
"""Where Linux names the devices by the UUID of the filesystem that is on them."""


def drive_of(path: str) -> Drive | None:
    """Return the filesystem that a path is on; `None` if the system does not say."""
    mount = mount_of(path)
    if mount is None:
        return None
    return Drive(mount.point, mount.type, mount.source, _uuid_of(mount, _uuids()))


def paths_now(drive: Drive, path: str) -> dict[str, str]:
    """Return each mount point of a filesystem -> what a path on it is called there now.

    Args:
        drive: the filesystem, and where it was mounted.
        path: what the path was called then.
    """
    uuids = _uuids()
    below = os.path.relpath(path, drive.mount_point)
    places: dict[str, str] = {}
    visible = {mount.point: mount for mount in mounts()}
    for mount in visible.values():
        uuid = _uuid_of(mount, uuids) if drive.uuid is not None else None
        # Filesystems in memory, on a network or on an unnamed device have only type and source.
        same_source = (mount.type, mount.source) == (drive.type, drive.source)
        if same_source if uuid is None else uuid == drive.uuid:
            places[mount.point] = os.path.normpath(os.path.join(mount.point, below))
    return places


def _uuids() -> dict[int, str]:
    """Return number of a device -> UUID of the filesystem on it."""
    try:
        names = os.listdir(BY_UUID)
    except OSError:
        return {}
    devices = {name: _device_number(os.path.join(BY_UUID, name)) for name in names}
    return {device: name for name, device in devices.items() if device is not None}


def _uuid_of(mount: Mount, uuids: dict[int, str]) -> str | None:
    if mount.device in uuids:
        return uuids[mount.device]
    # A subvolume has a number of its own; its source is the device.
    device = _device_number(mount.source) if mount.source.startswith("/dev/") else None
    return uuids.get(device) if device is not None else None


def _device_number(path: str) -> int | None:
    try:
        return os.stat(path).st_rdev
    except OSError:
        return None
