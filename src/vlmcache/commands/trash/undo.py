"""`undo`: the last removal, or the one of an id, back to the places where it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.moved import destination_of
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding, RevisionKey
from vlmcache.cache.trash import Trashed, blob_paths, weigh
from vlmcache.change.plan import Outcome, Receipt
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.change.space import FreeSpace
from vlmcache.change.trash import removals_in
from vlmcache.change.trash_room import expire, parts_of, take_back_missing
from vlmcache.change.trash_undo import Undoing, take_back_blob
from vlmcache.commands.trash.values import (
    NameTakenError,
    NothingToUndoError,
    RestoredItem,
    UndoReport,
)
from vlmcache.config import Session
from vlmcache.errors import AwayError, ChangedError
from vlmcache.units import counted


def undo(session: Session, removal: str | None = None, *, dry_run: bool = False) -> UndoReport:
    """Restore exactly what a removal has put into the trash.

    What has come back meanwhile stays as it is; if something else has one of the names, nothing is
    changed.

    Args:
        session: the cache.
        removal: the id of the removal, or the beginning of it; the last one if not given.
        dry_run: only say what would be restored.

    Raises:
        NothingToUndoError: there is no such removal in the trash.
        NameTakenError: something else has the name of what is to be restored.
        AwayError: a part of it is on a drive that is not mounted.
    """
    cache = session.cache.dir
    if not dry_run and removal is None:
        expire(session)
    trashed = _find(session, removal)
    tree = RemovalTree(cache)
    undoings = [Undoing(tree, trashed)]
    for place, part in parts_of(tree, trashed):
        if part is None and not os.path.isdir(place):
            raise AwayError(
                f"a part of the removal {trashed.id} is away: it is at {place}, "
                "on a drive that is not mounted",
                "mount that drive, then run it again",
            )
        if part is not None:
            # Links come last: what they lead to is there by then.
            undoings.insert(0, Undoing(RemovalTree(place), part))
    found = (conflict for undoing in undoings for conflict in undoing.compare())
    conflicts = list(dict.fromkeys(found))
    if conflicts:
        first = conflicts[0]
        more = units.and_more(len(conflicts) - 1)
        raise NameTakenError(
            f"nothing was restored: {first.why}: {first.path}{more}",
            f"{_way_out(cache, first.path)}; what was removed stays in the trash",
        )
    record = trashed.record
    assert record is not None
    report = UndoReport(
        trashed.id,
        datetime.fromtimestamp(record.removed_at, timezone.utc),
        record.names,
        sum(weigh(undoing.trashed.path).frees for undoing in undoings),
        tuple(
            RestoredItem(step.path, step.item.kind, step.item.repo, step.step)
            for undoing in undoings
            for step in undoing.steps
            # The manifest of a shared blob that stayed.
            if step.item.kind != "shared" or step.step in ("restore", "merge")
        ),
        cache=cache,
    )
    if dry_run:
        return report
    space = FreeSpace(cache)
    outcomes: list[Outcome] = []
    for undoing in undoings:
        steps = (step for step in undoing.steps if step.item.kind == "shared")
        take_back_missing(undoing.tree, (step.path for step in steps if step.step == "missing"))
        outcomes += undoing.carry_out()
    receipt = space.measured(Receipt(tuple(outcomes)))
    findings = tuple(_incomplete(tree, record.revisions))
    return msgspec.structs.replace(report, receipt=receipt, findings=findings)


def _way_out(cache: str, path: str) -> str:
    """Return what to do about a name that is taken."""
    folder = os.path.basename(path)
    if destination_of(cache, folder) is None:
        return "rename or remove that first"
    kind, repo = layout.parse_repo_folder(folder) or ("model", folder)
    return f"'{units.command('recall', layout.typed_name(kind, repo))}' brings it back first"


def _find(session: Session, removal: str | None) -> Trashed:
    """Return the removal that is meant.

    Raises:
        NothingToUndoError: there is none.
    """
    trash = [
        trashed
        for trashed in removals_in(session.cache.dir)
        if trashed.record is None or trashed.record.part_of is None
    ]
    if removal is not None:
        wanted = removal.lower()
        found = [trashed for trashed in trash if wanted and trashed.id.startswith(wanted)]
        if len(found) != 1:
            known = ", ".join(trashed.id for trashed in reversed(trash[-8:]))
            raise NothingToUndoError(
                f"the trash has {'no' if not found else 'more than one'} removal {removal}",
                f"it has {known}" if known else "'vlmcache trash' lists what is in it",
            )
        last = found[0]
    else:
        instead = _done_since(session, trash)
        if instead is not None:
            raise instead
        if not trash:
            raise NothingToUndoError(
                "nothing to undo: the trash is empty",
                "'vlmcache rm' keeps what it removes with --trash",
            )
        last = trash[-1]
    if last.record is None:
        raise ChangedError(
            f"the record of the removal {last.id} cannot be read: {last.path}",
            "what it holds is in that folder; 'vlmcache trash --empty' removes it",
        )
    return last


def _done_since(session: Session, trash: Sequence[Trashed]) -> NothingToUndoError | None:
    """Return what else the last command was that `undo` cannot reverse, and what does."""
    last = trash[-1].removed_at if trash else 0.0
    state = scan(session.cache.dir)
    destinations = {repo.moved_to for repo in state.repos if repo.moved_to is not None}
    archive = session.config.archive
    destinations |= {archive} if archive else set()
    for destination in sorted(destinations):
        staged = layout.staged_path(destination)
        if os.path.isdir(staged) and os.stat(staged).st_mtime > last:
            return NothingToUndoError(
                f"a move to {destination} was interrupted, and is no removal",
                units.command("move", destination, "--undo"),
            )
    # After any other move, the last removal is still what is meant.
    moved = _last_moved(state, last, None if last == 0.0 else archive)
    if moved is None:
        return None
    repo, place = moved
    return NothingToUndoError(
        f"the last command moved {repo} to {place}, and removed nothing of it",
        units.command("recall", repo),
    )


def _last_moved(state: CacheState, since: float, place: str | None) -> tuple[str, str] | None:
    """Return the model that was moved last, and where it went, if that was after an instant.

    Args:
        state: the cache.
        since: seconds since the epoch.
        place: the only place that counts; every one if not given.
    """
    moved = [
        (repo.record.mtime_ns / 1e9, layout.typed_name(repo.type, repo.id), repo.moved_to)
        for repo in state.repos
        if repo.moved_to is not None and repo.record is not None
        if since == 0.0 or repo.moved_to == place
    ]
    at, repo, destination = max(moved, default=(0.0, "", ""))
    return (repo, destination) if at > since else None


def _incomplete(tree: RemovalTree, revisions: Sequence[RevisionKey]) -> Iterator[Finding]:
    """Yield which restored revisions have lost files since; what other removals keep comes back."""
    folders = {layout.repo_folder(kind, repo) for kind, repo, _ in revisions}
    for _ in range(2):
        state = scan(tree.root, only=folders)
        lost = {
            (repo.folder, _blob_of(tree, revision.file_path(file.name))): (repo, revision)
            for repo in state.repos
            if repo.linked_to is None
            for revision in repo.revisions
            if (repo.type, repo.id, revision.commit) in revisions
            for file in revision.files_of("dangling")
        }
        if not lost or not _take_back(tree, set(lost)):
            break
    for key in {(repo.folder, revision.commit) for repo, revision in lost.values()}:
        repo = next(repo for repo, _ in lost.values() if repo.folder == key[0])
        name = layout.typed_name(repo.type, repo.id)
        files = counted(sum(1 for folder, _ in lost if folder == key[0]), "file")
        yield Finding(
            "restored-partly",
            "warning",
            repo.id,
            layout.snapshot_path(repo.path, key[1]),
            f"{files} of {name} at commit {key[1][:12]} were removed for good meanwhile",
            units.command("pull", f"{name}@{key[1]}"),
        )


def _blob_of(tree: RemovalTree, path: str) -> str:
    """Return the name of the blob that a link means."""
    with contextlib.suppress(OSError):
        return os.path.basename(tree.readlink(path))
    return ""


def _take_back(tree: RemovalTree, lost: set[tuple[str, str]]) -> bool:
    """Take blobs back that other removals keep, and return whether there were any."""
    taken = False
    for trashed in removals_in(tree):
        for folder in {folder for folder, _ in lost}:
            for name, source in blob_paths(trashed, folder).items():
                if (folder, name) in lost:
                    path = layout.blob_path(os.path.join(tree.root, folder), name)
                    taken = take_back_blob(tree, trashed, source, path) or taken
    return taken
