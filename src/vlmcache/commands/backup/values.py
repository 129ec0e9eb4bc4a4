"""The options and the results of `backup` and `restore`."""

from __future__ import annotations

from typing import Literal

import msgspec

from vlmcache.change.plan import Plan, Receipt
from vlmcache.errors import ChangedError, ExitCode, PartlyError, VlmcacheError
from vlmcache.report import Report
from vlmcache.units import and_more

STREAM = "-"
"""The place that means stdin or stdout."""
Form = Literal["store", "tar", "tar.gz", "tar.zst"]
"""The kind of backup: a store, or one tar stream and how that is compressed."""
MARKER = "vlmcache-store.json"
"""The file that makes a folder or prefix a store."""
MAKE_ROOM_THERE = "make room there, name fewer models, or another drive"


class BackupError(VlmcacheError):
    """Something to be backed up is damaged, or a backup cannot be trusted."""

    code = "bad-backup"
    exit_code = ExitCode.DAMAGE
    foreign = False
    """Whether another program may have made it: nothing in it says that it is a backup."""


class BackupOptions(msgspec.Struct, frozen=True):
    """How to back up."""

    verify: bool = False
    """Read everything that was saved already, and write damaged contents again."""
    dry_run: bool = False
    """Write nothing."""


class RestoreOptions(msgspec.Struct, frozen=True):
    """How to restore."""

    overwrite: bool = False
    """Let refs of the backup replace those that name another commit."""
    dry_run: bool = False
    """Only plan."""


class ChangedRef(msgspec.Struct, frozen=True):
    """A ref of the store that now names another commit."""

    repo: str
    ref: str
    old: str | None
    """`None` for a new one."""
    commit: str


class Amount(msgspec.Struct, frozen=True):
    """A number of blobs."""

    blobs: int = 0
    size: int = 0
    """Their length in bytes."""


class Backup(Report, frozen=True):
    """What `vlmcache backup` returns."""

    destination: str
    repos: tuple[str, ...]
    blobs: int
    size: int
    """Length of all blobs in bytes."""
    uploaded: Amount
    """The content written; what several repos or files share counts once."""
    skipped: Amount
    """The content that was saved already, counted in the same way."""
    refs: tuple[ChangedRef, ...]
    """Refs of the store that were changed or are new."""
    seconds: float
    left_out: tuple[str, ...] = ()
    """Repos of which nothing could be saved, if no repo was named."""
    dry_run: bool = False
    """Whether nothing was written; the other fields say what would be."""
    form: Form = "store"

    @property
    def ids(self) -> list[str]:
        """The ids of the repos."""
        return list(self.repos)

    @property
    def problem(self) -> PartlyError | None:
        """The repos left out, or `None` if everything was saved."""
        if not self.left_out:
            return None
        return PartlyError(
            "not saved, because not mounted, not readable or without a snapshot: "
            f"{', '.join(self.left_out)}",
            "'vlmcache status --all' shows why",
        )


class Restored(Report, frozen=True):
    """What `vlmcache restore` returns."""

    source: str
    repos: tuple[str, ...]
    blobs: int
    size: int
    """Length in bytes of all blobs that were asked for."""
    skipped: Amount
    """The blobs that the cache had already."""
    plan: Plan
    receipt: Receipt | None
    seconds: float
    cache: str = ""
    """The hub cache."""
    form: Form = "store"

    @property
    def ids(self) -> list[str]:
        """The ids of the repos."""
        return list(self.repos)

    @property
    def problem(self) -> VlmcacheError | None:
        """What is not as in the backup, or `None` if everything is."""
        undone = self.receipt.undone if self.receipt else ()
        failed = [step for step in undone if step.detail and step.result == "failed"]
        if failed:
            return BackupError(
                f"{failed[0].detail}{and_more(len(failed) - 1)}; what needs it is not restored",
                "'vlmcache backup --verify' repairs the store from a good copy",
            )
        for step in undone:
            if step.result == "stale":
                return ChangedError(step.detail or step.path, "restore again")
        for kept in self.plan.kept:
            more = and_more(len(self.plan.kept) - 1)
            return PartlyError(
                f"{kept.repo}: {kept.reason}{more}",
                "--overwrite lets it name the backup's; the files of both stay",
            )
        return None


def damaged(path: str) -> BackupError:
    """Return the error of a file of the cache that is not what its hash says."""
    return BackupError(
        f"the backup is not complete, because a file is damaged: {path}",
        "'vlmcache verify --repair' repairs it",
    )
