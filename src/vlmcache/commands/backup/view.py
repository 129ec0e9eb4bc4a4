"""`backup` and `restore` for people."""

from __future__ import annotations

from typing import IO

from vlmcache.change.plan import Restore
from vlmcache.commands.backup.values import STREAM, Backup, Form, Restored
from vlmcache.show.console import console
from vlmcache.show.prose import whole
from vlmcache.show.tables import labelled, show_cache
from vlmcache.show.text import printable
from vlmcache.units import counted, pace_text, size_text


def show_backup(value: Backup, *, stream: IO[str]) -> None:
    """Print what was saved."""
    out = console(stream)
    speed = ""
    if value.uploaded.size and not value.dry_run:
        speed = f" in {pace_text(value.uploaded.size, value.seconds)}"
    verb = "Would save" if value.dry_run else "Saved"
    place = _place(value.form, "stdout" if value.destination == STREAM else value.destination)
    new = size_text(value.uploaded.size) if value.uploaded.blobs else "nothing new"
    out.print(f"{verb} {_repos(value.repos)} to {place}: {new}{speed}")
    if value.skipped.blobs:
        blobs, size = counted(value.skipped.blobs, "blob"), size_text(value.skipped.size)
        out.print(f"{blobs}, {size}, there already")
    now = "would be" if value.dry_run else "is now"
    for change in value.refs:
        if change.old is not None:
            line = f"{change.repo}: {change.ref} {now} {change.commit[:12]}, was {change.old[:12]}"
            out.print(printable(line))


def show_restore(value: Restored, *, verbose: bool = False) -> None:
    """Print what was restored, or would be."""
    out = console()
    if value.receipt is None:
        show_cache(out, value.cache)
    blobs = planned = [action for action in value.plan.actions if isinstance(action, Restore)]
    verb = "Would restore"
    if value.receipt is not None:
        verb = "Restored"
        done = {step.path for step in value.receipt.outcomes if step.result == "done"}
        blobs = [action for action in blobs if action.path in done]
    size = size_text(sum(action.size for action in blobs))
    place = _place(value.form, "stdin" if value.source == STREAM else value.source)
    restored = f"{verb} {_repos(value.repos)} from {place}: {counted(len(blobs), 'blob')}, {size}"
    if value.skipped.blobs:
        restored += f"; {counted(value.skipped.blobs, 'blob')} there already"
    out.print(restored)
    if verbose or value.receipt is None:
        for action in planned:
            line = f"{whole(printable(action.path))}  {action.reason}"
            out.print(labelled(f"{size_text(action.size):>8}", line, label_style=""))


def _place(form: Form, name: str) -> str:
    words = {"tar.gz": "tar, compressed with gzip,", "tar.zst": "tar, compressed with Zstandard,"}
    return f"the {words.get(form, form)} {whole(printable(name))}"


def _repos(repos: tuple[str, ...]) -> str:
    return printable(repos[0]) if len(repos) == 1 else counted(len(repos), "repo")
