"""Commands in which each call that changes a disk fails once, and is once the process's last.

Changes below a folder through `os` or `open` count: making, removing and renaming, links, opening
for writing, writing (also by file objects), copying, truncating, setting modes, owners and times,
and fsync. What C libraries do on their own (SQLite) does not count.

`python -m tests.kit.faulty` tries all commands and writes their counts into docs/faults.md.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pytest

from tests.kit.counts import write_counts
from tests.kit.disks import common_folder

Fault = int | Literal["kill"] | Callable[[], object]
Answer = TypeVar("Answer")

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)
FAULTS: tuple[Fault, ...] = (*ERRORS, "kill")
FINISHED, RAISED = 0, 97
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_HANDLES = "/proc/self/fd/"
_LATER = 2000
"""More calls than any command here makes: a loop without an end is an error."""

_BY_PATH = {
    # name -> (which argument says where the change is, the option that says in which folder)
    "unlink": (0, "dir_fd"),
    "remove": (0, "dir_fd"),
    "rmdir": (0, "dir_fd"),
    "mkdir": (0, "dir_fd"),
    "truncate": (0, ""),
    "chmod": (0, "dir_fd"),
    "chown": (0, "dir_fd"),
    "utime": (0, "dir_fd"),
    "rename": (1, "dst_dir_fd"),
    "replace": (1, "dst_dir_fd"),
    "link": (1, "dst_dir_fd"),
    "symlink": (1, "dir_fd"),
}
_readlink = os.readlink
_READS = ("stat", "lstat", "readlink", "listdir", "scandir")
_BY_DESCRIPTOR = {
    # name -> which argument is the descriptor
    "write": 0,
    "writev": 0,
    "pwrite": 0,
    "ftruncate": 0,
    "posix_fallocate": 0,
    "fchmod": 0,
    "fchown": 0,
    "fsync": 0,
    "fdatasync": 0,
    "sendfile": 0,
    "copy_file_range": 1,
}


def fault_name(fault: Fault) -> str:
    """Return the name that a test's parameter has."""
    if isinstance(fault, int):
        return errno.errorcode[fault]
    return fault if isinstance(fault, str) else fault.__name__


class Disk:
    """Counts the changes below a folder, and lets one of them fail or be the last.

    `fired` names the call that the fault befell last, None before it does.
    """

    def __init__(self, nth: int | Collection[int], fault: Fault, folder: Path | None) -> None:
        self.nth = {nth} if isinstance(nth, int) else frozenset(nth)
        self.fault = fault
        self.folder = "" if folder is None else os.path.realpath(folder)
        self.kinds: Counter[str] = Counter()
        self.fired: str | None = None
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return self.kinds.total()

    def change(self, name: str, path: str) -> None:
        """Take note of a change that is about to be made; fail it if its turn has come."""
        with self._lock:
            self.kinds[name] += 1
            if self.kinds.total() not in self.nth:
                return
            self.fired = f"{name} {os.path.relpath(path, self.folder or '/')}"
        if callable(self.fault):
            self.fault()
            return
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        assert isinstance(self.fault, int)
        raise OSError(self.fault, os.strerror(self.fault), path)

    def where(self, place: Any, folder: int | None = None) -> str | None:
        """Return the path that a path or a descriptor stands for, None if it does not count."""
        if isinstance(place, int):
            try:
                path = _readlink(f"{_HANDLES}{place}")
            except OSError:
                return None
        else:
            path = os.fsdecode(place)
            if folder is not None:
                path = os.path.join(_readlink(f"{_HANDLES}{folder}"), path)
            elif path.startswith(_HANDLES):
                return self.where(int(path.removeprefix(_HANDLES)))
            path = os.path.abspath(path)
        inside = path == self.folder or path.startswith(self.folder.rstrip("/") + "/")
        return path if inside else None


class _CountedFile(io.FileIO):
    """A file open for writing; what its buffers hand over to the system counts."""

    disk: Disk

    def write(self, block: Any) -> int:
        self._note("write")
        return super().write(block)

    def truncate(self, size: int | None = None) -> int:
        self._note("truncate")
        return super().truncate(size)

    def _note(self, name: str) -> None:
        path = self.disk.where(self.fileno())
        if path is not None:
            self.disk.change(name, path)


@contextlib.contextmanager
def failing(
    nth: int | Collection[int], fault: Fault, folder: Path | None = None, *, reads: bool = False
) -> Iterator[Disk]:
    """Let the Nth change from here on fail with an error number, or kill this process.

    Args:
        nth: from 1; none for 0. Or several of them.
        fault: an `errno`, that the process is killed, or what is done just before the call.
        folder: whose content counts; all there is, if none is given.
        reads: whether opening, listing and looking count too.
    """
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc to tell which files are meant")
    disk = Disk(nth, fault, folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, (index, option) in _BY_PATH.items():
            patch.setattr(os, name, _counted(disk, name, index, option))
        for name, index in _BY_DESCRIPTOR.items():
            if hasattr(os, name):
                patch.setattr(os, name, _counted(disk, name, index, ""))
        for name in _READS if reads else ():
            patch.setattr(os, name, _counted(disk, name, 0, "dir_fd"))
        writes = ~0 if reads else _WRITES
        patch.setattr(os, "open", _counted_os_open(disk, os.open, writes))
        counted = _counted_open(disk, builtins.open)
        patch.setattr(builtins, "open", counted)
        patch.setattr(io, "open", counted)
        yield disk


def _counted(disk: Disk, name: str, index: int, option: str) -> Callable[..., Any]:
    original = getattr(os, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if len(arguments) > index:
            path = disk.where(arguments[index], options.get(option))
            if path is not None:
                disk.change(name, path)
        return original(*arguments, **options)

    return call


def _counted_os_open(disk: Disk, original: Callable[..., int], which: int) -> Callable[..., int]:
    def call(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & which or which == ~0:
            found = disk.where(path, options.get("dir_fd"))
            if found is not None:
                disk.change("open", found)
        return original(path, flags, *arguments, **options)

    return call


def _counted_open(disk: Disk, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        path = disk.where(file)
        if path is None or not set(mode) & set("wxa+"):
            return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int):
            disk.change("open", path)
        raw = _CountedFile(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.disk = disk
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    return call


def killed_at(nth: int, run: Callable[[], object], folder: Path | None = None) -> bool:
    """Run something in a child process that is killed at its Nth change; return whether it was.

    An exception in the child fails the test.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    child = os.fork()
    if child == 0:
        code = RAISED
        try:
            with failing(nth, "kill", folder):
                run()
            code = FINISHED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == FINISHED, "the child raised; see its output"
    return False


class Subject(Generic[Answer]):
    """A command to be tested, on a small cache of its own for each fault."""

    command: str
    """What it is called in the table of counts."""
    everywhere = False
    """Whether all changes count, and not only those in its folder: for more than one disk."""

    def begin(self, place: Path) -> None:
        """Make in an empty folder what the command starts from."""
        raise NotImplementedError

    def run(self, place: Path) -> Answer:
        """Run the command on what is in that folder, in this process."""
        raise NotImplementedError

    def hold(self, place: Path, answer: Answer | None) -> None:
        """Raise AssertionError unless all is well after a fault.

        Args:
            place: the folder.
            answer: what the command answered; None if it was killed before it could.
        """
        raise NotImplementedError

    def again(self, place: Path) -> None:
        """Run the command once more, and raise AssertionError unless all is done now."""
        raise NotImplementedError


@dataclass
class Counts:
    """The counts of a command. `calls` is how many it makes if nothing fails."""

    command: str
    calls: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    kills: int = 0
    reruns: int = 0
    broken: list[str] = field(default_factory=list)


COUNTS: dict[str, Counts] = {}
"""Command -> its counts, of all faults that were tried in this process."""
STEP = 8
"""In the check, a fault befalls every eighth call; in the counts of the tier full, each one."""


def try_every(
    subject: Subject[Any], fault: Fault, *, at_least: int, step: int | None = None
) -> None:
    """Let a fault befall the first, second, … call of a command, until one run passes untouched.

    After each fault `hold` checks the result, then the command is run again. Broken
    invariants are collected and reported at the end.

    Args:
        subject: the command.
        fault: what happens.
        at_least: how many calls there must be, since without any nothing would be tested.
        step: from one call to the next, `STEP` unless given. Different faults begin at different
            calls.
    """
    step = STEP if step is None else step
    counts = COUNTS.setdefault(subject.command, Counts(subject.command))
    broken: list[str] = []
    with common_folder("faults-", in_memory=True) as folder:
        first = 1 + (FAULTS.index(fault) * step // len(FAULTS) if fault in FAULTS else 0)
        for nth in range(first, _LATER, step):
            place = folder / str(nth)
            place.mkdir()
            fired, kinds = _try_one(subject, fault, nth, place, broken)
            if fired is None:
                break
            shutil.rmtree(place)
            counts.errors += fault != "kill"
            counts.kills += fault == "kill"
            counts.reruns += 1
        else:
            raise AssertionError(f"more than {_LATER} calls")
    counts.broken += broken
    if kinds:
        counts.calls, counts.kinds = kinds.total(), kinds
    assert not broken, "\n".join(broken)
    assert nth > at_least, f"only {nth - 1} calls: too few to believe that they were counted"


def _try_one(
    subject: Subject[Any], fault: Fault, nth: int, place: Path, broken: list[str]
) -> tuple[str | None, Counter[str]]:
    """Return what the fault befell, None if nothing, and the calls there were by kind."""
    subject.begin(place)
    answer = None
    fired: str | None
    kinds: Counter[str] = Counter()
    folder = None if subject.everywhere else place
    if fault == "kill":
        fired = f"call {nth}" if killed_at(nth, lambda: subject.run(place), folder) else None
    else:
        with failing(nth, fault, folder) as disk:
            answer = subject.run(place)
        fired, kinds = disk.fired, disk.kinds
    try:
        subject.hold(place, answer)
        if fired is not None:
            subject.again(place)
    except AssertionError as error:
        where = fired or "nothing"
        broken.append(f"{subject.command}, {fault_name(fault)} at {nth}, {where}: {error}")
    return fired, kinds


def table() -> str:
    """Return the counts so far as a table in Markdown."""
    lines = [
        "| command | calls | errors injected | kills | reruns | broken invariants |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    rows = [COUNTS[command] for command in sorted(COUNTS)]
    for row in rows:
        numbers = (row.calls, row.errors, row.kills, row.reruns, len(row.broken))
        lines.append(f"| {row.command} | {' | '.join(f'{number:,}' for number in numbers)} |")
    sums = [
        sum(numbers)
        for numbers in zip(
            *((r.calls, r.errors, r.kills, r.reruns, len(r.broken)) for r in rows), strict=True
        )
    ]
    lines.append(f"| all | {' | '.join(f'{number:,}' for number in sums)} |")
    kinds: Counter[str] = Counter()
    for row in rows:
        kinds += row.kinds
    calls = ", ".join(f"{name} {count}" for name, count in kinds.most_common())
    return "\n".join([*lines, "", f"The calls by kind: {calls}.", ""])


def main() -> int:
    """Put every command to the test and write the counts into docs/faults.md."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "STEP", 1)
        # In this process, which counts.
        failed = pytest.main(["-q", "-m", "faults", "--numprocesses=0"])
    if not failed:
        write_counts("faults.md", "faults", table())
    return failed


if __name__ == "__main__":
    # Not the functions of `__main__`: the tests import this module under its own name.
    from tests.kit import faulty

    sys.exit(faulty.main())
