"""What `schedule` writes into a timer, and what it returns."""

from __future__ import annotations

from typing import Literal

import msgspec

from vlmcache.cache.state import Finding
from vlmcache.errors import VlmcacheError
from vlmcache.report import Report
from vlmcache.scheduled import RunOutcome

Kind = Literal["systemd", "cron", "launchd"]
"""What runs a schedule."""


class ScheduleError(VlmcacheError):
    """A schedule cannot be written, read or removed."""

    code = "schedule"


class NoSchedulerError(ScheduleError):
    """Nothing on this machine runs commands at set times for this user."""

    code = "no-scheduler"


class When(msgspec.Struct, frozen=True):
    """The times at which a schedule runs, which every kind of timer can express."""

    every: int
    """Seconds from one run to the next."""
    minute: int
    hour: int = 3
    """For schedules that run at most once a day."""

    @property
    def days(self) -> int:
        """Days from one run to the next; 0 if it runs more often than once a day."""
        return self.every // 86400

    @property
    def minutes(self) -> int:
        """Minutes from one run to the next, if it is less than an hour; otherwise 0."""
        return self.every // 60 if self.every < 3600 else 0

    @property
    def waits(self) -> bool:
        """Whether the timer starts the command each day, which then checks itself if it is due."""
        return self.days > 1 and self.days != 7

    @property
    def in_words(self) -> str:
        """The times for people."""
        if self.days:
            often = {1: "every day", 7: "every Sunday"}.get(self.days, f"every {self.days} days")
            return f"{often} at {self.hour:02d}:{self.minute:02d}"
        if self.minutes:
            return "every minute" if self.minutes == 1 else f"every {self.minutes} minutes"
        hours = self.every // 3600
        often = "every hour" if hours == 1 else f"every {hours} hours"
        return f"{often}, {self.minute} min past the hour"


class Schedule(msgspec.Struct, frozen=True):
    """All that a timer holds. It is also written into the timer, as one line of JSON."""

    name: str
    program: tuple[str, ...]
    """What runs vlmcache: an absolute path, followed by `-m vlmcache` if that is Python's."""
    words: tuple[str, ...]
    """The command and its arguments, as shown when the schedule was made."""
    when: When
    variables: dict[str, str]
    """The environment that the command needs."""
    log: str | None = None
    """The file that the output is appended to; `None` if a journal keeps it."""

    @property
    def line(self) -> tuple[str, ...]:
        """The complete command line."""
        return self.program + self.words


class ScheduleFile(msgspec.Struct, frozen=True):
    """A file of a timer; for cron, the lines that are added to the crontab."""

    path: str
    content: str


class ScheduleStatus(msgspec.Struct, frozen=True):
    """A schedule, and what became of it."""

    name: str
    command: str
    """The complete command line, as a shell takes it."""
    every: float
    """Seconds from one run to the next."""
    when: str
    """The times in words."""
    kind: Kind
    path: str
    """The file that holds it, or `crontab`."""
    log: str
    """The command that shows the log, or its file."""
    variables: dict[str, str]
    user: str
    """The user that it runs as."""
    last: RunOutcome | None = None
    """How its last run ended; `None` if it has not run."""


class ScheduleReport(Report, frozen=True):
    """What `vlmcache schedule` returns: the schedule made or removed, or all schedules."""

    action: Literal["set", "removed", "shown"]
    schedules: tuple[ScheduleStatus, ...]
    files: tuple[ScheduleFile, ...] = ()
    """What is written, or would be."""
    written: bool = False
    """Whether anything was changed."""
    now: str = ""
    """What the command would do if it ran now."""
    findings: tuple[Finding, ...] = ()

    @property
    def ids(self) -> list[str]:
        """The names of the schedules."""
        return [schedule.name for schedule in self.schedules]
