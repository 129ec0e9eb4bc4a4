"""`verify` for people: what is damaged, missing or cannot be judged, and how fast it was."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from vlmcache.change.plan import Fetch, Plan
from vlmcache.commands.verify.values import Damage, Missing, Verification
from vlmcache.show.console import console, print_line
from vlmcache.show.tables import SEVERITY_COLORS, show_cache
from vlmcache.show.text import printable
from vlmcache.units import counted, pace_text, size_text

_MOST_LINES = 20


def show(value: Verification, *, verbose: bool = False) -> None:
    """Print what was found."""
    out = console()
    for lines in (
        [_damage_line(damage) for damage in value.damaged],
        [_missing_line(missing) for missing in value.missing],
        [
            _line("unverifiable", "yellow", unverifiable.path, unverifiable.reason)
            for unverifiable in value.unverifiable
        ],
        [
            _line(
                finding.severity,
                SEVERITY_COLORS[finding.severity],
                f"{finding.repo or ''}: {finding.detail}",
            )
            for finding in value.findings
        ],
    ):
        shown = lines if verbose else lines[:_MOST_LINES]
        for line in shown:
            print_line(out, line)
        if len(lines) > len(shown):
            print_line(out, Text(f"  and {len(lines) - len(shown)} more (-v shows all)", "dim"))
    print_line(out, Text(_summary(value)))
    receipt = value.receipt
    if value.plan is not None:
        if receipt is None:
            show_cache(out, value.cache)
        _show_plan(out, value.plan, done=receipt is not None)
    if value.plan is not None and receipt is not None and receipt.outcomes:
        planned = {action.path for action in value.plan.actions}
        results = [step.result for step in receipt.outcomes if step.path in planned]
        done = sum(result in ("done", "absent") for result in results)
        text = f"Repaired {done} of {len(results)}"
        print_line(out, Text(f"{text}, {size_text(receipt.fetched)} fetched."))


def _show_plan(out: Console, plan: Plan, *, done: bool) -> None:
    if not plan.actions:
        print_line(out, Text("Nothing to repair."))
        return
    if done:
        return
    for action in plan.actions:
        size = f" {size_text(action.size - action.have)}" if isinstance(action, Fetch) else ""
        word = f"{action.__struct_config__.tag}{size}"
        print_line(out, _line(word, "", action.path, action.reason))
    print_line(out, Text(f"To fetch: {size_text(plan.to_fetch)}."))


def _summary(value: Verification) -> str:
    parts = []
    if value.checked or not value.remembered:
        pace = pace_text(value.bytes, value.seconds)
        parts.append(
            f"Verified {counted(value.checked, 'file')}, {size_text(value.bytes)} in {pace}"
        )
    if value.remembered:
        size = size_text(value.remembered_bytes)
        parts.append(
            f"{counted(value.remembered, 'file')}, {size}, verified before and unchanged since"
        )
    if not (value.damaged or value.missing):
        parts.append("everything is correct" if not value.unverifiable else "no damage found")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _line(word: str, style: str, text: str, why: str = "") -> Text:
    """Return a line that begins with a colored word."""
    reason = f"  {printable(why)}" if why else ""
    return Text.assemble((f"{word}  ", style), printable(text), (reason, "dim"))


def _damage_line(damage: Damage) -> Text:
    line = _line("damaged", "bold red", f"{damage.repo}: {damage.detail}")
    line.append(f"\n  {printable(damage.path)}", "dim")
    if damage.expected is not None and damage.actual is not None:
        line.append(f"\n  expected {damage.expected}\n  actual   {damage.actual}", "dim")
    return line


def _missing_line(missing: Missing) -> Text:
    file = "nothing of it is in the cache" if missing.file == "*" else missing.file
    return _line("missing", "yellow", f"{missing.repo}@{missing.revision[:12]}: {file}")
