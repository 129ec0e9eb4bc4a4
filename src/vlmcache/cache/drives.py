"""Which filesystem a folder is on, and whether it is mounted: without privileges or programs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vlmcache.cache.mounts import Mount, mount_of, mounts
from vlmcache.cache.state import Drive

BY_UUID = "/dev/disk/by-uuid"
"""Where Linux names the devices by the UUID of the filesystem that is on them."""


def drive_of(path: str) -> Drive | None:
    """Return the filesystem that a path is on, or `None` where the system does not say."""
    mount = mount_of(path)
    if mount is None:
        return None
    return Drive(mount.point, mount.type, mount.source, _uuid_of(mount, _uuids()))


def mount_points(drive: Drive) -> Iterator[str]:
    """Yield where a filesystem is mounted now."""
    uuids = _uuids()
    visible = {mount.point: mount for mount in mounts()}
    for mount in visible.values():
        uuid = _uuid_of(mount, uuids) if drive.uuid is not None else None
        if uuid is not None:
            same = uuid == drive.uuid
        else:
            # No more is known of what is in memory, on a network, or on a device without a name.
            same = (mount.type, mount.source) == (drive.type, drive.source)
        if same:
            yield mount.point


def _uuids() -> dict[int, str]:
    """Return number of a device -> UUID of the filesystem on it."""
    found: dict[int, str] = {}
    try:
        names = os.listdir(BY_UUID)
    except OSError:
        return found
    for name in names:
        device = _device_number(os.path.join(BY_UUID, name))
        if device is not None:
            found[device] = name
    return found


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
