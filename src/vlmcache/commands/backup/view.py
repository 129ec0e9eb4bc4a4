"""`backup` and `restore` for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import IO

from rich.console import Console

from vlmcache.change.plan import Restore
from vlmcache.commands.backup.values import STREAM, Backup, Form, Restored
from vlmcache.show.console import console
from vlmcache.show.prose import whole
from vlmcache.show.tables import labelled, plain_table, show_cache
from vlmcache.show.text import printable
from vlmcache.units import counted, pace_text, size_text

_MOST_ROWS = 20


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
        _show_planned(out, planned, verbose=verbose)


def _show_planned(out: Console, planned: Sequence[Restore], *, verbose: bool) -> None:
    """Print how much of each repo has to be restored and why; each blob too if `verbose`."""
    groups: dict[tuple[str, str], list[Restore]] = defaultdict(list)
    for action in planned:
        groups[action.repo, action.reason].append(action)
    rows = [
        (sum(action.size for action in actions), len(actions), repo, reason)
        for (repo, reason), actions in groups.items()
    ]
    rows.sort(key=lambda row: (-row[0], *row[2:]))
    table = plain_table("SIZE", "BLOBS", "REPO", "WHY", numbers=("SIZE", "BLOBS"), folded=("REPO",))
    for size, count, repo, reason in rows[:_MOST_ROWS]:
        table.add_row(size_text(size), str(count), printable(repo), reason)
    if rows:
        out.print(table)
    if len(rows) > _MOST_ROWS:
        out.print(f"and {len(rows) - _MOST_ROWS} more", style="dim")
    if verbose:
        for action in sorted(planned, key=lambda action: (-action.size, action.path)):
            line = f"{whole(printable(action.path))}  {action.reason}"
            out.print(labelled(f"{size_text(action.size):>8}", line, label_style=""))


def _place(form: Form, name: str) -> str:
    words = {"tar.gz": "tar, compressed with gzip,", "tar.zst": "tar, compressed with Zstandard,"}
    return f"the {words.get(form, form)} {whole(printable(name))}"


def _repos(repos: tuple[str, ...]) -> str:
    return printable(repos[0]) if len(repos) == 1 else counted(len(repos), "repo")
