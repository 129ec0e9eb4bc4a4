"""`backup` and `restore` for people."""

from __future__ import annotations

from typing import IO

from rich.text import Text

from vlmcache.change.plan import Restore
from vlmcache.commands.backup.values import Backup, Restored
from vlmcache.show.console import console
from vlmcache.show.tables import show_cache
from vlmcache.show.text import printable
from vlmcache.units import counted, pace_text, size_text


def show_backup(value: Backup, *, stream: IO[str]) -> None:
    """Print what was saved."""
    out = console(stream)
    skipped = speed = ""
    if value.skipped.blobs:
        blobs, size = counted(value.skipped.blobs, "blob"), size_text(value.skipped.size)
        skipped = f"; {blobs}, {size}, there already"
    if value.uploaded.size and not value.dry_run:
        speed = f" in {pace_text(value.uploaded.size, value.seconds)}"
    verb = "To save:" if value.dry_run else "Saved"
    saved = f"{verb} {_repos(value.repos)}, {size_text(value.uploaded.size)}{speed}"
    out.print(Text(f"{saved}: {printable(value.destination)}{skipped}"), soft_wrap=True)
    now = "would be" if value.dry_run else "is now"
    for change in value.refs:
        if change.old is not None:
            line = f"{change.repo}: {change.ref} {now} {change.commit[:12]}, was {change.old[:12]}"
            out.print(Text(printable(line)), soft_wrap=True)


def show_restore(value: Restored, *, verbose: bool = False) -> None:
    """Print what was restored, or would be."""
    out = console()
    if value.receipt is None:
        show_cache(out, value.cache)
    blobs = [action for action in value.plan.actions if isinstance(action, Restore)]
    if verbose or value.receipt is None:
        for action in blobs:
            line = f"{size_text(action.size):>8}  {printable(action.path)}  {action.reason}"
            out.print(Text(line), soft_wrap=True)
    verb = "To restore"
    if value.receipt is not None:
        verb = "Restored"
        done = {step.path for step in value.receipt.outcomes if step.result == "done"}
        blobs = [action for action in blobs if action.path in done]
    size = size_text(sum(action.size for action in blobs))
    restored = f"{verb}: {_repos(value.repos)}, {counted(len(blobs), 'blob')}, {size}"
    if value.skipped.blobs:
        restored += f"; {counted(value.skipped.blobs, 'blob')} there already"
    out.print(Text(f"{restored}."), soft_wrap=True)


def _repos(repos: tuple[str, ...]) -> str:
    return printable(repos[0]) if len(repos) == 1 else counted(len(repos), "repo")
