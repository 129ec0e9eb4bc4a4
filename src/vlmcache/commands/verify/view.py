"""`verify` for people: what is damaged, what lacks, what cannot be judged, and how fast it was."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from vlmcache.change.plan import Fetch, Plan
from vlmcache.commands.verify.values import Damage, Verification
from vlmcache.show.console import console
from vlmcache.show.tables import SEVERITY_COLOURS, show_cache
from vlmcache.show.text import printable
from vlmcache.units import pace_text, size_text

_SHOWN = 20


def show(value: Verification, *, verbose: bool = False) -> None:
    """Print what was found."""
    out = console()
    most = None if verbose else _SHOWN
    for damage in value.damaged[:most]:
        _show_damage(out, damage)
    _show_rest(out, len(value.damaged), most)
    for missing in value.missing[:most]:
        line = Text("missing  ", "yellow")
        what = "nothing of it is there" if missing.file == "*" else printable(missing.file)
        line.append(f"{printable(missing.repo)}@{printable(missing.revision[:12])}: {what}", "none")
        _print(out, line)
    _show_rest(out, len(value.missing), most)
    for one in value.unverifiable[:most]:
        line = Text("unverifiable  ", "yellow")
        line.append(printable(one.path), "none")
        line.append(f"  {printable(one.reason)}", "dim")
        _print(out, line)
    _show_rest(out, len(value.unverifiable), most)
    for finding in value.findings[:most]:
        line = Text(f"{finding.severity}  ", SEVERITY_COLOURS[finding.severity])
        line.append(f"{printable(finding.repo or '')}: {printable(finding.detail)}", "none")
        _print(out, line)
    _show_rest(out, len(value.findings), most)
    _print(out, Text(_summary(value)))
    if value.plan is not None:
        if value.receipt is None:
            show_cache(out, value.cache)
        _show_plan(out, value.plan, done=value.receipt is not None)
    if value.receipt is not None and value.receipt.outcomes:
        done = [one for one in value.receipt.outcomes if one.result in ("done", "absent")]
        fetched = size_text(value.receipt.fetched)
        _print(
            out, Text(f"Repaired {len(done)} of {len(value.receipt.outcomes)}, {fetched} fetched.")
        )


def _show_plan(out: Console, plan: Plan, *, done: bool) -> None:
    if not plan.actions:
        _print(out, Text("Nothing to repair."))
        return
    for action in () if done else plan.actions:
        size = ""
        if isinstance(action, Fetch):
            size = f" {size_text(action.size - action.have)}"
        line = Text(f"{action.__struct_config__.tag}{size}  ")
        line.append(printable(action.path))
        line.append(f"  {printable(action.reason)}", "dim")
        _print(out, line)
    if not done:
        _print(out, Text(f"To fetch: {size_text(plan.needs)}."))


def _summary(value: Verification) -> str:
    parts = []
    if value.checked or not value.remembered:
        pace = pace_text(value.bytes, value.seconds)
        parts.append(f"Verified {_files(value.checked)}, {size_text(value.bytes)} in {pace}")
    if value.remembered:
        size = size_text(value.remembered_bytes)
        parts.append(f"{_files(value.remembered)}, {size}, verified before and unchanged since")
    if not (value.damaged or value.missing):
        parts.append("all as it should be" if not value.unverifiable else "no damage found")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _show_damage(out: Console, damage: Damage) -> None:
    line = Text("damaged  ", "bold red")
    line.append(f"{printable(damage.repo)}: {printable(damage.detail)}", "none")
    line.append(f"\n  {printable(damage.path)}", "dim")
    if damage.expected is not None and damage.actual is not None:
        line.append(f"\n  expected {damage.expected}\n  actual   {damage.actual}", "dim")
    _print(out, line)


def _show_rest(out: Console, count: int, most: int | None) -> None:
    if most is not None and count > most:
        _print(out, Text(f"  and {count - most} more (-v shows all)", "dim"))


def _print(out: Console, line: Text) -> None:
    # Whole lines for whoever reads a pipe.
    out.print(line, soft_wrap=not out.is_terminal)
