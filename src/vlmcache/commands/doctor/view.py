"""`doctor` for people: a line for each check, those with problems first, and what to type."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.text import Text

from vlmcache.cache.state import Finding
from vlmcache.change.plan import Plan, SetAccess
from vlmcache.commands.doctor.results import CheckResult, check_results, summary
from vlmcache.commands.doctor.values import Diagnosis
from vlmcache.show.console import console
from vlmcache.show.prose import whole
from vlmcache.show.rows import print_rows, wrapped
from vlmcache.show.tables import SEVERITY_COLORS
from vlmcache.show.text import printable
from vlmcache.units import counted

_COLORS = {"failed": "bold red", "warning": "yellow", "ok": "green"}
_WORDS = {"error": "failed", "warning": "warning", "info": "note"}
_OUTCOME, _NAME = 9, 14
_PROGRAMS = ("vlmcache ", "sudo ", "pip ", "uv ", "pipx ", "mv ", "mkdir ", "umask ")


def show(diagnosis: Diagnosis, *, verbose: bool = False) -> None:
    """Print the diagnosis; of the permissions alone if these were asked about."""
    out = console()
    if diagnosis.plan is not None:
        _show_access(out, diagnosis, diagnosis.plan, verbose=verbose)
        out.print()
        if not diagnosis.findings:
            out.print("No problems found")
        for finding in diagnosis.findings:
            start = Text(_WORDS[finding.severity].ljust(12), SEVERITY_COLORS[finding.severity])
            _print_finding(out, finding, start)
        return
    results = check_results(diagnosis)
    print_rows(out, [Text(summary(results), "bold"), Text()])
    for result in results:
        _print_result(out, result)
    others = [fact for fact in diagnosis.paths if fact.name not in ("cache", "config", "vlmcache")]
    lines = [f"{name}={value}" for name, value in diagnosis.variables.items()]
    if verbose:
        lines += [f"{fact.name}: {fact.path} ({fact.source})" for fact in others]
    if lines:
        out.print("\nSettings")
    for line in lines:
        print_rows(out, wrapped(out, whole(printable(line)), 2))


def _print_result(out: Console, result: CheckResult) -> None:
    start = Text.assemble(
        (result.outcome.ljust(_OUTCOME), _COLORS[result.outcome]), result.name.ljust(_NAME)
    )
    if not result.findings:
        indent = _OUTCOME + _NAME
        first, space, rest = printable(result.fact).partition(" (")
        # A path has its blanks kept together; what follows it may be folded.
        fact = f"{whole(first) if '/' in first[:1] else first}{space}{rest}"
        print_rows(out, wrapped(out, fact, indent, first=start))
    for finding in result.findings:
        _print_finding(out, finding, start)
        start = Text()


def _print_finding(out: Console, finding: Finding, start: Text) -> None:
    """Print what is wrong after the beginning of a line, and below it what to do."""
    indent = start.cell_len or _OUTCOME + _NAME
    text = Text.assemble(printable(finding.detail), (f" [{finding.code}]", "dim"))
    print_rows(out, wrapped(out, text, indent, first=start))
    if finding.remedy:
        remedy = printable(finding.remedy)
        command = remedy.startswith(_PROGRAMS)
        print_rows(out, wrapped(out, Text(whole(remedy) if command else remedy, "bold"), indent))


def _line(out: Console, label: str, text: str, style: str = "dim") -> None:
    print_rows(out, wrapped(out, text, 14, first=Text(label, style)))


def _show_access(out: Console, diagnosis: Diagnosis, plan: Plan, *, verbose: bool) -> None:
    """Print what has to change, or has changed, in the cache's permissions."""
    cache = diagnosis.paths[0]
    _line(out, "cache", f"{printable(cache.path)} ({cache.source})")
    shared = diagnosis.shared
    if shared is not None:
        members = ", ".join(shared.members) or "nobody"
        _line(out, "group", f"{printable(shared.group)}: {printable(members)}")
    undone = {outcome.path for outcome in diagnosis.receipt.undone} if diagnosis.receipt else set()
    counts = Counter(
        (action.kind, action.reason)
        for action in plan.actions
        if isinstance(action, SetAccess) and action.path not in undone
    )
    label = "change" if diagnosis.receipt is None else "changed"
    for (kind, reason), count in counts.items():
        _line(out, label, f"{counted(count, kind)}: {reason}")
    if verbose:
        for action in plan.actions:
            if isinstance(action, SetAccess):
                print_rows(out, [Text(f"  {printable(action.path)}  {action.reason}")])
    for outcome in diagnosis.receipt.undone if diagnosis.receipt else ():
        text = printable(outcome.detail or outcome.path)
        _line(out, outcome.result, text, "red")
    for alone in plan.kept:
        _line(out, "left alone", f"{printable(alone.path)}: {alone.reason}")
