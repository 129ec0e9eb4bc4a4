"""`move` for people: what goes where, and what became of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmcache.cache.layout import name_by_path, typed_name
from vlmcache.cache.owners import fix_access, sharing_group
from vlmcache.cache.usage import UNSEEN_OUTSIDE, hidden_words
from vlmcache.change.move_results import DriveUse, MovedRepo
from vlmcache.change.plan import Move
from vlmcache.change.space import free_words
from vlmcache.commands.move.values import MoveReport, RecallReport
from vlmcache.show.console import console
from vlmcache.show.prose import whole
from vlmcache.show.tables import hanging, labelled, plain_table, process_text, show_cache
from vlmcache.show.text import NOTHING, printable
from vlmcache.units import counted, pace_text, size_text

_COLORS = {"failed": "red", "planned": "dim"}
_WORDS = {
    "moved": "moved",
    "linked": "linked: an interrupted move is finished",
    "finished": "finished: what was set aside is removed",
    "taken-back": "taken back: it is where it was",
    "relinked": "linked to where it is now",
    "recalled": "back in the cache",
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
    freed = value.plan.frees if value.receipt is None else value.receipt.freed
    if relinked:
        words = "Would rewrite" if planned else "Rewrote"
        links = counted(len(value.ids), "link")
        out.print(Text(f"{words} {links}: {printable(value.destination)}"), soft_wrap=True)
    elif not value.repos:
        out.print("Nothing to take back." if undone else "Nothing to move.")
    elif undone:
        words = "Would free" if planned else "Freed"
        text = f"{size_text(freed)} at {whole(printable(value.destination))}"
        out.print(labelled(words, text, width=10))
    elif planned:
        text = f"{size_text(value.plan.needs)} at {whole(printable(value.destination))}"
        out.print(labelled("Needs", text))
        out.print(
            labelled("Frees", f"{size_text(value.plan.frees)} at {whole(printable(value.cache))}")
        )
    else:
        took = f" in {pace_text(value.copied, value.seconds)}" if value.copied else ""
        text = f"Copied {size_text(value.copied)}{took}, freed {size_text(freed)}."
        out.print(Text(text), soft_wrap=True)
    less = free_words(value.receipt) if value.receipt is not None else None
    if less is not None:
        out.print(labelled("Note", less))
    _show_kept(out, value, verbose=verbose)
    if value.repos and not undone and not relinked and not value.in_use:
        _show_setting(out, value)
        _show_group(out, value)


def show_recall(value: RecallReport, *, verbose: bool = False) -> None:
    """Print what would come or came back to the cache."""
    out = console()
    if value.receipt is None:
        show_cache(out, value.cache)
    if value.repos:
        table = plain_table(
            "MODEL", "SIZE", "FROM", "STATE", numbers=("SIZE",), folded=("MODEL", "FROM", "STATE")
        )
        for repo in value.repos:
            size = size_text(repo.size) if repo.size else NOTHING
            place = printable(os.path.dirname(repo.path))
            name = printable(typed_name(repo.type, repo.repo))
            table.add_row(name, size, place, _state(repo, "to recall", "not recalled"))
        out.print(table)
        out.print()
    if not value.repos:
        out.print("Nothing to recall.")
    elif value.receipt is None:
        where = whole(printable(value.cache))
        out.print(labelled("Needs", f"{size_text(value.plan.needs)} at {where}"))
        out.print(labelled("Frees", f"{size_text(value.plan.frees)} where they are now"))
    _show_drives(out, value.drives, value.seconds)
    _show_kept(out, value, verbose=verbose)


def _show_drives(out: Console, drives: Sequence[DriveUse], seconds: float) -> None:
    """Print what was freed on which drive, and what was copied to it."""
    for drive in drives:
        free = "" if drive.free is None else f" ({size_text(drive.free)} free now)"
        where = f"at {whole(printable(drive.path))}{free}"
        if drive.freed:
            out.print(labelled("Freed", f"{size_text(drive.freed)} {where}"))
        if drive.copied:
            took = pace_text(drive.copied, seconds)
            out.print(labelled("Copied", f"{size_text(drive.copied)} in {took} {where}"))


def _table(value: MoveReport, *, undone: bool, relinked: bool) -> Table:
    numbers = () if undone or relinked else ("SIZE", "TO COPY")
    table = plain_table("MODEL", *numbers, "STATE", numbers=numbers, folded=("MODEL", "STATE"))
    moves = {action.path: action for action in value.plan.actions if isinstance(action, Move)}
    for repo in value.repos:
        move = moves.get(repo.path)
        cells: list[str | Text] = [printable(typed_name(repo.type, repo.repo))]
        if numbers:
            to_copy = move.size - move.have if move is not None and move.needs else 0
            cells.append(size_text(repo.size) if repo.size else NOTHING)
            cells.append(size_text(to_copy) if to_copy else NOTHING)
        planned = "to take back" if undone else "to link" if relinked else "to move"
        table.add_row(*cells, _state(repo, planned))
    return table


def _state(repo: MovedRepo, planned: str, failed: str = "not moved") -> Text:
    words = {**_WORDS, "planned": planned, "failed": failed}[repo.state]
    text = Text(words, _COLORS.get(repo.state, "green"))
    if repo.error is not None:
        text.append(f": {printable(repo.error.message)}", "default")
    return text


def _show_kept(out: Console, value: MoveReport | RecallReport, *, verbose: bool) -> None:
    """Print what stays and why, and which processes could not be seen."""
    kept = [*value.plan.kept, *value.in_use]
    if kept:
        out.print("\nStays")
    shown = kept if verbose else kept[:12]
    for item in shown:
        name = name_by_path(item.repo, item.path) if item.repo else item.path
        line = Text(whole(printable(name)))
        line.append(f"  {printable(item.reason)}", "dim")
        for process in item.processes[:3]:
            line.append(f"\n  {process_text(process)}", "yellow")
        out.print(hanging(line, 2))
    if len(kept) > len(shown):
        out.print(f"  and {len(kept) - len(shown)} more (-v shows all)")
    if value.hidden_processes:
        out.print(labelled("Note", hidden_words(value.hidden_processes)))
    if value.contained:
        out.print(labelled("Note", UNSEEN_OUTSIDE))


def _show_group(out: Console, value: MoveReport) -> None:
    """Show how a destination is shared with the group that shares the cache, if it is not yet."""
    group = sharing_group(value.cache)
    if group is not None and sharing_group(value.destination) != group:
        out.print(Text(f"\n{group} shares the cache, and not the destination. To share it too:"))
        fix = fix_access(value.destination, group)
        out.print(Text(f"  {printable(fix)}", "bold"), soft_wrap=True)


def _show_setting(out: Console, value: MoveReport) -> None:
    """Show the setting with which programs find the models, or send new downloads there."""
    words = "No links stay. Programs find the models with this setting only:"
    if value.link:
        words = "Links stay in the cache. To send new downloads there too:"
    out.print(Text(f"\n{words}"))
    out.print(Text(f"  {printable(value.setting)}", "bold"), soft_wrap=True)
