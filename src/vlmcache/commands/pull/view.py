"""`pull` for people: the plan, then what was done; and the picker."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.text import Text

from vlmcache.change.plan import Fetch, Link, Plan, Receipt, ReleaseShared, Remove, RemoveTree
from vlmcache.commands.pull.values import PulledModel, PullReport
from vlmcache.commands.status.values import Status
from vlmcache.show.console import console, print_line
from vlmcache.show.tables import SEVERITY_COLORS, STATE_COLORS, plain_table, show_cache
from vlmcache.show.text import NOTHING, printable
from vlmcache.units import duration_text, size_text

if TYPE_CHECKING:
    from vlmcache.commands.remove.values import Removal


def show(report: PullReport, *, verbose: bool = False) -> None:
    """Print what was done, or what would be."""
    out = console()
    if report.receipt is None:
        show_cache(out, report.cache)
    for model in report.models:
        if model.state != "failed":
            print_line(out, _line(model, report))
        elif len(report.models) > 1 and model.error is not None:
            line = Text(f"{printable(model.key)}: ", "red")
            print_line(out, line + Text(printable(model.error.message)))
    if verbose or report.receipt is None:
        _print_files(report)
    for finding in report.findings:
        out = console(sys.stdout if finding.severity == "info" else sys.stderr)
        line = Text(f"{finding.severity}: ", SEVERITY_COLORS[finding.severity])
        line.append(f"{printable(finding.repo or '')}: {printable(finding.detail)}")
        if finding.remedy:
            line.append(f" ({printable(finding.remedy)})", "dim")
        print_line(out, line)


def evicted(report: PullReport) -> Removal | None:
    """Return what `--make-room` evicts or evicted; `None` if that is nothing."""
    removals = Remove | RemoveTree | ReleaseShared
    actions = tuple(action for action in report.plan.actions if isinstance(action, removals))
    if not actions:
        return None
    from vlmcache.commands.remove.values import Removal

    receipt = report.receipt
    if receipt is not None:
        paths = {action.path for action in actions}
        outcomes = tuple(outcome for outcome in receipt.outcomes if outcome.path in paths)
        receipt = Receipt(outcomes, receipt.freed)
    plan = Plan(actions, report.plan.frees, kept=report.plan.kept)
    return Removal(plan, receipt)


def _line(model: PulledModel, report: PullReport) -> Text:
    commit = (model.commit or "")[:12]
    what = f"{model.files} files, {size_text(model.size)}, commit {commit}"
    name = printable(model.key)
    if model.state == "cached":
        return Text(f"{name}: already cached ({what})")
    if model.state == "planned":
        fetches = [a for a in report.plan.actions if isinstance(a, Fetch) and a.repo == model.repo]
        need = sum(fetch.size - fetch.have for fetch in fetches)
        noun = "file" if len(fetches) == 1 else "files"
        return Text(f"{name}: {size_text(need)} in {len(fetches)} {noun} to fetch (of {what})")
    line = Text(f"{name}: ")
    line.append("pulled", "green")
    speed = ""
    if model.fetched:
        speed = f" at {size_text(int(model.fetched / max(model.seconds, 0.001)))}/s"
    took = duration_text(model.seconds) if model.seconds >= 1 else f"{model.seconds:.1f} s"
    line.append(f", {size_text(model.fetched)} fetched in {took}{speed} ({what})")
    line.append(f"\n  {printable(model.path or '')}", "dim")
    return line


def _print_files(report: PullReport) -> None:
    actions = [action for action in report.plan.actions if isinstance(action, Fetch | Link)]
    if not actions:
        return
    columns = ("TO FETCH", "HAVE", "FILE", "WHY")
    table = plain_table(*columns, numbers=columns[:2], folded=columns[2:])
    several = len({action.repo for action in actions}) > 1
    for action in actions:
        fetch = action if isinstance(action, Fetch) else None
        name = f"{action.repo}: {action.file}" if several else action.file
        table.add_row(
            size_text(fetch.size - fetch.have) if fetch else "link",
            size_text(fetch.have) if fetch and fetch.have else NOTHING,
            printable(name),
            printable(action.reason),
        )
    console().print(table)


def ask_which(status: Status) -> str:
    """Show the configured models with numbers on stderr and return what is typed.

    Raises:
        KeyboardInterrupt, EOFError: nothing is chosen.
    """
    out = console(sys.stderr)
    columns = ("", "MODEL", "STATE", "DOWNLOAD")
    table = plain_table(*columns, numbers=("", "DOWNLOAD"), folded=("MODEL",))
    for number, model in enumerate(status.models, 1):
        left = None if model.expected_size is None else max(0, model.expected_size - model.size)
        table.add_row(
            str(number),
            printable(model.key),
            Text(model.state, STATE_COLORS[model.state]),
            NOTHING if left is None or model.state == "cached" else size_text(left),
        )
    out.print(table)
    print("Which to pull? (1,3 or 1-3 or all; nothing to leave): ", end="", file=sys.stderr)
    sys.stderr.flush()
    return sys.stdin.readline()
