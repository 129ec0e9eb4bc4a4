"""What a removal compares first: that all is as planned, and that nothing is in use."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

import msgspec

from vlmcache.cache.entries import Notes, add_below, allocated_bytes
from vlmcache.cache.scan_repo import scan_repo
from vlmcache.cache.state import Repo
from vlmcache.cache.tree import StaleError
from vlmcache.change.locks import HubLocks
from vlmcache.change.plan import (
    REFUSALS,
    Attempt,
    RemoveTree,
    Result,
    result_of,
    stamp,
    sum_stamp,
)
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.errors import InUseError


class RemovalChecks(msgspec.Struct):
    """Compares the disk with what a plan expects, and sees whether anything is in use."""

    tree: RemovalTree
    locks: HubLocks
    refused: dict[tuple[str, str | None], tuple[Result, str | None]] = {}
    """(repo folder, commit) -> why it stays; without a commit, why the complete repo does."""

    def hold_back_changed(self, attempts: Sequence[Attempt]) -> None:
        """Find what changed or is in use before anything is touched.

        A revision's ref, snapshot and listing are removed together or not at all.
        """
        seen: dict[str, Repo | None] = {}
        for action in (attempt.action for attempt in attempts):
            if not isinstance(action, RemoveTree) or action.kind not in ("repo", "snapshot"):
                continue
            key = self.tree.repo_folder(action.path), action.commit
            try:
                with self.tree.entry(action.path, action.expected):
                    self.check_content(action, seen)
            except FileNotFoundError:
                continue
            except REFUSALS as error:
                self.refused[key] = result_of(error, action.path)
        for attempt in attempts:
            action = attempt.action
            key = self.tree.repo_folder(action.path), action.commit
            if key in self.refused and (action.kind == "repo" or action.commit is not None):
                attempt.note(*self.refused[key])

    def check_content(self, action: RemoveTree, seen: dict[str, Repo | None]) -> None:
        """Compare what a folder holds with what it held when the plan was made.

        Args:
            action: the folder and what was expected.
            seen: repos that were scanned already, by their folders; added to.

        Raises:
            StaleError: it holds something else.
            InUseError: a process uses it, or a download has begun.
            OSError: it cannot be read, or is gone.
        """
        if action.kind in ("repo", "snapshot"):
            folder = self.tree.repo_folder(action.path)
            if folder not in seen:
                seen[folder] = scan_repo(self.tree.root, folder)
            repo = seen[folder]
            commit = action.commit if action.kind == "snapshot" else None
            revision = repo.revision(commit) if repo is not None and commit else None
            if repo is None or (commit is not None and revision is None):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), action.path)
            # A download that is to be overridden continues to write.
            growing = self.tree.force and commit is None and bool(repo.partials)
            if action.stamp is not None and stamp(repo, revision) != action.stamp and not growing:
                raise StaleError("its content changed since the plan was made")
            self.locks.refuse_held(folder)
            self._check_use(repo, commit)
        elif action.kind == "stray" and action.stamp is not None:
            notes = Notes(None)
            allocated, size = add_below(action.path, "foreign", notes)
            if not notes.could_read(action.path):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), action.path)
            allocated += allocated_bytes(os.lstat(action.path))
            if sum_stamp(size, allocated) != action.stamp:
                raise StaleError("its content changed since the plan was made")

    def _check_use(self, repo: Repo, commit: str | None) -> None:
        if self.tree.force:
            return
        for name, users in repo.blob_users().items():
            path = repo.blob_path(name)
            if commit is None or any(user == commit for user, _ in users):
                with contextlib.suppress(OSError, StaleError):
                    self.tree.refuse_use(os.stat(path), f"a process uses {path}")
                    with self.tree.entry(path) as entry:
                        self.tree.refuse_open(entry)
        for revision in repo.revisions:
            if commit in (None, revision.commit) and any(
                (file.device, file.inode) in self.tree.in_use for file in revision.files
            ):
                raise InUseError(f"a process uses a file of {revision.path}")
