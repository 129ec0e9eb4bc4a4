"""Restoring what a removal has put into the trash, to the places where it was.

All is compared before anything is renamed: a name that is taken by something else refuses all of
it, and what has come back meanwhile stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
from collections.abc import Iterator
from typing import Literal, NamedTuple

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.hashing import BLOCK
from vlmcache.cache.trash import FolderTime, Trashed, TrashedItem
from vlmcache.cache.tree import BY_DESCRIPTOR, CacheTree
from vlmcache.change.locks import HubLocks
from vlmcache.change.plan import REFUSALS, Attempt, Outcome, result_of
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.change.shared_store import MANIFEST_LIMIT, SharedStore
from vlmcache.change.trash import (
    TrashRemovalTree,
    entry_status,
    remove_if_empty,
    remove_removal,
    time_now,
)
from vlmcache.change.tree import sync_folder
from vlmcache.errors import reason_of

_DEEPEST = 200
"""Nested folders at which comparing stops: no model has so many."""
_AT_ONCE = 50_000_000
"""Nanoseconds between the change of a folder and that of what was renamed out of it."""
_RANKS = {"shared": 0, "repo": 1, "blob": 2, "partial": 2, "folder": 3, "record": 5, "ref": 7}
"""Kind of an item -> when it has its turn: a ref after everything that it names."""

Step = Literal["restore", "merge", "there", "missing"]


class Conflict(NamedTuple):
    """A name that is taken by something else."""

    path: str
    why: str


class UndoStep(NamedTuple):
    """An item of a removal, and what undoing does with it."""

    item: TrashedItem
    source: str
    """Where it is in the trash."""
    path: str
    """Its place in the cache."""
    step: Step
    """restore: it is renamed to its place. merge: its place is taken by the same, or by a part of
    it. there: it was never removed, or has come back. missing: it is in neither."""


class Undoing:
    """One removal of a cache, or of a place to which models were moved, that is undone.

    Args:
        tree: the cache.
        trashed: the removal, in its trash.
    """

    def __init__(self, tree: RemovalTree, trashed: Trashed) -> None:
        assert isinstance(trashed.tree, TrashRemovalTree)
        assert trashed.record is not None
        self.tree = tree
        self.trash = trashed.tree
        self.trashed = trashed
        self.record = trashed.record
        self.locks = HubLocks(tree)
        self.store = SharedStore(tree)
        self.conflicts: list[Conflict] = []
        self.steps: list[UndoStep] = []
        self._changed: dict[str, None] = {}

    def compare(self) -> list[Conflict]:
        """Compare the removal with what is in the cache now, and return which names are taken."""
        self.conflicts, self.steps = [], []
        for number, item in enumerate(self.record.items):
            source = self.trashed.item_path(number)
            path = os.path.join(self.tree.root, item.path)
            kept = self._mode(self.trash, source) is not None
            try:
                entry_status(self.tree, path)
                taken = True
            except FileNotFoundError:
                taken = False
            except OSError as error:
                taken = False
                if kept:
                    self.conflicts.append(self._unreachable(path, error))
            step: Step = "restore" if kept else "missing"
            if taken:
                step = "merge" if kept else "there"
            if step == "merge":
                self.conflicts += self._differences(source, path, item.kind, 0)
            self.steps.append(UndoStep(item, source, path, step))
        self.steps.sort(key=_rank)
        return self.conflicts

    def _unreachable(self, path: str, error: OSError) -> Conflict:
        folder = os.path.join(self.tree.root, self.tree.repo_folder(path))
        mode = self._mode(self.tree, folder)
        if mode is not None and modes.S_ISLNK(mode):
            return Conflict(folder, self._why(folder, mode))
        return Conflict(path, reason_of(error))

    @staticmethod
    def _mode(tree: CacheTree, path: str) -> int | None:
        try:
            return entry_status(tree, path).st_mode
        except OSError:
            return None

    def _differences(self, source: str, path: str, kind: str, depth: int) -> Iterator[Conflict]:
        """Yield what has the name of something in the trash, and is something else."""
        mode, current = self._mode(self.trash, source), self._mode(self.tree, path)
        if mode is None or current is None or self._loses(path, kind):
            return
        if modes.S_ISDIR(mode) and modes.S_ISDIR(current):
            if depth > _DEEPEST:
                yield Conflict(path, "too many folders inside one another")
                return
            for name in self.trash.names(source):
                below = os.path.join(path, name)
                yield from self._differences(os.path.join(source, name), below, kind, depth + 1)
        elif not self._is_same(source, path, mode, current):
            yield Conflict(path, self._why(path, current))

    def _loses(self, path: str, kind: str) -> bool:
        """Return whether what is in the cache counts, whatever is in the trash.

        A download that has continued, what the client remembers of the hub, and a manifest.
        """
        parts = os.path.relpath(path, self.tree.root).split(os.sep)
        within = parts[1] if len(parts) > 1 else ""
        return (
            kind == "shared"
            or within in (layout.TREES, layout.NO_EXIST)
            or (within == layout.BLOBS and layout.partial_etag(parts[-1]) is not None)
        )

    def _is_same(self, source: str, path: str, mode: int, current: int) -> bool:
        if modes.S_ISLNK(mode) and modes.S_ISLNK(current):
            with self.tree.parent(path) as (entry, parent):
                return self.trash.readlink(source) == os.readlink(entry, dir_fd=parent)
        files = modes.S_ISREG(mode) and modes.S_ISREG(current)
        if files and self.trash.stat(source).st_size != entry_status(self.tree, path).st_size:
            return False
        folder, name = os.path.split(path)
        if os.path.basename(folder) == layout.BLOBS and layout.is_etag(name):
            # Its name is its hash. One of the two may be a link to the shared store.
            return True
        return files and self._same_bytes(source, path)

    def _same_bytes(self, source: str, path: str) -> bool:
        with (
            os.fdopen(self.trash.open(source), "rb") as kept,
            os.fdopen(self.tree.open(path), "rb") as current,
        ):
            while block := kept.read(BLOCK):
                if block != current.read(len(block)):
                    return False
            return not current.read(1)

    def _why(self, path: str, current: int) -> str:
        parts = os.path.relpath(path, self.tree.root).split(os.sep)
        if len(parts) == 1 and modes.S_ISLNK(current):
            return "the model was pulled or moved meanwhile: its folder is a link"
        if parts[1:2] == [layout.REFS]:
            return f"the ref {'/'.join(parts[2:])} names another commit by now"
        return "something else has its name by now"

    # Carrying it out.

    def carry_out(self) -> list[Outcome]:
        """Rename everything to its place, and return what became of each item."""
        ours = [time for time in self.record.folders if self._is_unchanged(time)]
        repos = {step.path for step in self.steps if step.step in ("restore", "merge")}
        folders = sorted({self.tree.repo_folder(path) for path in repos})
        outcomes: list[Outcome] = []
        with contextlib.ExitStack() as locks:
            refused: dict[str, Exception] = {}
            for folder in filter(layout.parse_repo_folder, folders):
                try:
                    locks.enter_context(self.locks.all_held(folder))
                except REFUSALS as error:
                    refused[folder] = error
            for step in self.steps:
                folder = self.tree.repo_folder(step.path)
                outcome = self._undo(step, refused.get(folder) or refused.get(layout.SHARED_STORE))
                if outcome is None:
                    continue
                outcomes.append(outcome)
                if outcome.result not in ("done", "absent"):
                    # Nothing is restored that would lead to what is not there.
                    why = f"what it needs could not be restored: {outcome.path}"
                    refused.setdefault(folder, OSError(why))
        outcomes += self.tree.remove_made()[1]
        for changed in self._changed:
            with contextlib.suppress(OSError), self.tree.folder(changed) as descriptor:
                sync_folder(changed if descriptor is None else descriptor)
        if all(outcome.result in ("done", "absent") for outcome in outcomes):
            emptied = remove_removal(self.trash, self.trashed.path)
            if emptied.result != "done":
                outcomes.append(emptied)
            remove_if_empty(self.trash, self.tree)
            for time in ours:
                _set_time(self.tree, time)
        return outcomes

    def _is_unchanged(self, time: FolderTime) -> bool:
        """Return whether nobody has changed a folder since the removal.

        A removal that was killed has not noted how it left its folders: of these, those count that
        changed when something of them was renamed, or not at all.
        """
        now = time_now(self.tree, time)
        if now is None or self.record.done:
            return now is not None and now == time.after
        renamed = max(
            (
                self.trash.stat(source).st_ctime_ns
                for item, source in self.trashed.items()
                if os.path.dirname(item.path) == time.path
            ),
            default=0,
        )
        return now == time.before or abs(now - renamed) < _AT_ONCE

    def _undo(self, step: UndoStep, refused: Exception | None) -> Outcome | None:
        if step.step in ("there", "missing"):
            return None
        attempt = Attempt.at(step.path)
        try:
            if refused is not None:
                raise refused
            if step.item.kind == "shared":
                self._restore_shared(step)
            else:
                self._rename(step.source, step.path)
        except REFUSALS as error:
            # What is gone from the trash by now was taken back by somebody else.
            outcome = attempt.note(*result_of(error, step.path))
        else:
            outcome = attempt.note("done")
        return Outcome("restore", outcome.path, outcome.result, detail=outcome.detail)

    def _rename(self, source: str, path: str) -> None:
        """Rename something to its place; of a folder that is there, what is not in it yet.

        What the cache has already stays in the trash, which unlinks it with the removal.
        """
        mode = self._mode(self.trash, source)
        current = self._mode(self.tree, path)
        if mode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        if current is not None:
            if modes.S_ISDIR(mode) and modes.S_ISDIR(current):
                for name in sorted(self.trash.names(source), key=_refs_last):
                    with contextlib.suppress(FileNotFoundError):
                        self._rename(os.path.join(source, name), os.path.join(path, name))
            return
        parent = os.path.dirname(path)
        if parent != self.tree.root:
            self.tree.make_folders(parent)
        with (
            self.trash.parent(source) as (name, folder),
            self.tree.parent(path) as (new_name, new_folder),
        ):
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)
        log.debug("undo", "renamed '%s' to '%s'", source, path)
        self._changed[parent] = None

    def _restore_shared(self, step: UndoStep) -> None:
        manifest = step.path.endswith(layout.MANIFEST_SUFFIX)
        blob = step.path.removesuffix(layout.MANIFEST_SUFFIX)
        self.tree.make_folders(os.path.dirname(blob))
        with self.store.held(blob, remove_made=True):
            if manifest and self._mode(self.tree, step.path) is not None:
                content = self.trash.read(step.source, MANIFEST_LIMIT)
                with contextlib.suppress(UnicodeDecodeError):  # such a manifest names nothing
                    self.store.add_references(blob, content.decode().splitlines())
            else:
                self._rename(step.source, step.path)


def _set_time(tree: RemovalTree, time: FolderTime) -> None:
    with contextlib.suppress(OSError):
        if not time.path:
            place = tree.top if BY_DESCRIPTOR else tree.root
            os.utime(place, ns=(os.stat(place).st_atime_ns, time.before))
            return
        with tree.handle(os.path.join(tree.root, time.path)) as entry:
            os.utime(entry, ns=(os.stat(entry).st_atime_ns, time.before))


def _rank(step: UndoStep) -> tuple[int, int, int, str]:
    item = step.item
    rank = _RANKS.get(item.kind, 4)
    if item.kind == "link" and os.sep not in item.path:
        rank = 6
    manifest = item.path.endswith(layout.MANIFEST_SUFFIX)
    return rank, item.path.count(os.sep), manifest, item.path


def _refs_last(name: str) -> int:
    return {layout.BLOBS: 0, layout.REFS: 2}.get(name, 1)


def take_back_blob(
    tree: RemovalTree, trashed: Trashed, source: str, path: str, *others: tuple[str, str]
) -> bool:
    """Rename one blob out of the trash to its place in the cache, as a pull would put it there.

    Args:
        tree: the cache.
        trashed: the removal that has it.
        source: its path in the trash.
        path: its place.
        others: (source, place) of what belongs to it.

    Returns:
        False if it is there already, or the system refuses: then it can still be downloaded.
    """
    locks = HubLocks(tree)
    try:
        if tree.exists(path):
            return False
        tree.make_folders(os.path.dirname(path))
        repo = tree.repo_folder(path)
        with contextlib.ExitStack() as held:
            if layout.parse_repo_folder(repo) is not None:
                held.enter_context(locks.held(locks.path_of(repo, os.path.basename(path))))
            else:
                held.enter_context(SharedStore(tree).held(path, remove_made=True))
            for old, new in ((source, path), *others):
                if tree.exists(new):
                    if new == path:
                        return False
                    continue
                with (
                    trashed.tree.parent(old) as (name, folder),
                    tree.parent(new) as (new_name, new_folder),
                ):
                    os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)
                log.info("undo", "taken back from the trash: '%s'", new)
    except REFUSALS:
        return False
    finally:
        tree.remove_made()
    return True
