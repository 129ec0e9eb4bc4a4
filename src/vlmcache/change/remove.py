"""From a plan to a receipt: what is compared first, and in which order the rest is done.

The receipt says what the disk says.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence

from vlmcache.cache import layout
from vlmcache.cache.moved import move_record_path, read_moves, recorded_path
from vlmcache.cache.scan_repo import scan_repo
from vlmcache.cache.state import CacheState
from vlmcache.cache.tree import CacheTree, StaleError
from vlmcache.change.leftovers import Leftovers
from vlmcache.change.locks import BATCH, HubLocks
from vlmcache.change.moved_note import write_moves
from vlmcache.change.plan import (
    REFUSALS,
    Attempt,
    Outcome,
    Plan,
    Receipt,
    ReleaseShared,
    Remove,
    RemoveTree,
    Removing,
    result_of,
)
from vlmcache.change.removal_checks import RemovalChecks
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.change.shared_store import SharedStore
from vlmcache.change.space import FreeSpace
from vlmcache.change.trash import KEPT_KINDS, Keep, TrashWriter
from vlmcache.change.trash_rescue import Rescue
from vlmcache.change.trash_writers import TrashWriters
from vlmcache.errors import InUseError, VlmcacheError, in_words, reason_of
from vlmcache.paths import real_path


def execute(
    plan: Plan,
    cache: str | CacheTree,
    *,
    in_use: Collection[tuple[int, int]] = (),
    force: bool = False,
    trash: TrashWriter | None = None,
) -> Receipt:
    """Carry a plan of removals out, as far as the system lets, and return what became of it.

    Args:
        plan: what to remove; actions that are not removals are not for this function.
        cache: the hub cache that the plan was made for, or a tree that has it open; one for
            removals knows itself what is in use, and whether that counts.
        in_use: (device, inode) of files that processes use; what holds one stays.
        force: remove in spite of locks and uses.
        trash: what keeps what is removed; it is unlinked if not given.
    """
    if not isinstance(cache, RemovalTree):
        cache = RemovalTree(cache, frozenset(in_use), force=force)
    return Executor(cache, trash).run(plan)


_STEPS = {
    "blob": "blob",
    "partial": "blob",
    "shared": "shared",
    "lock": "lock",
    "locks": "lock",
    "leftover": "leftover",
    "side-cache": "leftover",
    "record": "leftover",
}
"""Kind of an action -> when it has its turn; all others have it first."""


class Executor:
    """Carries one plan out.

    What makes a repo or revision one is renamed away first, then blobs are unlinked under their
    locks, then shared blobs released, then locks removed, and last what was renamed is unlinked.
    """

    def __init__(self, tree: RemovalTree, trash: TrashWriter | None = None) -> None:
        self.tree = tree
        self.trash = trash
        self.locks = HubLocks(tree)
        self.store = SharedStore(tree)
        self.leftovers = Leftovers(tree)
        self.checks = RemovalChecks(tree, self.locks)
        self.rescue = Rescue(tree)
        self.attempts: list[Attempt] = []
        self.finished = False
        """Whether all actions had their turn; not so after an interruption."""

    def run(self, plan: Plan) -> Receipt:
        """Carry the plan out."""
        self.attempts = [
            Attempt(action)
            for action in plan.actions
            if isinstance(action, Remove | RemoveTree | ReleaseShared)
        ]
        self.checks.hold_back_changed(self.attempts)
        try:
            for attempt in self._of_step("first"):
                if attempt.outcome is None:
                    self._attempt_first(attempt)
            self._remove_blobs()
            self._release_shared()
            for attempt in self._of_step("lock"):
                self._attempt(attempt)
            self.finished = True
        finally:
            self._empty_leftovers()
            left, failures = self.tree.remove_made()
        for attempt in self._of_step("leftover"):
            self._attempt(attempt)
        outcomes = (
            *(attempt.outcome for attempt in self.attempts if attempt.outcome is not None),
            *failures,
        )
        # Folders of our own that could not be removed count, but nothing was freed is 0, not less.
        freed = max(0, sum(outcome.freed for outcome in outcomes) - left)
        return Receipt(outcomes, freed, trashed=sum(outcome.trashed for outcome in outcomes))

    def _of_step(self, step: str) -> list[Attempt]:
        return [
            attempt for attempt in self.attempts if _STEPS.get(attempt.action.kind, "first") == step
        ]

    def _attempt_first(self, attempt: Attempt) -> None:
        """Attempt an action, but leave what belongs to a snapshot that could not be removed."""
        action, refused = attempt.action, self.checks.refused
        if action.commit is None:
            self._attempt(attempt)
            return
        key = self.tree.repo_folder(action.path), action.commit
        # What is kept is not unlinked where it is if it cannot be renamed: no ref stays alone.
        follows = action.kind in ("tree", "no-exist") or self.trash is not None
        if follows and key in refused:
            attempt.note(*refused[key])
            return
        self._attempt(attempt)
        outcome = attempt.outcome
        kinds = ("snapshot", "link") if self.trash is None else ("snapshot", "link", "ref")
        if (
            action.kind in kinds
            and outcome is not None
            and outcome.result not in ("done", "absent")
        ):
            refused[key] = outcome.result, outcome.detail or f"{action.path} stays"

    def _attempt(self, attempt: Attempt) -> None:
        try:
            self._do(attempt, attempt.action)
        except REFUSALS as error:
            attempt.note(*result_of(error, attempt.action.path))
        else:
            attempt.note("done")

    def _do(self, attempt: Attempt, action: Removing) -> None:
        if isinstance(action, ReleaseShared):
            self.store.release(action, attempt, self.trash or self.rescue.of_shared(action))
            return
        self._check(action)
        if self.trash is not None and action.kind in KEPT_KINDS:
            self.trash.take(attempt, action.expected)
        elif isinstance(action, Remove):
            self._remove(attempt, action)
        elif action.kind in ("leftover", "side-cache"):
            expected = action.expected if action.kind == "side-cache" else None
            self.leftovers.remove_earlier(attempt, action.path, expected)
        elif action.kind == "locks":
            self.locks.remove_folder(action.path, attempt)
        elif action.at_once:
            self.leftovers.exchange(attempt, action, self.locks)
        else:
            complete = action.kind == "repo"
            self.leftovers.set_aside(attempt, action.expected, complete=complete)

    def _check(self, action: Remove | RemoveTree) -> None:
        if isinstance(action, RemoveTree):
            if action.kind != "snapshot":  # of these there can be many, and they were just seen
                self.checks.check_content(action, {})
        elif action.kind == "record" and self.tree.exists(recorded_path(action.path)):
            raise StaleError("it is of a repo that is there")

    def _remove(self, attempt: Attempt, action: Remove) -> None:
        if action.kind == "lock":
            self.locks.unlink(action.path, attempt)
        elif action.kind == "folder":
            self.tree.remove_folder(action.path, attempt)
        elif action.kind == "ref" or (action.kind == "blob" and os.path.islink(action.path)):
            # Set aside and not unlinked: it shows a second run what a killed one was doing.
            self.leftovers.set_aside(attempt, action.expected, complete=False)
        else:
            if action.kind == "blob":
                folder, name = self.tree.repo_folder(action.path), os.path.basename(action.path)
                if (folder, name) in self.rescue.needs.blobs:
                    with self.tree.entry(action.path, action.expected) as entry:
                        self.tree.refuse_use(entry.status)
                        self.tree.refuse_open(entry)
                    self.rescue.keep(attempt, folder, [name], os.path.dirname(action.path))
                    if not self.tree.exists(action.path):
                        return
            self.tree.remove_file(action.path, action.expected, attempt)

    def _remove_blobs(self) -> None:
        """Unlink blobs and partials, each under its lock, unless something links to it by now."""
        groups: dict[str, list[Attempt]] = {}
        for attempt in self._of_step("blob"):
            groups.setdefault(self.tree.repo_folder(attempt.action.path), []).append(attempt)
        for folder, group in groups.items():
            for start in range(0, len(group), BATCH):
                self._remove_batch(folder, group[start : start + BATCH])

    def _remove_batch(self, folder: str, batch: Sequence[Attempt]) -> None:
        with contextlib.ExitStack() as locks:
            ready: list[tuple[Attempt, str]] = []
            taken: set[str] = set()
            for attempt in batch:
                name = os.path.basename(attempt.action.path)
                path = self.locks.path_of(folder, name)
                try:
                    if path not in taken:
                        locks.enter_context(self.locks.held(path))
                        taken.add(path)
                    ready.append((attempt, name))
                except InUseError as error:
                    attempt.note("busy", reason_of(error))
                except OSError as error:
                    attempt.note("failed", in_words(error, path))
            repo = scan_repo(self.tree.root, folder)
            users = repo.blob_users() if repo is not None else {}
            for attempt, name in ready:
                if attempt.action.kind == "blob" and users.get(name):
                    reasons = [
                        self.checks.refused.get((folder, commit)) for commit, _ in users[name]
                    ]
                    attempt.note(*next(filter(None, reasons), ("stale", "a snapshot links to it")))
                else:
                    self._attempt(attempt)

    def _release_shared(self) -> None:
        attempts = self._of_step("shared")
        for start in range(0, len(attempts), BATCH):
            with contextlib.ExitStack() as locks:
                ready: list[Attempt] = []
                for attempt in attempts[start : start + BATCH]:
                    path = attempt.action.path
                    try:
                        locks.enter_context(self.store.held_to_release(path))
                        ready.append(attempt)
                    except REFUSALS as error:
                        attempt.note(*result_of(error, path))
                try:
                    if ready:
                        self.store.read_links()
                except OSError as error:
                    # A repo that cannot be read may need any of them.
                    for attempt in ready:
                        attempt.note("failed", in_words(error, self.tree.root))
                else:
                    for attempt in ready:
                        self._attempt(attempt)

    def _empty_leftovers(self) -> None:
        """Unlink what was renamed: the refs last, and only if nothing failed.

        They show a second run, which no longer finds the revision, what there is to finish; so do
        the links of a snapshot, as long as one of the blobs stays. After an interruption all of it
        stays, as after a kill.
        """
        if not self.finished:
            return
        blobs = f"{os.sep}{layout.BLOBS}{os.sep}"
        for attempt, place in reversed(self.leftovers.renamed):
            failed = [
                other.action.path
                for other in self.attempts
                if other.outcome is not None and other.outcome.result == "failed"
            ]
            folder = self.leftovers.parts_of(place)[:1]
            if (failed and folder == [layout.REFS]) or (
                folder == [layout.SNAPSHOTS] and any(blobs in path for path in failed)
            ):
                continue
            outcome = attempt.outcome
            try:
                action = attempt.action
                # What was moved has left a link, and is not lost.
                if isinstance(action, RemoveTree) and action.kind == "repo" and not action.at_once:
                    blobs = os.path.join(place, layout.BLOBS)
                    with contextlib.suppress(OSError):
                        repo = self.tree.repo_folder(attempt.action.path)
                        self.rescue.keep(attempt, repo, self.tree.names(blobs), blobs)
                self.tree.remove_all(place, attempt)
            except OSError as error:
                attempt.note("failed", in_words(error, place))
            else:
                if outcome is not None:
                    attempt.note(outcome.result, outcome.detail)


def apply_removals(
    plan: Plan,
    state: CacheState,
    *,
    in_use: Collection[tuple[int, int]] = (),
    force: bool = False,
    keep: Keep | None = None,
) -> Receipt:
    """Carry a plan of removals out: first at the places that models were moved to, then here.

    A link stays as long as what it leads to, and the note of a move as long as the link, so that a
    second run finds what is left to finish. A place is opened once, and has to be the folder in
    which the notes of moves were read.

    Args:
        plan: its actions lie in the cache or at the places.
        state: the cache.
        in_use: (device, inode) of files that processes use.
        force: remove in spite of locks and uses.
        keep: that what is removed is kept in the trash, and what the record there says.

    Raises:
        CacheError, SpaceError: it is to be kept, and the trash cannot be written; nothing was
            changed.
    """
    space = FreeSpace(state.dir)
    receipts: list[Receipt] = []
    left: list[Removing] = [
        action for action in plan.actions if isinstance(action, Remove | RemoveTree | ReleaseShared)
    ]
    if keep is not None:
        # Locks are empty, and undoing finds them as they were.
        left = [action for action in left if action.kind not in ("lock", "locks")]
    seen: dict[str, set[tuple[int, int] | None]] = {}
    for repo in state.repos:
        if repo.moved_to is not None:
            seen.setdefault(repo.moved_to, set()).add(repo.moved_at)
    parts: dict[RemovalTree, list[Removing]] = {}
    files = frozenset(in_use)
    for place in sorted(seen):
        inside = os.path.join(place, "")
        inner = [action for action in left if action.path.startswith(inside)]
        left = [action for action in left if not action.path.startswith(inside)]
        if inner:
            tree = RemovalTree(place, files, force=force)
            if _is_same(tree, seen[place]):
                parts[tree] = inner
            else:
                receipts.append(_left_alone(inner, place))
    cache = RemovalTree(state.dir, files, force=force)
    trash = (
        TrashWriters(keep, {**parts, cache: left}) if keep is not None and plan.actions else None
    )
    for tree, inner in parts.items():
        first = Plan(tuple(action for action in inner if action.kind != "record"))
        receipts.append(execute(first, tree, trash=trash.of(tree) if trash else None))
    staying: list[Outcome] = []
    undone = {outcome.path: outcome for receipt in receipts for outcome in receipt.undone}
    for action in list(left):
        parent, folder = os.path.split(action.path)
        if not isinstance(action, Remove) or action.kind != "link" or parent != state.dir:
            continue
        targets = (undone.get(os.path.join(place, folder)) for place in seen)
        target = next(filter(None, targets), None)
        if target is not None:
            paths = (action.path, move_record_path(state.dir, folder))
            left = [other for other in left if other.path not in paths]
            detail = f"what it leads to stays: {target.path}"
            staying.append(Outcome("remove", action.path, target.result, detail=detail))
    receipts.append(execute(Plan(tuple(left)), cache, trash=trash.of(cache) if trash else None))
    for tree, inner in parts.items():
        notes = [action for action in inner if action.kind == "record"]
        receipts.append(_forget(tree, notes, state.dir, trash.of(tree) if trash else None))
    outcomes = (*(outcome for receipt in receipts for outcome in receipt.outcomes), *staying)
    trashed = sum(outcome.trashed for outcome in outcomes)
    receipt = space.measured(
        Receipt(outcomes, sum(receipt.freed for receipt in receipts), trashed=trashed)
    )
    return trash.finish(receipt) if trash is not None else receipt


def _is_same(tree: CacheTree, seen: Collection[tuple[int, int] | None]) -> bool:
    """Return whether a place is the one folder that was seen there."""
    try:
        return seen == {tree.identity}
    except OSError:
        return False


def _left_alone(actions: Sequence[Removing], place: str) -> Receipt:
    detail = f"another folder is in its place by now: {place}"
    return Receipt(tuple(Attempt(action).note("stale", detail) for action in actions))


def _forget(
    tree: RemovalTree,
    notes: Sequence[Removing],
    cache_dir: str,
    trash: TrashWriter | None,
) -> Receipt:
    """Remove the notes at a place of repos that are gone there, and whose links are gone."""

    def is_gone(folder: str) -> bool:
        link = os.path.join(cache_dir, folder)
        return not tree.exists(os.path.join(tree.root, folder)) and not os.path.lexists(link)

    gone = [note for note in notes if is_gone(os.path.basename(recorded_path(note.path)))]
    receipt = execute(Plan(tuple(gone)), tree, trash=trash)
    noted = read_moves(tree)
    ours = real_path(cache_dir)
    kept = {
        folder: move for folder, move in noted.items() if move.cache != ours or not is_gone(folder)
    }
    if kept != noted:
        # A note that stays of what is gone does no harm.
        with contextlib.suppress(OSError, VlmcacheError):
            write_moves(tree, kept)
    return receipt
