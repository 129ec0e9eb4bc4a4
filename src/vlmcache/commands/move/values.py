"""What `move` is asked for, and what it returns."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.change.move_results import DriveUse, MovedRepo, MoveState
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


class SourceDamagedError(VlmcacheError):
    """The content of what is to be moved has another hash than its name says."""

    code = "damaged"
    exit_code = ExitCode.DAMAGE


class BusyError(VlmcacheError):
    """Another process is moving something to the same place."""

    code = "busy"
    exit_code = ExitCode.BUSY


class NotMovedError(VlmcacheError):
    """Nothing was moved."""

    code = "not-moved"
    exit_code = ExitCode.FAILED


class MoveOptions(msgspec.Struct, frozen=True):
    """How to move."""

    link: bool = True
    """Leave links in the cache."""
    dry_run: bool = False
    """Only plan."""


class MoveReport(Report, frozen=True):
    """What `vlmcache move` returns."""

    cache: str
    destination: str
    link: bool
    """Whether links are left in the cache."""
    setting: str
    """The line with which new downloads, and without links all programs, use the destination."""
    repos: tuple[MovedRepo, ...]
    plan: Plan
    receipt: Receipt | None = None
    """What was done; `None` if nothing was."""
    in_use: tuple[Kept, ...] = ()
    """What processes use, and which processes; then nothing is moved."""
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
        states = {repo.state for repo in self.repos if repo.error is None}
        done = "taken back" if states <= {"taken-back"} else "moved"
        if "relinked" in states:
            done = "relinked"
        return move_problem(self.repos, self.receipt, self.in_use, done)


def move_problem(
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
        known = (SpaceError, SourceDamagedError, InUseError, ChangedError, CacheError, AwayError)
        kinds = {kind.code: kind for kind in (*known, UsageError)}
        return kinds.get(error.code, NotMovedError)(error.message, error.hint)
    undone = receipt.undone
    if undone:
        return PartlyError(
            f"{done}, but {len(undone)} of {len(receipt.outcomes)} steps failed: "
            f"{undone[0].detail or undone[0].path}",
            "run it again",
        )
    return None


class RecallReport(Report, frozen=True):
    """What `vlmcache recall` returns."""

    cache: str
    repos: tuple[MovedRepo, ...]
    """`path` is where each was, `destination` its place in the cache."""
    plan: Plan
    receipt: Receipt | None = None
    """What was done; `None` if nothing was."""
    in_use: tuple[Kept, ...] = ()
    """What processes use, and which processes; then nothing is moved."""
    hidden_processes: int = 0
    """Processes of other users whose files cannot be seen."""
    contained: bool = False
    """Whether processes outside this container cannot be seen either."""
    drives: tuple[DriveUse, ...] = ()
    """What was freed on each drive and copied to it; empty if nothing was done."""
    seconds: float = 0.0

    @property
    def ids(self) -> list[str]:
        """The repos that are or would be in the cache now."""
        return [repo.repo for repo in self.repos if repo.error is None]

    @property
    def problem(self) -> VlmcacheError | None:
        """Why something was not brought back, or `None` if all went as asked."""
        return move_problem(self.repos, self.receipt, self.in_use, "recalled")


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


def id_of(folder: str) -> str:
    """Return the id of the repo in a folder."""
    return (layout.parse_repo_folder(folder) or ("model", folder))[1]
