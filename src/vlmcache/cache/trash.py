"""Reading the trash of a cache: where it is, and what each removal has left in it.

A removal has a folder `<id>` in it with a record and what was moved there, each item under its
number in the record. The trash is next to the hub folder if possible, else in the cache's root.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from vlmcache import late
from vlmcache.cache import layout
from vlmcache.cache.entries import STALE_AFTER, Notes, allocated_bytes, read_entries
from vlmcache.cache.reading import FOLDER, JSON_ERRORS, json, parse_json
from vlmcache.cache.state import CacheState, RevisionKey
from vlmcache.cache.tree import BY_DESCRIPTOR, CacheTree, enter, tree_at, trusted_owners
from vlmcache.paths import real_path

FORMAT = "vlmcache.trash/1"
RECORD = "record.json"
DAY = 86400.0
_LIMIT = 256_000_000
_ID = late.pattern(r"[0-9a-f]{8}")
_DELETED = late.pattern(r"[0-9a-f]{8}\.emptied")
_LATEST = 1e11
"""Seconds since the epoch, and of a duration, that a record can mean: a calendar holds no more."""
EMPTIED = ".emptied"
"""How the name of a removal's folder ends while it is being emptied."""

_Tree = TypeVar("_Tree", bound=CacheTree)


class TrashedItem(msgspec.Struct, frozen=True):
    """Something that was, or was to be, moved into the trash."""

    path: str
    """Its path below the cache's root."""
    kind: str
    """The kind of the action that removed it."""
    repo: str | None = None
    frees: int = 0
    """Bytes that the plan of the removal said it would free."""


class FolderTime(msgspec.Struct, frozen=True):
    """The time of a folder's last change before a removal, which undoing it restores."""

    path: str
    inode: int
    before: int
    after: int | None = None
    """The same after the removal; if it differs now, somebody else has changed the folder."""


class TrashRecord(msgspec.Struct, frozen=True):
    """What a removal writes before it moves anything, and completes in the end."""

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
    """What was to be moved; an item's number in this list is its name in the trash."""
    folders: tuple[FolderTime, ...] = ()
    revisions: tuple[RevisionKey, ...] = ()
    """The revisions that were removed."""
    part_of: str | None = None
    """The real path of the cache whose removal this is a part of, if this is where models moved."""
    places: tuple[str, ...] = ()
    """The folders of moved models, in whose trash the rest of this removal is."""
    done: bool = False
    """Whether the removal was completed."""
    receipt: Any = None

    @property
    def expires_at(self) -> float:
        """When it expires, in seconds since the epoch; the next command then removes it."""
        return self.removed_at + self.days * DAY

    def encode(self) -> bytes:
        """Return the record as it is written; names on a disk need not be valid Unicode."""
        content: str = json.dumps(msgspec.to_builtins(self), indent=1)
        return content.encode("ascii")


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
    """`None` if it cannot be read."""
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
        """Return whether it was kept long enough.

        Args:
            now: seconds since the epoch.
            days: how long it is kept if it has no record.
        """
        expires = self.removed_at + days * DAY
        return now >= (expires if self.record is None else self.record.expires_at)


class Weight(NamedTuple):
    """What something occupies, and what removing it would free, in bytes."""

    size_on_disk: int
    frees: int


class TrashNeeds(msgspec.Struct, frozen=True):
    """What removals in the trash need of the cache, to be restored as they were."""

    blobs: Mapping[tuple[str, str], str] = {}
    """(repo folder, blob) -> the id of the removal that needs it."""
    shared: Mapping[str, str] = {}
    """Hash of a shared blob -> the id of the removal that needs it."""
    folders: frozenset[str] = frozenset()
    """Folders of the repos that have something in the trash: their locks stay."""


@contextlib.contextmanager
def next_to(tree: CacheTree) -> Iterator[tuple[int, str] | None]:
    """Yield the folder that contains a cache's folder, opened, and the cache folder's real name.

    `None` if a rename between the two is not possible, or if that cannot be known.
    """
    with contextlib.ExitStack() as closing:
        place = None
        with contextlib.suppress(OSError):
            name = os.path.basename(real_path(tree.root))
            if BY_DESCRIPTOR and name:
                # From the open folder, no link leads anywhere else.
                parent = os.open(os.pardir, FOLDER, dir_fd=tree.top)
                closing.callback(os.close, parent)
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if os.path.samestat(status, os.fstat(tree.top)) and _one_mount(parent, tree.top):
                    place = parent, name
        yield place


def _one_mount(descriptor: int, other: int) -> bool:
    if os.fstat(descriptor).st_dev != os.fstat(other).st_dev:
        return False
    return _mount_id(descriptor) == _mount_id(other)


def _mount_id(descriptor: int) -> str | None:
    """Return the mount that an open folder is on: the same filesystem may be mounted twice."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{descriptor}") as lines:
        return next((line for line in lines if line.startswith("mnt_id:")), None)
    return None


def beside_path(tree: CacheTree) -> str:
    """Return where the trash next to a cache's folder is."""
    folder, name = os.path.split(real_path(tree.root))
    return os.path.join(folder, layout.trash_beside(name))


def open_beside(tree: CacheTree, parent: int, name: str) -> int:
    """Open the trash next to a cache's folder and return its descriptor.

    Others who may write next to the cache could have made it, so it has to belong to the cache's
    owner, to root or to this user.

    Raises:
        OSError: it does not exist, is not a folder, or belongs to somebody else.
    """
    place = beside_path(tree)
    descriptor = enter(layout.trash_beside(name), parent, place)
    if os.fstat(descriptor).st_uid not in trusted_owners(os.fstat(tree.top).st_uid):
        os.close(descriptor)
        raise PermissionError(f"it belongs to another user: {place}")
    return descriptor


def trash_trees(cache: str | CacheTree, kind: type[_Tree]) -> list[_Tree]:
    """Return the trashes of a cache that exist, opened.

    Args:
        cache: the cache, or a tree that has it open.
        kind: the class of the trees.
    """
    trees: list[_Tree] = []
    with contextlib.suppress(OSError):
        tree = CacheTree(cache)
        with next_to(tree) as place, contextlib.suppress(OSError):
            if place is not None:
                trees.append(tree_at(kind, beside_path(tree), open_beside(tree, *place)))
        with tree.parent(inside := os.path.join(tree.root, layout.TRASH)) as (name, folder):
            if folder is not None:
                trees.append(tree_at(kind, inside, enter(name, folder, inside)))
            elif modes.S_ISDIR(os.lstat(inside).st_mode):
                trees.append(kind(inside))
    return trees


def has_trash(cache: str) -> bool:
    """Return whether a cache seems to have a trash; this is quick."""
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
        kind: the class of the trash's tree.
        only: the one id that is asked for.
    """
    removals: list[Trashed] = []
    if not has_trash(cache.root if isinstance(cache, CacheTree) else cache):
        return removals
    for tree in trash_trees(cache, kind):
        with contextlib.suppress(OSError):
            for name in tree.names(tree.root) if only is None else [only]:
                if _ID.fullmatch(name):
                    with contextlib.suppress(OSError):
                        trashed = _read(tree, name)
                        if trashed.record is not None or not _is_empty(trashed):
                            removals.append(trashed)
    return sorted(removals, key=lambda trashed: trashed.removed_at)


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


def _is_empty(trashed: Trashed) -> bool:
    """Return whether a removal was interrupted before it renamed anything here."""
    return not any(name.isdecimal() for name in trashed.tree.names(trashed.path))


def is_below(path: str) -> bool:
    """Return whether a record's path is one below a cache's root, and not in its trash."""
    parts = path.split(os.sep)
    return (
        not os.path.isabs(path)
        and "\0" not in path
        and not {"", os.curdir, os.pardir}.intersection(parts)
        and parts[0] not in (layout.TRASH, layout.LEFTOVERS)
    )


def emptied(tree: CacheTree) -> list[str]:
    """Return the folders of a trash that an interrupted run has left to unlink."""
    try:
        names = tree.names(tree.root)
    except OSError:
        return []
    folders = [os.path.join(tree.root, name) for name in names if _DELETED.fullmatch(name)]
    for name in filter(_ID.fullmatch, names):
        with contextlib.suppress(OSError):
            trashed = _read(tree, name)
            young = time.time() - trashed.removed_at < STALE_AFTER
            if trashed.record is None and not young and _is_empty(trashed):
                folders.append(trashed.path)
    return folders


def weigh(path: str) -> Weight:
    """Return what a path and all below it occupy, and what removing them would free."""
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
            entries = read_entries(place, notes)
            pending += ((os.path.join(place, name), status) for name, status in entries)
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
    """Return blob -> its path in the trash, for the blobs of a repo in one removal."""
    paths: dict[str, str] = {}
    inside = os.path.join(folder, layout.BLOBS, "")
    for item, path in trashed.items():
        if item.path == folder:
            blobs = os.path.join(path, layout.BLOBS)
            with contextlib.suppress(OSError):
                paths |= {name: os.path.join(blobs, name) for name in trashed.tree.names(blobs)}
        elif item.kind == "blob" and item.path.startswith(inside):
            paths[item.path.removeprefix(inside)] = path
    return paths


def with_trash(state: CacheState) -> CacheState:
    """Return the state of a cache with the blobs that a pull would take back from its trash."""
    trash = read_trash(state.dir)
    shared = {
        os.path.basename(item.path): trashed.tree.stat(path).st_size
        for trashed in trash
        for item, path in trashed.items()
        if item.kind == "shared"
    }
    shared |= {name: blob.size for name, blob in state.shared.items()}
    sizes: dict[tuple[str, str], int] = {}
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
                        sizes[folder, name] = size
    return msgspec.structs.replace(state, trashed=sizes) if sizes else state


def find_needs(trash: Collection[Trashed]) -> TrashNeeds:
    """Return what removals in the trash need of the cache."""
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
                elif blob := layout.blob_of_target(target):
                    blobs.setdefault((folder, blob), trashed.id)
    return TrashNeeds(blobs, shared, frozenset(folders))


def _targets(tree: CacheTree, path: str) -> Iterator[str]:
    """Yield the targets of the links at a path and below it."""
    pending = [path]
    while pending:
        place = pending.pop()
        with contextlib.suppress(OSError):
            mode = tree.stat(place).st_mode
            if modes.S_ISLNK(mode):
                yield tree.readlink(place)
            elif modes.S_ISDIR(mode):
                pending += (os.path.join(place, name) for name in tree.names(place))
