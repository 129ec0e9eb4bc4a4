"""A schedule as systemd, cron and launchd write it, and how it is read back.

The rules are those of systemd.exec(5), systemd.service(5), systemd.syntax(7) and systemd.time(7),
of crontab(5), and of launchd.plist(5). Every timer also holds the schedule itself, as one line
of JSON, so that what is shown later is what runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from re import Match
from typing import NamedTuple

import msgspec

from vlmcache import late
from vlmcache.cache.reading import JSON_ERRORS
from vlmcache.commands.schedule.values import Schedule, ScheduleError, When

_NICE = 10
_MARK = "# vlmcache-schedule: "
_KEY = "VlmcacheSchedule"
_LONGEST_LINE = 990
"""Characters of a command that every cron takes (`MAX_COMMAND` of Vixie's is 1000)."""
_UNSAFE = late.pattern(r"[\"'\\]")
"""What systemd takes in an argument, but not in the path of a program."""
_BLOCK = late.pattern(rf"(?m)^{_MARK}(\{{.*\}})\n[^\n]*VLMCACHE_SCHEDULED=[^\n]*(?:\n|\Z)")


class Units(NamedTuple):
    """The two files of a timer of systemd."""

    service_name: str
    """It depends on the content of the file, so that a timer never starts another command."""
    service: str
    timer_name: str
    timer: str


def check_text(schedule: Schedule) -> None:
    """Make sure that a timer can hold all of a schedule.

    Raises:
        ScheduleError: it cannot.
    """
    for text in (*schedule.line, *schedule.variables.values(), schedule.log or ""):
        if not text.isprintable():
            raise ScheduleError(
                f"a timer cannot hold such a name: {text!r}",
                "use a folder without control characters in its name",
            )


def timer_name(name: str) -> str:
    """Return what a timer of systemd is called."""
    return f"vlmcache-{name}.timer"


def systemd_units(schedule: Schedule) -> Units:
    """Return the files of a timer of systemd."""
    variables = (f"{name}={value}" for name, value in sorted(schedule.variables.items()))
    service = "\n".join(
        [
            "# Written by 'vlmcache schedule'",
            "[Unit]",
            f"Description=vlmcache schedule {schedule.name}",
            "",
            "[Service]",
            "Type=oneshot",
            "WorkingDirectory=/",
            *(f"Environment={_quoted(text)}" for text in variables),
            f"ExecStart={_exec_line(schedule.line)}",
            f"SyslogIdentifier=vlmcache-{schedule.name}",
            f"Nice={_NICE}",
            "IOSchedulingClass=idle",
            "CPUWeight=10",
            "",
        ]
    )
    service_name = f"vlmcache-{schedule.name}-{hashlib.sha256(service.encode()).hexdigest()[:8]}"
    timer = "\n".join(
        [
            f"# 'vlmcache schedule --remove {schedule.name}' removes this file",
            _marked(schedule),
            "[Unit]",
            f"Description=vlmcache schedule {schedule.name}",
            "",
            "[Timer]",
            f"Unit={service_name}.service",
            f"OnCalendar={_calendar(schedule.when)}",
            "Persistent=true",
            "",
            "[Install]",
            "WantedBy=timers.target",
            "",
        ]
    )
    return Units(f"{service_name}.service", service, timer_name(schedule.name), timer)


def _calendar(when: When) -> str:
    if when.days:
        day = "Sun " if when.days == 7 else ""
        return f"{day}*-*-* {when.hour:02d}:{when.minute:02d}:00"
    if when.minutes:
        return f"*-*-* *:00/{when.minutes}:00"
    return f"*-*-* 00/{when.every // 3600}:{when.minute:02d}:00"


def _exec_line(words: tuple[str, ...]) -> str:
    """Return a command line as `ExecStart=` takes it."""
    program, *rest = words
    if _UNSAFE.search(program):
        shell = '"/bin/sh" "-c" "exec \\"$$0\\" \\"$$@\\""'
        return " ".join([shell, *map(_argument, words)])
    # Variables are not replaced in the path of the program, but everything else is.
    return " ".join([_quoted(program), *map(_argument, rest)])


def _argument(word: str) -> str:
    return _quoted(word).replace("$", "$$")


def _quoted(text: str) -> str:
    """Return a string in quotes, its backslashes, quotes and specifiers escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def cron_block(schedule: Schedule) -> str:
    """Return the two lines of a crontab that are a schedule.

    Raises:
        ScheduleError: not every cron would take the line.
    """
    line = f"{_cron_times(schedule.when)} {cron_command(schedule)}"
    if len(line.encode()) > _LONGEST_LINE:
        raise ScheduleError(
            f"the line is too long for cron: {len(line.encode())} of {_LONGEST_LINE} bytes",
            "name fewer models, or use shorter paths",
        )
    return f"{_marked(schedule)}\n{line}\n"


def _cron_times(when: When) -> str:
    if when.days:
        return f"{when.minute} {when.hour} * * {'0' if when.days == 7 else '*'}"
    if when.minutes:
        return f"*/{when.minutes} * * * *"
    return f"{when.minute} */{when.every // 3600} * * *"


def cron_command(schedule: Schedule) -> str:
    """Return what cron gives to the shell, escaped for both."""
    variables = (f"{name}={value}" for name, value in sorted(schedule.variables.items()))
    log = schedule.log or "/dev/null"
    words = ["nice", "-n", str(_NICE), *schedule.line]
    run = " ".join(map(_cron_word, words))
    environment = " ".join(map(_cron_word, ("env", *variables)))
    folder = _cron_word(log.rpartition("/")[0] or "/")
    return f"mkdir -p {folder} && cd / && {environment} {run} >>{_cron_word(log)} 2>&1"


def _cron_word(word: str) -> str:
    """Return a word as the shell takes it after cron, or without cron.

    Some crons make one backslash of two, all but one make a percent sign of an escaped one. So no
    backslash stands before another one or a percent sign, and percent signs stand outside quotes,
    where the shell would remove the backslash too.
    """
    if all(character.isalnum() or character in "/._-=:," for character in word) and word.isascii():
        return word or "''"
    parts = {"'": "'\\''", "\\": "\\''", "%": "'\\%'"}
    return f"'{''.join(parts.get(character, character) for character in word)}'"


def in_crontab(crontab: str) -> Iterator[Schedule]:
    """Yield the schedules that a crontab holds."""
    for block in _BLOCK.finditer(crontab):
        schedule = _decoded(block[1])
        if schedule is not None:
            yield schedule


def changed_crontab(crontab: str, name: str, block: str) -> str:
    """Return a crontab with a schedule in place of the one that had its name.

    Args:
        crontab: the old text.
        name: the schedule's name.
        block: its lines; empty to remove it. All other lines stay as they are.
    """
    placed = False

    def replaced(match: Match[str]) -> str:
        nonlocal placed
        schedule = _decoded(match[1])
        if schedule is None or schedule.name != name:
            return match[0]
        new, placed = "" if placed else block, True
        return new

    text = _BLOCK.sub(replaced, crontab)
    if placed or not block:
        return text
    return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{block}"


def launchd_label(name: str) -> str:
    """Return what an agent of launchd is called."""
    return f"io.github.vlmcache.{name}"


def launchd_agent(schedule: Schedule) -> bytes:
    """Return the property list of an agent of launchd."""
    import plistlib  # only on a Mac

    when = schedule.when
    times: dict[str, object] = {"StartInterval": when.every}
    if when.days:
        week = {"Weekday": 0} if when.days == 7 else {}
        times = {"StartCalendarInterval": {"Hour": when.hour, "Minute": when.minute, **week}}
    return plistlib.dumps(
        {
            "Label": launchd_label(schedule.name),
            "ProgramArguments": list(schedule.line),
            "EnvironmentVariables": schedule.variables,
            "WorkingDirectory": "/",
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": _NICE,
            "StandardOutPath": schedule.log,
            "StandardErrorPath": schedule.log,
            _KEY: msgspec.json.encode(schedule).decode(),
            **times,
        }
    )


def in_agent(content: bytes) -> Schedule | None:
    """Return the schedule that a property list holds, `None` if it is not one of ours."""
    import plistlib
    from xml.parsers.expat import ExpatError

    try:
        return _decoded(str(plistlib.loads(content)[_KEY]))
    except (plistlib.InvalidFileException, ExpatError, LookupError, ValueError, TypeError):
        return None


def in_timer(content: str) -> Schedule | None:
    """Return the schedule that a timer of systemd holds, `None` if it is not one of ours."""
    marks = (line for line in content.splitlines() if line.startswith(_MARK))
    return next((_decoded(line.removeprefix(_MARK)) for line in marks), None)


def _marked(schedule: Schedule) -> str:
    return _MARK + msgspec.json.encode(schedule).decode()


def _decoded(text: str) -> Schedule | None:
    try:
        return msgspec.json.decode(text, type=Schedule)
    except JSON_ERRORS:
        return None
