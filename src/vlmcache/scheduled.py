"""A command that a timer runs: the variables it gets, and what it leaves for `status`.

Each schedule has a file in vlmcache's own folder that says how its last run ended. It can be lost
or deleted at any time; where it cannot be written, the run itself is not disturbed.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone

import msgspec

from vlmcache.cache.owners import is_anothers
from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.report import Report
from vlmcache.units import duration_text, shell_words

NAME = "VLMCACHE_SCHEDULED"
"""The variable that names the schedule which runs the command."""
EVERY = "VLMCACHE_SCHEDULED_EVERY"
"""Seconds between two runs, if the timer itself can only run something each day."""
LOG = "VLMCACHE_SCHEDULED_LOG"
"""The file to which the timer adds the output."""
REHEARSAL = "VLMCACHE_REHEARSAL"
"""Makes a command check what it is given, and do nothing."""
VARIABLES = (NAME, EVERY, LOG, REHEARSAL)

FOLDER = "schedules"
_LONGEST_LOG = 1_000_000
_LONGEST_OUTCOME = 100_000
_SLACK = 12 * 3600.0
"""Seconds by which a run may begin too early: the last one may have begun late."""


class RunOutcome(msgspec.Struct, frozen=True):
    """How the last run of a schedule ended."""

    name: str
    command: str
    """The command line that ran."""
    begun: datetime
    at: datetime | None = None
    """When it ended; `None` while it runs, and if it was killed."""
    exit_code: int | None = None
    text: str = ""
    """What it did, or why it failed, in one line."""
    running: bool = False
    """Whether it runs now."""
    process: int = 0


class ScheduledRun:
    """The run of a command by a timer.

    Args:
        name: the schedule's name.
        home: vlmcache's own folder.
        words: the command line.
        every: seconds that must be between two runs, 0 if the timer takes care of that.
    """

    def __init__(self, name: str, home: str, words: Sequence[str], every: float = 0.0) -> None:
        self._home = home
        now = _now()
        self.outcome = RunOutcome(name, shell_words("vlmcache", *words), now, process=os.getpid())
        last = next((outcome for outcome in read_outcomes(home) if outcome.name == name), None)
        age = (now - last.begun).total_seconds() if last is not None else every
        self.waits = ""
        """Why it is too early to run; empty if it is not."""
        if 0 <= age < every - _SLACK:
            self.waits = f"{name} ran {duration_text(age)} ago: it is not due yet"

    def begin(self) -> None:
        """Record that it is running."""
        _write(self._home, self.outcome)

    def end(self, code: ExitCode, report: Report | None, problem: VlmcacheError | None) -> None:
        """Record how it ended."""
        text = problem.message if problem is not None else ""
        text = text or (report.in_one_line if report is not None else "") or code.meaning
        ended = msgspec.structs.replace(self.outcome, at=_now(), exit_code=int(code), text=text)
        _write(self._home, ended)


def take_turn(home: str, words: Sequence[str]) -> ScheduledRun | None:
    """Return the run that a timer has started in this process; `None` if none has.

    Its variables are removed from the environment, so that no process it starts is taken for it.

    Args:
        home: vlmcache's own folder.
        words: the command line.
    """
    name, every, log = (os.environ.pop(variable, "") for variable in (NAME, EVERY, LOG))
    if not name:
        return None
    if log:
        _shorten(log)
    return ScheduledRun(name, home, words, float(every) if every.isdecimal() else 0.0)


def log_path(home: str, name: str) -> str:
    """Return the file that a timer without a journal adds a schedule's output to."""
    return os.path.join(home, FOLDER, f"{name}.log")


def read_outcomes(home: str) -> tuple[RunOutcome, ...]:
    """Return how the last run of each schedule ended, by name. What cannot be read is left out."""
    folder = os.path.join(home, FOLDER)
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError:
        return ()
    outcomes = []
    for name in names:
        with contextlib.suppress(OSError, *JSON_ERRORS):
            content = read_bytes(os.path.join(folder, name), _LONGEST_OUTCOME, follow=False)
            outcome = msgspec.json.decode(content, type=RunOutcome)
            if outcome.name == name.removesuffix(".json"):
                running = outcome.at is None and _is_running(outcome.process)
                outcomes.append(msgspec.structs.replace(outcome, running=running))
    return tuple(outcomes)


def forget_outcome(home: str, name: str) -> None:
    """Forget how the last run of a schedule ended, and its log."""
    if is_anothers(home):
        return
    log = log_path(home, name)
    for path in (os.path.join(home, FOLDER, f"{name}.json"), log, f"{log}.1"):
        with contextlib.suppress(OSError):
            os.unlink(path)


def _now() -> datetime:
    return datetime.fromtimestamp(int(time.time()), timezone.utc)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return process > 0


def _write(home: str, outcome: RunOutcome) -> None:
    """Replace the last outcome, if the system allows it."""
    if is_anothers(home):
        return
    path = os.path.join(home, FOLDER, f"{outcome.name}.json")
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with contextlib.suppress(OSError, UnicodeEncodeError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(msgspec.json.encode(outcome))
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _shorten(log: str) -> None:
    """Rename a long log, in place of the one before: the next line begins a new log."""
    with contextlib.suppress(OSError):
        if os.path.getsize(log) > _LONGEST_LOG:
            os.replace(log, f"{log}.1")
