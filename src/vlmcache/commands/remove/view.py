"""Plans and receipts of removals for people: what is removed and why, and what became of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import IO

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from vlmcache import units
from vlmcache.cache.layout import KINDS, name_by_path, parse_repo_folder, split_name, typed_name
from vlmcache.cache.usage import UNSEEN_OUTSIDE, hidden_words
from vlmcache.change.plan import (
    Action,
    Kept,
    Move,
    Outcome,
    Receipt,
    ReleaseShared,
    Remove,
    RemoveTree,
    in_use_words,
)
from vlmcache.change.space import free_words
from vlmcache.commands.remove.offered import Offer, Offered
from vlmcache.commands.remove.values import ALONG, Archive, Removal, is_of_locks
from vlmcache.errors import InUseError
from vlmcache.show.choices import Choice, Choices
from vlmcache.show.console import console
from vlmcache.show.prose import whole
from vlmcache.show.tables import (
    SEVERITY_COLORS,
    hanging,
    labelled,
    plain_table,
    process_text,
    show_cache,
)
from vlmcache.show.text import NOTHING, ago, printable
from vlmcache.units import and_list, pace_text, size_text

_SHOWN = 12
_SHOWN_ROWS = 20
_WORDS = {
    "repo": ("complete repo", "complete repos"),
    "snapshot": ("revision", "revisions"),
    "ref": ("ref", "refs"),
    "folder": ("folder", "folders"),
    "link": ("link", "links"),
    "record": ("record of its move", "records of moves"),
    "file": ("file", "files"),
    "blob": ("blob", "blobs"),
    "partial": ("partial download", "partial downloads"),
    "tree": ("listing", "listings"),
    "no-exist": ("note of absent files", "notes of absent files"),
    "stray": ("stray entry", "stray entries"),
    "leftover": ("leftover", "leftovers"),
    "side-cache": ("side cache", "side caches"),
    "shared": ("shared blob", "shared blobs"),
    "lock": ("lock", "locks"),
    "locks": ("locks", "locks"),
}
_RESULT_COLORS = {"failed": "red", "stale": "yellow", "busy": "yellow", "absent": "dim"}


class _Row(msgspec.Struct):
    """What is removed of one repo, or at one path."""

    name: str
    kinds: dict[str, int] = {}
    commits: set[str] = set()
    reasons: dict[str, None] = {}
    frees: int = 0

    @property
    def title(self) -> str:
        """The repo or path; with the commit if a single revision is removed."""
        if len(self.commits) == 1 and "repo" not in self.kinds:
            return f"{self.name}@{next(iter(self.commits))[:12]}"
        return self.name

    @property
    def what(self) -> str:
        """What is removed, in the order of the words above; locks go with anything else."""
        kinds = [kind for kind in _WORDS if kind in self.kinds]
        kinds = [kind for kind in kinds if kind not in ("lock", "locks")] or kinds
        return ", ".join(
            _WORDS[kind][0] if self.kinds[kind] == 1 else f"{self.kinds[kind]} {_WORDS[kind][1]}"
            for kind in kinds
        )

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Its line of the table."""
        size = size_text(self.frees) if self.frees else NOTHING
        return printable(self.title), self.what, size, printable("; ".join(self.reasons))


def show(removal: Removal, *, verbose: bool = False) -> None:
    """Print what would be or was removed."""
    out = console()
    if removal.receipt is None or verbose:
        show_plan(removal, verbose=verbose)
    if removal.receipt is not None:
        _show_receipt(out, removal, verbose=verbose)
        if not verbose:
            _show_warnings(out, removal)


def show_plan(removal: Removal, *, stream: IO[str] | None = None, verbose: bool = False) -> None:
    """Print the plan: a line for each thing that is removed, and what stays on purpose."""
    out = console(sys.stdout if stream is None else stream)
    if removal.cache:
        show_cache(out, removal.cache)
    if removal.receipt is not None or not isinstance(removal.problem, InUseError):
        _show_actions(out, removal, verbose=verbose)
    planned = removal.plan.kept
    kept = [*planned, *(used for used in removal.in_use if used not in planned)]
    _show_kept(out, kept, verbose=verbose)
    _show_unknown_use(out, removal)
    _show_side_caches(out, removal)
    _show_warnings(out, removal)
    if removal.hidden_processes:
        out.print(labelled("Note", hidden_words(removal.hidden_processes)))
    if removal.contained:
        out.print(labelled("Note", UNSEEN_OUTSIDE))


def _show_actions(out: Console, removal: Removal, *, verbose: bool) -> None:
    """Print what is removed or moved, and what that frees."""
    if removal.removals:
        rows = _rows(removal.removals, apart=verbose)
        shown = rows if verbose else rows[:_SHOWN_ROWS]
        _show_rows(out, shown)
        if len(rows) > len(shown):
            rest = size_text(sum(row.frees for row in rows[_SHOWN_ROWS:]))
            out.print(f"and {len(rows) - len(shown)} more, {rest} (-v shows all)")
        out.print()
    if removal.archive is not None:
        _show_moves(out, removal, removal.archive, verbose=verbose)
    elif removal.plan.actions:
        out.print(labelled("Frees", _frees_words(removal)))
        if removal.trash.why_not is not None:
            text = f"freed at once, and cannot be restored: {removal.trash.why_not}"
            out.print(labelled("Trash", text, "yellow"))
    else:
        out.print("Nothing to remove.")
    for copy in removal.copies:
        name = f"the kept {copy.precision} copy of {copy.repo}"
        out.print(labelled("Copy", printable(f"{name} is removed too, {size_text(copy.size)}")))


def _frees_words(removal: Removal) -> str:
    size = size_text(removal.plan.frees)
    if not removal.trash.kept:
        return size
    return (
        f"0 B now, {size} when the trash is emptied, in {units.counted(removal.trash.days, 'day')}"
    )


def _freed_words(receipt: Receipt) -> str:
    freed = size_text(receipt.freed)
    if receipt.trash_id is None:
        return f"freed {freed}"
    return f"{freed} freed now, {size_text(receipt.trashed)} when the trash is emptied"


def _removed_words(done: Sequence[Action], receipt: Receipt) -> str:
    """Return what was removed, which can be a part of something, or nothing if all was refused."""
    if not (done or receipt.freed):
        return "Nothing was removed"
    return f"Removed {item_count(done) or 'a part of it'}, {_freed_words(receipt)}"


def _show_moves(out: Console, removal: Removal, archive: Archive, *, verbose: bool) -> None:
    """Print what is moved to another drive, and what both drives have to say to that."""
    if archive.repos:
        why = {move.path: move for move in removal.plan.actions if isinstance(move, Move)}
        table = plain_table("MOVES", "SIZE", "WHY", numbers=("SIZE",), folded=("MOVES", "WHY"))
        shown = archive.repos if verbose else archive.repos[:_SHOWN_ROWS]
        for repo in shown:
            move = why.get(repo.path)
            reason = "an interrupted move is finished"
            if move is not None:
                reason = move.reason.partition(";")[0]
            size = size_text(repo.size) if repo.size else NOTHING
            table.add_row(printable(typed_name(repo.type, repo.repo)), size, printable(reason))
        out.print(table)
        if len(archive.repos) > len(shown):
            out.print(f"and {len(archive.repos) - len(shown)} more (-v shows all)")
        out.print()
    elif not removal.plan.actions:
        out.print("Nothing to remove or to move.")
        return
    if archive.repos:
        room = "" if archive.free is None else f", {size_text(archive.free)} free"
        needs = size_text(removal.plan.needs)
        out.print(labelled("Needs", f"{needs} at {whole(printable(archive.destination))}{room}"))
    where = f"{size_text(removal.plan.frees)} at {whole(printable(removal.cache))}"
    out.print(labelled("Frees", where))


def _show_warnings(out: Console, removal: Removal) -> None:
    for finding in removal.findings:
        text = printable(f"{finding.repo}: {finding.detail}")
        out.print(labelled("Warning", text, SEVERITY_COLORS[finding.severity]))


def _show_rows(out: Console, rows: list[_Row]) -> None:
    """Print what is removed: as a table where that fits the screen, else as sentences."""
    columns = ("REMOVES", "WHAT", "FREES", "WHY")
    cells = [row.cells for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) <= out.width:
        table = plain_table(*columns, numbers=("FREES",))
        for line in cells:
            table.add_row(*line)
        out.print(table)
        return
    for name, what, size, why in cells:
        out.print(labelled(f"{size:>8}", f"{whole(name)}: {what} ({why})", label_style=""))


def item_count(actions: Iterable[Action]) -> str:
    """Return how many things some actions remove: a model is one, with all that belongs to it."""
    types = {kind: (kind, f"{kind}s") for kind in KINDS.values()}
    counts = dict.fromkeys([*types.values(), *_WORDS.values()], 0)
    along: list[_Row] = []
    for row in _rows(actions, apart=False):
        kinds = [kind for kind in row.kinds if kind not in ALONG]
        if "repo" in kinds:
            counts[types[split_name(row.name)[0]]] += 1
        elif not kinds:
            along.append(row)
        for kind in () if "repo" in kinds else kinds:
            counts[_WORDS["file" if kind == "link" and "record" not in row.kinds else kind]] += (
                row.kinds[kind]
            )
    for row in along:
        # What belongs to no repo alone, such as a shared blob, is removed along with several.
        if not any(counts.values()) or "shared" not in row.kinds:
            kind = next(kind for kind in _WORDS if kind in row.kinds)
            counts[_WORDS[kind]] += row.kinds[kind]
    return and_list([f"{count} {words[count != 1]}" for words, count in counts.items() if count])


def choices_of(offer: Offer) -> Choices:
    """Return what can be removed as a list to choose from."""
    now = datetime.now(timezone.utc)
    usual = {thing.what for thing in offer.things} == {"model"}

    def cells(thing: Offered) -> tuple[str, ...]:
        used = thing.last_used
        at = None if used is None else datetime.fromtimestamp(used, timezone.utc)
        size = size_text(thing.size) if thing.size else NOTHING
        return size, ago(at, now), *([] if usual else [thing.what]), printable(thing.name)

    def total(numbers: Sequence[int]) -> str:
        frees, here = offer.frees(numbers)
        elsewhere = f" ({size_text(frees - here)} of it on other drives)" if frees > here else ""
        free = offer.free
        then = "" if free is None else f", then {size_text(free + here)} free"
        later = " when the trash is emptied" if offer.is_kept(offer.plan(numbers)) else ""
        return f"frees {size_text(frees)}{elsewhere}{later}{then}"

    rows = [
        Choice((thing.name,), cells(thing), thing.guard, thing.barred) for thing in offer.things
    ]
    free = offer.free
    return Choices(
        rows,
        ("SIZE", "LAST USE", *([] if usual else ["WHAT"]), "NAME"),
        "remove",
        "nothing was removed",
        total,
        title=f"Cache {printable(offer.cache_dir)}",
        room=f"{'?' if free is None else size_text(free)} free",
        shortened=("NAME",),
        numbers=("SIZE",),
    )


def _rows(actions: Iterable[Action], *, apart: bool) -> list[_Row]:
    """Return a row for each repo, or each path that is of none; the largest first.

    Args:
        actions: what is done.
        apart: whether each path has a row of its own.
    """
    rows: dict[str, _Row] = {}
    for action in actions:
        if not isinstance(action, Remove | RemoveTree | ReleaseShared):
            continue
        kind = action.kind
        name = action.path if apart else _name(action)
        row = rows.setdefault(name, _Row(name))
        if kind != "shared" or action.frees or apart:
            row.kinds[kind] = row.kinds.get(kind, 0) + 1
            if kind not in ("shared", "lock", "locks") or not row.reasons:
                row.reasons |= dict.fromkeys(action.reason.split("; "))
        if kind == "snapshot" and action.commit and not apart:
            row.commits.add(action.commit)
        row.frees += action.frees
    return sorted((row for row in rows.values() if row.kinds), key=lambda row: -row.frees)


def _name(action: Remove | RemoveTree | ReleaseShared) -> str:
    """Return whose it is: what to type for a repo, else the path."""
    if isinstance(action, ReleaseShared):
        folders = {reference.partition("/")[0] for reference in action.references}
        repo = parse_repo_folder(folders.pop()) if len(folders) == 1 else None
        return typed_name(*repo) if repo is not None else action.path
    return name_by_path(action.repo, action.path) if action.repo else action.path


def _show_kept(out: Console, kept: list[Kept], *, verbose: bool) -> None:
    if not kept:
        return
    out.print("\nStays")
    shown = kept if verbose else kept[:_SHOWN]
    for stays in shown:
        name = stays.path.rpartition("/")[2]
        place = stays.path
        if stays.repo is not None and not verbose:
            place = name_by_path(stays.repo, stays.path)
            if parse_repo_folder(name) is None:
                place += f": {name}"
        line = Text(whole(printable(place))).append(f"  {printable(stays.reason)}", "dim")
        for process in stays.processes[:3]:
            line.append(f"\n  {process_text(process)}", "yellow")
        if len(stays.processes) > 3:
            line.append(f"\n  and {len(stays.processes) - 3} more", "yellow")
        out.print(hanging(line, 2))
    if len(kept) > len(shown):
        out.print(f"  and {len(kept) - len(shown)} more (-v shows all)")


def _show_unknown_use(out: Console, removal: Removal) -> None:
    unknown = removal.unknown_use
    if unknown is not None:
        command = whole(printable(unknown.command))
        size = size_text(unknown.size)
        out.print(f"{size} of old revisions whose use is unknown: {command}")


def _show_side_caches(out: Console, removal: Removal) -> None:
    planned = {os.path.dirname(action.path) for action in removal.plan.actions}
    refused = {kept.path for kept in removal.plan.kept}
    for cache in removal.side_caches:
        if cache.exists and cache.path not in planned | refused:
            text = f"{cache.name} {size_text(cache.size_on_disk)} (--{cache.name} empties it)"
            out.print(labelled("Side cache", text))


def _show_receipt(out: Console, removal: Removal, *, verbose: bool) -> None:
    receipt = removal.receipt
    assert receipt is not None
    archive = removal.archive
    if receipt.outcomes or (archive is not None and archive.repos):
        paths = {outcome.path for outcome in receipt.outcomes if outcome.result == "done"}
        done = [action for action in removal.removals if action.path in paths]
        if archive is None:
            out.print(f"{_removed_words(done, receipt)}.")
        else:
            _show_moved(out, archive, f"removed {item_count(done)}" if done else "")
        if receipt.trash_id is not None:
            out.print(labelled("Undo", whole(units.command("undo", receipt.trash_id))))
        less = None if receipt.stopped else free_words(receipt)
        if less is not None:
            out.print(labelled("Note", less))
    else:
        out.print("Nothing to remove." if archive is None else "Nothing to remove or to move.")
    if receipt.outcomes and removal.contained and not verbose:
        out.print(labelled("Note", UNSEEN_OUTSIDE))
    if receipt.outcomes and removal.in_use and not removal.plan.kept:
        text = f"{in_use_words(removal.in_use)}; removed anyway"
        out.print(labelled("Forced", printable(text), "yellow"))
    usual = ("done",) if verbose else ("done", "absent")
    shown = [
        outcome
        for outcome in receipt.outcomes
        if outcome.result not in usual and (verbose or not is_of_locks(outcome))
    ]
    for outcome in shown if verbose else shown[:_SHOWN]:
        _show_outcome(out, outcome)
    if not verbose:
        links = {
            os.path.basename(action.path)
            for action in removal.plan.actions
            if isinstance(action, Remove) and action.kind == "link"
        }
        caches = {cache.path for cache in removal.side_caches}
        busy = [
            kept
            for kept in removal.plan.kept
            if kept.processes or os.path.basename(kept.path) in links or kept.path in caches
        ]
        _show_kept(out, busy, verbose=False)
        _show_unknown_use(out, removal)
        if not receipt.outcomes:
            _show_side_caches(out, removal)


def _show_moved(out: Console, archive: Archive, removed: str) -> None:
    """Print what became of the models to be moved, and of the room on each drive."""
    moved = [repo for repo in archive.repos if repo.error is None and archive.error is None]
    words = [removed, f"moved {units.counted(len(moved), 'model')}" if archive.repos else ""]
    text = " and ".join(filter(None, words))
    out.print(f"{text[:1].upper()}{text[1:]}.")
    for drive in archive.drives:
        free = "" if drive.free is None else f" ({size_text(drive.free)} free now)"
        where = f"at {whole(printable(drive.path))}{free}"
        if drive.freed or not drive.copied:
            out.print(labelled("Freed", f"{size_text(drive.freed)} {where}", width=6))
        if drive.copied:
            took = pace_text(drive.copied, archive.seconds)
            out.print(labelled("Copied", f"{size_text(drive.copied)} in {took} {where}"))
    for repo in archive.repos:
        if repo.error is not None:
            name = whole(printable(typed_name(repo.type, repo.repo)))
            line = Text(f"{name}  ").append(f"not moved: {printable(repo.error.message)}", "red")
            out.print(hanging(line, 2))


def _show_outcome(out: Console, outcome: Outcome) -> None:
    line = Text(outcome.result, _RESULT_COLORS.get(outcome.result, ""))
    line.append(f" {whole(printable(outcome.path))}")
    if outcome.detail and outcome.detail not in outcome.path:
        line.append(f"  {printable(outcome.detail)}", "dim")
    out.print(hanging(line, 2))
