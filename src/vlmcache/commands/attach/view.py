"""`attach` and `detach` for people: what is linked, and what became of it."""

from __future__ import annotations

from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmcache.change.plan import Kept
from vlmcache.commands.attach.values import AttachedRepo, AttachReport
from vlmcache.show.console import console
from vlmcache.show.tables import hanging, labelled, plain_table, process_text, show_cache
from vlmcache.show.text import printable
from vlmcache.units import and_more, counted, size_text

_COLORS = {"failed": "red", "planned": "dim"}
_MOST_ROWS = 20
_MOST_KEPT = 5


def show(
    value: AttachReport,
    *,
    detached: bool = False,
    verbose: bool = False,
    stream: IO[str] | None = None,
) -> None:
    """Print what would be or was linked into a base, or what no longer is."""
    out = console(stream)
    planned = value.receipt is None
    if planned:
        show_cache(out, value.cache)
    if value.base is not None:
        out.print(Text(f"Base {printable(value.base)}", "dim"), soft_wrap=True)
    if value.repos:
        out.print(_table(value.repos, verbose=verbose))
        out.print()
    done = [repo for repo in value.repos if repo.error is None]
    models, size = counted(len(done), "model"), size_text(sum(repo.size for repo in done))
    if detached:
        words = "Would detach" if planned else "Detached"
        text = (
            f"{models}; {size} stay in the base" if value.repos else "nothing: no link leads there"
        )
    else:
        words = "Would attach" if planned else "Attached"
        text = f"{models}: {size} of the base, which take no room here"
        if not value.repos:
            text = "nothing new"
        if value.unchanged:
            were = "was" if value.unchanged == 1 else "were"
            text += f"; {counted(value.unchanged, 'model')} {were} attached before"
    out.print(labelled(words, text, width=12))
    _show_kept(out, value.plan.kept, verbose=verbose)
    for kept in value.in_use:
        out.print(hanging(Text(f"in use: {printable(kept.repo or kept.path)}"), 2))
        for process in kept.processes[:_MOST_KEPT]:
            out.print(hanging(Text(f"  {process_text(process)}", "dim"), 4))


def _table(repos: tuple[AttachedRepo, ...], *, verbose: bool) -> Table:
    table = plain_table("MODEL", "SIZE", "LINKS", "", numbers=("SIZE", "LINKS"), folded=("MODEL",))
    ordered = sorted(repos, key=lambda repo: (repo.error is None, -repo.size, repo.name))
    for repo in ordered if verbose else ordered[:_MOST_ROWS]:
        words = repo.state if repo.error is None else f"left out: {repo.error.message}"
        table.add_row(
            printable(repo.name),
            size_text(repo.size),
            str(repo.blobs),
            Text(printable(words), _COLORS.get(repo.state, "green")),
        )
    if len(ordered) > _MOST_ROWS and not verbose:
        table.add_row(f"and {len(ordered) - _MOST_ROWS} more", "", "", "")
    return table


def _show_kept(out: Console, kept: tuple[Kept, ...], *, verbose: bool) -> None:
    shown = kept if verbose else kept[:_MOST_KEPT]
    for item in shown:
        text = f"{printable(item.repo or item.path)}: {printable(item.reason)}"
        out.print(labelled("Left alone", Text(text), width=12))
    more = and_more(len(kept) - len(shown))
    if more:
        out.print(labelled("", Text(more.strip(" ,")), width=12))
