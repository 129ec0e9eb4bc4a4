"""What `backup` and `restore` answer with."""

from __future__ import annotations

import msgspec

from vlmcache.change.plan import Plan, Receipt
from vlmcache.errors import ChangedError, ExitCode, PartlyError, VlmcacheError

STREAM = "-"


class BackupError(VlmcacheError):
    """What is to be backed up is not what it should be, or a backup is none that can be trusted."""

    code = "bad-backup"
    exit_code = ExitCode.DAMAGE


class ChangedRef(msgspec.Struct, frozen=True):
    """A ref of the store that names another commit now; old is `None` for one that is new."""

    repo: str
    ref: str
    old: str | None
    commit: str


class Amount(msgspec.Struct, frozen=True):
    """So many blobs, and their length in bytes."""

    blobs: int = 0
    size: int = 0


class Backup(msgspec.Struct, frozen=True):
    """What `vlmcache backup` answers. size is the length of all blobs, seconds how long it took.

    uploaded: what was written. skipped: what the store had already. Content that several repos or
    files share counts once in both. refs: what refs of the store were changed or are new.
    left_out: repos of which nothing could be saved although none was named.
    """

    destination: str
    repos: tuple[str, ...]
    blobs: int
    size: int
    uploaded: Amount
    skipped: Amount
    refs: tuple[ChangedRef, ...]
    seconds: float
    left_out: tuple[str, ...] = ()


class Restored(msgspec.Struct, frozen=True):
    """What `vlmcache restore` answers. size is the length of all blobs that were asked for.

    skipped: what the cache had already.
    """

    source: str
    repos: tuple[str, ...]
    blobs: int
    size: int
    skipped: Amount
    plan: Plan
    receipt: Receipt | None
    seconds: float
    cache: str = ""
    """The hub cache."""


def incomplete(value: Backup) -> PartlyError | None:
    """Return what a backup has to tell of, or `None` if nothing was left out."""
    if not value.left_out:
        return None
    return PartlyError(
        "not saved, since it is on a drive that is not mounted, cannot be read or has no snapshot: "
        f"{', '.join(value.left_out)}",
        "'vlmcache status --all' tells why",
    )


def problem(value: Restored) -> VlmcacheError | None:
    """Return what a restore has to tell of, or `None` if all is as in the backup."""
    outcomes = value.receipt.outcomes if value.receipt else ()
    stale = [one for one in outcomes if one.result == "stale"]
    failed = [one for one in outcomes if one.detail and one.result == "failed"]
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return BackupError(
            f"{failed[0].detail}{more}; what needs it is not restored",
            "'vlmcache backup --verify' mends the store where there is a good copy",
        )
    if stale:
        return ChangedError(stale[0].detail or stale[0].path, "restore again")
    if not value.plan.kept:
        return None
    kept = value.plan.kept[0]
    more = f" and {len(value.plan.kept) - 1} more" if len(value.plan.kept) > 1 else ""
    return PartlyError(f"{kept.reason}: {kept.path}{more}", "--overwrite takes the backup's")
