"""`pull` for people: the plan, then what was done; and the picker."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vlmcache.change.plan import Fetch, Link, Plan, Receipt, ReleaseShared, Remove, RemoveTree
from vlmcache.commands.pull.plan import VariantError
from vlmcache.commands.pull.values import LeftOut, PulledModel, PullReport
from vlmcache.commands.status.values import ModelStatus, Status
from vlmcache.show.choices import Choice, Choices
from vlmcache.show.console import console, print_line
from vlmcache.show.prose import whole
from vlmcache.show.tables import SEVERITY_COLORS, hanging, plain_table, show_cache, state_text
from vlmcache.show.text import NOTHING, printable
from vlmcache.units import counted, duration_text, size_text

if TYPE_CHECKING:
    from vlmcache.commands.remove.values import Removal

_MOST_REASONS = 5
_MOST_FINDINGS = 5


def show(report: PullReport, *, verbose: bool = False) -> None:
    """Print what was done, or what would be."""
    out = console()
    if report.receipt is None:
        show_cache(out, report.cache)
    for model in report.models:
        if model.state != "failed":
            print_line(out, _line(model, report))
            if verbose and model.path is not None:
                out.print(hanging(Text(whole(printable(model.path)), "dim"), 2))
            _print_left_out(out, model, verbose=verbose)
    _print_failed(out, report)
    _print_added(out, report)
    if verbose or report.receipt is None:
        _print_files(report)
    codes = Counter(finding.code for finding in report.findings)
    printed, remedies = Counter[str](), set[str]()
    for finding in report.findings:
        printed[finding.code] += 1
        if printed[finding.code] > _MOST_FINDINGS and not verbose:
            continue
        out = console(sys.stdout if finding.severity == "info" else sys.stderr)
        line = Text(f"{finding.severity}: ", SEVERITY_COLORS[finding.severity])
        line.append(f"{printable(finding.repo)}: " if finding.repo else "")
        line.append(printable(finding.detail))
        if finding.remedy and finding.remedy not in remedies:
            remedies.add(finding.remedy)
            line.append(f" ({printable(finding.remedy)})", "dim")
        print_line(out, line)
        left = codes[finding.code] - _MOST_FINDINGS
        if printed[finding.code] == _MOST_FINDINGS and left > 0 and not verbose:
            print_line(out, Text(f"and {left} more; -v shows them", "dim"))


def _print_failed(out: Console, report: PullReport) -> None:
    """Print why models failed, each reason once, unless the problem of the report says it all."""
    reasons: dict[tuple[str, str | None], list[str]] = {}
    for model in report.models:
        if model.error is not None:
            why = model.error.message, model.error.hint
            reasons.setdefault(why, []).append(printable(model.key))
    problem = report.problem
    if problem is not None and set(reasons) == {(problem.message, problem.hint)}:
        return
    for (message, hint), names in reasons.items():
        print_line(out, Text(f"{', '.join(names)}: ", "red") + Text(printable(message)))
        if hint:
            print_line(out, Text(f"  {printable(hint)}", "dim"))


def _print_added(out: Console, report: PullReport) -> None:
    """Print what `--add` has done."""
    verb = "would be added" if report.receipt is None else "added"
    for model in report.added:
        done = f"{verb} as {model.key} to" if model.new else f"is already {model.key} in"
        print_line(out, Text(printable(f"{model.repo}: {done} {model.path}")))
    active = next((model.active for model in report.added if model.active), None)
    if active is not None:
        print_line(
            out, Text(printable(f"In this folder {active} is read instead of that file"), "yellow")
        )


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
    facts = f"{counted(model.files, 'file')}, {size_text(model.size)}, commit {commit}"
    name = printable(f"{model.key}:{model.variant}" if model.variant else model.key)
    if model.state == "cached":
        return Text(f"{name}: already cached ({facts})")
    if model.state == "planned":
        fetches = [a for a in report.plan.actions if isinstance(a, Fetch) and a.repo == model.repo]
        files = counted(len(fetches), "file")
        return Text(f"{name}: {size_text(model.to_fetch)} in {files} to fetch (of {facts})")
    line = Text(f"{name}: ")
    line.append("pulled", "green")
    rate = size_text(int(model.fetched / max(model.seconds, 0.001)))
    speed = f" at {rate}/s" if model.fetched else ""
    took = duration_text(model.seconds) if model.seconds >= 1 else f"{model.seconds:.1f} s"
    line.append(f", {size_text(model.fetched)} fetched in {took}{speed} ({facts})")
    return line


def _print_left_out(out: Console, model: PulledModel, *, verbose: bool) -> None:
    """Print which files are not fetched and why; for a cached model only if `verbose`."""
    left = model.left_out if verbose or model.state != "cached" else ()
    by_reason: dict[str, list[LeftOut]] = {}
    for file in left:
        by_reason.setdefault(file.reason, []).append(file)
    shown = list(by_reason.items()) if verbose else list(by_reason.items())[:_MOST_REASONS]
    for reason, files in shown:
        size = size_text(sum(file.size for file in files))
        names = printable(files[0].path) if len(files) == 1 else f"{len(files)} files"
        print_line(out, Text(f"  left out: {names} ({size}): {printable(reason)}", "dim"))
    if len(shown) < len(by_reason):
        print_line(out, Text(f"  and {len(by_reason) - len(shown)} more; -v shows them", "dim"))


def _print_files(report: PullReport) -> None:
    actions = [action for action in report.plan.actions if isinstance(action, Fetch | Link)]
    if not actions:
        return
    origins = {
        (model.repo, file.path): file.source for model in report.models for file in model.origins
    }
    columns: tuple[str, ...] = ("TO FETCH", "HAVE", "FILE", "WHY")
    columns = (*columns, "FROM") if origins else columns
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
            *([printable(origins.get((action.repo, action.file), NOTHING))] if origins else ()),
        )
    console().print(table)


def choices_of(status: Status) -> Choices:
    """Return the configured models as a list to choose from."""
    room = max(0, (status.cache.free or 0) - status.cache.min_free)
    rows = [
        Choice(
            (model.key, model.repo),
            (
                printable(model.key),
                state_text(model.state, model.progress),
                size_text(model.expected_size) if model.expected_size else NOTHING,
                size_text(model.to_fetch) if model.to_fetch else NOTHING,
                _fits(model, room),
            ),
            "cached already" if model.state == "cached" else "",
            barred=model.state == "cached",
        )
        for model in status.models
    ]
    to_fetch = sum(model.to_fetch or 0 for model in status.models)
    kept = f", {size_text(status.cache.min_free)} of it kept free" if status.cache.min_free else ""
    free = f"{size_text(status.cache.free or 0)} free{kept}; all of them: {size_text(to_fetch)}"
    return Choices(
        rows,
        ("MODEL", "STATE", "SIZE", "DOWNLOAD", "FITS"),
        "pull",
        "nothing was pulled",
        lambda _numbers: "",
        room=free,
        shortened=("MODEL",),
        numbers=("SIZE", "DOWNLOAD"),
        once=True,
    )


def _fits(model: ModelStatus, room: int) -> Text:
    """Return whether a download leaves as much room as must stay free."""
    if model.state == "cached":
        return Text(NOTHING, "dim")
    if model.to_fetch is None:
        return Text("unknown", "dim")
    short = model.to_fetch - room
    return Text("yes") if short <= 0 else Text(f"no, {size_text(short)} short", "yellow")


def variants_of(error: VariantError) -> Choices:
    """Return the variants of a model as a list to choose one from."""
    return Choices(
        [Choice((name,), (printable(name), size_text(size))) for name, size in error.sizes.items()],
        ("VARIANT", "SIZE"),
        "pull",
        "nothing was pulled",
        lambda _numbers: "",
        room=f"{printable(error.repo)} has several variants",
        shortened=("VARIANT",),
        numbers=("SIZE",),
        once=True,
    )
