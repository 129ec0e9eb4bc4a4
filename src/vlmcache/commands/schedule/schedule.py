"""`schedule`: lets a timer of the machine run a command, shows what runs, and takes it away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec

from vlmcache import scheduled
from vlmcache.cache.owners import owner_name
from vlmcache.cache.reading import JSON_ERRORS
from vlmcache.cache.state import Finding
from vlmcache.cache.tree import is_root
from vlmcache.commands.schedule import plan, units
from vlmcache.commands.schedule.timers import Cron, Systemd, Timers, all_timers
from vlmcache.commands.schedule.values import (
    NoSchedulerError,
    Schedule,
    ScheduleError,
    ScheduleReport,
    ScheduleStatus,
    described,
)
from vlmcache.config import Environment, Session, open_session, own_home
from vlmcache.errors import ExitCode, UnknownModelError, UsageError, VlmcacheError, reason_of
from vlmcache.units import command, size_text

Confirm = Callable[[ScheduleReport], bool]
_PATIENCE = 600.0
_REFUSED: dict[int, type[VlmcacheError]] = {
    ExitCode.FAILED: ScheduleError,
    ExitCode.USAGE: UsageError,
    ExitCode.UNCONFIRMED: UsageError,
    ExitCode.NO_MODEL: UnknownModelError,
}
"""How a command ends that would not work at night either."""
_BASE = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR")
"""Variables that every timer gives to what it runs."""


def make(
    session: Session,
    line: str | Sequence[str],
    every: float,
    *,
    name: str | None = None,
    dry_run: bool = False,
    confirm: Confirm | None = None,
) -> ScheduleReport:
    """Let a timer run a command, in the place of what it ran under the same name.

    Args:
        session: the cache and the configuration that the command is to use.
        line: the command, as one string or as its words.
        every: seconds from one run to the next.
        name: of the schedule; that of the command if not given.
        dry_run: write nothing.
        confirm: is given what would be written, and returns whether to continue.

    Raises:
        UsageError: the command cannot be scheduled, or is wrong.
        NoSchedulerError: the machine has no timers for this user.
        ScheduleError: the command does not run, or the timer cannot be written.
    """
    environment = session.environment
    _refuse_borrowed_home()
    typed = plan.typed(line, environment.absolute)
    session = _session_of(session, typed)
    name = plan.schedule_name(name, typed.verb)
    when = plan.times(name, every, socket.gethostname())
    words = plan.scheduled_words(typed, session.config, session.cache)
    timers = _usable(environment)
    home = own_home(environment)[0]
    log = None if isinstance(timers, Systemd) else scheduled.log_path(home, name)
    own = {"HOME": os.path.expanduser("~")} if is_root() else {}
    variables = plan.complete_variables(
        name, when, log, plan.carried(environment, home, words), own
    )
    schedule = Schedule(name, program(), words, when, variables, log)
    units.check(schedule)
    files = timers.files(schedule)
    shown = described(
        schedule, timers.kind, files[-1].path, timers.log(schedule), owner_name(os.geteuid())
    )
    report = ScheduleReport(
        "set",
        (shown,),
        files,
        now=_rehearsed(schedule),
        findings=(*_notes(timers, schedule), *_left_out(environment)),
    )
    if dry_run or (confirm is not None and not confirm(report)):
        return report
    timers.set(schedule)
    for other in all_timers(environment):
        if other.kind != timers.kind:
            other.remove(name)
    return msgspec.structs.replace(report, written=True)


def show(session: Session) -> ScheduleReport:
    """Return all schedules of this user, and what keeps them from running."""
    environment = session.environment
    last = {outcome.name: outcome for outcome in scheduled.read_outcomes(own_home(environment)[0])}
    user = owner_name(os.geteuid()) if hasattr(os, "geteuid") else ""
    found: list[ScheduleStatus] = []
    findings: list[Finding] = []
    for timers in all_timers(environment):
        for path, schedule in timers.schedules().items():
            outcome = last.get(schedule.name)
            log = timers.log(schedule)
            found.append(described(schedule, timers.kind, path, log, user, outcome))
            findings += problems(timers, schedule, path, outcome)
    return ScheduleReport("shown", tuple(found), findings=tuple(dict.fromkeys(findings)))


def remove(session: Session, line: str | None, *, dry_run: bool = False) -> ScheduleReport:
    """Take a schedule away.

    Args:
        session: the environment.
        line: its name, or its command; not needed if there is only one.
        dry_run: only say which.

    Raises:
        UsageError: there is none of that name, or it is not said which.
        ScheduleError: it cannot be removed.
    """
    environment = session.environment
    _refuse_borrowed_home()
    known = show(session).schedules
    names = list(dict.fromkeys(schedule.name for schedule in known))
    if line is None and len(names) != 1:
        which = f"name one of them: {', '.join(names)}" if names else "there are none"
        raise UsageError(f"which schedule is to be removed? {which}")
    words = [word for word in (line or "").split() if word != "vlmcache"]
    name = words[0] if words else names[0] if line is None else ""
    plan.schedule_name(name, name)
    kinds = all_timers(environment)
    gone = tuple(schedule for schedule in known if schedule.name == name)
    report = ScheduleReport("removed", gone)
    if dry_run:
        removed = bool(gone)
    else:
        removed = any([timers.remove(name) for timers in kinds])  # noqa: C419 - of each kind
        scheduled.forget(own_home(environment)[0], name)
    if not removed:
        there = f"there are: {', '.join(names)}" if names else "there are none"
        raise UsageError(f"no schedule is called '{name}'", there)
    return msgspec.structs.replace(report, written=not dry_run)


def problems(
    timers: Timers, schedule: Schedule, path: str, last: scheduled.Outcome | None
) -> Iterator[Finding]:
    """Yield what keeps a schedule from running."""
    again = plan.how_to_run(schedule)
    broken = _broken(schedule)
    if broken:
        yield finding("schedule-program", "error", path, f"{schedule.name}: {broken}", again)
    yield from _notes(timers, schedule)
    if isinstance(timers, Systemd) and not timers.missing() and not timers.is_active(schedule):
        remedy = f"{timers.activates} {units.timer_name(schedule.name)}"
        detail = f"{schedule.name}: the timer is not active, so nothing runs"
        yield finding("schedule-inactive", "warning", path, detail, remedy)
    if last is not None and not last.running:
        age = (datetime.now(timezone.utc) - last.begun).total_seconds()
        long = plan.overdue(schedule, age)
        if long:
            detail = (
                f"{schedule.name}: it did not run for {long}, and should {schedule.when.in_words}"
            )
            yield finding("schedule-overdue", "warning", path, detail, timers.log(schedule))


def program() -> tuple[str, ...]:
    """Return what runs this vlmcache, by an absolute path."""
    python = os.path.abspath(sys.executable)
    script = os.path.join(os.path.dirname(python), "vlmcache")
    return (script,) if os.access(script, os.X_OK) else (python, "-m", "vlmcache")


def _notes(timers: Timers, schedule: Schedule) -> Iterator[Finding]:
    """Yield when the timer does not run what it holds."""
    if isinstance(timers, Systemd) and not timers.lingers:
        yield finding(
            "schedule-no-linger",
            "warning",
            timers.folder,
            "timers run only while you are logged in: lingering is off",
            "loginctl enable-linger",
        )
    if isinstance(timers, Cron) and not timers.runs:
        yield finding(
            "schedule-no-daemon",
            "warning",
            timers.path,
            "cron is installed, but its daemon does not run: nothing starts on time",
            "sudo service cron start",
        )
    sudoer = os.environ.get("SUDO_USER")
    if is_root() and sudoer and sudoer != "root":
        yield finding(
            "schedule-as-root",
            "info",
            timers.kind,
            f"{schedule.name} runs as root; without sudo it runs as {sudoer}",
        )


def _left_out(environment: Environment) -> Iterator[Finding]:
    """Yield which variables are not written down."""
    names = plan.left_out(environment)
    if names:
        detail = f"not written into the timer, since they hold secrets: {', '.join(names)}"
        yield finding("schedule-secret", "info", "environment", detail)


def finding(code: str, severity: Any, path: str, detail: str, remedy: str | None = None) -> Finding:
    """Return a finding that is about no repo."""
    return Finding(code, severity, None, path, detail, remedy)


def _refuse_borrowed_home() -> None:
    """Make sure that root writes no timer for the home of another user.

    Raises:
        UsageError: `sudo` has left the user's own home in place.
    """
    home = os.path.expanduser("~")
    try:
        owner = os.stat(home).st_uid
    except OSError:
        return
    if is_root() and owner:
        raise UsageError(
            f"root would schedule this with the home of {owner_name(owner)}",
            "run it without sudo; for a timer of root use sudo -H",
        )


def _session_of(session: Session, typed: plan.Typed) -> Session:
    """Return what the command works on: what it names itself counts.

    Raises:
        UsageError: the same is named twice.
    """
    if typed.cache_dir is None and typed.config is None:
        return session
    outer = {"--cache-dir": session.cache.source, "--config": session.config.source}
    for option, inner in (("--cache-dir", typed.cache_dir), ("--config", typed.config)):
        if inner is not None and outer[option] == option:
            raise UsageError(f"{option} is given twice: to schedule, and in the command")
    kept_dir = session.cache.dir if outer["--cache-dir"] == "--cache-dir" else None
    kept_config = session.config.path if outer["--config"] == "--config" else None
    return open_session(typed.config or kept_config, typed.cache_dir or kept_dir)


def _usable(environment: Environment) -> Timers:
    """Return the timers that this machine has.

    Raises:
        NoSchedulerError: it has none for this user.
    """
    why = []
    for timers in all_timers(environment):
        missing = timers.missing()
        if not missing:
            return timers
        why.append(missing)
    raise NoSchedulerError(
        f"nothing here runs commands at set times: {why[1]}, and {why[2]}",
        "install cron (Debian: apt install cron), or in a container let the host's timer run "
        "the command",
    )


def _rehearsed(schedule: Schedule) -> str:
    """Return what a schedule would do now; its program, line and variables are those of the timer.

    Raises:
        ScheduleError: the program does not run.
        VlmcacheError: what it refuses, as it says it.
    """
    done = _run(schedule, (*schedule.words[:1], "--json", *schedule.words[1:]), rehearsal=True)
    try:
        said = msgspec.json.decode(done.stdout)
        code, errors = said["exit_code"], said["errors"]
    except (*JSON_ERRORS, LookupError, TypeError):
        why = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise ScheduleError(f"the command does not run: {why or done.returncode}") from None
    if errors and code in _REFUSED:
        raise _REFUSED[code](errors[0]["message"], errors[0]["hint"])
    if schedule.words[0] == "clean":
        frees = said.get("plan", {}).get("frees", 0)
        return f"it would free {size_text(frees)}" if frees else "there is nothing to remove"
    return ""


def _broken(schedule: Schedule) -> str:
    """Return why a schedule's program does not run; empty if it does."""
    try:
        done = _run(schedule, ("--version",))
    except ScheduleError as error:
        return error.message
    if done.returncode:
        return f"{schedule.program[0]} ends with exit code {done.returncode}"
    return ""


def _run(
    schedule: Schedule, words: Sequence[str], *, rehearsal: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """Run a schedule's program as its timer does.

    Raises:
        ScheduleError: it cannot be run.
    """
    variables = {name: os.environ[name] for name in _BASE if name in os.environ}
    variables |= schedule.variables
    for name in scheduled.VARIABLES:
        variables.pop(name, None)
    if rehearsal:
        variables[scheduled.REHEARSAL] = "1"
    try:
        return subprocess.run(
            [*schedule.program, *words],
            cwd="/",
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ScheduleError(
            f"{schedule.program[0]} cannot be run: {reason_of(error)}",
            f"make the schedule again: {command('schedule', '--help')} shows how",
        ) from None
