"""`schedule` for people: what runs, when, as which user, and where its log is."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import IO

from rich.console import Console
from rich.text import Text

from vlmcache.commands.schedule.values import ScheduleReport, ScheduleStatus
from vlmcache.show.console import console, print_line
from vlmcache.show.prose import whole
from vlmcache.show.tables import SEVERITY_COLORS, labelled
from vlmcache.show.text import ago, outcome_text, printable

_KINDS = {"systemd": "a systemd timer", "cron": "a line of the crontab", "launchd": "launchd"}


def show(value: ScheduleReport, *, verbose: bool = False, stream: IO[str] | None = None) -> None:
    """Print schedules, and with a dry run the files that would be written.

    Args:
        value: the report.
        verbose: whether to print the files in any case.
        stream: where to.
    """
    out = console(stream)
    if not value.schedules:
        print_line(out, Text("Nothing is scheduled."))
    for number, schedule in enumerate(value.schedules):
        if number:
            out.print()
        _show_one(out, value, schedule)
    for finding in value.findings:
        text = Text(printable(finding.detail), SEVERITY_COLORS[finding.severity])
        if finding.remedy:
            text.append(f": {whole(printable(finding.remedy))}", "default")
        out.print(labelled("Note" if finding.severity == "info" else "But", text))
    if verbose or (value.action == "set" and not value.written and stream is None):
        for file in value.files:
            print_line(out, Text(f"\n{printable(file.path)}", "bold"))
            for line in file.content.splitlines():
                # Unchanged, so that it can be copied.
                out.print(Text(printable(line)), soft_wrap=True)


def _show_one(out: Console, value: ScheduleReport, schedule: ScheduleStatus) -> None:
    verb = {"set": "Scheduled" if value.written else "To schedule", "shown": "Schedule"}
    verb["removed"] = "Removed" if value.written else "To remove"
    how = f"{schedule.when}, by {_KINDS[schedule.kind]}, as {printable(schedule.user)}"
    print_line(out, Text(f"{verb[value.action]} {schedule.name}: {how}"))
    out.print(labelled("Runs", whole(printable(schedule.command))))
    if value.action != "removed":
        names = ", ".join(name for name in schedule.variables if name.startswith(("HF_", "XDG_")))
        if names:
            out.print(labelled("With", printable(names)))
        out.print(labelled("In", whole(printable(schedule.path))))
        out.print(labelled("Log", whole(printable(schedule.log))))
    if value.now:
        out.print(labelled("Now", value.now))
    if value.action == "shown":
        last = "it has not run yet"
        if schedule.last is not None:
            when = ago(schedule.last.begun, datetime.now(timezone.utc))
            last = f"{when}: {outcome_text(schedule.last)}"
        out.print(labelled("Last", last))
