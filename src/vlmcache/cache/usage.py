"""Who uses a cache, and when it was last used: locks, open and mapped files, last uses."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from vlmcache import late
from vlmcache.cache import formats, layout
from vlmcache.cache.locks import lock_held
from vlmcache.cache.mounts import AccessTimes
from vlmcache.cache.owners import owner_name
from vlmcache.cache.reach import Reach
from vlmcache.cache.state import Blob, CacheState, File, Partial, Repo, Revision, SharedBlob, Stray
from vlmcache.cache.tree import CacheTree
from vlmcache.paths import real_path
from vlmcache.units import counted

_ONE_READER = 3600 * 10**9
"""Nanoseconds: if all of a repo was read within them, a backup or a copy may have read it."""

_SECRET = late.pattern(r"(--token[ =]|\bhf_)\S+")


class Process(msgspec.Struct, frozen=True):
    """A process that uses something in the cache. command is its command line."""

    pid: int
    command: str
    how: Literal["open", "mapped", "lock"]
    user: str = ""
    """The user who runs it; empty if that is this one, or not known."""

    @property
    def name(self) -> str:
        """Its number, as `PID 123`, or `PID 123 of ada` if it is another user's."""
        return f"PID {self.pid} of {self.user}" if self.user else f"PID {self.pid}"


class Usage(msgspec.Struct, frozen=True):
    """What running processes use, as far as this user may see.

    files: (device, inode) -> processes that have the file open or mapped. locks: the hub's locks
    that are held, as `<repo folder>/<etag>.lock` -> processes that have the lock's file open, or
    none if they cannot be seen. hidden: the number of other users' processes that could not be
    checked and can reach the files.
    """

    files: dict[tuple[int, int], tuple[Process, ...]] = {}
    locks: dict[str, tuple[Process, ...]] = {}
    hidden: int = 0

    def of_repo(self, state: CacheState, repo: Repo) -> tuple[Process, ...] | None:
        """Return who uses anything of a repo; `None` if nobody does.

        Empty if a lock is held and its holder cannot be seen.
        """
        lockers = self.locks_of(repo.folder)
        if not self.files:
            return lockers
        shared = (state.shared.get(blob.shared or "") for blob in repo.blobs.values())
        entries: list[Blob | File | Partial | Stray | SharedBlob] = [
            *repo.blobs.values(),
            *(file for revision in repo.revisions for file in revision.files_of("copy")),
            *repo.partials,
            *repo.strays,
            *filter(None, shared),
        ]
        groups = [self.files.get((entry.device, entry.inode), ()) for entry in entries]
        groups += (
            self.files.get(blob.target[:2], ()) for blob in repo.blobs.values() if blob.target
        )
        users = distinct([*groups, lockers or ()])
        return users if users or lockers is not None else None

    def locks_of(self, folder: str) -> tuple[Process, ...] | None:
        """Return who holds a lock of a repo; `None` if none is held."""
        lockers = [users for name, users in self.locks.items() if name.startswith(folder + "/")]
        return distinct(lockers) if lockers else None


def distinct(groups: Iterable[tuple[Process, ...]]) -> tuple[Process, ...]:
    """Return the processes of several groups, each once: the first of its entries counts."""
    entries = [process for group in groups for process in group]
    seen = {process.pid: process for process in reversed(entries)}
    return tuple(seen[pid] for pid in sorted(seen))


def who_uses(state: CacheState, folders: Collection[str] | None = None) -> Usage:
    """Return which other processes use files and locks of the cache.

    On Linux they are found through /proc, by device and inode (see proc_pid_fd(5) and
    proc_pid_maps(5)), on other systems through psutil, by path.

    Args:
        state: the cache as it was scanned.
        folders: the repo folders to check; all of them if not given.
    """
    content: dict[tuple[int, int], str] = {}
    for repo in state.repos:
        if folders is None or repo.folder in folders:
            content.update(content_of(state, repo))
            content.update(((stray.device, stray.inode), stray.path) for stray in repo.strays)
    content.update(((stray.device, stray.inode), stray.path) for stray in state.strays)
    tree = CacheTree(state.dir)
    taken = {
        f"{folder}/{name}": os.path.join(locks.path, name)
        for folder, locks in state.locks.items()
        if folders is None or folder in folders
        for name in locks.files
        if lock_held(os.path.join(locks.path, name), tree)
    }
    files: dict[tuple[int, int], str] = {}
    for name, path in taken.items():
        with contextlib.suppress(OSError):
            status = tree.stat(path)
            files[status.st_dev, status.st_ino] = name
    return find_users(content, taken, files)


def content_of(state: CacheState, repo: Repo) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield the (device, inode) and real path of each file of a repo that a process may open."""
    base = real_path(repo.path)
    for blob in repo.blobs.values():
        yield (blob.device, blob.inode), layout.blob_path(base, blob.name)
        if blob.target is not None:
            yield blob.target[:2], real_path(layout.blob_path(base, blob.name))
        if blob.shared is not None and blob.shared in state.shared:
            shared = state.shared[blob.shared]
            yield (shared.device, shared.inode), real_path(shared.path)
    for partial in repo.partials:
        yield (partial.device, partial.inode), layout.blob_path(base, partial.name)
    for revision in repo.revisions:
        for file in revision.files_of("copy"):
            path = layout.file_path(layout.snapshot_path(base, revision.commit), file.name)
            yield (file.device, file.inode), path


def find_users(
    content: Mapping[tuple[int, int], str],
    taken: Collection[str] = (),
    locks: Mapping[tuple[int, int], str] | None = None,
    *,
    removed: bool = False,
) -> Usage:
    """Return which other processes have the given files open or mapped.

    Args:
        content: (device, inode) -> real path of the files.
        taken: names of the locks that are held.
        locks: (device, inode) -> name, for the files of these locks.
        removed: whether the files have lost their last names. New files may have their inodes by
            now; on Linux, processes that have one of these open do not count.
    """
    if not content and not taken:
        return Usage()
    files: dict[tuple[int, int], dict[int, Process]] = {}
    holders: dict[str, dict[int, Process]] = {name: {} for name in taken}
    find = _find_by_psutil
    if sys.platform == "linux":
        find = _find_by_proc if _has_proc() else _find_nobody
    hidden = 0
    for key, process in find(dict(content) | dict(locks or {}), removed):
        if process is None:
            hidden += 1
        elif locks and key in locks:
            holders[locks[key]][process.pid] = msgspec.structs.replace(process, how="lock")
        else:
            files.setdefault(key, {}).setdefault(process.pid, process)
    return Usage(
        {key: tuple(users.values()) for key, users in files.items()},
        {name: tuple(users.values()) for name, users in holders.items()},
        hidden,
    )


_FIRST_NAMESPACE = "pid:[4026531836]"
"""The PID namespace that Linux begins with: PID_NS_INIT_INO of linux/nsfs.h, 0xEFFFFFFC."""
UNSEEN_OUTSIDE = "processes outside this container cannot be seen, and may use some of this"


def in_container() -> bool:
    """Return whether there may be processes on this machine that nobody here can see.

    That is so in every PID namespace but the first (pid_namespaces(7)).
    """
    try:
        return os.readlink("/proc/self/ns/pid") != _FIRST_NAMESPACE
    except OSError:
        return False


def open_elsewhere(descriptor: int) -> bool:
    """Return whether another process, even a hidden one, has a file open or mapped.

    A write lease is requested and given back at once: Linux grants it only if nobody else has the
    file open (fcntl(2), F_SETLEASE). A process that opens the file meanwhile waits, and we would
    get the signal SIGURG, which is ignored unless a program asks for it; SIGIO would end this
    process. If there are no leases (another system or filesystem, somebody else's file), or if
    this process itself has the file open twice, it cannot be known, and the answer is no.

    Args:
        descriptor: of the file, opened by this process.
    """
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except (ImportError, AttributeError):
        return False
    except OSError as error:
        return error.errno == errno.EAGAIN and not _uses_itself(descriptor)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _uses_itself(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    key = status.st_dev, status.st_ino
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    return sum(opened == key for opened in _open_files("/proc/self/fd")) > 1 or any(
        key == mapped or path == name
        for mapped, name in _mapped_files("/proc/self/maps", {status.st_ino})
    )


def _has_proc() -> bool:
    return os.path.isdir("/proc/self/fd")


def hidden_words(count: int) -> str:
    """Return the sentence that some processes could not be checked."""
    if sys.platform == "linux" and not _has_proc():
        return "/proc is not mounted, so no process can be seen; some may use some of this"
    return f"{counted(count, 'process')} could not be checked, and may use some of this"


_Found = Iterator[tuple[tuple[int, int], Process | None]]
_DELETED = b" (deleted)"
"""What Linux adds to the name of a mapped file that was removed (proc(5))."""


def _find_by_proc(wanted: Mapping[tuple[int, int], str], removed: bool) -> _Found:
    paths = {path: key for key, path in wanted.items()}
    inodes = {inode for _, inode in wanted}
    reach = Reach(wanted.values())
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        base = f"/proc/{name}"
        try:
            uses = {key: "open" for key in _open_files(f"{base}/fd", removed) if key in wanted}
            for key, path in _mapped_files(f"{base}/maps", inodes, removed):
                # Some filesystems (overlay, btrfs) name another device in maps than in stat.
                key = key if key in wanted else paths.get(path, key)
                if key in wanted:
                    uses[key] = "mapped"
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            if _could_use(base, reach):
                yield (0, 0), None
            continue
        if not uses:
            continue
        command, user = _command_line(base), _other_user(base)
        for key, how in uses.items():
            yield key, Process(int(name), command, "mapped" if how == "mapped" else "open", user)


def _other_user(base: str) -> str:
    """Return the user of a process; nothing if that is this user, or the process has ended."""
    with contextlib.suppress(OSError):
        uid = os.stat(base).st_uid
        return owner_name(uid) if uid != os.geteuid() else ""
    return ""


def _could_use(base: str, reach: Reach) -> bool:
    """Return whether a process that this user may not inspect could use the files.

    It could if it belongs to another user who can reach them. The kernel's threads, whose command
    line is empty, use none.
    """
    try:
        with open(f"{base}/cmdline", "rb") as file:
            if not file.read(1):
                return False
        with open(f"{base}/status", encoding="ascii", errors="replace") as file:
            lines = (line.partition(":") for line in file)
            fields = {name: value.split() for name, _, value in lines}
        user = int(fields["Uid"][1])
        groups = frozenset(map(int, [fields["Gid"][1], *fields["Groups"]]))
    except FileNotFoundError:
        return False
    except (OSError, LookupError, ValueError):
        return True
    return user != os.geteuid() and reach.lets_in(user, groups)


def _open_files(folder: str, removed: bool = False) -> Iterator[tuple[int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                stat = os.stat(entry.path)
            except OSError:
                continue
            if not (removed and stat.st_nlink):
                yield stat.st_dev, stat.st_ino


def _mapped_files(
    path: str, inodes: Collection[int], removed: bool = False
) -> Iterator[tuple[tuple[int, int], str]]:
    with open(path, "rb") as file:
        content = file.read()
    for line in content.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or fields[4] == b"0":
            continue
        if removed and not fields[5].endswith(_DELETED):
            continue
        mapped = os.fsdecode(fields[5].removesuffix(_DELETED))
        inode = int(fields[4])
        if inode in inodes or mapped.startswith("/"):
            major, _, minor = fields[3].partition(b":")
            yield (os.makedev(int(major, 16), int(minor, 16)), inode), mapped


def _find_nobody(wanted: Mapping[tuple[int, int], str], removed: bool) -> _Found:  # noqa: ARG001
    """Yield one hidden process: without /proc, Linux shows none."""
    yield (0, 0), None


def _command_line(base: str) -> str:
    for name in ("cmdline", "comm"):
        try:
            with open(f"{base}/{name}", "rb") as file:
                words = file.read(4096).rstrip(b"\0\n").split(b"\0")
        except OSError:
            continue
        if words != [b""]:
            return without_secrets(" ".join(map(os.fsdecode, words)))
    return "?"


def holder_of(status: os.stat_result) -> str:
    """Return words for the process that holds a lock, if Linux shows it (`/proc/locks`, proc(5)).

    Args:
        status: of the lock's file.
    """
    lines: list[str] = []
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii", errors="replace") as f:
        lines = f.readlines()
    for line in lines:
        fields = line.split()
        # "1: FLOCK ADVISORY WRITE 4711 fe:00:1234 0 EOF"; a waiter has "->" after the number.
        if len(fields) < 6 or fields[1] == "->" or not fields[4].isdigit():
            continue
        if fields[5].rpartition(":")[2] == str(status.st_ino):
            base = f"/proc/{fields[4]}"
            user = ""
            with contextlib.suppress(OSError):
                user = f"{owner_name(os.stat(base).st_uid)}: "
            return f"process {fields[4]} ({user}{_command_line(base)})"
    return "another process"


def without_secrets(command: str) -> str:
    """Return a command line without the tokens in it, since others may read what we print."""
    return _SECRET.sub(r"\1***", command)


def _find_by_psutil(wanted: Mapping[tuple[int, int], str], removed: bool) -> _Found:  # noqa: ARG001
    import psutil

    paths = {os.path.normcase(path): key for key, path in wanted.items()}
    reach = Reach(wanted.values())
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            opened = {file.path for file in process.open_files()}
        except psutil.NoSuchProcess:
            continue
        except (psutil.Error, OSError):
            if _is_anothers(process, reach):
                yield (0, 0), None
            continue
        try:
            mapped = {part.path for part in process.memory_maps()}
        except (psutil.Error, OSError, AttributeError):
            mapped = set()  # macOS names no mappings
        for path in opened | mapped:
            key = paths.get(os.path.normcase(path))
            if key is None:
                continue
            try:
                command = without_secrets(" ".join(process.cmdline()) or process.name())
            except (psutil.Error, OSError):
                command = "?"
            yield key, Process(process.pid, command, "mapped" if path in mapped else "open")


def _is_anothers(process: Any, reach: Reach) -> bool:
    """Return whether a process may belong to another user who can reach the files."""
    try:
        user = process.uids().effective
    except Exception:  # of psutil, also where a system has no such numbers
        return True
    return user != os.geteuid() and reach.lets_in(user, None)


def own_uses(
    state: CacheState, journal: Mapping[tuple[str, str, str], float], *, shows_reads: bool
) -> dict[tuple[str, str], LastUse]:
    """Return (repo folder, commit) -> last use of the revisions that no ref names.

    It follows from the content that no other revision of the repo has: a read of shared content may
    be a use of any of them. The source is `access` only if a use would have left a trace. Otherwise
    only the download and our journal are known, which do not show that nobody used it since.

    Args:
        state: the cache.
        journal: (type, repo, commit) -> seconds since the epoch, as `Journal.uses` gives them.
        shows_reads: whether the mount keeps access times (`Mount.shows_reads`).
    """
    last: dict[tuple[str, str], LastUse] = {}
    for repo in state.repos:
        detached = [revision for revision in repo.revisions if not revision.refs]
        if not detached:
            continue
        contents = {revision.commit: _reads(repo, revision) for revision in repo.revisions}
        users: dict[tuple[int, int], set[str]] = {}
        times = []
        for commit, reads in contents.items():
            for key, at in reads.values():
                users.setdefault(key, set()).add(commit)
                times.append(at)
        shown = shows_reads and bool(times) and max(times) - min(times) > _ONE_READER
        for revision in detached:
            reads = contents[revision.commit]
            own = {name: at for name, (key, at) in reads.items() if len(users[key]) == 1}
            latest = max(revision.mtime_ns, *(file.mtime_ns for file in revision.files), 0)
            if shown:
                latest = max(latest, *own.values(), 0)
            noted = journal.get((repo.type, repo.id, revision.commit), 0.0)
            certain = shown and formats.show_use(reads, own, model=repo.type == "model")
            last[repo.folder, revision.commit] = LastUse(
                max(latest / 1e9, noted), "access" if certain else "written"
            )
    return last


def _reads(repo: Repo, revision: Revision) -> dict[str, tuple[tuple[int, int], int]]:
    """Return file name -> (device, inode) of its content, and when it was last read, in ns."""
    contents: list[tuple[str, Blob | File]] = [
        (file.name, repo.blobs[file.blob]) for file in revision.files if file.blob in repo.blobs
    ]
    contents += ((file.name, file) for file in revision.files_of("copy"))
    return {name: ((entry.device, entry.inode), entry.atime_ns) for name, entry in contents}


class LastUse(msgspec.Struct, frozen=True):
    """When a revision was last used, in seconds since the epoch, and how that is known.

    journal: vlmcache recorded the use. access: from the access times of its files. written: uses
    are not known, so this is the time of the download.
    """

    at: float
    source: Literal["journal", "access", "written"]


def last_uses(
    state: CacheState, journal: Mapping[tuple[str, str, str], float], access_times: AccessTimes
) -> dict[tuple[str, str], LastUse]:
    """Return (repo folder, commit) -> last use, for every revision.

    Args:
        state: the cache.
        journal: (type, repo, commit) -> seconds since the epoch, as `Journal.uses` gives them.
        access_times: what access times on the cache's mount are worth; if they are `never` kept,
            they are ignored.
    """
    last: dict[tuple[str, str], LastUse] = {}
    for repo in state.repos:
        known = repo.blobs
        for revision in repo.revisions:
            blobs = [known[file.blob] for file in revision.files if file.blob in known]
            # A download makes links, even to blobs that have existed for a long time.
            times = [file.mtime_ns for file in revision.files]
            times += [blob.mtime_ns for blob in blobs]
            if access_times != "never":
                times += [blob.atime_ns for blob in blobs]
                times += [file.atime_ns for file in revision.files if file.kind == "copy"]
            source: Literal["access", "written"] = (
                "written" if access_times == "never" else "access"
            )
            use = LastUse(max(times, default=revision.mtime_ns) / 1e9, source)
            noted = journal.get((repo.type, repo.id, revision.commit))
            if noted is not None and (use.source == "written" or noted > use.at):
                use = LastUse(max(noted, use.at), "journal")
            last[repo.folder, revision.commit] = use
    return last
