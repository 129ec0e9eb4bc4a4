"""`move` for people: what goes where, and what became of it."""

from __future__ import annotations

from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmcache.change.plan import Move
from vlmcache.commands.move.values import MovedRepo, MoveReport
from vlmcache.show.console import console
from vlmcache.show.tables import labelled, process_text, show_cache
from vlmcache.show.text import NOTHING, printable
from vlmcache.units import pace_text, size_text

_COLORS = {"failed": "red", "planned": "dim"}
_WORDS = {
    "moved": "moved",
    "linked": "linked: an interrupted move is finished",
    "finished": "finished: what was set aside is removed",
    "taken-back": "taken back: it is where it was",
    "relinked": "linked to where it is now",
    "failed": "not moved",
}


def show(
    value: MoveReport,
    *,
    undone: bool = False,
    relinked: bool = False,
    verbose: bool = False,
    stream: IO[str] | None = None,
) -> None:
    """Print what would be or was moved, taken back, or linked to where it is now."""
    out = console(stream)
    if value.receipt is None:
        show_cache(out, value.cache)
    if value.repos:
        out.print(_table(value, undone=undone, relinked=relinked))
        out.print()
    planned = value.receipt is None
    if relinked:
        count = len([repo for repo in value.repos if repo.error is None])
        words = "1 link" if count == 1 else f"{count} links"
        words = f"Would rewrite {words}" if planned else f"Rewrote {words}"
        out.print(Text(f"{words}: {printable(value.destination)}"), soft_wrap=True)
    elif not value.repos:
        out.print("Nothing to take back." if undone else "Nothing to move.")
    elif undone:
        words = "Would free" if planned else "Freed"
        count = value.plan.frees if planned else _freed(value)
        out.print(
            labelled(words, f"{size_text(count)} at {printable(value.destination)}", width=10)
        )
    elif planned:
        text = f"{size_text(value.plan.needs)} at {printable(value.destination)}"
        out.print(labelled("Needs", text))
        out.print(labelled("Frees", f"{size_text(value.plan.frees)} at {printable(value.cache)}"))
    else:
        took = f" in {pace_text(value.copied, value.seconds)}" if value.copied else ""
        text = f"Copied {size_text(value.copied)}{took}, freed {size_text(_freed(value))}."
        out.print(Text(text), soft_wrap=True)
    _show_kept(out, value, verbose=verbose)
    if value.hidden_processes:
        count = value.hidden_processes
        noun = "process" if count == 1 else "processes"
        text = f"{count} {noun} could not be checked, and may use some of this"
        out.print(labelled("Note", text))
    if value.repos and not undone and not relinked and not value.in_use:
        _show_setting(out, value)


def _freed(value: MoveReport) -> int:
    return value.receipt.freed if value.receipt is not None else 0


def _table(value: MoveReport, *, undone: bool, relinked: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("MODEL", overflow="fold")
    sized = not undone and not relinked
    if sized:
        table.add_column("SIZE", justify="right", no_wrap=True)
        table.add_column("TO COPY", justify="right", no_wrap=True)
    table.add_column("STATE", overflow="fold")
    moves = {action.path: action for action in value.plan.actions if isinstance(action, Move)}
    for repo in value.repos:
        move = moves.get(repo.path)
        cells: list[str | Text] = [printable(repo.repo)]
        if sized:
            to_copy = move.size - move.have if move is not None and move.needs else 0
            cells.append(size_text(repo.size) if repo.size else NOTHING)
            cells.append(size_text(to_copy) if to_copy else NOTHING)
        planned = "to take back" if undone else "to link" if relinked else "to move"
        table.add_row(*cells, _state(repo, planned))
    return table


def _state(repo: MovedRepo, planned: str) -> Text:
    words = planned if repo.state == "planned" else _WORDS[repo.state]
    text = Text(words, _COLORS.get(repo.state, "green"))
    if repo.error is not None:
        text.append(f": {printable(repo.error.message)}", "default")
    return text


def _show_kept(out: Console, value: MoveReport, *, verbose: bool) -> None:
    kept = [*value.plan.kept, *value.in_use]
    if not kept:
        return
    out.print("\nStays")
    shown = kept if verbose else kept[:12]
    for item in shown:
        line = Text(f"  {printable(item.repo or item.path)}")
        line.append(f"  {printable(item.reason)}", "dim")
        for process in item.processes[:3]:
            line.append(f"\n    {process_text(process)}", "yellow")
        out.print(line)
    if len(kept) > len(shown):
        out.print(f"  and {len(kept) - len(shown)} more (-v shows all)")


def _show_setting(out: Console, value: MoveReport) -> None:
    """Show the setting with which programs find the models, or send new downloads there."""
    if value.link:
        words = "Links stay in the cache. To send new downloads there too:"
    else:
        words = "No links stay. Programs find the models with this setting only:"
    out.print(Text(f"\n{words}"))
    out.print(Text(f"  {printable(value.setting)}", "bold"), soft_wrap=True)
