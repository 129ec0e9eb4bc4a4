"""Reads what is in a cache's root apart from repos: locks, shared blobs, leftovers, strays."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat as modes

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.entries import (
    REF_LIMIT,
    Notes,
    add_below,
    add_stray,
    allocated_bytes,
    count_stray,
    entry_of,
    kind_of,
    read_entries,
    read_link,
)
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.state import Leftover, LockFolder, SharedBlob, Stamp

_RECORDS = (layout.RECORD_SUFFIX, layout.NOTE_SUFFIX, layout.BASE_SUFFIX)
"""How the names of our files among the locks end, after the name of a repo's folder."""


class RootScan:
    """What has been read of a cache's root so far; `read` adds one entry.

    Args:
        cache_dir: the cache's folder.
        notes: of the cache itself; findings and counts are added to them.
    """

    def __init__(self, cache_dir: str, notes: Notes) -> None:
        self.dir = cache_dir
        self.notes = notes
        self.shared: dict[str, SharedBlob] = {}
        self.shared_marked = False
        self.locks: dict[str, LockFolder] = {}
        self.leftovers: list[Leftover] = []

    def read(self, name: str, stat: os.stat_result) -> None:
        """Read an entry of the cache's root that is not a repo."""
        folder, path = modes.S_ISDIR(stat.st_mode), os.path.join(self.dir, name)
        if folder and name == layout.LOCKS:
            self.notes.tally.add("metadata", stat)
            self._read_locks(path)
        elif folder and name == layout.SHARED_STORE:
            self._read_shared_store(path, stat)
        elif folder and name == layout.LEFTOVERS:
            count_stray(path, stat, "orphan", self.notes, leftover=True)
            self._read_leftovers(path)
            self.notes.warning(
                "leftover", path, "a removal was interrupted", units.command("clean")
            )
        elif folder and name == layout.MOVING:
            self.notes.tally.add("partial", stat)
            add_below(path, "partial", self.notes)
            self.notes.info(
                "unfinished-move",
                path,
                "a move to this folder is in progress, or was interrupted",
                "run the same 'vlmcache move' again, or with --undo",
            )
        elif folder and name == layout.TRASH:
            self.notes.tally.add("trash", stat)
            add_below(path, "trash", self.notes)
        elif name in layout.ROOT_FILES and modes.S_ISREG(stat.st_mode):
            self.notes.tally.add("metadata", stat)
        else:
            add_stray(path, stat, self.notes)

    def _read_locks(self, path: str) -> None:
        for name, stat in read_entries(path, self.notes):
            folder, place = modes.S_ISDIR(stat.st_mode), os.path.join(path, name)
            if not folder and self._is_needless_record(name):
                add_stray(place, stat, self.notes, leftover=True)
                continue
            self.notes.tally.add("metadata", stat)
            if not folder:
                is_file = any(suffix in name for suffix in (*_RECORDS, layout.LOCK_SUFFIX))
                if layout.parse_repo_folder(name) is not None and not is_file:
                    self._note_wrong_lock(place, stat)
                continue
            files: dict[str, Stamp] = {}
            other = 0
            for lock, status in read_entries(place, self.notes):
                self.notes.tally.add("metadata", status)
                if modes.S_ISREG(status.st_mode) and lock.endswith(layout.LOCK_SUFFIX):
                    files[lock] = entry_of(status)
                    continue
                other += 1
                if lock.endswith(layout.LOCK_SUFFIX):
                    self._note_wrong_lock(os.path.join(place, lock), status)
                if modes.S_ISDIR(status.st_mode):
                    add_below(os.path.join(place, lock), "metadata", self.notes)
            self.locks[name] = LockFolder(place, entry_of(stat), files, other)

    def _note_wrong_lock(self, path: str, stat: os.stat_result) -> None:
        """Note an entry in place of a lock, which no download of that file or repo can take."""
        self.notes.warning(
            "wrong-lock",
            path,
            f"{kind_of(stat)} is in place of a lock, so downloads wait or fail",
            shlex.join(["mv", path, f"{path}.old"]),
        )

    def _is_needless_record(self, name: str) -> bool:
        """Return whether a file among the locks is a record that no repo here needs."""
        for suffix in _RECORDS:
            folder, is_record, rest = name.partition(suffix)
            if is_record and layout.parse_repo_folder(folder) is not None:
                place = os.path.join(self.dir, folder)
                linked = os.path.islink(place)
                if suffix == layout.BASE_SUFFIX:
                    return bool(rest) or linked or not os.path.isdir(place)
                return bool(rest) or (suffix == layout.RECORD_SUFFIX and not linked)
        return False

    def _read_leftovers(self, path: str) -> None:
        """Read what interrupted removals left: `<unique>/<repo folder>/…`, as in a repo."""
        for job, status in read_entries(path, self.notes):
            if not modes.S_ISDIR(status.st_mode):
                continue
            for repo, stat in read_entries(os.path.join(path, job), self.notes):
                if layout.parse_repo_folder(repo) is not None:
                    self.leftovers.append(
                        self._leftover(
                            os.path.join(path, job, repo),
                            stat,
                            whole=job.startswith(layout.WHOLE_REPO),
                        )
                    )

    def _leftover(self, path: str, stat: os.stat_result, *, whole: bool) -> Leftover:
        refs: dict[str, str] = {}
        commits: set[str] = set()
        blobs: set[str] = set()
        shared: set[str] = set()
        below = 0
        pending = [(path, "")] if modes.S_ISDIR(stat.st_mode) else []
        while pending:
            folder, prefix = pending.pop()
            for own_name, status in read_entries(folder, self.notes):
                place = os.path.join(folder, own_name)
                below += allocated_bytes(status)
                name = prefix + own_name
                parts = name.split("/")
                if len(parts) > 1 and parts[0] == layout.SNAPSHOTS:
                    commits.add(parts[1])
                if modes.S_ISDIR(status.st_mode):
                    pending.append((place, name + "/"))
                elif modes.S_ISLNK(status.st_mode):
                    target = read_link(place)
                    shared_hash = layout.shared_hash_of(target)
                    if shared_hash is not None:
                        shared.add(shared_hash)
                    elif blob := layout.blob_of_target(target):
                        blobs.add(blob)
                elif parts[0] == layout.REFS:
                    with contextlib.suppress(OSError, UnicodeDecodeError):
                        commit = read_bytes(place, REF_LIMIT, follow=False).decode().strip()
                        refs[name.partition("/")[2]] = commit
        return Leftover(
            path,
            os.path.basename(path),
            whole,
            refs,
            tuple(sorted(commits)),
            tuple(sorted(blobs)),
            tuple(sorted(shared)),
            entry_of(stat, below),
        )

    def _read_shared_store(self, store: str, stat: os.stat_result) -> None:
        marker = os.path.join(store, layout.SHARED_MARKER)
        with contextlib.suppress(OSError):
            self.shared_marked = (
                read_bytes(marker, 64, follow=False) == layout.SHARED_MARKER_TEXT.encode()
            )
        if not self.shared_marked:
            add_stray(
                store,
                stat,
                self.notes,
                detail="looks like the hub's shared blob store, but its marker file is missing",
            )
            return
        self.notes.tally.add("metadata", stat)
        for name, status in read_entries(store, self.notes):
            place = os.path.join(store, name)
            if name == layout.SHARED_MARKER:
                self.notes.tally.add("metadata", status)
            elif modes.S_ISDIR(status.st_mode) and len(name) == 2:
                self.notes.tally.add("metadata", status)
                self._read_shared_folder(place, name)
            else:
                add_stray(place, status, self.notes)

    def _read_shared_folder(self, path: str, prefix: str) -> None:
        entries = read_entries(path, self.notes)
        stats = dict(entries)
        for name, status in entries:
            regular = modes.S_ISREG(status.st_mode)
            payload = (
                name.removesuffix(layout.MANIFEST_SUFFIX)
                .removesuffix(layout.SOFT_SUFFIX)
                .removesuffix(layout.LOCK_SUFFIX)
            )
            ours = layout.SHARED_HASH.fullmatch(payload) is not None and payload[:2] == prefix
            if regular and ours and payload == name:
                manifest = stats.get(name + layout.MANIFEST_SUFFIX)
                self.shared[name] = SharedBlob(
                    status.st_ino,
                    status.st_mtime_ns,
                    status.st_size,
                    self.notes.tally.add("shared", status),
                    name,
                    os.path.join(path, name),
                    status.st_dev,
                    status.st_nlink,
                    manifest is not None,
                    manifest_allocated=(
                        allocated_bytes(manifest)
                        if manifest is not None and modes.S_ISREG(manifest.st_mode)
                        else 0
                    ),
                )
            elif regular and ours:
                self.notes.tally.add("metadata", status)
            else:
                add_stray(os.path.join(path, name), status, self.notes)
