"""What `move` is asked for, and what it returns."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from vlmcache.cache import layout
from vlmcache.change.plan import Failure, Kept, Plan, Receipt, in_use_words
from vlmcache.errors import (
    CacheError,
    ChangedError,
    ExitCode,
    InUseError,
    PartlyError,
    SpaceError,
    VlmcacheError,
)
from vlmcache.report import Report
from vlmcache.units import and_more

MoveState = Literal["planned", "moved", "linked", "finished", "taken-back", "relinked", "failed"]


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
    `--undo`; `relinked` by `--relink`; `failed`."""
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
        if self.receipt is None:
            if self.in_use:
                return InUseError(
                    f"nothing was moved: {in_use_words(self.in_use)}", "end it, then move again"
                )
            return None
        undone = self.receipt.undone
        failed = [(repo.repo, repo.error) for repo in self.repos if repo.error is not None]
        if failed:
            repo_id, error = failed[0]
            if len(failed) < len(self.repos):
                names = f"{repo_id}{and_more(len(failed) - 1)}: "
                if error.message.startswith(f"{repo_id} ") and len(failed) == 1:
                    names = ""
                return PartlyError(f"not moved: {names}{error.message}", error.hint)
            known = (SpaceError, SourceDamagedError, InUseError, ChangedError, CacheError)
            kinds = {kind.code: kind for kind in known}
            return kinds.get(error.code, NotMovedError)(error.message, error.hint)
        if undone:
            moved = any(repo.state != "taken-back" for repo in self.repos)
            done = "moved" if moved else "taken back"
            return PartlyError(
                f"{done}, but {len(undone)} of {len(self.receipt.outcomes)} steps failed: "
                f"{undone[0].detail or undone[0].path}",
                "run it again",
            )
        return None


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
