"""Reading folders entry by entry, their stats and links, and counting their bytes."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator

import msgspec

from vlmcache import late, log, units
from vlmcache.cache import layout
from vlmcache.cache.reading import FOLDER
from vlmcache.cache.state import (
    UNREADABLE,
    ByClass,
    ByteClass,
    Finding,
    Partial,
    Repo,
    Stamp,
    Stray,
    TreeFile,
)
from vlmcache.errors import reason_of

STALE_AFTER = 3600.0
"""Seconds after the last write from which on an unlocked partial download is stale."""

REF_LIMIT = 4096
TREE_LIMIT = 256_000_000

HAS_BLOCKS = hasattr(os.stat_result, "st_blocks")


def allocated_bytes(stat: os.stat_result) -> int:
    """Return the bytes that an entry occupies on its disk, as `du` counts them.

    Windows does not report them; there it is the entry's length.
    """
    return stat.st_blocks * 512 if HAS_BLOCKS else stat.st_size


def is_stale(partial: Partial, now: float) -> bool:
    """Return whether a partial download was left behind: unlocked, and not written for an hour."""
    return not partial.locked and now - partial.mtime_ns / 1e9 > STALE_AFTER


def kind_of(stat: os.stat_result) -> str:
    """Return what an entry is, in words."""
    kinds = {
        modes.S_IFREG: "a file",
        modes.S_IFDIR: "a folder",
        modes.S_IFLNK: "a link",
        modes.S_IFIFO: "a pipe",
        modes.S_IFSOCK: "a socket",
    }
    return kinds.get(modes.S_IFMT(stat.st_mode), "a device")


def is_resumable(full: int, *, ours: bool, size: int, allocated: int, age: float) -> bool:
    """Return whether a partial download can be the beginning of a file.

    Args:
        full: the complete file's length in bytes.
        ours: whether vlmcache wrote the partial, which it does from front to back. Others may write
            in any order, and may still be writing.
        size: the partial's length in bytes.
        allocated: the bytes that it occupies; fewer than its length if it has holes.
        age: seconds since it was written to.
    """
    return 0 < size <= full and (ours or (allocated >= size and age > STALE_AFTER))


def begun_bytes(repo: Repo | None, listed: TreeFile, now: float) -> tuple[int, int]:
    """Return the bytes of a file that need not be fetched, and how many need no more disk space.

    Another program's partial is copied and stays, so its copy needs space.

    Args:
        repo: the repo; `None` if it does not exist.
        listed: the file, as the Hub lists it.
        now: seconds since the epoch.
    """
    own = layout.own_partials(listed.etag)
    best = {True: (0, 0), False: (0, 0)}
    for partial in repo.partials if repo is not None else ():
        ours = partial.name in own
        if (
            partial.etag == listed.etag
            and not partial.damaged
            and (ours or not partial.locked)
            and is_resumable(
                listed.content_size,
                ours=ours,
                size=partial.size,
                allocated=partial.allocated,
                age=now - partial.mtime_ns / 1e9,
            )
        ):
            room = min(partial.size, partial.allocated) if ours else 0
            best[ours] = max(best[ours], (partial.size, room))
    return best[True] if best[True][0] else best[False]


def entry_of(stat: os.stat_result, below: int = 0) -> Stamp:
    """Return the stamp of an entry.

    Args:
        stat: of the entry itself, links not followed.
        below: allocated bytes of what the entry holds, if they are to be counted with it.
    """
    return Stamp(stat.st_ino, stat.st_mtime_ns, stat.st_size, allocated_bytes(stat) + below)


class ByteTally:
    """Allocated bytes by class; a file with several hard links counts once, as in `du`."""

    def __init__(self) -> None:
        self.bytes: dict[ByteClass, int] = dict.fromkeys(ByClass.__struct_fields__, 0)  # type: ignore[arg-type]
        self.linked: dict[tuple[int, int], tuple[ByteClass, int]] = {}

    def add(self, kind: ByteClass, stat: os.stat_result) -> int:
        """Count an entry, once however many hard links it has, and return its bytes."""
        allocated = allocated_bytes(stat)
        if stat.st_nlink > 1 and not modes.S_ISDIR(stat.st_mode):
            return self.add_linked(kind, allocated, stat.st_dev, stat.st_ino)
        self.bytes[kind] += allocated
        return allocated

    def add_linked(self, kind: ByteClass, allocated: int, device: int, inode: int) -> int:
        """Count an inode that has several names, once, and return its bytes."""
        if (device, inode) not in self.linked:
            self.linked[device, inode] = (kind, allocated)
            self.bytes[kind] += allocated
        return allocated

    def merge(self, other: ByteTally) -> None:
        """Add the counts of another tally; each inode counts once."""
        for kind, count in other.bytes.items():
            self.bytes[kind] += count
        for key, (kind, allocated) in other.linked.items():
            if key in self.linked:
                self.bytes[kind] -= allocated
            else:
                self.linked[key] = (kind, allocated)

    def by_class(self) -> ByClass:
        """Return the bytes of each class."""
        return ByClass(**self.bytes)


class Notes(msgspec.Struct):
    """Findings, strays and bytes of one repo, or of the cache itself."""

    repo: str | None
    tally: ByteTally = msgspec.field(default_factory=ByteTally)
    findings: list[Finding] = []
    strays: list[Stray] = []

    def error(self, code: str, path: str, detail: str, remedy: str | None = None) -> None:
        """Add a finding about something that cannot be loaded."""
        self.findings.append(Finding(code, "error", self.repo, path, detail, remedy))

    def warning(self, code: str, path: str, detail: str, remedy: str | None = None) -> None:
        """Add a finding about something that is wasted or odd."""
        self.findings.append(Finding(code, "warning", self.repo, path, detail, remedy))

    def info(self, code: str, path: str, detail: str, remedy: str | None = None) -> None:
        """Add a finding that is worth knowing."""
        self.findings.append(Finding(code, "info", self.repo, path, detail, remedy))

    def unreadable(self, path: str, error: OSError) -> None:
        """Add the finding that a folder cannot be read."""
        detail = f"the folder cannot be read: {reason_of(error)}"
        log.info("scan", "skipped: '%s': %s", path, detail)
        self.error(UNREADABLE, path, detail, units.command("doctor"))

    def could_read(self, path: str) -> bool:
        """Return whether nothing that was read so far in a folder and below was unreadable."""
        return not any(
            finding.code == UNREADABLE and f"{finding.path}{os.sep}".startswith(path + os.sep)
            for finding in self.findings
        )


Entry = tuple[str, os.stat_result]
"""An entry's name, and the stat of the entry itself (of a link, not of its target)."""

_NOT_TEXT = late.pattern("[\ud800-\udfff]")
"""What Python puts into a name in place of bytes that are not valid UTF-8."""
KIND = 0o170000
"""The bits of a mode that say what an entry is, as in `stat.S_IFMT`."""
LINK, FILE = modes.S_IFLNK, modes.S_IFREG
_BY_DESCRIPTOR = os.stat in os.supports_dir_fd and os.listdir in os.supports_fd


def read_entries(path: str, notes: Notes) -> list[Entry]:
    """Return a folder's entries in the order of their names; an unreadable folder is a finding.

    So is an entry that has no stat, since permission is missing or the disk fails: then it is not
    known what the folder holds.
    """
    return [(name, stat) for name, stat, _ in entries_and_targets(path, notes, targets=False)]


def entries_and_targets(
    path: str, notes: Notes, *, targets: bool = True
) -> Iterator[tuple[str, os.stat_result, str]]:
    """Yield a folder's entries as `read_entries` returns them, each link with its target.

    The target is empty for what is not a link, and for a link that was removed meanwhile. If the
    system has such calls, all go to the open folder, so that the kernel need not walk the path
    again for each entry.
    """
    folder: int | None = None
    try:
        if _BY_DESCRIPTOR:
            folder = os.open(path, FOLDER)
        names = os.listdir(path if folder is None else folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if folder is not None:
            os.close(folder)
        notes.unreadable(path, error)
        return
    names.sort()
    if not "".join(names).isascii():
        for name in filter(_NOT_TEXT.search, names):
            place = os.path.join(path, name)
            notes.warning("non-utf8-name", place, "the name is not valid UTF-8")
    failure: OSError | None = None
    # These lines run for every entry of a cache.
    lstat, readlink, target = os.lstat, os.readlink, ""
    try:
        for name in names:
            place = name if folder is not None else os.path.join(path, name)
            try:
                stat = lstat(place, dir_fd=folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                failure = error
                continue
            if targets:
                target = ""
                if stat.st_mode & KIND == LINK:
                    try:
                        target = readlink(place, dir_fd=folder)
                    except OSError:
                        pass
            yield name, stat, target
    finally:
        if folder is not None:
            os.close(folder)
    if failure is not None:
        notes.unreadable(path, failure)


def read_link(path: str) -> str:
    """Return a link's target; an empty string if the link is gone or cannot be read."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def add_below(path: str, kind: ByteClass, notes: Notes) -> tuple[int, int]:
    """Count everything below a folder as one class.

    Returns:
        Allocated bytes, and the length of all files below.
    """
    allocated = size = 0
    pending = [path]
    while pending:
        folder = pending.pop()
        for name, stat in read_entries(folder, notes):
            allocated += notes.tally.add(kind, stat)
            if modes.S_ISDIR(stat.st_mode):
                pending.append(os.path.join(folder, name))
            else:
                size += stat.st_size
    return allocated, size


def is_left_behind(name: str, stat: os.stat_result) -> bool:
    """Return whether an entry is a temporary file or link of the hub's libraries or ours."""
    return stat.st_mode & KIND in (FILE, LINK) and layout.is_temporary(name)


def count_stray(
    path: str, stat: os.stat_result, kind: ByteClass, notes: Notes, *, leftover: bool
) -> None:
    """Count an entry and all below it as one class, and add it to the strays."""
    allocated, size = notes.tally.add(kind, stat), stat.st_size
    folder = modes.S_ISDIR(stat.st_mode)
    if folder:
        below, size = add_below(path, kind, notes)
        allocated += below
    mtime, device = stat.st_mtime_ns, stat.st_dev
    notes.strays.append(Stray(stat.st_ino, mtime, size, allocated, path, folder, leftover, device))


def add_stray(
    path: str,
    stat: os.stat_result,
    notes: Notes,
    *,
    leftover: bool | None = None,
    detail: str = "not part of the hub's cache layout",
    remedy: str | None = None,
) -> None:
    """Count an entry that is not part of the layout, and add a finding about it.

    Args:
        path: the entry.
        stat: of the entry itself.
        notes: of its repo, or of the cache.
        leftover: whether an interrupted run left it behind; if not given, its name tells.
        detail: why it is not part of the layout.
        remedy: what to do about it.
    """
    if leftover is None:
        leftover = is_left_behind(os.path.basename(path), stat)
    folder = modes.S_ISDIR(stat.st_mode)
    count_stray(path, stat, "partial" if leftover else "foreign", notes, leftover=leftover)
    if leftover:
        notes.warning("leftover", path, "left behind by an interrupted run", units.command("clean"))
    else:
        log.info("scan", "left alone: '%s': %s", path, detail)
        notes.warning("stray-folder" if folder else "stray-file", path, detail, remedy)
