"""`backup` and `restore` for people."""

from __future__ import annotations

from typing import IO

from rich.text import Text

from vlmcache.change.plan import Restore
from vlmcache.commands.backup.values import Backup, Restored
from vlmcache.show.console import console
from vlmcache.show.tables import show_cache
from vlmcache.show.text import printable
from vlmcache.units import pace_text, size_text


def show_backup(value: Backup, *, stream: IO[str]) -> None:
    """Print what was saved."""
    out = console(stream)
    there = ""
    if value.skipped.blobs:
        size = size_text(value.skipped.size)
        there = f"; {_blobs(value.skipped.blobs)}, {size}, there already"
    speed = ""
    if value.uploaded.size:
        speed = f" in {pace_text(value.uploaded.size, value.seconds)}"
    saved = f"Saved {_repos(value.repos)}, {size_text(value.uploaded.size)}{speed}"
    out.print(Text(f"{saved}: {printable(value.destination)}{there}"), soft_wrap=True)
    for one in value.refs:
        if one.old is not None:
            line = f"{one.repo}: {one.ref} is now {one.commit[:12]}, was {one.old[:12]}"
            out.print(Text(printable(line)), soft_wrap=True)


def show_restore(value: Restored, *, verbose: bool = False) -> None:
    """Print what was restored, or would be."""
    out = console()
    if value.receipt is None:
        show_cache(out, value.cache)
    blobs = [action for action in value.plan.actions if isinstance(action, Restore)]
    size = size_text(value.plan.needs)
    if verbose or value.receipt is None:
        for action in blobs:
            line = f"{size_text(action.size):>8}  {printable(action.path)}  {action.reason}"
            out.print(Text(line), soft_wrap=True)
    verb = "To restore" if value.receipt is None else "Restored"
    there = value.skipped.blobs
    count = len(blobs)
    if value.receipt is not None:
        done = {one.path for one in value.receipt.outcomes if one.result == "done"}
        count = sum(action.path in done for action in blobs)
        size = size_text(sum(action.size for action in blobs if action.path in done))
    out.print(
        Text(
            f"{verb}: {_repos(value.repos)}, {_blobs(count)}, {size}"
            f"{f'; {_blobs(there)} there already' if there else ''}."
        ),
        soft_wrap=True,
    )


def _blobs(count: int) -> str:
    return "1 blob" if count == 1 else f"{count} blobs"


def _repos(repos: tuple[str, ...]) -> str:
    return printable(repos[0]) if len(repos) == 1 else f"{len(repos)} repos"
