"""The trash of a cache as it is read: where it lies, and what each removal has left in it.

A removal has a folder `<id>` in it with a record and what was renamed there, each under its number
in the record. The trash lies next to the hub folder if it can, else in the cache's root.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
import time
import weakref
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from vlmcache import late
from vlmcache.cache import layout
from vlmcache.cache.entries import STALE_AFTER, Notes, allocated_bytes, read_entries
from vlmcache.cache.reading import FOLDER, JSON_ERRORS, json, parse_json
from vlmcache.cache.state import CacheState, RevisionKey
from vlmcache.cache.tree import BY_DESCRIPTOR, CacheTree, enter

FORMAT = "vlmcache.trash/1"
RECORD = "record.json"
DAY = 86400.0
_LIMIT = 256_000_000
_ID = late.pattern(r"[0-9a-f]{8}")
_DELETED = late.pattern(r"[0-9a-f]{8}\.emptied")
_LATEST = 1e11
"""Seconds since the epoch, and of a duration, that a record can mean: a calendar holds no more."""
EMPTIED = ".emptied"
"""How the name ends of a removal's folder of which the rest is to be unlinked."""

_Tree = TypeVar("_Tree", bound=CacheTree)


class TrashedItem(msgspec.Struct, frozen=True):
    """What was, or was to be, renamed into the trash."""

    path: str
    """Its place below the cache's root."""
    kind: str
    """The kind of the action that removed it."""
    repo: str | None = None
    frees: int = 0
    """Bytes that the plan of the removal counted for it."""


class FolderTime(msgspec.Struct, frozen=True):
    """The time of a folder's last change before a removal, which undoing it restores."""

    path: str
    inode: int
    before: int
    after: int | None = None
    """The same after the removal; if it is another by now, somebody else has changed the folder."""


class TrashRecord(msgspec.Struct, frozen=True):
    """What a removal has written before it renamed anything, and completed in the end."""

    format: str
    id: str
    removed_at: float
    """Seconds since the epoch."""
    days: float
    """How long it is kept."""
    cache: str
    """The real path of the cache."""
    names: tuple[str, ...]
    """The models, revisions or paths that were removed."""
    items: tuple[TrashedItem, ...]
    """What was to be renamed; its number in this list is its name in the trash."""
    folders: tuple[FolderTime, ...] = ()
    revisions: tuple[RevisionKey, ...] = ()
    """The revisions that were removed."""
    part_of: str | None = None
    """The real path of the cache whose removal this is a part of, if it is a place's."""
    places: tuple[str, ...] = ()
    """The folders of moved models in whose trash the rest of this removal is."""
    done: bool = False
    """Whether the removal came to its end."""
    receipt: Any = None

    @property
    def expires_at(self) -> float:
        """Seconds since the epoch from which on the next command removes it."""
        return self.removed_at + self.days * DAY


class TrashTree(CacheTree):
    """A trash as it is read; no link in it is followed."""

    def home(self: _Tree, path: str) -> tuple[_Tree, str]:
        """Return this tree: nothing in a trash lies elsewhere."""
        return self, path


class Trashed(NamedTuple):
    """One removal in a trash."""

    tree: CacheTree
    id: str
    record: TrashRecord | None
    """`None` where it cannot be read."""
    removed_at: float

    @property
    def path(self) -> str:
        """Its folder."""
        return os.path.join(self.tree.root, self.id)

    def item_path(self, number: int) -> str:
        """Return where in the trash an item of the record is."""
        return os.path.join(self.path, str(number))

    def items(self) -> Iterator[tuple[TrashedItem, str]]:
        """Yield each item of the record that is here, and its path."""
        for number, item in enumerate(self.record.items if self.record is not None else ()):
            path = self.item_path(number)
            with contextlib.suppress(OSError):
                self.tree.stat(path)
                yield item, path

    def is_expired(self, now: float, days: float) -> bool:
        """Return whether it was kept long enough; without a record for so many days."""
        expires = self.removed_at + days * DAY
        return now >= (expires if self.record is None else self.record.expires_at)


class Weight(NamedTuple):
    """What something occupies, and what removing it would give back, in bytes."""

    size_on_disk: int
    frees: int


class TrashNeeds(msgspec.Struct, frozen=True):
    """What removals in the trash need of the cache, to be restored as they were."""

    blobs: Mapping[tuple[str, str], str] = {}
    """(repo folder, blob) -> the id of the removal that needs it."""
    shared: Mapping[str, str] = {}
    """Hash of a shared blob -> the id of the removal that needs it."""
    folders: frozenset[str] = frozenset()
    """Repo folders of which something is in the trash: their locks stay."""


def opened(kind: type[_Tree], path: str, descriptor: int) -> _Tree:
    """Return a tree whose root is open already; its descriptor is closed with it."""
    tree = kind(path)
    vars(tree)["top"] = descriptor
    weakref.finalize(tree, os.close, descriptor)
    return tree


@contextlib.contextmanager
def next_to(tree: CacheTree) -> Iterator[tuple[int, str] | None]:
    """Yield the open folder in which a cache's folder is and that one's real name.

    `None` if what is renamed between the two would have to be copied, or that cannot be known.
    """
    parent = None
    try:
        with contextlib.suppress(OSError):
            name = os.path.basename(os.path.realpath(tree.root))
            if BY_DESCRIPTOR and name:
                # From the open folder, no link leads anywhere else.
                parent = os.open(os.pardir, FOLDER, dir_fd=tree.top)
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if not os.path.samestat(found, os.fstat(tree.top)) or not _one_mount(
                    parent, tree.top
                ):
                    os.close(parent)
                    parent = None
        yield None if parent is None else (parent, name)
    finally:
        if parent is not None:
            os.close(parent)


def _one_mount(descriptor: int, other: int) -> bool:
    if os.fstat(descriptor).st_dev != os.fstat(other).st_dev:
        return False
    return _mount_id(descriptor) == _mount_id(other)


def _mount_id(descriptor: int) -> str | None:
    """Return which mount an open folder is on: the same filesystem may be mounted twice."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{descriptor}") as lines:
        return next((line for line in lines if line.startswith("mnt_id:")), None)
    return None


def beside_path(tree: CacheTree) -> str:
    """Return where the trash next to a cache's folder is."""
    folder, name = os.path.split(os.path.realpath(tree.root))
    return os.path.join(folder, layout.trash_beside(name))


def open_beside(tree: CacheTree, parent: int, name: str) -> int:
    """Open the trash next to a cache's folder and return its descriptor.

    Whoever may write next to the cache could have made it: it has to belong to the cache's owner,
    to root or to this user.

    Raises:
        OSError: it is not there, not a folder, or somebody else's.
    """
    place = beside_path(tree)
    descriptor = enter(layout.trash_beside(name), parent, place)
    owners = {0, os.geteuid(), os.fstat(tree.top).st_uid}
    if os.fstat(descriptor).st_uid not in owners:
        os.close(descriptor)
        raise PermissionError(f"another user's: {place}")
    return descriptor


def trash_trees(cache: str | CacheTree, kind: type[_Tree]) -> list[_Tree]:
    """Return the trashes of a cache that are there, opened.

    Args:
        cache: the cache, or a tree that has it open.
        kind: how they are opened.
    """
    trees: list[_Tree] = []
    with contextlib.suppress(OSError):
        tree = CacheTree(cache)
        with next_to(tree) as beside, contextlib.suppress(OSError):
            if beside is not None:
                trees.append(opened(kind, beside_path(tree), open_beside(tree, *beside)))
        with tree.parent(inside := os.path.join(tree.root, layout.TRASH)) as (name, folder):
            if folder is not None:
                trees.append(opened(kind, inside, enter(name, folder, inside)))
            elif modes.S_ISDIR(os.lstat(inside).st_mode):
                trees.append(kind(inside))
    return trees


def has_trash(cache: str) -> bool:
    """Return whether a cache seems to have a trash, at the price of two questions."""
    return any(
        os.path.lexists(path)
        for path in (os.path.join(cache, layout.TRASH), beside_path(CacheTree(cache)))
    )


def read_trash(
    cache: str | CacheTree, kind: type[CacheTree] = TrashTree, only: str | None = None
) -> list[Trashed]:
    """Return the removals in the trash of a cache, the oldest first.

    Args:
        cache: the cache, or a tree that has it open.
        kind: how the trash is opened.
        only: the one id that is asked for.
    """
    found: list[Trashed] = []
    if not has_trash(cache.root if isinstance(cache, CacheTree) else cache):
        return found
    for tree in trash_trees(cache, kind):
        with contextlib.suppress(OSError):
            for name in tree.names(tree.root) if only is None else [only]:
                if _ID.fullmatch(name):
                    with contextlib.suppress(OSError):
                        trashed = _read(tree, name)
                        if trashed.record is not None or not _is_begun(trashed):
                            found.append(trashed)
    return sorted(found, key=lambda trashed: trashed.removed_at)


def _read(tree: CacheTree, name: str) -> Trashed:
    folder = os.path.join(tree.root, name)
    status = tree.stat(folder)
    if not modes.S_ISDIR(status.st_mode):
        raise NotADirectoryError(folder)
    record = None
    with contextlib.suppress(OSError, *JSON_ERRORS):
        value = parse_json(tree.read(os.path.join(folder, RECORD), _LIMIT))
        read = msgspec.convert(value, TrashRecord)
        record = read if read.id == name and _is_sound(read) else None
    removed_at = record.removed_at if record else min(max(0.0, status.st_mtime), _LATEST)
    return Trashed(tree, name, record, removed_at)


def _is_sound(record: TrashRecord) -> bool:
    """Return whether a record can be ours: whoever may write to the trash may have written it."""
    return (
        record.format == FORMAT
        and 0 <= record.removed_at <= _LATEST
        and 0 <= record.days * DAY <= _LATEST
        and all(is_below(item.path) for item in record.items)
        and all(not time.path or is_below(time.path) for time in record.folders)
        and all(abs(time.before) < 1 << 63 for time in record.folders)
        and all(layout.is_entry_name(commit) for _, _, commit in record.revisions)
    )


def _is_begun(trashed: Trashed) -> bool:
    """Return whether a removal was ended before it had renamed anything: its record comes first."""
    return not any(name.isdecimal() for name in trashed.tree.names(trashed.path))


def is_below(path: str) -> bool:
    """Return whether a path of a record can be one below a cache's root, and not in its trash."""
    parts = path.split(os.sep)
    return (
        not os.path.isabs(path)
        and "\0" not in path
        and not {"", os.curdir, os.pardir}.intersection(parts)
        and parts[0] not in (layout.TRASH, layout.LEFTOVERS)
    )


def emptied(tree: CacheTree) -> list[str]:
    """Return the folders of a trash of which the rest is to be unlinked."""
    try:
        names = tree.names(tree.root)
    except OSError:
        return []
    found = [os.path.join(tree.root, name) for name in names if _DELETED.fullmatch(name)]
    for name in filter(_ID.fullmatch, names):
        with contextlib.suppress(OSError):
            trashed = _read(tree, name)
            young = time.time() - trashed.removed_at < STALE_AFTER
            if trashed.record is None and not young and _is_begun(trashed):
                found.append(trashed.path)
    return found


def encoded(record: TrashRecord) -> bytes:
    """Return a record as it is written; names on a disk need not be valid Unicode."""
    content: str = json.dumps(msgspec.to_builtins(record), indent=1)
    return content.encode("ascii")


def weigh(path: str) -> Weight:
    """Return what a path and all below it occupy, and what removing it would give back."""
    files: dict[tuple[int, int], tuple[int, int]] = {}
    names: dict[tuple[int, int], int] = {}
    size = 0
    notes = Notes(None)
    pending: list[tuple[str, os.stat_result]] = []
    with contextlib.suppress(OSError):
        pending.append((path, os.lstat(path)))
    while pending:
        place, status = pending.pop()
        if modes.S_ISDIR(status.st_mode):
            size += allocated_bytes(status)
            pending += ((os.path.join(place, name), of) for name, of in read_entries(place, notes))
            continue
        key = status.st_dev, status.st_ino
        files[key] = allocated_bytes(status), status.st_nlink
        names[key] = names.get(key, 0) + 1
    frees = sum(blocks for key, (blocks, links) in files.items() if names[key] >= links)
    return Weight(size + sum(blocks for blocks, _ in files.values()), size + frees)


def trash_size(cache: str) -> int:
    """Return the bytes on disk of all of a cache's trash."""
    if not has_trash(cache):
        return 0
    return sum(weigh(tree.root).size_on_disk for tree in trash_trees(cache, TrashTree))


def blob_paths(trashed: Trashed, folder: str) -> dict[str, str]:
    """Return blob -> its path in the trash, of the blobs of a repo that a removal has there."""
    found: dict[str, str] = {}
    inside = os.path.join(folder, layout.BLOBS, "")
    for item, path in trashed.items():
        if item.path == folder:
            blobs = os.path.join(path, layout.BLOBS)
            with contextlib.suppress(OSError):
                found |= {name: os.path.join(blobs, name) for name in trashed.tree.names(blobs)}
        elif item.kind == "blob" and item.path.startswith(inside):
            found[item.path.removeprefix(inside)] = path
    return found


def with_trash(state: CacheState) -> CacheState:
    """Return a cache with the blobs that a pull would take back from its trash."""
    trash = read_trash(state.dir)
    shared = {
        os.path.basename(item.path): trashed.tree.stat(path).st_size
        for trashed in trash
        for item, path in trashed.items()
        if item.kind == "shared"
    }
    shared |= {name: blob.size for name, blob in state.shared.items()}
    found: dict[tuple[str, str], int] = {}
    for trashed in trash:
        folders = {item.path.partition(os.sep)[0] for item, _ in trashed.items()}
        for folder in filter(layout.parse_repo_folder, folders):
            repo = state.repo_in(folder)
            if repo is not None and repo.linked_to is not None:
                continue
            for name, path in blob_paths(trashed, folder).items():
                with contextlib.suppress(OSError):
                    status = trashed.tree.stat(path)
                    size: int | None = status.st_size
                    if modes.S_ISLNK(status.st_mode):
                        target = layout.shared_hash_of(trashed.tree.readlink(path))
                        size = shared.get(target or "")
                    if size is not None and layout.partial_etag(name) is None:
                        found[folder, name] = size
    return msgspec.structs.replace(state, trashed=found) if found else state


def find_needs(trash: Collection[Trashed]) -> TrashNeeds:
    """Return what removals in the trash need of what is in the cache."""
    blobs: dict[tuple[str, str], str] = {}
    shared: dict[str, str] = {}
    folders: set[str] = set()
    for trashed in trash:
        for item, path in trashed.items():
            folder = item.path.partition(os.sep)[0]
            folders.add(folder)
            for target in _targets(trashed.tree, path):
                shared_hash = layout.shared_hash_of(target)
                if shared_hash is not None:
                    shared.setdefault(shared_hash, trashed.id)
                elif target.split("/")[-2:-1] == [layout.BLOBS]:
                    blobs.setdefault((folder, target.rpartition("/")[2]), trashed.id)
    return TrashNeeds(blobs, shared, frozenset(folders))


def _targets(tree: CacheTree, path: str) -> Iterator[str]:
    """Yield where the links at a path and below it lead."""
    pending = [path]
    while pending:
        place = pending.pop()
        with contextlib.suppress(OSError):
            mode = tree.stat(place).st_mode
            if modes.S_ISLNK(mode):
                yield tree.readlink(place)
            elif modes.S_ISDIR(mode):
                pending += (os.path.join(place, name) for name in tree.names(place))
