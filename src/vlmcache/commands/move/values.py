"""What `move` is asked for, and what it returns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import msgspec

from vlmcache.cache import layout
from vlmcache.change.plan import Failure, Kept, Plan, Receipt, in_use_words
from vlmcache.errors import (
    AwayError,
    CacheError,
    ChangedError,
    ExitCode,
    InUseError,
    PartlyError,
    SpaceError,
    UsageError,
    VlmcacheError,
)
from vlmcache.report import Report
from vlmcache.units import and_more

MoveState = Literal[
    "planned", "moved", "linked", "finished", "taken-back", "relinked", "recalled", "failed"
]


class SourceDamagedError(VlmcacheError):
    """What is to be moved is not what its hash says."""

    code = "damaged"
    exit_code = ExitCode.DAMAGE


class BusyError(VlmcacheError):
    """Another process moves something to the same place."""

    code = "busy"
    exit_code = ExitCode.BUSY


class NotMovedError(VlmcacheError):
    """None of it was done."""

    code = "not-moved"
    exit_code = ExitCode.FAILED


def moved_words(place: str) -> str:
    """Return the reason of a removal whose repo is complete at another place."""
    return f"moved to {place}"


class MoveOptions(msgspec.Struct, frozen=True):
    """How to move."""

    link: bool = True
    """Leave links in the cache."""
    dry_run: bool = False
    """Only plan."""


class MovedRepo(msgspec.Struct, frozen=True):
    """What became of one repo."""

    repo: str
    type: str
    path: str
    """Its place in the cache."""
    destination: str
    """Its new place."""
    state: MoveState
    """`planned` (`--dry-run`); `moved`; `linked` if only the link was missing after an interrupted
    move; `finished` if only the removal of what that move had set aside was; `taken-back` by
    `--undo`; `relinked` by `--relink`; `recalled` by `vlmcache recall`; `failed`."""
    size: int = 0
    """Length in bytes, shared blobs included."""
    error: Failure | None = None


class MoveReport(Report, frozen=True):
    """What `vlmcache move` returns."""

    cache: str
    destination: str
    link: bool
    """Whether links are left in the cache."""
    setting: str
    """The line that makes the destination the cache: for new downloads; without links, for all."""
    repos: tuple[MovedRepo, ...]
    plan: Plan
    receipt: Receipt | None = None
    """What was done; `None` if nothing was."""
    in_use: tuple[Kept, ...] = ()
    """What processes use, and who they are; then nothing is moved."""
    hidden_processes: int = 0
    """Processes of other users whose files cannot be seen."""
    contained: bool = False
    """Whether processes outside this container cannot be seen either."""
    copied: int = 0
    """Bytes written at the destination."""
    seconds: float = 0.0

    @property
    def ids(self) -> list[str]:
        """The repos that are or would be elsewhere now."""
        return [repo.repo for repo in self.repos if repo.error is None]

    @property
    def problem(self) -> VlmcacheError | None:
        """Why something was not moved, or `None` if all went as asked."""
        taken_back = bool(self.repos) and all(repo.state == "taken-back" for repo in self.repos)
        done = "taken back" if taken_back or not self.repos else "moved"
        return problem_of(self.repos, self.receipt, self.in_use, done)


def problem_of(
    repos: Sequence[MovedRepo], receipt: Receipt | None, in_use: Sequence[Kept], done: str
) -> VlmcacheError | None:
    """Return why repos were not moved, or `None` if all went as asked.

    Args:
        repos: what became of each.
        receipt: what was done; `None` if nothing was.
        in_use: what processes use; then nothing is moved.
        done: what should have become of the repos: `moved`.
    """
    verb = done.partition(" ")[0]
    if receipt is None:
        if in_use:
            return InUseError(
                f"nothing was {verb}: {in_use_words(in_use)}", "end it, then run it again"
            )
        return None
    failed = [(repo.repo, repo.error) for repo in repos if repo.error is not None]
    if failed:
        repo_id, error = failed[0]
        if len(failed) < len(repos):
            names = f"{repo_id}{and_more(len(failed) - 1)}: "
            if error.message.startswith(f"{repo_id} ") and len(failed) == 1:
                names = ""
            return PartlyError(f"not {verb}: {names}{error.message}", error.hint)
        known = (
            *(SpaceError, SourceDamagedError, InUseError, ChangedError, CacheError, AwayError),
            UsageError,
        )
        kinds = {kind.code: kind for kind in known}
        return kinds.get(error.code, NotMovedError)(error.message, error.hint)
    undone = receipt.undone
    if undone:
        return PartlyError(
            f"{done}, but {len(undone)} of {len(receipt.outcomes)} steps failed: "
            f"{undone[0].detail or undone[0].path}",
            "run it again",
        )
    return None


class DriveUse(msgspec.Struct, frozen=True):
    """What became of the room on one drive. All figures are bytes."""

    path: str
    """The cache on it."""
    freed: int
    copied: int
    """What was written to it."""
    free: int | None
    """What is free on it now; `None` if it does not say."""


class RecallReport(Report, frozen=True):
    """What `vlmcache recall` returns."""

    cache: str
    repos: tuple[MovedRepo, ...]
    """`path` is where each was, `destination` its place in the cache."""
    plan: Plan
    receipt: Receipt | None = None
    """What was done; `None` if nothing was."""
    in_use: tuple[Kept, ...] = ()
    """What processes use, and who they are; then nothing is moved."""
    hidden_processes: int = 0
    """Processes of other users whose files cannot be seen."""
    contained: bool = False
    """Whether processes outside this container cannot be seen either."""
    drives: tuple[DriveUse, ...] = ()
    """What became of the room on each drive; empty if nothing was done."""
    seconds: float = 0.0

    @property
    def ids(self) -> list[str]:
        """The repos that are or would be in the cache now."""
        return [repo.repo for repo in self.repos if repo.error is None]

    @property
    def problem(self) -> VlmcacheError | None:
        """Why something was not brought back, or `None` if all went as asked."""
        return problem_of(self.repos, self.receipt, self.in_use, "recalled")


def repo_row(
    path: str,
    destination: str = "",
    state: MoveState = "planned",
    *,
    size: int = 0,
    error: VlmcacheError | None = None,
) -> MovedRepo:
    """Return the row of the repo whose place in the cache is a path; `failed` with an error."""
    folder = os.path.basename(path)
    kind, repo = layout.parse_repo_folder(folder) or ("model", folder)
    if error is None:
        return MovedRepo(repo, kind, path, destination, state, size)
    failure = Failure.of(error)
    return MovedRepo(repo, kind, path, destination, "failed", size, failure)
