"""What would be done, as a value; and what was done, as the disk shows it.

Every action names what it touches, what it expects to find there, and why. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal, TypeAlias

import msgspec

from vlmcache import log
from vlmcache.cache.state import Repo, Revision
from vlmcache.cache.tree import StaleError
from vlmcache.cache.usage import Process
from vlmcache.errors import InUseError, VlmcacheError, in_words, reason_of
from vlmcache.units import and_more


class Expected(msgspec.Struct, frozen=True):
    """What a path was when the plan was made; anything else means that it changed since."""

    inode: int
    mtime_ns: int
    size: int | None
    """The entry's own length; `None` if the scan does not give it, as of a link."""


class Remove(msgspec.Struct, frozen=True, tag="remove", tag_field="action"):
    """Unlink one file or link, or a folder that is empty by then. Links are never followed."""

    path: str
    kind: Literal[
        "ref", "link", "file", "blob", "partial", "tree", "lock", "stray", "folder", "record"
    ]
    repo: str | None
    reason: str
    frees: int
    """Bytes of disk that unlinking gives back; 0 if another hard link keeps them."""
    expected: Expected | None
    commit: str | None = None
    """The revision that it belongs to and is removed with."""


class RemoveTree(msgspec.Struct, frozen=True, tag="remove-tree", tag_field="action"):
    """Rename a folder (a repo, a snapshot) into the leftovers, then unlink all in it."""

    path: str
    kind: Literal["repo", "snapshot", "no-exist", "locks", "stray", "leftover", "side-cache"]
    repo: str | None
    reason: str
    frees: int
    expected: Expected | None
    stamp: str | None = None
    """What the folder holds, in short: of a repo or snapshot by `stamp`."""
    commit: str | None = None
    at_once: bool = False
    """Whether it is renamed away or stays, and is never removed in its place; only for a repo."""
    link: str | None = None
    """Where a link leads to that takes the place of what is renamed away at once."""


class ReleaseShared(msgspec.Struct, frozen=True, tag="release-shared", tag_field="action"):
    """Take repo blobs off a shared blob's manifest; unlink the shared blob if none is left."""

    path: str
    hash: str
    references: tuple[str, ...]
    """Repo blobs that are removed, as `<repo folder>/blobs/<etag>`."""
    reason: str
    frees: int
    last: bool = False
    """Whether nothing else refers to the shared blob, so that it is removed."""
    kind: ClassVar[Literal["shared"]] = "shared"
    commit: ClassVar[None] = None


class _OfFile(msgspec.Struct, frozen=True, tag_field="action"):
    """An action on one file of a revision."""

    repo: str
    file: str
    path: str
    etag: str


class Fetch(_OfFile, frozen=True, tag="fetch"):
    """Download one blob, or the rest of it, and link it into the snapshot."""

    size: int
    """The blob's length."""
    have: int
    """Bytes of a checked partial that need not be sent again."""
    reason: str


class Link(_OfFile, frozen=True, tag="link"):
    """Link a blob that is already there into the snapshot."""

    reason: str


class WriteRef(msgspec.Struct, frozen=True, tag="write-ref", tag_field="action"):
    """Let a ref name a commit."""

    repo: str
    ref: str
    path: str
    commit: str
    reason: str


class _OfRepo(msgspec.Struct, frozen=True, tag_field="action"):
    """An action on a repo, or on something of it."""

    repo: str
    path: str


class Restore(_OfRepo, frozen=True, tag="restore"):
    """Take one blob of a given size and hash out of a backup."""

    hash: str
    size: int
    reason: str


class SetAccess(msgspec.Struct, frozen=True, tag="set-access", tag_field="action"):
    """Let a folder or file have other permissions, and another group or owner.

    If it has another mode, group, owner, device or inode than the plan says, it changed since.
    """

    path: str
    kind: Literal["folder", "blob", "file", "link"]
    reason: str
    mode: int
    group: int
    old_mode: int
    old_group: int
    device: int
    inode: int
    inherit: bool = False
    """Whether what is made in the folder is to be writable by its group too."""
    owner: int | None = None
    """The user who is to own it; `None` if the owner stays."""
    old_owner: int | None = None


class Move(_OfRepo, frozen=True, tag="move"):
    """Bring a complete repo to another cache: copied, hashed, then put there by one rename."""

    destination: str
    size: int
    """The length of all that is copied, shared blobs included."""
    have: int
    """Bytes of the length that are at the destination already."""
    needs: int
    """Bytes of disk that it takes at the destination."""
    reason: str
    shared: tuple[str, ...] = ()
    """Hashes of the blobs of the shared store that the repo links to."""


class PlaceLink(_OfRepo, frozen=True, tag="place-link"):
    """Leave a link in the place of a repo that was moved."""

    destination: str
    reason: str


class Attach(_OfRepo, frozen=True, tag="attach"):
    """Link what a base has of a repo, and this cache has not, into this cache."""

    base: str
    """The folder of the base."""
    revisions: tuple[str, ...]
    """Commits of which something is linked."""
    blobs: int
    """Blobs that become links into the base."""
    size: int
    """The length of these blobs, which take no room here."""
    refs: tuple[str, ...]
    """Refs that are written."""
    reason: str


class PutBack(_OfRepo, frozen=True, tag="put-back"):
    """Rename a repo that an interrupted move had set aside back to its place."""

    aside: str
    reason: str


Action = (
    Remove
    | RemoveTree
    | ReleaseShared
    | Fetch
    | Link
    | WriteRef
    | Restore
    | SetAccess
    | Move
    | PlaceLink
    | PutBack
    | Attach
)


class Kept(msgspec.Struct, frozen=True):
    """Something left alone on purpose."""

    path: str
    repo: str | None
    reason: str
    processes: tuple[Process, ...] = ()
    """Who uses it, if that is why."""


class Plan(msgspec.Struct, frozen=True):
    """What would be done, in order."""

    actions: tuple[Action, ...]
    frees: int = 0
    """Bytes of disk that removals give back."""
    needs: int = 0
    """Bytes of disk that downloads take."""
    kept: tuple[Kept, ...] = ()
    """What one might have expected to be removed, and why it stays."""
    unknown_use: int = 0
    """Bytes of old revisions that stay only because nothing shows whether they are used."""

    @property
    def to_fetch(self) -> int:
        """Bytes to download.

        The disk has to have room for more if another program began a file: that is copied.
        """
        fetches = (action for action in self.actions if isinstance(action, Fetch))
        return sum(fetch.size - fetch.have for fetch in fetches)

    @property
    def placed(self) -> Iterator[str]:
        """The places in snapshots where files are fetched to or linked."""
        return (action.path for action in self.actions if isinstance(action, Fetch | Link))

    def log(self, area: str) -> None:
        """Log each decision, with its reason."""
        for action in self.actions:
            name = str(action.__struct_config__.tag)
            log.info(area, "planned: %s '%s': %s", name, action.path, action.reason)
        for kept in self.kept:
            log.info(area, "kept: '%s': %s", kept.path, kept.reason)


Result: TypeAlias = Literal["done", "absent", "stale", "busy", "failed"]
TRY_AGAIN = "run it again; if it fails again, see 'vlmcache doctor'"
"""The hint for what failed: often another process has put something there meanwhile."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of one action.

    done: as planned. absent: it was gone already. stale: it changed since the plan was made and was
    left alone. busy: some process uses it. failed: the system refused; `detail` says why.
    """

    action: str
    path: str
    result: Result
    freed: int = 0
    fetched: int = 0
    detail: str | None = None
    trashed: int = 0
    """Bytes that are freed when the trash is emptied."""


class Failure(msgspec.Struct, frozen=True):
    """Why something was not done for one model."""

    code: str
    message: str
    hint: str | None
    exit_code: int

    @classmethod
    def of(cls, error: VlmcacheError) -> Failure:
        """Return an error as the value that `--json` prints."""
        return cls(error.code, error.message, error.hint, int(error.exit_code))


class Receipt(msgspec.Struct, frozen=True):
    """What was done. freed and fetched are bytes, measured and not predicted."""

    outcomes: tuple[Outcome, ...]
    freed: int = 0
    """Disk blocks of the files whose last name was removed, as `du` counts them."""
    fetched: int = 0
    free_before: int | None = None
    """Bytes free on the cache's filesystem before the first change; `None` if it does not say."""
    free_after: int | None = None
    """Bytes free on it after the last change, other writers' changes included."""
    stopped: str | None = None
    """Why the rest of the plan was left alone, if it was."""
    trashed: int = 0
    """Bytes of disk that are freed when the trash is emptied, and not before."""
    trash_id: str | None = None
    """What to name to `undo`, if anything is kept in the trash."""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Receipt:
        """Return the receipt of outcomes, with what they freed and fetched in all."""
        return cls(
            tuple(outcomes),
            sum(outcome.freed for outcome in outcomes),
            sum(outcome.fetched for outcome in outcomes),
        )

    @property
    def undone(self) -> list[Outcome]:
        """What became of the actions after which something is not as the plan wanted it."""
        return [step for step in self.outcomes if step.result not in ("done", "absent")]

    @property
    def whole(self) -> bool:
        """Whether everything is now as the plan wanted it."""
        return not self.undone


def stamp(repo: Repo, revision: Revision | None = None) -> str:
    """Return a digest of what the scan saw of a repo, or of one snapshot; access times left out.

    If it is the same later, nothing was added, taken or written since.
    """
    import hashlib  # not needed to plan a cache of which no complete folder is removed

    digest = hashlib.sha256()

    def add(*facts: object) -> None:
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))

    revisions = repo.revisions if revision is None else (revision,)
    for described in sorted(revisions, key=lambda listed: listed.commit):
        add(described.commit, described.entry, described.linked)
        for file in sorted(described.files, key=lambda listed: listed.name):
            add(file.name, file.kind, file.blob, file.inode, file.mtime_ns, file.size)
    if revision is None:
        for name, blob in sorted(repo.blobs.items()):
            add(name, blob.inode, blob.mtime_ns, blob.size, blob.shared)
        for part in sorted(repo.partials, key=lambda listed: listed.name):
            add(part.name, part.inode, part.mtime_ns, part.size)
        for stray in sorted(repo.strays, key=lambda listed: listed.path):
            add(stray.path, stray.inode, stray.mtime_ns, stray.size)
        add(sorted(repo.refs.items()), sorted(repo.ref_files.items()))
    return digest.hexdigest()


def sum_stamp(size: int, allocated: int) -> str:
    """Return the stamp of a folder of which only the sums are known."""
    return f"{size}:{allocated}"


def freed_by(actions: Iterable[Action]) -> int:
    """Return the bytes of disk that the removals among some actions give back."""
    return sum(getattr(action, "frees", 0) for action in actions)


def joined(plans: Sequence[Plan]) -> Plan:
    """Return one plan of several, in their order."""
    return Plan(
        tuple(action for plan in plans for action in plan.actions),
        frees=sum(plan.frees for plan in plans),
        needs=sum(plan.needs for plan in plans),
        kept=tuple(kept for plan in plans for kept in plan.kept),
        unknown_use=sum(plan.unknown_use for plan in plans),
    )


def in_use_words(blocked: Sequence[Kept]) -> str:
    """Return who uses what, with process ids and commands."""
    return "; ".join(
        f"{kept.repo or kept.path} {used_by_words(kept.processes)}" for kept in blocked
    )


def used_by_words(processes: Sequence[Process]) -> str:
    """Return by whom something is in use."""
    if not processes:
        return "is being downloaded: a lock of the hub is held"
    users = ", ".join(f"{process.name} ({_short(process.command)})" for process in processes[:3])
    return f"is in use by {users}{and_more(len(processes) - 3)}"


def _short(command: str) -> str:
    return command if len(command) <= 80 else command[:79] + "…"


Removing: TypeAlias = Remove | RemoveTree | ReleaseShared


class Attempt(msgspec.Struct):
    """An action, what became of it, and the bytes of disk that it has given back so far."""

    action: Removing
    freed: int = 0
    outcome: Outcome | None = None
    trashed: int = 0

    @classmethod
    def at(cls, path: str) -> Attempt:
        """Return an attempt to remove what is at a path, which no plan names."""
        return cls(RemoveTree(path, "leftover", None, "", 0, None))

    def note(self, result: Result, detail: str | None = None) -> Outcome:
        """Keep what became of the action by now, and return it."""
        name = str(self.action.__struct_config__.tag)
        write = log.debug if result in ("done", "absent") else log.info
        why = f": {detail}" if detail else ""
        write("remove", "%s: %s '%s'%s", result, name, self.action.path, why)
        path = self.action.path
        self.outcome = Outcome(name, path, result, self.freed, detail=detail, trashed=self.trashed)
        return self.outcome


REFUSALS = (InUseError, OSError)


def result_of(error: Exception, path: str) -> tuple[Result, str | None]:
    """Return what became of an action at a path that ended in one of `REFUSALS`, and why."""
    if isinstance(error, FileNotFoundError):
        return "absent", None
    if isinstance(error, OSError):
        return "stale" if isinstance(error, StaleError) else "failed", in_words(error, path)
    return "busy", reason_of(error)
