"""Keeping what a removal would unlink: it is renamed into the trash, and no byte is moved.

The record of a removal is on the disk before anything is renamed, so that after a crash at any
moment each thing is in the cache or in the trash, and the record says where it belongs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat as modes
import time
from collections.abc import Collection, Iterable, Iterator, Sequence

import msgspec

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.state import RevisionKey
from vlmcache.cache.trash import (
    EMPTIED,
    FORMAT,
    RECORD,
    FolderTime,
    Trashed,
    TrashedItem,
    TrashRecord,
    beside_path,
    emptied,
    next_to,
    open_beside,
    read_trash,
    trash_trees,
)
from vlmcache.cache.tree import BY_DESCRIPTOR, CacheTree, StaleError, enter, is_root, tree_at
from vlmcache.change.plan import (
    Attempt,
    Expected,
    Outcome,
    Receipt,
    Removing,
    result_of,
)
from vlmcache.change.removal_tree import RemovalTree, TreeEntry
from vlmcache.change.tree import Tree, entry_names, sync_folder

KEPT_KINDS = frozenset(
    {
        *("repo", "snapshot", "no-exist", "stray", "ref", "link", "file", "tree", "blob"),
        *("partial", "folder", "record", "shared"),
    }
)
"""Kinds of actions whose things are kept; locks stay where they are, leftovers are unlinked."""
_LIKE_MODE = 0o2775


class Keep(msgspec.Struct, frozen=True):
    """What the record in the trash says of a removal that is kept."""

    days: float
    names: tuple[str, ...] = ()
    cache: str = ""
    """The real path of the cache."""
    revisions: tuple[RevisionKey, ...] = ()
    """Each revision that is removed."""
    id: str = msgspec.field(default_factory=lambda: secrets.token_hex(4))
    removed_at: float = msgspec.field(default_factory=time.time)


class TrashRemovalTree(RemovalTree):
    """A trash in which something is renamed, made or unlinked; no link in it is followed."""

    def home(self, path: str) -> tuple[TrashRemovalTree, str]:
        """Return this tree: nothing in a trash lies elsewhere."""
        return self, path


def can_keep(cache: str | CacheTree) -> bool:
    """Return whether there is a place for the trash of a cache; nothing is written."""
    try:
        tree = CacheTree(cache)
        return _is_beside(tree) or _may_write(tree.top if BY_DESCRIPTOR else tree.root)
    except OSError:
        return False


def _is_beside(tree: CacheTree) -> bool:
    """Return whether the trash is to be next to the cache's folder."""
    with next_to(tree) as beside:
        if beside is None:
            return False
        parent, name = beside
        try:
            descriptor = open_beside(tree, parent, name)
        except FileNotFoundError:
            return _may_write(parent)
        except OSError:
            return False
        try:
            return _may_write(descriptor)
        finally:
            os.close(descriptor)


def _may_write(folder: int | str) -> bool:
    if isinstance(folder, str):
        return os.access(folder, os.W_OK | os.X_OK)
    return os.access(os.curdir, os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True)


def open_trash(tree: CacheTree) -> TrashRemovalTree:
    """Open the trash of a cache to put something into it; it is made if it is not there.

    Raises:
        OSError: the system refuses.
    """
    if _is_beside(tree):
        with next_to(tree) as beside:
            if beside is not None:
                parent, name = beside
                with contextlib.suppress(FileExistsError):
                    _make(tree, parent, layout.trash_beside(name))
                descriptor = open_beside(tree, parent, name)
                return tree_at(TrashRemovalTree, beside_path(tree), descriptor)
    place = os.path.join(tree.root, layout.TRASH)
    with tree.parent(place) as (name, folder):
        if folder is None:
            Tree(tree.root).make_folders(place)
            return TrashRemovalTree(place)
        with contextlib.suppress(FileExistsError):
            _make(tree, folder, name)
        return tree_at(TrashRemovalTree, place, enter(name, folder, place))


def _make(tree: CacheTree, folder: int, name: str) -> None:
    """Make the trash with the owner, group and mode of the cache, as far as the system lets."""
    os.mkdir(name, 0o700, dir_fd=folder)
    shown = os.fstat(tree.top)
    descriptor = enter(name, folder, name)
    try:
        made = os.fstat(descriptor)
        # What has taken its place by now holds something, or is not this user's.
        if made.st_uid != os.geteuid() or os.listdir(descriptor):
            return
        with contextlib.suppress(OSError):
            os.fchown(descriptor, shown.st_uid if is_root() else -1, shown.st_gid)
            os.fchmod(descriptor, modes.S_IMODE(shown.st_mode) & _LIKE_MODE | 0o700)
    finally:
        os.close(descriptor)
    sync_folder(folder)


class TrashWriter:
    """The part of a removal that is kept in the trash of one cache, or of one place.

    Args:
        tree: the cache, or the place to which models were moved.
        keep: what the record says.
        places: the places that have a part of this removal too.
        part_of: of such a place, the real path of the cache.
    """

    def __init__(
        self,
        tree: RemovalTree,
        keep: Keep,
        places: Sequence[str] = (),
        part_of: str | None = None,
    ) -> None:
        self.tree = tree
        self.keep = keep
        self.places = tuple(places)
        self.part_of = part_of
        self.trash: TrashRemovalTree | None = None
        self.folder = ""
        self._numbers: dict[str, int] = {}
        self._changed: dict[str, None] = {}
        self.record: TrashRecord | None = None

    @classmethod
    def adding(
        cls, tree: RemovalTree, trashed: Trashed, paths: Sequence[str], kind: str = "shared"
    ) -> TrashWriter:
        """Return what adds to a removal in the trash what nothing else needs by now.

        Args:
            tree: the cache.
            trashed: the removal.
            paths: what is added, below the cache's root.
            kind: what these are.

        Raises:
            OSError: the system refuses.
        """
        record, trash = trashed.record, trashed.tree
        assert record is not None
        assert isinstance(trash, TrashRemovalTree)
        writer = cls(tree, Keep(record.days, record.names, record.cache))
        items = tuple(TrashedItem(path, kind) for path in paths)
        first = len(record.items)
        writer._numbers = {item.path: first + number for number, item in enumerate(items)}
        writer.record = msgspec.structs.replace(record, items=record.items + items)
        writer.trash, writer.folder = trash, trashed.path
        trash.write(os.path.join(trashed.path, RECORD), writer.record.encode())
        return writer

    @property
    def renamed(self) -> bool:
        """Whether anything was renamed into the trash."""
        return bool(self._changed)

    def begin(self, actions: Iterable[Removing], *, always: bool = False) -> None:
        """Write the record of what is about to be renamed.

        Args:
            actions: what removes it.
            always: write it even if nothing is to be renamed here.

        Raises:
            OSError: the system refuses; nothing was changed.
        """
        kept = [action for action in actions if action.kind in KEPT_KINDS]
        if not kept and not always:
            return
        items = list(self._items(kept))
        self._numbers = {item.path: number for number, item in enumerate(items)}
        times = tuple(self._times(items))
        trash = open_trash(self.tree)
        folder = os.path.join(trash.root, self.keep.id)
        record = TrashRecord(
            FORMAT,
            self.keep.id,
            self.keep.removed_at,
            self.keep.days,
            self.keep.cache,
            self.keep.names,
            tuple(items),
            times,
            self.keep.revisions,
            self.part_of,
            self.places,
        )
        try:
            mode = modes.S_IMODE(os.stat(trash.top if BY_DESCRIPTOR else trash.root).st_mode)
            trash.make_folders(folder, mode)
            trash.write(os.path.join(folder, RECORD), record.encode())
        except BaseException:
            remove_removal(trash, folder)
            remove_if_empty(trash, self.tree)
            raise
        self.trash, self.folder, self.record = trash, folder, record

    def _items(self, actions: Sequence[Removing]) -> Iterator[TrashedItem]:
        for action in actions:
            path = os.path.relpath(action.path, self.tree.root)
            repo = getattr(action, "repo", None)
            yield TrashedItem(path, action.kind, repo, action.frees)
            if action.kind == "shared":
                yield TrashedItem(path + layout.MANIFEST_SUFFIX, "shared")

    def _times(self, items: Sequence[TrashedItem]) -> Iterator[FolderTime]:
        """Yield the times of the folders that a removal of these changes, its locks' included."""
        repos = {item.path.partition(os.sep)[0] for item in items}
        folders = {os.path.dirname(item.path) for item in items}
        folders |= {"", layout.LOCKS, *(os.path.join(layout.LOCKS, repo) for repo in repos)}
        for path in sorted(folders):
            with contextlib.suppress(OSError):
                status = _folder_status(self.tree, path)
                if modes.S_ISDIR(status.st_mode):
                    yield FolderTime(path, status.st_ino, status.st_mtime_ns)

    def take(self, attempt: Attempt, expected: Expected | None) -> None:
        """Rename what an action removes into the trash.

        Raises:
            StaleError: it is not what was expected.
            InUseError: a process uses it.
            OSError: the system refuses.
        """
        action = attempt.action
        with self.tree.entry(action.path, expected) as entry:
            if not modes.S_ISDIR(entry.status.st_mode):
                self.tree.refuse_use(entry.status)
                self.tree.refuse_open(entry)
            elif action.kind == "folder":
                _refuse_full(entry)
            elif entry.folder is not None and os.path.ismount(action.path):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), action.path)
            self.rename(entry)
            attempt.trashed += action.frees

    def rename(self, entry: TreeEntry, item: str | None = None) -> None:
        """Rename an entry that was found into the trash.

        Args:
            entry: what is renamed.
            item: its path below the cache's root in the record, if that is not where it is.

        Raises:
            OSError: the system refuses.
        """
        assert self.trash is not None
        number = self._numbers[item or os.path.relpath(entry.path, self.tree.root)]
        place = os.path.join(self.folder, str(number))
        with self.trash.parent(place) as (name, folder):
            os.rename(entry.name, name, src_dir_fd=entry.folder, dst_dir_fd=folder)
        log.debug("remove", "renamed '%s' to '%s'", entry.path, place)
        self._changed[os.path.dirname(entry.path)] = None

    def finish(self, receipt: Receipt, *, always: bool = False) -> None:
        """Complete the record, as far as the system lets: without that it can be undone too.

        Args:
            receipt: what became of the removal.
            always: keep the record even if nothing was renamed here.
        """
        if self.trash is None or self.record is None:
            return
        for folder in (self.folder, *self._changed):
            tree: CacheTree = self.trash if folder == self.folder else self.tree
            with contextlib.suppress(OSError), tree.folder(folder) as descriptor:
                sync_folder(folder if descriptor is None else descriptor)
        with contextlib.suppress(OSError):
            kept = {name for name in self.trash.names(self.folder) if name != RECORD}
            if not kept and not always:
                remove_removal(self.trash, self.folder)
                remove_if_empty(self.trash, self.tree)
                return
            times = tuple(
                msgspec.structs.replace(time, after=after)
                for time in self.record.folders
                if (after := time_now(self.tree, time)) is not None
            )
            record = msgspec.structs.replace(
                self.record, folders=times, done=True, receipt=msgspec.to_builtins(receipt)
            )
            self.trash.write(os.path.join(self.folder, RECORD), record.encode())


def entry_status(tree: CacheTree, path: str) -> os.stat_result:
    """Return the status of what is at a path, to which no link leads, not even one of a repo.

    Raises:
        OSError: it cannot be reached, or is gone.
    """
    with tree.parent(path) as (name, folder):
        return os.stat(name, dir_fd=folder, follow_symlinks=False)


def _folder_status(tree: CacheTree, path: str) -> os.stat_result:
    """Return the status of a folder of a cache by its path below the root, `""` for the root.

    Raises:
        OSError: it cannot be reached.
    """
    if not path:
        return os.stat(tree.top if BY_DESCRIPTOR else tree.root)
    return entry_status(tree, os.path.join(tree.root, path))


def time_now(tree: CacheTree, time: FolderTime) -> int | None:
    """Return when a folder was changed last, in nanoseconds; `None` if it is another or gone."""
    with contextlib.suppress(OSError):
        status = _folder_status(tree, time.path)
        return status.st_mtime_ns if status.st_ino == time.inode else None
    return None


def _refuse_full(entry: TreeEntry) -> None:
    descriptor = None if entry.folder is None else enter(entry.name, entry.folder, entry.path)
    try:
        if entry_names(descriptor, entry.path):
            raise StaleError("it is not empty")
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_removal(trash: CacheTree, folder: str) -> Outcome:
    """Unlink a removal's folder in the trash; what is left of it after a crash is never restored.

    Returns:
        What became of it, and the bytes of disk that this has given back.
    """
    assert isinstance(trash, RemovalTree)
    attempt = Attempt.at(folder)
    try:
        place = folder.removesuffix(EMPTIED) + EMPTIED
        if place != folder:
            trash.rename(folder, place)
        trash.remove_all(place, attempt)
    except OSError as error:
        return attempt.note(*result_of(error, folder))
    return attempt.note("done")


def remove_if_empty(trash: CacheTree, tree: CacheTree) -> None:
    """Remove a trash in which nothing is left, as far as the system lets."""
    with contextlib.suppress(OSError):
        if trash.names(trash.root):
            return
        inside = os.path.join(tree.root, layout.TRASH)
        if trash.root == inside:
            with tree.parent(inside) as (name, folder):
                os.rmdir(name, dir_fd=folder)
            return
        with next_to(tree) as beside:
            if beside is not None:
                os.rmdir(layout.trash_beside(beside[1]), dir_fd=beside[0])


def empty(
    tree: CacheTree, trash: Collection[Trashed], rest: bool = False
) -> tuple[list[Outcome], int]:
    """Unlink removals that are in the trash of a cache.

    Args:
        tree: the cache.
        trash: the removals, read with `TrashRemovalTree`.
        rest: whether what an interrupted emptying has left is unlinked too.

    Returns:
        What became of each, and the bytes of disk that this has given back.
    """
    others = trash_folders(tree) if rest else []
    folders = [(trashed.tree, trashed.path) for trashed in trash]
    folders += ((other, path) for other in others for path in emptied(other))
    outcomes = [remove_removal(place, folder) for place, folder in folders]
    for place in {*others, *(place for place, _ in folders)}:
        remove_if_empty(place, tree)
    return outcomes, sum(outcome.freed for outcome in outcomes)


def trash_folders(tree: CacheTree) -> list[TrashRemovalTree]:
    """Return the trashes of a cache that are there, opened to change them."""
    return trash_trees(tree, TrashRemovalTree)


def removals_in(cache: str | CacheTree, only: str | None = None) -> list[Trashed]:
    """Return the removals in the trash of a cache, opened to change them; the oldest first."""
    return read_trash(cache, TrashRemovalTree, only)
