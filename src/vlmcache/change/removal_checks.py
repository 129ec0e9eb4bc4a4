"""What is compared and refused before anything is removed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
from collections.abc import Sequence

from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.scan_repo import scan_repo
from vlmcache.cache.state import Repo
from vlmcache.cache.tree import StaleError
from vlmcache.change.attempt import (
    REFUSALS,
    Attempt,
    Result,
    TakenError,
    result_of,
)
from vlmcache.change.locks import HubLocks
from vlmcache.change.plan import ReleaseShared, RemoveTree, stamp, sum_stamp
from vlmcache.change.tree import RemovalTree


class RemovalChecks:
    """Compares the disk with what a plan expects, and sees whether anything is in use."""

    def __init__(self, tree: RemovalTree, locks: HubLocks) -> None:
        self.tree = tree
        self.locks = locks
        self.refused: dict[tuple[str, str | None], tuple[Result, str | None]] = {}
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
            if isinstance(action, ReleaseShared):
                continue
            key = self.tree.repo_folder(action.path), action.commit
            complete = isinstance(action, RemoveTree) and action.kind == "repo"
            if key in self.refused and (complete or action.commit is not None):
                attempt.note(*self.refused[key])

    def check_content(self, action: RemoveTree, seen: dict[str, Repo | None]) -> None:
        """Compare what a folder holds with what it held when the plan was made.

        Args:
            action: the folder and what was expected.
            seen: repos that were scanned already, by their folders; added to.

        Raises:
            StaleError: it holds something else.
            TakenError: a process uses it, or a download has begun.
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
            size, allocated = _sums(action.path)
            if sum_stamp(size, allocated) != action.stamp:
                raise StaleError("its content changed since the plan was made")

    def _check_use(self, repo: Repo, commit: str | None) -> None:
        if self.tree.force or not self.tree.in_use:
            return
        names = set(repo.blobs)
        if commit is not None:
            users = repo.blob_users()
            names = {name for name in names if any(user == commit for user, _ in users[name])}
        for name in names:
            path = repo.blob_path(name)
            with contextlib.suppress(OSError):
                self.tree.refuse_use(os.stat(path), f"a process uses {path}")
        for revision in repo.revisions:
            if commit in (None, revision.commit) and any(
                (file.device, file.inode) in self.tree.in_use for file in revision.files
            ):
                raise TakenError(f"a process uses a file of {revision.path}")


def _sums(path: str) -> tuple[int, int]:
    """Return length and allocated bytes of a folder, counted as the scan counts a stray one."""
    allocated = allocated_bytes(os.lstat(path))
    size = 0
    pending = [path]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                allocated += allocated_bytes(found)
                if modes.S_ISDIR(found.st_mode):
                    pending.append(entry.path)
                else:
                    size += found.st_size
    return size, allocated
