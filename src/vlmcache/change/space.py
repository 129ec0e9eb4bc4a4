"""What a filesystem has free, and whether what is removed from it gives anything back.

Snapshots, reflinks and open files keep the blocks of a file whose last name is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import time
from collections.abc import Mapping

import msgspec

from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.reading import open_quietly
from vlmcache.cache.usage import distinct, find_users
from vlmcache.change.plan import Receipt, used_by_words
from vlmcache.change.tree import Tree
from vlmcache.units import size_text

WAIT_SECONDS = 10.0
"""Seconds that a filesystem has to give back what was removed."""
_POLL_SECONDS = 0.25
_ENOUGH_TO_JUDGE = 10**9
"""Bytes counted as freed at which, at the latest, it is checked whether they come back."""
_WORTH_SAYING = 1_000_000
"""Bytes from which on it is reported that they do not come back."""

# struct fiemap and struct fiemap_extent of linux/fiemap.h: what is asked, then one row per extent.
_FIEMAP = 0xC020660B
_HEADER = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_SYNC, _LAST, _SHARED = 0x1, 0x1, 0x2000
_EXTENTS = 256
_EVERYTHING = (1 << 64) - 1


def free_bytes(path: str) -> int | None:
    """Return what is free to this user on the filesystem of a path, which need not exist."""
    try:
        return shutil.disk_usage(nearest_folder(path)).free
    except OSError:
        return None


def sync_filesystem(path: str) -> None:
    """Bring a filesystem up to date: btrfs and xfs count what is free once that is done."""
    import ctypes

    with contextlib.suppress(OSError), Tree(path).parent(os.path.join(path, "_")) as (_, folder):
        if folder is not None:
            with contextlib.suppress(AttributeError):  # only Linux has it
                ctypes.CDLL(None).syncfs(folder)


class FreeSpace:
    """What is free on the filesystem of a path before something is done, and after it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.before = free_bytes(path)

    def measured(self, receipt: Receipt) -> Receipt:
        """Return a receipt with both figures."""
        receipt = msgspec.structs.replace(
            receipt, free_before=self.before, free_after=free_bytes(self.path)
        )
        if free_words(receipt) is not None:
            sync_filesystem(self.path)
            receipt = msgspec.structs.replace(receipt, free_after=free_bytes(self.path))
        return receipt


def free_words(receipt: Receipt) -> str | None:
    """Return what to say of the disk if far fewer bytes came back than were counted as freed."""
    before, after = receipt.free_before, receipt.free_after
    freed = receipt.freed - receipt.fetched
    if before is None or after is None or freed < _WORTH_SAYING or after - before >= freed / 2:
        return None
    return (
        f"the disk has {size_text(max(0, after - before))} more free: other programs have written "
        "to it, or snapshots, reflinks or open files keep the rest"
    )


class Reclaim:
    """Watches whether removals really give a filesystem its space back.

    Args:
        path: the cache.
        free: bytes that are to be free in the end.
    """

    def __init__(self, path: str, free: int) -> None:
        self.path = path
        self.begun = time.monotonic()
        self.before = free_bytes(path)
        self.enough = min(_ENOUGH_TO_JUDGE, max(0, free - (self.before or 0)) // 4)
        self.counted = 0
        self.shared = 0
        self.content: dict[tuple[int, int], str] = {}

    def expect(self, content: Mapping[tuple[int, int], str]) -> None:
        """Take note of what is about to be removed.

        Args:
            content: (device, inode) -> path of each file.
        """
        self.content |= content
        self.shared += sum(map(shared_bytes, content.values()))

    def why_stop(self, freed: int) -> str | None:
        """Return why nothing more is to be removed, once far less came back than was counted.

        Other writers explain what is missing if they write as fast as that while we wait.

        Args:
            freed: bytes that were counted as freed since the last call.
        """
        self.counted += freed
        if self.before is None or not self.counted or self.counted < self.enough:
            return None
        sync_filesystem(self.path)
        waiting = time.monotonic()
        fallen = 0
        last = free_bytes(self.path)
        while last is not None:
            gained = last - self.before
            if gained >= self.counted / 2:
                return None
            now = time.monotonic()
            if now - waiting >= WAIT_SECONDS:
                written = fallen / (now - waiting) * (now - self.begun)
                enough = gained + written >= self.counted / 2
                return None if enough else self._words(max(0, gained))
            time.sleep(_POLL_SECONDS)
            free = free_bytes(self.path)
            fallen += max(0, last - free) if free is not None else 0
            last = free
        return None

    def _words(self, gained: int) -> str:
        users = distinct(find_users(self.content, removed=True).files.values())
        if users:
            why = f"what was removed {used_by_words(users)}"
        elif self.shared >= (self.counted - gained) / 2:
            why = "other files or snapshots share its blocks (reflinks)"
        else:
            why = "snapshots or an open file keep it"
        return (
            f"stopped: {size_text(self.counted)} of files were removed, and the disk has only "
            f"{size_text(gained)} more free: {why}"
        )


def shared_bytes(path: str) -> int:
    """Return how many bytes of a file share their blocks with other files or snapshots.

    0 where the system does not say (FS_IOC_FIEMAP, of Linux).
    """
    try:
        import fcntl

        with open(open_quietly(path), "rb", buffering=0) as file:
            shared = start = 0
            while True:
                answer = bytearray(_HEADER.size + _EXTENTS * _EXTENT.size)
                _HEADER.pack_into(answer, 0, start, _EVERYTHING - start, _SYNC, 0, _EXTENTS, 0)
                fcntl.ioctl(file.fileno(), _FIEMAP, answer)
                count = _HEADER.unpack_from(answer)[3]
                for number in range(count):
                    place = _HEADER.size + number * _EXTENT.size
                    logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(answer, place)
                    shared += length if flags & _SHARED else 0
                    start = logical + length
                    if flags & _LAST:
                        return shared
                if not count:
                    return shared
    except (ImportError, OSError):
        return 0
