"""The three kinds of timers: which of them this machine has, and how each takes a schedule.

Each has one file whose rename is the switch from the old schedule to the new one: the timer of
systemd, which names its service by a hash of what that says, the crontab, and the agent of launchd.
If something fails before the switch, the old schedule stays; after it, the switch is undone.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from vlmcache.cache.owners import owner_name
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.tree import is_root
from vlmcache.change.place import full_words, is_full
from vlmcache.change.tree import Tree
from vlmcache.commands.schedule import units
from vlmcache.commands.schedule.values import Kind, Schedule, ScheduleError, ScheduleFile
from vlmcache.environment import Environment
from vlmcache.errors import SpaceError, reason_of
from vlmcache.units import shell_words

SYSTEM_UNITS = "/etc/systemd/system"
SYSTEM_AGENTS = "/Library/LaunchDaemons"
LINGER = "/var/lib/systemd/linger"
_PATIENCE = 30.0
_LIMIT = 4_000_000
_CRONS = frozenset({"cron", "crond", "fcron", "dcron", "bcron-start"})


class ProgramResult(NamedTuple):
    """How a program ended, and what it printed."""

    code: int
    out: str
    err: str


def run_program(*words: str, given: str | None = None) -> ProgramResult:
    """Run a program of the system and return its result; 127 if there is none of that name."""
    variables = {**os.environ, "LC_ALL": "C"}
    runtime = f"/run/user/{os.getuid()}" if hasattr(os, "getuid") else ""
    if "XDG_RUNTIME_DIR" not in variables and os.path.isdir(runtime):
        # It is missing in a shell of `su` or cron, although the user's manager runs.
        variables["XDG_RUNTIME_DIR"] = runtime
    try:
        done = subprocess.run(
            words,
            input=None if given is None else given.encode("utf-8", "surrogateescape"),
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            timeout=_PATIENCE,
            env=variables,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return ProgramResult(127, "", reason_of(error))
    out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
    return ProgramResult(done.returncode, out, err)


def run_or_fail(*words: str, given: str | None = None) -> None:
    """Run a program of the system that has to succeed.

    Raises:
        ScheduleError: it fails.
    """
    result = run_program(*words, given=given)
    if result.code:
        why = " ".join((result.err or result.out).split()) or f"exit code {result.code}"
        raise ScheduleError(f"'{shell_words(*words)}' failed: {why}", "nothing was changed")


@contextlib.contextmanager
def write_failures(path: str) -> Iterator[None]:
    """Turn a failure to write a timer into an error that says what it means to a user."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise SpaceError(full_words(path, error), "nothing was changed") from error
        place = error.filename if isinstance(error.filename, str) else path
        raise ScheduleError(
            f"{path} cannot be written: {reason_of(error)}: {place}", "nothing was changed"
        ) from error


def _text(path: str) -> str | None:
    """Return the text of a file, `None` if it does not exist."""
    try:
        return read_bytes(path, _LIMIT).decode("utf-8", "surrogateescape")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def _put_back(tree: Tree, path: str, old: str | None) -> bool:
    """Restore the old text of a file, or remove it; return whether that changed anything."""
    if _text(path) == old:
        return False
    if old is None:
        tree.unlink(path)
    else:
        tree.write(path, old.encode("utf-8", "surrogateescape"), 0o644)
    return True


class Systemd:
    """Timers of systemd: of the user's manager, or for root of the system's."""

    kind: Kind = "systemd"

    def __init__(self, environment: Environment) -> None:
        base = environment.get("XDG_CONFIG_HOME") or ""
        base = base if os.path.isabs(base) else os.path.expanduser("~/.config")
        self._root = is_root()
        self.folder = SYSTEM_UNITS if self._root else os.path.join(base, "systemd", "user")
        self._control = ("systemctl",) if self._root else ("systemctl", "--user")

    def missing(self) -> str:
        """Return why it cannot be used now; empty if it can."""
        result = run_program(*self._control, "show", "--property=Version")
        if result.code == 0 and "Version=" in result.out:
            return ""
        if shutil.which("systemctl") is None:
            return "systemd is not installed"
        return "systemd does not run here" if self._root else "systemd does not run for you here"

    def schedules(self) -> dict[str, Schedule]:
        """Return path -> schedule of the timers that vlmcache wrote."""
        schedules = {}
        for path in sorted(glob.glob(os.path.join(glob.escape(self.folder), "vlmcache-*.timer"))):
            with contextlib.suppress(OSError):
                schedule = units.in_timer(_text(path) or "")
                if schedule is not None and os.path.basename(path) == units.timer_name(
                    schedule.name
                ):
                    schedules[path] = schedule
        return schedules

    def log(self, schedule: Schedule) -> str:
        """Return the command that shows the log."""
        user = () if self._root else ("--user",)
        return shell_words("journalctl", *user, "-t", f"vlmcache-{schedule.name}")

    def files(self, schedule: Schedule) -> tuple[ScheduleFile, ...]:
        """Return the files that are written for a schedule."""
        made = units.systemd_units(schedule)
        return (
            ScheduleFile(os.path.join(self.folder, made.service_name), made.service),
            ScheduleFile(os.path.join(self.folder, made.timer_name), made.timer),
        )

    def set(self, schedule: Schedule) -> None:
        """Write a schedule in place of the one that had its name.

        Raises:
            ScheduleError, SpaceError: it cannot be written; the old one is as it was.
        """
        service, timer = self.files(schedule)
        with write_failures(timer.path):
            tree, old = Tree(self.folder), _text(timer.path)
            if old is not None and units.in_timer(old) is None:
                raise ScheduleError(
                    f"{timer.path} is not from vlmcache", "give the schedule another --name"
                )
            kept = _text(service.path) == service.content
            try:
                tree.make_folders(os.path.dirname(self._wanted(timer.path)))
                if not kept:
                    tree.write(service.path, service.content.encode(), 0o644)
                with contextlib.suppress(FileExistsError):
                    tree.symlink(
                        os.path.join("..", os.path.basename(timer.path)), self._wanted(timer.path)
                    )
                tree.write(timer.path, timer.content.encode(), 0o644)
                self._reload(timer.path)
            except BaseException:
                self._take_back(tree, timer.path, old, None if kept else service.path)
                raise
        for path in self._services(schedule.name):
            if path != service.path:
                tree.discard(path)

    def _take_back(self, tree: Tree, timer: str, old: str | None, service: str | None) -> None:
        """Restore the old timer, or remove the new one if there was none."""
        if _put_back(tree, timer, old):
            with contextlib.suppress(ScheduleError):
                self._reload(timer if old is not None else None)
        if old is None:
            tree.discard(self._wanted(timer))
        if service is not None:
            tree.discard(service)

    def remove(self, name: str) -> bool:
        """Remove a schedule and what is left of one; return whether there was anything.

        Raises:
            ScheduleError: it cannot be removed; it is as it was.
        """
        timer = os.path.join(self.folder, units.timer_name(name))
        left = [*self._services(name), *filter(os.path.lexists, [self._wanted(timer)])]
        with write_failures(timer):
            old = _text(timer)
            if old is None and not left:
                return False
            if old is not None and units.in_timer(old) is None:
                return False
            tree = Tree(self.folder)
            if old is not None:
                tree.unlink(timer)
            try:
                if not self.missing():
                    result = run_program(*self._control, "stop", os.path.basename(timer))
                    # 5: the manager has not loaded it.
                    if result.code not in (0, 5):
                        raise ScheduleError(
                            f"systemctl cannot stop the timer: {' '.join(result.err.split())}",
                            "nothing was changed",
                        )
            except BaseException:
                if old is not None:
                    tree.write(timer, old.encode("utf-8", "surrogateescape"), 0o644)
                raise
            for path in left:
                tree.discard(path)
        run_program(*self._control, "daemon-reload")
        return True

    def is_active(self, schedule: Schedule) -> bool:
        """Return whether the timer waits for its time."""
        return run_program(*self._control, "is-active", units.timer_name(schedule.name)).code == 0

    @property
    def activates(self) -> str:
        """The command that lets a timer wait for its time, without the timer's name."""
        return shell_words(*self._control, "enable", "--now")

    @property
    def lingers(self) -> bool:
        """Whether timers run while the user is not logged in."""
        if self._root:
            return True
        name = owner_name(os.getuid())
        result = run_program("loginctl", "show-user", name, "--property=Linger")
        if "Linger=" in result.out:
            return "Linger=yes" in result.out
        return os.path.exists(os.path.join(LINGER, name))

    def _reload(self, timer: str | None) -> None:
        run_or_fail(*self._control, "daemon-reload")
        if timer is not None:
            run_or_fail(*self._control, "restart", os.path.basename(timer))

    def _services(self, name: str) -> list[str]:
        pattern = f"vlmcache-{name}-{'[0-9a-f]' * 8}.service"
        return glob.glob(os.path.join(glob.escape(self.folder), pattern))

    def _wanted(self, timer: str) -> str:
        """Return the link that lets the manager start a timer."""
        return os.path.join(self.folder, "timers.target.wants", os.path.basename(timer))


class Cron:
    """Lines of the user's crontab."""

    kind: Kind = "cron"
    path = "crontab"

    def missing(self) -> str:
        """Return why it cannot be used now; empty if it can."""
        if shutil.which("crontab") is None:
            return "cron is not installed"
        try:
            self._read()
        except ScheduleError as error:
            return f"cron refuses: {error.message}"
        return ""

    def schedules(self) -> dict[str, Schedule]:
        """Return path -> schedule of the lines that vlmcache wrote."""
        if shutil.which("crontab") is None:
            return {}
        with contextlib.suppress(ScheduleError):
            return {
                f"{self.path} ({schedule.name})": schedule
                for schedule in units.in_crontab(self._read())
            }
        return {}

    def log(self, schedule: Schedule) -> str:
        """Return the file that the output is added to."""
        return schedule.log or ""

    def files(self, schedule: Schedule) -> tuple[ScheduleFile, ...]:
        """Return the files that are written for a schedule."""
        return (ScheduleFile(self.path, units.cron_block(schedule)),)

    def set(self, schedule: Schedule) -> None:
        """Write a schedule in place of the one that had its name.

        Raises:
            ScheduleError: it cannot be written; the old one is as it was.
        """
        self._change(schedule.name, units.cron_block(schedule))

    def remove(self, name: str) -> bool:
        """Remove a schedule; return whether there was one.

        Raises:
            ScheduleError: it cannot be removed.
        """
        return shutil.which("crontab") is not None and self._change(name, "")

    def _change(self, name: str, block: str) -> bool:
        old = self._read()
        new = units.changed_crontab(old, name, block)
        if new != old:
            # The program puts the complete text in place at once, or refuses it.
            run_or_fail("crontab", "-", given=new)
        return new != old

    def _read(self) -> str:
        result = run_program("crontab", "-l")
        if result.code and "no crontab" not in result.err.lower() and result.err.strip():
            raise ScheduleError(f"the crontab cannot be read: {' '.join(result.err.split())}")
        return "" if result.code else result.out

    @property
    def runs(self) -> bool:
        """Whether cron's daemon runs; true if nothing can be seen of processes."""
        readable = False
        for path in glob.iglob("/proc/[0-9]*/comm"):
            with (
                contextlib.suppress(OSError),
                open(path, encoding="utf-8", errors="replace") as file,
            ):
                readable = True
                if file.read().strip() in _CRONS:
                    return True
        return not readable


class Launchd:
    """Agents of launchd, on a Mac; for root daemons."""

    kind: Kind = "launchd"

    def __init__(self) -> None:
        root = is_root()
        self.folder = SYSTEM_AGENTS if root else os.path.expanduser("~/Library/LaunchAgents")
        self._domain = "system" if root else f"gui/{os.getuid() if hasattr(os, 'getuid') else 0}"

    def missing(self) -> str:
        """Return why it cannot be used now; empty if it can."""
        return "" if shutil.which("launchctl") else "launchd is not here"

    def schedules(self) -> dict[str, Schedule]:
        """Return path -> schedule of the agents that vlmcache wrote."""
        schedules = {}
        pattern = os.path.join(glob.escape(self.folder), f"{units.launchd_label('*')}.plist")
        for path in sorted(glob.glob(pattern)):
            with contextlib.suppress(OSError):
                schedule = units.in_agent(read_bytes(path, _LIMIT))
                if schedule is not None and path == self._path(schedule.name):
                    schedules[path] = schedule
        return schedules

    def log(self, schedule: Schedule) -> str:
        """Return the file that the output is added to."""
        return schedule.log or ""

    def files(self, schedule: Schedule) -> tuple[ScheduleFile, ...]:
        """Return the files that are written for a schedule."""
        content = units.launchd_agent(schedule).decode()
        return (ScheduleFile(self._path(schedule.name), content),)

    def set(self, schedule: Schedule) -> None:
        """Write a schedule in place of the one that had its name.

        Raises:
            ScheduleError, SpaceError: it cannot be written; the old one is as it was.
        """
        path = self._path(schedule.name)
        with write_failures(path):
            tree, old = Tree(self.folder), _text(path)
            tree.make_folders(self.folder)
            try:
                tree.write(path, units.launchd_agent(schedule), 0o644)
                self._load(schedule.name)
            except BaseException:
                if _put_back(tree, path, old):
                    with contextlib.suppress(ScheduleError):
                        self._load(schedule.name)
                raise

    def remove(self, name: str) -> bool:
        """Remove a schedule; return whether there was one.

        Raises:
            ScheduleError: it cannot be removed.
        """
        path = self._path(name)
        with write_failures(path):
            if _text(path) is None:
                return False
            Tree(self.folder).unlink(path)
        run_program("launchctl", "bootout", f"{self._domain}/{units.launchd_label(name)}")
        return True

    def _load(self, name: str) -> None:
        """Let launchd forget an agent, and load it again if its file exists."""
        run_program("launchctl", "bootout", f"{self._domain}/{units.launchd_label(name)}")
        if os.path.exists(self._path(name)):
            run_or_fail("launchctl", "bootstrap", self._domain, self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, f"{units.launchd_label(name)}.plist")


Timers: TypeAlias = "Systemd | Cron | Launchd"


def all_timers(environment: Environment) -> list[Timers]:
    """Return the kinds of timers, the one to prefer first."""
    return [Launchd(), Systemd(environment), Cron()]
