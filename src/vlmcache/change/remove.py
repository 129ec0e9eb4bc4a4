"""From a plan to a receipt: the order of a removal. The receipt says what the disk says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from typing import Literal

from vlmcache.cache import layout
from vlmcache.cache.scan_repo import scan_repo
from vlmcache.change.attempt import (
    REFUSALS,
    Attempt,
    Removing,
    TakenError,
    refusal,
    result_of,
)
from vlmcache.change.leftovers import Leftovers
from vlmcache.change.locks import BATCH, HubLocks
from vlmcache.change.plan import Plan, Receipt, ReleaseShared, Remove, RemoveTree
from vlmcache.change.removal_checks import RemovalChecks
from vlmcache.change.shared_store import SharedStore
from vlmcache.change.tree import RemovalTree


def execute(
    plan: Plan, cache_dir: str, *, in_use: Collection[tuple[int, int]] = (), force: bool = False
) -> Receipt:
    """Carry a plan of removals out, as far as the system lets, and return what became of it.

    Args:
        plan: what to remove; actions that are not removals are not for this function.
        cache_dir: the hub cache that the plan was made for.
        in_use: (device, inode) of files that processes use; what holds one stays.
        force: remove in spite of locks and uses.
    """
    return Executor(RemovalTree(cache_dir, frozenset(in_use), force=force)).run(plan)


class Executor:
    """Carries one plan out.

    What makes a repo or revision one is renamed away first, then blobs are unlinked under their
    locks, then shared blobs released, then locks removed, and last what was renamed is unlinked.
    """

    def __init__(self, tree: RemovalTree) -> None:
        self.tree = tree
        self.locks = HubLocks(tree)
        self.store = SharedStore(tree.root, tree)
        self.leftovers = Leftovers(tree)
        self.checks = RemovalChecks(tree, self.locks)
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
        return Receipt(outcomes, max(0, sum(outcome.freed for outcome in outcomes) - left))

    def _of_step(
        self, step: Literal["first", "blob", "shared", "lock", "leftover"]
    ) -> list[Attempt]:
        return [attempt for attempt in self.attempts if _step(attempt.action) == step]

    def _attempt_first(self, attempt: Attempt) -> None:
        """Attempt it, but leave what the hub remembers of a snapshot that could not be removed."""
        action, refused = attempt.action, self.checks.refused
        if isinstance(action, ReleaseShared) or action.commit is None:
            self._attempt(attempt)
            return
        key = self.tree.repo_folder(action.path), action.commit
        if action.kind in ("tree", "no-exist") and key in refused:
            attempt.note(*refused[key])
            return
        self._attempt(attempt)
        outcome = attempt.outcome
        if (
            action.kind in ("snapshot", "link")
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
            self.store.release(action, attempt)
        elif isinstance(action, Remove):
            self._remove(attempt, action)
        elif action.kind in ("leftover", "side-cache"):
            expected = action.expected if action.kind == "side-cache" else None
            self.leftovers.remove_earlier(attempt, action.path, expected)
        elif action.kind == "locks":
            self.locks.remove_folder(action.path, attempt)
        else:
            if action.kind != "snapshot":  # of these there can be many, and they were just seen
                self.checks.check_content(action, {})
            if action.at_once:
                self.leftovers.exchange(attempt, action, self.locks)
            else:
                complete = action.kind == "repo"
                self.leftovers.set_aside(attempt, action.expected, complete=complete)

    def _remove(self, attempt: Attempt, action: Remove) -> None:
        if action.kind == "lock":
            self.locks.unlink(action.path, attempt)
        elif action.kind == "folder":
            self.tree.remove_folder(action.path, attempt)
        elif action.kind == "ref" or (action.kind == "blob" and os.path.islink(action.path)):
            # Set aside and not unlinked: it shows a second run what a killed one was doing.
            self.leftovers.set_aside(attempt, action.expected, complete=False)
        else:
            self.tree.unlink(action.path, action.expected, attempt)

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
                except TakenError as error:
                    attempt.note("busy", str(error))
                except OSError as error:
                    attempt.note("failed", refusal(error, path))
            repo = scan_repo(self.tree.root, folder)
            users = repo.blob_users() if repo is not None else {}
            for attempt, name in ready:
                is_blob = isinstance(attempt.action, Remove) and attempt.action.kind == "blob"
                if is_blob and users.get(name):
                    reasons = [
                        self.checks.refused.get((folder, commit)) for commit, _ in users[name]
                    ]
                    attempt.note(*next(filter(None, reasons), ("stale", "a snapshot links to it")))
                    continue
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
                        attempt.note("failed", refusal(error, self.tree.root))
                    continue
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
            if failed and folder == [layout.REFS]:
                continue
            if folder == [layout.SNAPSHOTS] and any(blobs in path for path in failed):
                continue
            outcome = attempt.outcome
            try:
                self.leftovers.remove(attempt, place)
            except OSError as error:
                attempt.note("failed", refusal(error, place))
            else:
                if outcome is not None:
                    attempt.note(outcome.result, outcome.detail)


def _step(action: Removing) -> Literal["first", "blob", "shared", "lock", "leftover"]:
    """Return when an action has its turn."""
    if isinstance(action, ReleaseShared):
        return "shared"
    if action.kind in ("blob", "partial"):
        return "blob"
    if action.kind in ("lock", "locks"):
        return "lock"
    return "leftover" if action.kind in ("leftover", "side-cache") else "first"
