"""`undo` and `trash` for people."""

from __future__ import annotations

from datetime import datetime, timezone

from rich.console import Console
from rich.text import Text

from vlmcache import units
from vlmcache.commands.trash.values import TrashedRemoval, TrashReport, UndoReport
from vlmcache.show.console import console
from vlmcache.show.prose import whole
from vlmcache.show.tables import SEVERITY_COLORS, hanging, labelled, plain_table, show_cache
from vlmcache.show.text import ago, printable
from vlmcache.units import counted, size_text

_SHOWN = 20
_NAMES = 3


def show_undo(report: UndoReport, *, verbose: bool = False) -> None:
    """Print what would be or was restored."""
    out = console()
    if report.receipt is None or verbose:
        show_cache(out, report.cache)
    removed = ago(report.removed_at, datetime.now(timezone.utc))
    begin = "Would restore" if report.receipt is None else "Restored"
    undone = {outcome.path for outcome in report.receipt.undone} if report.receipt else set()
    if report.receipt is None or len(undone) < len(report.items):
        text = Text(f"{begin} ").append(whole(_names(report.names, verbose=verbose)))
        text.append(f", {size_text(report.size)}, removed {removed}.")
        out.print(hanging(text, 0))
    merged = [item for item in report.items if item.step == "merge"]
    if merged:
        out.print(labelled("Note", f"{counted(len(merged), 'item')} had come back: they stay"))
    if verbose:
        for item in report.items:
            out.print(hanging(Text(f"{item.step} {whole(printable(item.path))}"), 2))
    for outcome in report.receipt.undone[:_SHOWN] if report.receipt is not None else ():
        line = Text(outcome.result, "red").append(f" {whole(printable(outcome.path))}")
        out.print(hanging(line.append(f"  {printable(outcome.detail or '')}", "dim"), 2))
    for finding in report.findings[1:]:
        text = Text(printable(finding.detail), SEVERITY_COLORS[finding.severity])
        out.print(labelled("Warning", text))


def _names(names: tuple[str, ...], *, verbose: bool) -> str:
    shown = names if verbose else names[:_NAMES]
    words = ", ".join(map(printable, shown)) or "what was removed"
    return words + units.and_more(len(names) - len(shown))


def show_trash(report: TrashReport, *, verbose: bool = False) -> None:
    """Print what is in the trash, the latest first, or what emptying it has given back."""
    out = console()
    if report.receipt is not None:
        if report.removals or report.receipt.outcomes:
            count = counted(len(report.removals) - len(report.receipt.undone), "removal")
            out.print(f"Emptied the trash of {count}, freed {size_text(report.receipt.freed)}.")
        else:
            out.print("The trash is empty.")
        return
    show_cache(out, report.cache)
    if not report.removals:
        out.print("The trash is empty.")
        return
    shown = report.removals if verbose else report.removals[:_SHOWN]
    _show_rows(out, shown, verbose=verbose)
    if len(report.removals) > len(shown):
        out.print(f"and {len(report.removals) - len(shown)} more (-v shows all)")
    out.print()
    out.print(labelled("Frees", f"{size_text(report.frees)} when it is emptied"))
    for words in (("undo", report.removals[0].id), ("trash", "--empty")):
        out.print(labelled("Next", whole(units.command(*words))))


def _show_rows(out: Console, rows: tuple[TrashedRemoval, ...], *, verbose: bool) -> None:
    now = datetime.now(timezone.utc)
    cells = [
        (
            row.id,
            ago(row.removed_at, now),
            size_text(row.size_on_disk),
            _left(row),
            _names(row.names, verbose=verbose) + ("" if row.complete else " (interrupted)"),
        )
        for row in rows
    ]
    columns = ("ID", "REMOVED", "SIZE", "LEFT", "WHAT")
    width = sum(max(len(cell[place]) for cell in (columns, *cells)) + 2 for place in range(4))
    if out.width - width >= 24:
        table = plain_table(*columns, numbers=("SIZE",), folded=("WHAT",))
        for cell in cells:
            table.add_row(*cell)
        out.print(table)
        return
    for name, removed, size, left, what in cells:
        out.print(labelled(name, f"{what}: {size}, removed {removed}, {left} left", label_style=""))


def _left(row: TrashedRemoval) -> str:
    days = row.days_left
    return counted(round(days), "day") if days >= 1 else counted(int(days * 24), "hour")
