"""What `move` answers with."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from vlmcache.cache import layout
from vlmcache.change.in_use import InUseError, in_use_words
from vlmcache.change.plan import Failure, Kept, Plan, Receipt
from vlmcache.errors import (
    CacheError,
    ChangedError,
    ExitCode,
    PartlyError,
    SpaceError,
    VlmcacheError,
)

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


class MovedRepo(msgspec.Struct, frozen=True):
    """What became of one repo.

    state: `planned` (`--dry-run`); `moved` now; `linked` where an interrupted move lacked but the
    link; `finished` where it lacked but the removal of what it had set aside; `taken-back` by
    `--undo`; `relinked` by `--relink`; `failed`. path is its place in the
    cache, destination the new one, size its length in bytes, shared blobs included.
    """

    repo: str
    type: str
    path: str
    destination: str
    state: MoveState
    size: int = 0
    error: Failure | None = None


class Moved(msgspec.Struct, frozen=True):
    """What `vlmcache move` answers.

    link: whether links are left in the cache. setting: the line that makes the destination the
    cache, for new downloads or, without links, for all. copied: bytes written at the destination.
    in_use: what processes use, and who they are; then nothing is moved. hidden_processes: processes
    of other users that could not be looked into. receipt is absent where nothing was carried out.
    """

    cache: str
    destination: str
    link: bool
    setting: str
    repos: tuple[MovedRepo, ...]
    plan: Plan
    receipt: Receipt | None = None
    in_use: tuple[Kept, ...] = ()
    hidden_processes: int = 0
    copied: int = 0
    seconds: float = 0.0


def problem(value: Moved) -> VlmcacheError | None:
    """Return the failure that a move has to tell of, or `None` if all went as asked."""
    if value.receipt is None:
        if value.in_use:
            return InUseError(
                f"nothing was moved: {in_use_words(value.in_use)}", "end it first, then move"
            )
        return None
    failed = [repo for repo in value.repos if repo.error is not None]
    rest = [one for one in value.receipt.outcomes if one.result not in ("done", "absent")]
    if failed:
        first = failed[0].error
        assert first is not None
        if len(failed) < len(value.repos):
            more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
            return PartlyError(f"not moved: {failed[0].repo}{more}: {first.message}", first.hint)
        for kind in (SpaceError, SourceDamagedError, InUseError, ChangedError, CacheError):
            if kind.code == first.code:
                return kind(first.message, first.hint)
        return NotMovedError(first.message, first.hint)
    if rest:
        done = "moved" if any(repo.state != "taken-back" for repo in value.repos) else "taken back"
        return PartlyError(
            f"{done}, but {len(rest)} of {len(value.receipt.outcomes)} steps failed: "
            f"{rest[0].detail or rest[0].path}",
            "run it again, or 'vlmcache clean'",
        )
    return None


def ids(value: Moved) -> list[str]:
    """Return the repos that are or would be elsewhere now, for `--quiet`."""
    return [repo.repo for repo in value.repos if repo.error is None]


def planned_repo(path: str, repo: str, destination: str, size: int = 0) -> MovedRepo:
    """Return the row of a repo that is to be moved."""
    parsed = layout.parse_repo_folder(os.path.basename(path))
    return MovedRepo(repo, parsed[0] if parsed else "model", path, destination, "planned", size)
