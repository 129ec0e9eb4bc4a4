"""From a folder to a `CacheState`: every entry looked at once, damage turned into findings.

The scan reads names, stats, link targets, refs and tree listings; it opens no weights and changes
nothing, access times included. Whatever it meets, it goes on: a place that cannot be read becomes a
finding, its own bytes are counted, and the rest is listed.
"""

from __future__ import annotations

import errno
import gc
import operator
import os
import stat as modes
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vlmcache import advice
from vlmcache.cache import formats, layout
from vlmcache.cache.moves import (
    DRIVE_AWAY,
    away_remedy,
    away_words,
    destination_of,
    find_away,
    linked_destination,
    record_path,
)
from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.cache.state import UNREADABLE as UNREADABLE
from vlmcache.cache.state import (
    Blob,
    ByClass,
    ByteClass,
    CacheState,
    Entry,
    File,
    FileKind,
    Finding,
    Leftover,
    LockFolder,
    Partial,
    Repo,
    Revision,
    SharedBlob,
    Stray,
    TreeFile,
)
from vlmcache.cache.usage import lock_held
from vlmcache.errors import CacheError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

STALE_AFTER = 3600.0
"""Seconds without a write after which an unlocked partial download counts as left behind."""

_MOUNT_IT = "mount that drive"
_REF_LIMIT = 4096
_TREE_LIMIT = 256_000_000
_NEVER_EMPTY = (".json", ".safetensors", ".gguf", ".bin")
"""Endings of a model's files that make no sense without content."""
_LONGEST_STUB = 512
_IN_THE_WAY = "a folder in the place of a file of the model"
"""Bytes beyond which no file is taken for the text of a link."""
_LONGEST_CHAIN = 40
"""Links that the system follows for one path."""
_MANY = 16
"""Entries from which on it pays to open their folder."""


class _TreeDocument(msgspec.Struct):
    format_version: int
    files: dict[str, TreeFile]


_TREE_DECODER = msgspec.json.Decoder(_TreeDocument)


_HAS_BLOCKS = hasattr(os.stat_result, "st_blocks")


def allocated_bytes(stat: os.stat_result) -> int:
    """Return what an entry occupies on its disk, as `du` counts it.

    Windows does not tell in a stat; there it is the length.
    """
    return stat.st_blocks * 512 if _HAS_BLOCKS else stat.st_size


def is_stale(partial: Partial, now: float) -> bool:
    """Return whether a partial download was left behind: unlocked and long unwritten."""
    return not partial.locked and now - partial.mtime_ns / 1e9 > STALE_AFTER


def entry_of(stat: os.stat_result, below: int = 0) -> Entry:
    """Return what a stat says of an entry.

    Args:
        stat: of the entry itself, links not followed.
        below: allocated bytes of what the entry holds, where these are to be counted with it.
    """
    return Entry(stat.st_ino, stat.st_mtime_ns, stat.st_size, allocated_bytes(stat) + below)


class _Tally:
    """Allocated bytes by class; a file with several hard links counts once, as in `du`."""

    def __init__(self) -> None:
        self.bytes: dict[ByteClass, int] = dict.fromkeys(ByClass.__struct_fields__, 0)  # type: ignore[arg-type]
        self.linked: dict[tuple[int, int], tuple[ByteClass, int]] = {}

    def add(self, kind: ByteClass, stat: os.stat_result) -> int:
        allocated = allocated_bytes(stat)
        if stat.st_nlink > 1 and not modes.S_ISDIR(stat.st_mode):
            return self.add_linked(kind, allocated, stat.st_dev, stat.st_ino)
        self.bytes[kind] += allocated
        return allocated

    def add_linked(self, kind: ByteClass, allocated: int, device: int, inode: int) -> int:
        if (device, inode) not in self.linked:
            self.linked[device, inode] = (kind, allocated)
            self.bytes[kind] += allocated
        return allocated

    def merge(self, other: _Tally) -> None:
        for kind, count in other.bytes.items():
            self.bytes[kind] += count
        for key, (kind, allocated) in other.linked.items():
            if key in self.linked:
                self.bytes[kind] -= allocated
            else:
                self.linked[key] = (kind, allocated)

    def by_class(self) -> ByClass:
        return ByClass(**self.bytes)


class _Notes:
    """Findings and strays of one repo, or of the cache itself."""

    def __init__(self, repo: str | None) -> None:
        self.repo = repo
        self.findings: list[Finding] = []
        self.strays: list[Stray] = []

    def error(self, code: str, path: str, detail: str, remedy: str | None = None) -> None:
        self.findings.append(Finding(code, "error", self.repo, path, detail, remedy))

    def warning(self, code: str, path: str, detail: str, remedy: str | None = None) -> None:
        self.findings.append(Finding(code, "warning", self.repo, path, detail, remedy))

    def info(self, code: str, path: str, detail: str, remedy: str | None = None) -> None:
        self.findings.append(Finding(code, "info", self.repo, path, detail, remedy))

    def unreadable(self, path: str, error: OSError) -> None:
        detail = f"the folder cannot be read: {error.strerror or error}"
        self.error(UNREADABLE, path, detail, advice.command("doctor"))

    def could_read(self, path: str) -> bool:
        """Whether a folder and all below it could be read, as far as it was looked at."""
        return not any(
            finding.code == UNREADABLE and f"{finding.path}{os.sep}".startswith(path + os.sep)
            for finding in self.findings
        )


Listed = tuple[os.DirEntry[str], os.stat_result]
"""An entry of a folder, and the stat of the entry itself (of a link, not of its target)."""

_NAME = operator.attrgetter("name")


def _entries(path: str, notes: _Notes) -> list[Listed]:
    """Return a folder's entries in the order of their names; an unreadable one is a finding."""
    try:
        with os.scandir(path) as entries:
            found = sorted(entries, key=_NAME)
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.unreadable(path, error)
        return []
    if not all(map(str.isascii, map(_NAME, found))):
        for entry in found:
            if not _is_text(entry.name):
                notes.warning("non-utf8-name", entry.path, "the name is not valid UTF-8")
    try:
        return _stats(path, found)
    except OSError:
        return _stats_one_by_one(path, found, notes)


def _stats(path: str, entries: list[os.DirEntry[str]]) -> list[Listed]:
    """Return the entries of a folder with the stat of each.

    Raises:
        OSError: one went while the folder was read.
    """
    if len(entries) < _MANY or os.stat not in os.supports_dir_fd:
        return [(entry, entry.stat(follow_symlinks=False)) for entry in entries]
    # From the open folder the kernel need not walk the path again for each of its entries.
    descriptor = os.open(path, os.O_RDONLY)
    stat = os.stat
    try:
        return [
            (entry, stat(entry.name, dir_fd=descriptor, follow_symlinks=False)) for entry in entries
        ]
    finally:
        os.close(descriptor)


def _read_link(path: str, folder: int | None = None) -> str:
    """Return a link's target; nothing if the link went while its folder was read."""
    try:
        return os.readlink(path, dir_fd=folder)
    except OSError:
        return ""


def _led_to(path: str) -> list[str]:
    """Return where a link leads, and the links that it leads through, each below a real folder."""
    found: list[str] = []
    while len(found) < _LONGEST_CHAIN:
        here = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        found.append(os.path.normpath(here))
        target = _read_link(here)
        if not target:
            break
        path = os.path.join(os.path.dirname(here), target.rstrip("/"))
    return found[1:]


def rebased(path: str, folder: str, other: str) -> str:
    """Return a path with one name of a folder that it lies below replaced by another name."""
    start = folder.rstrip(os.sep) + os.sep
    return os.path.join(other, path[len(start) :]) if path.startswith(start) else path


def _read_links(folder: str, entries: Iterable[Listed]) -> dict[str, str]:
    """Return the target of each link among a folder's entries, by name."""
    links = [entry for entry, stat in entries if modes.S_ISLNK(stat.st_mode)]
    if not links:
        return {}
    if os.readlink not in os.supports_dir_fd:
        return {entry.name: _read_link(entry.path) for entry in links}
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return {entry.name: "" for entry in links}
    try:
        return {entry.name: os.readlink(entry.name, dir_fd=descriptor) for entry in links}
    except OSError:
        return {entry.name: _read_link(entry.name, descriptor) for entry in links}
    finally:
        os.close(descriptor)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stats_one_by_one(path: str, entries: list[os.DirEntry[str]], notes: _Notes) -> list[Listed]:
    """Return the entries that have a stat: some may have gone while the folder was read.

    One that is there and has none, for want of permission or of a working disk, is not nothing:
    what the folder holds is not known then.
    """
    found: list[Listed] = []
    failure: OSError | None = None
    for entry in entries:
        try:
            found.append((entry, entry.stat(follow_symlinks=False)))
        except FileNotFoundError:
            continue
        except OSError as error:
            failure = error
    if failure is not None:
        notes.unreadable(path, failure)
    return found


def _add_below(path: str, kind: ByteClass, tally: _Tally, notes: _Notes) -> tuple[int, int]:
    """Count everything below a folder as one class.

    Returns:
        Allocated bytes and length of all that is below.
    """
    allocated = size = 0
    pending = [path]
    while pending:
        for entry, stat in _entries(pending.pop(), notes):
            allocated += tally.add(kind, stat)
            if modes.S_ISDIR(stat.st_mode):
                pending.append(entry.path)
            else:
                size += stat.st_size
    return allocated, size


def _is_left_behind(name: str, stat: os.stat_result) -> bool:
    """Whether an entry is a temporary of the hub's libraries or ours: a file or a link."""
    file = modes.S_ISREG(stat.st_mode) or modes.S_ISLNK(stat.st_mode)
    return file and layout.is_temporary(name)


def _add_stray(
    entry: os.DirEntry[str],
    stat: os.stat_result,
    tally: _Tally,
    notes: _Notes,
    *,
    leftover: bool | None = None,
    detail: str = "not part of the hub's cache layout",
    remedy: str | None = None,
) -> None:
    if leftover is None:
        leftover = _is_left_behind(entry.name, stat)
    kind: ByteClass = "partial" if leftover else "foreign"
    allocated, size = tally.add(kind, stat), stat.st_size
    folder = modes.S_ISDIR(stat.st_mode)
    if folder:
        below, size = _add_below(entry.path, kind, tally, notes)
        allocated += below
    notes.strays.append(
        Stray(
            entry.path,
            size,
            allocated,
            stat.st_ino,
            stat.st_mtime_ns,
            folder,
            leftover,
            stat.st_dev,
        )
    )
    if leftover:
        notes.warning(
            "leftover", entry.path, "left behind by an interrupted run", advice.command("clean")
        )
    else:
        notes.warning("stray-folder" if folder else "stray-file", entry.path, detail, remedy)


def _record_of(cache_dir: str, folder: str) -> Entry | None:
    """Return the file that records where a repo went, whoever wrote it; `None` if there is none."""
    try:
        stat = os.lstat(record_path(cache_dir, folder))
    except OSError:
        return None
    return entry_of(stat) if modes.S_ISREG(stat.st_mode) else None


class _RepoScan:
    """The scan of one repo's folder; `run` returns the `Repo`."""

    def __init__(
        self,
        path: str,
        folder: str,
        kind: str,
        repo_id: str,
        cache_dir: str,
        shared: dict[str, SharedBlob],
        linked_to: str | None,
    ) -> None:
        self.path = path
        self.folder = folder
        self.kind = kind
        self.id = repo_id
        self.locks = os.path.join(cache_dir, layout.LOCKS, folder)
        self.shared = shared
        self.linked_to = linked_to
        linked = linked_to is not None
        self.moved_to = destination_of(cache_dir, folder) if linked else None
        self.away = find_away(cache_dir, folder) if linked and not os.path.isdir(path) else None
        self.record = _record_of(cache_dir, folder) if linked else None
        self.tally = _Tally()
        self.notes = _Notes(repo_id)
        self.blobs: dict[str, Blob] = {}
        self.linked_blobs: set[str] = set()
        self.unknown: dict[str, Listed] = {}
        """Entries of `blobs/` that count as blobs only if something says that they are."""
        self.partials: list[Partial] = []
        self.refs: dict[str, str] = {}
        self.trees: dict[str, dict[str, TreeFile]] = {}
        self.entry: Entry | None = None
        self.ref_files: dict[str, Entry] = {}
        self.ref_folders: dict[str, Entry] = {}
        self.tree_files: dict[str, Entry] = {}
        self.no_exist: dict[str, Entry] = {}
        self.pull: str | None = None
        if layout.is_repo_id(repo_id):
            self.pull = advice.of_other_type(kind, repo_id)
        self.repair = self.pull
        if kind == "model" and self.pull is not None:
            self.pull = advice.command("pull", repo_id)
            self.repair = advice.command("verify", repo_id, "--repair")

    def run(self, now: float) -> Repo:
        folders: dict[str, os.DirEntry[str]] = {}
        for entry, stat in _entries(self.path, self.notes):
            name = entry.name
            if name in (layout.BLOBS, layout.SNAPSHOTS, layout.REFS, layout.TREES, layout.NO_EXIST):
                if modes.S_ISDIR(stat.st_mode):
                    self.tally.add("metadata", stat)
                    folders[name] = entry
                else:
                    _add_stray(
                        entry, stat, self.tally, self.notes, detail="a folder belongs in its place"
                    )
            else:
                _add_stray(entry, stat, self.tally, self.notes)
        if layout.BLOBS in folders:
            self._read_blobs(folders[layout.BLOBS].path)
        if layout.REFS in folders:
            self._read_refs(folders[layout.REFS].path)
        if layout.TREES in folders:
            self._read_trees(folders[layout.TREES].path)
        if layout.NO_EXIST in folders:
            self._read_no_exist(folders[layout.NO_EXIST].path)
        if layout.SNAPSHOTS in folders:
            revisions = self._read_snapshots(folders[layout.SNAPSHOTS].path)
        else:
            revisions = []
            if self.notes.could_read(self.path):
                self.notes.error(
                    "missing-snapshots",
                    self.path,
                    "the repo has no snapshots folder: nothing of it can be loaded",
                    self._remedy(*self.refs.values()),
                )
        self._check_refs(revisions)
        self._check_sizes(revisions)
        self._classify_blobs(revisions)
        self._judge_partials(now)
        return self._repo(revisions)

    def _remedy(self, *commits: str, name: str | None = None) -> str | None:
        """Return what brings commits, or one file of a commit, back.

        A repair, which needs no network, where the content is here and only links are not; or where
        the hub does not list the file, so that no download could bring it.
        """
        for commit in commits:
            tree = self.trees.get(commit, {})
            names = formats.wanted(tree) if name is None else {name}
            if names and tree and all(one not in tree or self._holds(tree[one]) for one in names):
                return self.repair
        return self.pull

    def _holds(self, listed: TreeFile) -> bool:
        blob = self.blobs.get(listed.etag)
        return blob is not None and blob.present and blob.size == listed.content_size

    def nothing(self) -> Repo:
        """A repo whose folder is a link to a place that is not there."""
        return self._repo([])

    def _repo(self, revisions: list[Revision]) -> Repo:
        return Repo(
            id=self.id,
            type=self.kind,
            folder=self.folder,
            path=self.path,
            refs=self.refs,
            revisions=tuple(revisions),
            blobs=self.blobs,
            partials=tuple(self.partials),
            strays=tuple(self.notes.strays),
            by_class=self.tally.by_class(),
            findings=tuple(self.notes.findings),
            linked_to=self.linked_to,
            moved_to=self.moved_to,
            away=self.away,
            record=self.record,
            entry=self.entry,
            ref_files=self.ref_files,
            ref_folders=self.ref_folders,
            tree_files=self.tree_files,
            no_exist=self.no_exist,
            trees=self.trees,
        )

    def _read_no_exist(self, path: str) -> None:
        for entry, stat in _entries(path, self.notes):
            self.tally.add("metadata", stat)
            if modes.S_ISDIR(stat.st_mode):
                below, _ = _add_below(entry.path, "metadata", self.tally, self.notes)
                self.no_exist[entry.name] = entry_of(stat, below)

    def _read_blobs(self, path: str) -> None:
        for entry, stat in _entries(path, self.notes):
            name, mode = entry.name, stat.st_mode
            # Nearly every blob's name is a hash and nothing more, which needs no closer look.
            plain = name.isalnum()
            if modes.S_ISLNK(mode):
                self._read_linked_blob(entry, stat)
            elif not modes.S_ISREG(mode):
                _add_stray(entry, stat, self.tally, self.notes)
            elif not plain and (etag := layout.partial_etag(name)) is not None:
                self._read_partial(entry, stat, etag)
            elif not plain and layout.is_temporary(name):
                _add_stray(entry, stat, self.tally, self.notes)
            elif not plain and layout.is_blob_lock(name):
                self.tally.add("metadata", stat)
            else:
                if not layout.is_etag(name):
                    self.unknown[name] = entry, stat
                self.blobs[name] = Blob(
                    name,
                    stat.st_size,
                    allocated_bytes(stat),
                    stat.st_ino,
                    stat.st_dev,
                    stat.st_nlink,
                    stat.st_mtime_ns,
                    stat.st_atime_ns,
                )

    def _read_partial(self, entry: os.DirEntry[str], stat: os.stat_result, etag: str) -> None:
        self.partials.append(
            Partial(
                entry.name,
                etag,
                entry.path,
                stat.st_size,
                self.tally.add("partial", stat),
                stat.st_ino,
                stat.st_mtime_ns,
                any(
                    lock_held(os.path.join(folder, etag + layout.LOCK_SUFFIX))
                    for folder in (self.locks, os.path.dirname(entry.path))
                ),
                stat.st_dev,
                layout.partial_client(entry.name),
            )
        )

    def _read_linked_blob(self, entry: os.DirEntry[str], stat: os.stat_result) -> None:
        """A blob that is a link: into the shared store, or to anywhere."""
        if layout.is_temporary(entry.name):
            _add_stray(entry, stat, self.tally, self.notes)
            return
        if not layout.is_etag(entry.name):
            self.unknown[entry.name] = entry, stat
        self.tally.add("metadata", stat)
        self.linked_blobs.add(entry.name)
        shared_hash = layout.shared_hash_of(_read_link(entry.path))
        size, atime, present = 0, stat.st_atime_ns, False
        outside, there = shared_hash is None, 0
        if shared_hash is not None and shared_hash in self.shared:
            size, present = self.shared[shared_hash].size, True
        try:
            target = os.stat(entry.path)
        except OSError:
            present = False
        else:
            size, atime = target.st_size, target.st_atime_ns
            present = modes.S_ISREG(target.st_mode)
            if shared_hash is not None and self.linked_to is not None:
                # A repo that lies elsewhere has its store beside it there, and not here.
                ours = self.shared.get(shared_hash)
                if ours is None or os.path.realpath(ours.path) != os.path.realpath(entry.path):
                    shared_hash, there = None, allocated_bytes(target)
        self.blobs[entry.name] = Blob(
            entry.name,
            size,
            allocated_bytes(stat),
            stat.st_ino,
            stat.st_dev,
            stat.st_nlink,
            stat.st_mtime_ns,
            atime,
            shared_hash,
            present,
            linked=True,
            allocated_there=there,
        )
        if not present:
            detail = "the blob is a link to nothing that has content"
            self.notes.error("missing-blob", entry.path, detail, self.pull)
        elif outside:
            self.notes.warning("outside-link", entry.path, "the blob is a link out of the cache")

    def _read_refs(self, path: str) -> None:
        pending = [(path, "")]
        while pending:
            folder, prefix = pending.pop()
            for entry, stat in _entries(folder, self.notes):
                name = prefix + entry.name
                if _is_left_behind(entry.name, stat) or entry.name in layout.DESKTOP_FILES:
                    _add_stray(entry, stat, self.tally, self.notes)
                    continue
                self.tally.add("metadata", stat)
                if modes.S_ISDIR(stat.st_mode):
                    pending.append((entry.path, name + "/"))
                    self.ref_folders[name] = entry_of(stat)
                    self._check_ref_folder(entry.path, name)
                else:
                    self.ref_files[name] = entry_of(stat)
                    self._read_ref(entry.path, name)

    def _check_ref_folder(self, path: str, name: str) -> None:
        """An empty folder where a branch is expected; below `refs/refs` the hub leaves such."""
        if "/" not in name and name != layout.REFS and not _entries(path, self.notes):
            self.notes.error("malformed-ref", path, "a folder is in the ref's place", self.pull)

    def _read_ref(self, path: str, name: str) -> None:
        try:
            content = read_bytes(path, _REF_LIMIT).decode()
        except (OSError, UnicodeDecodeError) as error:
            self.notes.error("unreadable-ref", path, f"the ref cannot be read: {error}", self.pull)
            return
        commit = content.strip()
        if not layout.is_commit_folder(commit):
            self.notes.error("malformed-ref", path, "the ref does not hold a commit", self.pull)
            return
        if commit != content:
            self.notes.error(
                "malformed-ref",
                path,
                "the ref has white space around its commit: offline loading does not find it",
                self.pull,
            )
        self.refs[name] = commit

    def _read_trees(self, path: str) -> None:
        for entry, stat in _entries(path, self.notes):
            if not modes.S_ISREG(stat.st_mode) or not entry.name.endswith(".json"):
                _add_stray(entry, stat, self.tally, self.notes)
                continue
            self.tally.add("metadata", stat)
            commit = entry.name.removesuffix(".json")
            self.tree_files[commit] = entry_of(stat)
            try:
                document = _TREE_DECODER.decode(read_bytes(entry.path, _TREE_LIMIT))
            except PermissionError as error:
                # The hub's library lets only its own user read a listing.
                detail = f"this user may not read the listing: {error.strerror}"
                self.notes.info("unreadable-file", entry.path, detail, advice.command("doctor"))
                continue
            except (OSError, *JSON_ERRORS) as error:
                self.notes.warning(
                    "unreadable-tree", entry.path, f"the listing cannot be read: {error}", self.pull
                )
                continue
            if document.format_version == 1 and document.files:
                self.trees[commit] = document.files

    def _read_snapshots(self, path: str) -> list[Revision]:
        revisions = []
        for entry, stat in _entries(path, self.notes):
            if modes.S_ISLNK(stat.st_mode):
                self.tally.add("metadata", stat)
                self.notes.error(
                    "outside-link",
                    entry.path,
                    "the snapshot is a link to another folder; it is not followed",
                )
                refs = self._refs_of(entry.name)
                revisions.append(
                    Revision(
                        entry.name,
                        entry.path,
                        refs,
                        (),
                        stat.st_mtime_ns,
                        linked=True,
                        entry=entry_of(stat),
                    )
                )
            elif modes.S_ISDIR(stat.st_mode):
                self.tally.add("metadata", stat)
                revisions.append(self._read_snapshot(entry, stat))
            else:
                _add_stray(entry, stat, self.tally, self.notes)
        return revisions

    def _read_snapshot(self, snapshot: os.DirEntry[str], stat: os.stat_result) -> Revision:
        commit = snapshot.name
        files: list[File] = []
        folders = 0
        pending = [(snapshot.path, "", "../../" + layout.BLOBS + "/")]
        blobs, add = self.blobs, self.tally.add
        while pending:
            folder, prefix, to_blobs = pending.pop()
            skip = len(to_blobs)
            entries = _entries(folder, self.notes)
            targets = _read_links(folder, entries)
            for entry, status in entries:
                mode = status.st_mode
                if modes.S_ISDIR(mode) and self._is_in_the_way(commit, prefix + entry.name, entry):
                    remedy = advice.command("rm", entry.path)
                    _add_stray(
                        entry,
                        status,
                        self.tally,
                        self.notes,
                        leftover=False,
                        detail=_IN_THE_WAY,
                        remedy=remedy,
                    )
                elif modes.S_ISDIR(mode):
                    folders += self.tally.add("metadata", status)
                    pending.append((entry.path, f"{prefix}{entry.name}/", "../" + to_blobs))
                elif modes.S_ISLNK(mode):
                    allocated = add("metadata", status)
                    name = entry.name
                    target = targets[name]
                    blob = blobs.get(target[skip:]) if target.startswith(to_blobs) else None
                    if blob is not None and blob.present:
                        # As `_file` does it; this line is run for nearly every entry of a cache.
                        files.append(
                            File(
                                prefix + name,
                                "link",
                                blob.name,
                                blob.size,
                                allocated,
                                status.st_ino,
                                status.st_dev,
                                status.st_nlink,
                                status.st_mtime_ns,
                                status.st_atime_ns,
                            )
                        )
                    else:
                        odd = self._odd_link(commit, prefix + entry.name, entry.path, status)
                        files.append(odd)
                elif modes.S_ISREG(mode) and entry.name not in layout.DESKTOP_FILES:
                    files.append(self._regular_file(commit, prefix + entry.name, entry, status))
                else:
                    _add_stray(entry, status, self.tally, self.notes)
        if not files and self.notes.could_read(snapshot.path):
            self.notes.error(
                "empty-snapshot",
                snapshot.path,
                "the snapshot holds no files",
                self._remedy(commit),
            )
        copies = sum(file.kind == "copy" for file in files)
        if copies:
            self.notes.info(
                "copied-files",
                snapshot.path,
                f"{copies} files are copies in place of links: revisions cannot share them",
            )
        return Revision(
            commit,
            snapshot.path,
            self._refs_of(commit),
            tuple(files),
            stat.st_mtime_ns,
            self.trees.get(commit),
            entry=entry_of(stat, folders),
        )

    def _is_in_the_way(self, commit: str, name: str, entry: os.DirEntry[str]) -> bool:
        """Return whether a folder that is not empty is where the listing has a file."""
        if name not in self.trees.get(commit, {}):
            return False
        try:
            with os.scandir(entry.path) as inside:
                return next(inside, None) is not None
        except OSError:
            return True

    def _refs_of(self, commit: str) -> tuple[str, ...]:
        return tuple(sorted(ref for ref, named in self.refs.items() if named == commit))

    def _regular_file(
        self, commit: str, name: str, entry: os.DirEntry[str], stat: os.stat_result
    ) -> File:
        """A file of a snapshot that is no link: its content, or what was left of its link."""
        listed = self.trees.get(commit, {}).get(name)
        blob, detail = None, f"{name} is an empty file in place of its link"
        if stat.st_size:
            blob = self._blob_of_text(entry.path, name.count("/"), stat)
            detail = f"{name} holds the text of its link in place of being the link"
        elif listed is not None:
            blob = listed.etag if listed.content_size and self._holds(listed) else None
        if blob is None and (stat.st_size or listed is not None or not self._is_never_empty(name)):
            return _file(name, "copy", stat, None, stat.st_size)
        here = blob in self.blobs
        self.tally.add("metadata", stat)
        self.notes.error("lost-link", entry.path, detail, self.repair if here else self.pull)
        return _file(name, "stub", stat, blob if here else None)

    def _is_never_empty(self, name: str) -> bool:
        return self.kind == "model" and name.endswith(_NEVER_EMPTY)

    def _blob_of_text(self, path: str, depth: int, stat: os.stat_result) -> str | None:
        """Return the blob that a file's content means, if that is the text of a link to one."""
        lengths = {len(layout.link_target("", depth)) + digits for digits in (40, 64)}
        if stat.st_size not in lengths or stat.st_size > _LONGEST_STUB:
            return None
        try:
            return layout.blob_of_text(read_bytes(path, _LONGEST_STUB), depth)
        except OSError:
            return None

    def _odd_link(self, commit: str, name: str, path: str, stat: os.stat_result) -> File:
        """A snapshot's link that is not the one that the hub writes to a blob that is there."""
        remedy = self._remedy(commit, name=name)
        # A link to the cache's old place says which blob it means.
        meant = self.blobs.get(_read_link(path).replace("\\", "/").rpartition("/")[2])
        held = meant.name if meant is not None and meant.present else None
        if held is not None:
            remedy = self.repair
        try:
            target = os.stat(path)
        except FileNotFoundError:
            detail = f"the blob it links to is missing ({name})"
            if held is not None:
                detail = f"the link leads to another place than the blob's ({name})"
            self.notes.error("dangling-link", path, detail, remedy)
            return _file(name, "dangling", stat, held)
        except OSError as error:
            if error.errno == errno.ELOOP:
                self.notes.error("link-loop", path, f"the link leads in a circle ({name})", remedy)
                return _file(name, "loop", stat)
            detail = f"the link cannot be followed ({name}): {error.strerror or error}"
            self.notes.error("unreadable-file", path, detail, advice.command("doctor"))
            return _file(name, "unreadable", stat)
        real = os.path.realpath(path)
        blob = self.blobs.get(os.path.basename(real))
        if blob is not None and (blob.device, blob.inode) == (target.st_dev, target.st_ino):
            return _file(name, "link", stat, blob.name, blob.size)
        if f"{os.path.realpath(os.path.dirname(path))}{os.sep}".startswith(real + os.sep):
            detail = f"the link leads back into itself ({name})"
            self.notes.error("link-loop", path, detail, remedy)
            return _file(name, "loop", stat)
        self.notes.error("outside-link", path, f"the link leads out of the repo, to {real}", remedy)
        return _file(name, "outside", stat, held)

    def _check_refs(self, revisions: Iterable[Revision]) -> None:
        if not self.notes.could_read(os.path.join(self.path, layout.SNAPSHOTS)):
            return
        commits = {revision.commit for revision in revisions}
        for ref, commit in sorted(self.refs.items()):
            if commit not in commits:
                path = os.path.join(self.path, layout.REFS, *ref.split("/"))
                self.notes.error(
                    "ref-to-missing-commit",
                    path,
                    f"{ref} names commit {commit}, which has no snapshot",
                    self._remedy(commit),
                )

    def _check_sizes(self, revisions: Iterable[Revision]) -> None:
        """Compare what is there with what the listing says, and find blobs that lost all bytes."""
        told: set[str] = set()
        for revision in revisions:
            tree = revision.tree
            for file in revision.files:
                if tree is None and file.size:
                    continue
                if file.kind not in ("link", "copy") or (file.blob and file.blob in told):
                    continue
                listed = tree.get(file.name) if tree is not None else None
                if listed is not None and _is_another_file(revision, file, listed):
                    self.notes.error(
                        "wrong-link",
                        os.path.join(revision.path, *file.name.split("/")),
                        f"{file.name} is a link to the content of another file",
                        self._remedy(revision.commit, name=file.name),
                    )
                    continue
                if file.size and (listed is None or listed.content_size == file.size):
                    continue
                if file.blob is None:
                    path = os.path.join(revision.path, *file.name.split("/"))
                    remedy = self._remedy(revision.commit, name=file.name)
                else:
                    path = os.path.join(self.path, layout.BLOBS, file.blob)
                    remedy = self.pull
                if listed is not None and listed.content_size != file.size:
                    short = file.size < listed.content_size
                    self.notes.error(
                        "truncated-blob" if short else "oversized-blob",
                        path,
                        f"{file.name} has {file.size} of {listed.content_size} bytes",
                        remedy,
                    )
                elif file.size == 0 and file.blob is not None and listed is None:
                    if file.blob in layout.EMPTY_HASHES:
                        continue
                    self.notes.error("empty-blob", path, f"{file.name} is empty", self.pull)
                else:
                    continue
                if file.blob is not None:
                    told.add(file.blob)

    def _classify_blobs(self, revisions: Iterable[Revision]) -> None:
        """Give each blob's bytes to a class, by who links to it."""
        named: set[str] = set()
        linked: set[str] = set()
        # Where a snapshot could not be read, what it links to is not known.
        all_read = self.notes.could_read(self.path)
        inodes: dict[tuple[int, int], ByteClass] = {}
        for revision in revisions:
            kind: ByteClass = "referenced" if revision.refs else "detached"
            names = named if revision.refs else linked
            for file in revision.files:
                if file.kind == "copy":
                    if file.links == 1:
                        self.tally.bytes[kind] += file.allocated
                    elif inodes.get((file.device, file.inode)) != "referenced":
                        inodes[file.device, file.inode] = kind
                elif file.blob is not None:
                    names.add(file.blob)
        listed: dict[str, str] | None = None
        loose: set[str] = set()
        for blob in list(self.blobs.values()):
            if blob.name in named:
                kind = "referenced"
            elif inodes and (blob.device, blob.inode) in inodes:
                kind = inodes[blob.device, blob.inode]
            elif blob.name in linked:
                kind = "detached"
            else:
                listed = self._listed_blobs(revisions) if listed is None else listed
                if blob.name in listed:
                    loose.add(blob.name)
                    kind = "referenced" if listed[blob.name] in self.refs.values() else "detached"
                elif blob.name in self.unknown and all_read:
                    self._disown(blob)
                    continue
                else:
                    kind = "orphan"
                if kind == "orphan" and all_read and blob.present:
                    self.notes.warning(
                        "orphan-blob",
                        os.path.join(self.path, layout.BLOBS, blob.name),
                        "no snapshot links to this blob",
                        advice.command("clean"),
                    )
            if blob.name in self.linked_blobs:
                continue  # The link is counted already, as metadata; its target lies elsewhere.
            if blob.links == 1:
                self.tally.bytes[kind] += blob.allocated
            else:
                self.tally.add_linked(kind, blob.allocated, blob.device, blob.inode)
        for revision in revisions if inodes else ():
            for file in revision.files:
                if file.kind == "copy" and file.links > 1:
                    kind = inodes[file.device, file.inode]
                    self.tally.add_linked(kind, file.allocated, file.device, file.inode)

        if loose and all_read:
            self._find_lost_links(revisions, loose)

    def _listed_blobs(self, revisions: Iterable[Revision]) -> dict[str, str]:
        """Return blob -> commit, by the listings of snapshots and of commits that a ref names."""
        commits = [revision.commit for revision in revisions if not revision.refs]
        commits += self.refs.values()
        return {
            listed.etag: commit
            for commit in commits
            for listed in self.trees.get(commit, {}).values()
        }

    def _disown(self, blob: Blob) -> None:
        """Count as foreign what is in `blobs/` and of which nothing says that it is a blob."""
        entry, stat = self.unknown[blob.name]
        del self.blobs[blob.name]
        if blob.name in self.linked_blobs:
            self.linked_blobs.remove(blob.name)
            self.tally.bytes["metadata"] -= blob.allocated
            told = self.notes.findings
            self.notes.findings = [finding for finding in told if finding.path != entry.path]
        _add_stray(entry, stat, self.tally, self.notes, leftover=False)

    def _find_lost_links(self, revisions: Iterable[Revision], loose: Collection[str]) -> None:
        """Tell of content that a snapshot's listing names, and that nothing links to."""
        for revision in revisions:
            there = {file.name for file in revision.files}
            lost = [
                name
                for name, listed in (revision.tree or {}).items()
                if listed.etag in loose and name not in there and self._holds(listed)
            ]
            if lost and there:
                more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
                detail = (
                    f"the content is here, and its link is missing: {', '.join(lost[:3])}{more}"
                )
                self.notes.warning("lost-link", revision.path, detail, self.repair)

    def _judge_partials(self, now: float) -> None:
        for partial in self.partials:
            client = partial.client
            by = "" if client is None else f" of {client}"
            if is_stale(partial, now):
                remedy = self.pull or advice.command("clean")
                if client is not None:
                    remove = advice.command("clean", "--partials")
                    remedy = f"let {client} download it again, or remove it: {remove}"
                self.notes.warning(
                    "stale-partial",
                    partial.path,
                    f"a download{by} of {partial.size} bytes was left unfinished",
                    remedy,
                )
            else:
                self.notes.info("live-partial", partial.path, f"a download{by} is in progress")


def _file(
    name: str, kind: FileKind, stat: os.stat_result, blob: str | None = None, size: int = 0
) -> File:
    return File(
        name,
        kind,
        blob,
        size,
        allocated_bytes(stat),
        stat.st_ino,
        stat.st_dev,
        stat.st_nlink,
        stat.st_mtime_ns,
        stat.st_atime_ns,
    )


def _is_another_file(revision: Revision, file: File, listed: TreeFile) -> bool:
    """Whether a link leads to a good blob, but to that of another file of the revision."""
    if file.blob is None or file.blob == listed.etag or file.size == listed.content_size:
        return False
    return any(other.etag == file.blob for other in (revision.tree or {}).values())


class _ScannedRepo(NamedTuple):
    repo: Repo
    tally: _Tally


class _CacheScan:
    """The scan of a whole cache; `run` returns the `CacheState`.

    Args:
        cache_dir: the cache's folder.
        now: seconds since the epoch.
        known: repo folder -> what an earlier scan found, for repos that are not to be read again.
        only: the repo folders to read; all of them if not given.
    """

    def __init__(
        self,
        cache_dir: str,
        now: float,
        known: Mapping[str, _ScannedRepo],
        only: Collection[str] | None,
    ) -> None:
        self.dir = cache_dir
        self.now = now
        self.known = known
        self.only = only
        self.scanned: dict[str, _ScannedRepo] = {}
        self.tally = _Tally()
        self.notes = _Notes(None)
        self.shared: dict[str, SharedBlob] = {}
        self.shared_marked = False
        self.locks: dict[str, LockFolder] = {}
        self.leftovers: list[Leftover] = []

    @property
    def repos(self) -> tuple[Repo, ...]:
        return tuple(scanned.repo for scanned in self.scanned.values())

    def run(self) -> CacheState:
        self.tally.add("metadata", os.stat(self.dir))
        found: list[tuple[Listed, str, str]] = []
        entries = _entries(self.dir, self.notes)
        for finding in self.notes.findings:
            if finding.code == UNREADABLE:
                raise _unreadable_cache(self.dir, finding.detail.rpartition(": ")[2])
        for entry, stat in entries:
            repo = layout.parse_repo_folder(entry.name)
            if repo is not None and not modes.S_ISREG(stat.st_mode):
                found.append(((entry, stat), *repo))
            else:
                self._read_other(entry, stat)
        for (entry, stat), kind, repo_id in found:
            if self.only is None or entry.name in self.only:
                # A repo that is removed while the cache is read is none of it any more.
                with suppress(FileNotFoundError):
                    self._read_repo(entry, stat, kind, repo_id)
        if self.only is None:
            self._find_users()
            self._find_same_commits()
        return CacheState(
            dir=self.dir,
            exists=True,
            repos=self.repos,
            shared=self.shared,
            shared_marked=self.shared_marked,
            strays=tuple(self.notes.strays),
            by_class=self.tally.by_class(),
            findings=tuple(self.notes.findings),
            scanned_at=self.now,
            locks=self.locks,
            leftovers=tuple(self.leftovers),
            outside={
                rebased(path, os.path.realpath(self.dir), self.dir): repo.folder
                for repo in self.repos
                for finding in repo.findings
                if finding.code == "outside-link"
                for path in _led_to(finding.path)
            },
        )

    def _read_locks(self, path: str) -> None:
        for entry, stat in _entries(path, self.notes):
            if not modes.S_ISDIR(stat.st_mode):
                if self._is_needless_record(entry.name):
                    _add_stray(entry, stat, self.tally, self.notes, leftover=True)
                else:
                    self.tally.add("metadata", stat)
                continue
            self.tally.add("metadata", stat)
            files: dict[str, Entry] = {}
            other = 0
            for lock, status in _entries(entry.path, self.notes):
                self.tally.add("metadata", status)
                if modes.S_ISREG(status.st_mode) and lock.name.endswith(layout.LOCK_SUFFIX):
                    files[lock.name] = entry_of(status)
                    continue
                other += 1
                if modes.S_ISDIR(status.st_mode):
                    _add_below(lock.path, "metadata", self.tally, self.notes)
            self.locks[entry.name] = LockFolder(entry.path, entry_of(stat), files, other)

    def _is_needless_record(self, name: str) -> bool:
        """Whether a file among the locks records where a repo went that has no link here."""
        folder, suffix, rest = name.partition(layout.RECORD_SUFFIX)
        if not suffix or layout.parse_repo_folder(folder) is None:
            return False
        return bool(rest) or not os.path.islink(os.path.join(self.dir, folder))

    def _read_leftovers(self, path: str) -> None:
        """Read what interrupted removals left: `<unique>/<repo folder>/…`, as in a repo."""
        for job, found in _entries(path, self.notes):
            if not modes.S_ISDIR(found.st_mode):
                continue
            for repo, stat in _entries(job.path, self.notes):
                if layout.parse_repo_folder(repo.name) is None:
                    continue
                refs: dict[str, str] = {}
                commits: set[str] = set()
                blobs: set[str] = set()
                shared: set[str] = set()
                below = 0
                pending = [(repo.path, "")] if modes.S_ISDIR(stat.st_mode) else []
                while pending:
                    folder, prefix = pending.pop()
                    for entry, status in _entries(folder, self.notes):
                        below += allocated_bytes(status)
                        name = prefix + entry.name
                        parts = name.split("/")
                        if len(parts) > 1 and parts[0] == layout.SNAPSHOTS:
                            commits.add(parts[1])
                        if modes.S_ISDIR(status.st_mode):
                            pending.append((entry.path, name + "/"))
                        elif modes.S_ISLNK(status.st_mode):
                            target = _read_link(entry.path)
                            shared_hash = layout.shared_hash_of(target)
                            if shared_hash is not None:
                                shared.add(shared_hash)
                            elif target.split("/")[-2:-1] == [layout.BLOBS]:
                                blobs.add(target.rpartition("/")[2])
                        elif parts[0] == layout.REFS:
                            try:
                                commit = read_bytes(entry.path, _REF_LIMIT).decode().strip()
                            except (OSError, UnicodeDecodeError):
                                continue
                            refs[name.partition("/")[2]] = commit
                self.leftovers.append(
                    Leftover(
                        repo.path,
                        repo.name,
                        os.path.basename(job.path).startswith(layout.WHOLE_REPO),
                        refs,
                        tuple(sorted(commits)),
                        tuple(sorted(blobs)),
                        tuple(sorted(shared)),
                        entry_of(stat, below),
                    )
                )

    def _read_other(self, entry: os.DirEntry[str], stat: os.stat_result) -> None:
        """An entry of the cache root that is no repo."""
        folder = modes.S_ISDIR(stat.st_mode)
        if folder and entry.name == layout.LOCKS:
            self.tally.add("metadata", stat)
            self._read_locks(entry.path)
        elif folder and entry.name == layout.SHARED_STORE:
            self._read_shared_store(entry, stat)
        elif folder and entry.name == layout.LEFTOVERS:
            allocated = self.tally.add("orphan", stat)
            below, size = _add_below(entry.path, "orphan", self.tally, self.notes)
            self.notes.strays.append(
                Stray(
                    entry.path,
                    size,
                    allocated + below,
                    stat.st_ino,
                    stat.st_mtime_ns,
                    folder=True,
                    leftover=True,
                    device=stat.st_dev,
                )
            )
            self._read_leftovers(entry.path)
            self.notes.warning(
                "leftover", entry.path, "a removal was interrupted", advice.command("clean")
            )
        elif folder and entry.name == layout.MOVING:
            self.tally.add("partial", stat)
            _add_below(entry.path, "partial", self.tally, self.notes)
            self.notes.info(
                "unfinished-move",
                entry.path,
                "a move to this folder is going on, or was interrupted",
                "run the same 'vlmcache move' again, or with --undo",
            )
        elif entry.name in layout.ROOT_FILES and modes.S_ISREG(stat.st_mode):
            self.tally.add("metadata", stat)
        else:
            _add_stray(entry, stat, self.tally, self.notes)

    def _read_shared_store(self, store: os.DirEntry[str], stat: os.stat_result) -> None:
        marker = os.path.join(store.path, layout.SHARED_MARKER)
        try:
            self.shared_marked = read_bytes(marker, 64) == layout.SHARED_MARKER_TEXT.encode()
        except OSError:
            self.shared_marked = False
        if not self.shared_marked:
            _add_stray(
                store,
                stat,
                self.tally,
                self.notes,
                detail="looks like the hub's shared blob store but lacks its marker file",
            )
            return
        self.tally.add("metadata", stat)
        for entry, status in _entries(store.path, self.notes):
            if entry.name == layout.SHARED_MARKER:
                self.tally.add("metadata", status)
            elif modes.S_ISDIR(status.st_mode) and len(entry.name) == 2:
                self.tally.add("metadata", status)
                self._read_shared_folder(entry.path, entry.name)
            else:
                _add_stray(entry, status, self.tally, self.notes)

    def _read_shared_folder(self, path: str, prefix: str) -> None:
        entries = _entries(path, self.notes)
        names = {entry.name for entry, _ in entries}
        manifests: dict[str, int] = {}
        for entry, status in entries:
            name = entry.name
            regular = modes.S_ISREG(status.st_mode)
            payload = name.removesuffix(layout.MANIFEST_SUFFIX).removesuffix(".soft")
            payload = payload.removesuffix(layout.LOCK_SUFFIX)
            ours = layout.SHARED_HASH.fullmatch(payload) is not None and payload[:2] == prefix
            if regular and ours and payload == name:
                allocated = self.tally.add("shared", status)
                self.shared[name] = SharedBlob(
                    name,
                    entry.path,
                    status.st_size,
                    allocated,
                    status.st_ino,
                    status.st_dev,
                    status.st_nlink,
                    status.st_mtime_ns,
                    name + layout.MANIFEST_SUFFIX in names,
                )
            elif regular and ours:
                allocated = self.tally.add("metadata", status)
                if name.endswith(layout.MANIFEST_SUFFIX):
                    manifests[payload] = allocated
            else:
                _add_stray(entry, status, self.tally, self.notes)
        for shared_hash, allocated in manifests.items():
            if shared_hash in self.shared:
                self.shared[shared_hash] = msgspec.structs.replace(
                    self.shared[shared_hash], manifest_allocated=allocated
                )

    def _read_repo(
        self, entry: os.DirEntry[str], stat: os.stat_result, kind: str, repo_id: str
    ) -> None:
        scanned = self.known.get(entry.name)
        if scanned is None:
            scanned = self._scan_repo(entry, stat, kind, repo_id)
        self.scanned[entry.name] = scanned
        if scanned.repo.linked_to is None:
            self.tally.merge(scanned.tally)
        else:
            self.tally.add("metadata", stat)

    def _scan_repo(
        self, entry: os.DirEntry[str], stat: os.stat_result, kind: str, repo_id: str
    ) -> _ScannedRepo:
        linked_to = os.path.realpath(entry.path) if modes.S_ISLNK(stat.st_mode) else None
        repo_scan = _RepoScan(
            entry.path, entry.name, kind, repo_id, self.dir, self.shared, linked_to
        )
        notes = repo_scan.notes
        if linked_to is not None and os.path.isdir(entry.path):
            notes.info("linked-repo", entry.path, f"the repo lies at {linked_to}")
        elif repo_scan.away is not None:
            words = away_words(repo_scan.away)
            notes.warning(DRIVE_AWAY, entry.path, words, away_remedy(repo_scan.away))
        elif linked_to is not None:
            moved = linked_destination(self.dir, entry.name) is not None
            back = "'vlmcache move --relink FOLDER' if it was moved on" if moved else _MOUNT_IT
            notes.error(
                "dangling-link",
                entry.path,
                f"the repo's folder is a link to {linked_to}, which is not there",
                f"{back}, or remove the link: {advice.command('rm', repo_id)}",
            )
        repo_scan.entry = entry_of(stat)
        if linked_to is not None and not os.path.isdir(entry.path):
            repo = repo_scan.nothing()
        else:
            repo_scan.tally.add("metadata", os.stat(entry.path))
            repo = repo_scan.run(self.now)
        return _ScannedRepo(repo, repo_scan.tally)

    def _find_users(self) -> None:
        """Tell each shared blob which repo blobs link to it."""
        users: dict[str, list[str]] = {}
        for repo in self.repos:
            for blob in repo.blobs.values():
                if blob.shared is not None:
                    users.setdefault(blob.shared, []).append(f"{repo.folder}/blobs/{blob.name}")
        for shared_hash, shared in self.shared.items():
            if shared_hash in users:
                self.shared[shared_hash] = msgspec.structs.replace(
                    shared, users=tuple(users[shared_hash])
                )
            else:
                self.notes.warning(
                    "orphan-shared-blob",
                    shared.path,
                    "no repo links to this shared blob",
                    advice.command("clean"),
                )
            if not shared.manifest:
                self.notes.warning(
                    "missing-manifest",
                    shared.path,
                    "the shared blob has no manifest of its references: the hub never frees it",
                )

    def _find_same_commits(self) -> None:
        repos: dict[str, list[Repo]] = {}
        for repo in self.repos:
            for revision in repo.revisions:
                repos.setdefault(revision.commit, []).append(repo)
        for commit, holders in repos.items():
            if len(holders) > 1:
                names = ", ".join(sorted(f"{repo.id} ({repo.type})" for repo in holders))
                self.notes.info(
                    "same-commit", self.dir, f"commit {commit} is in several repos: {names}"
                )


@contextmanager
def _without_collection() -> Iterator[None]:
    """The scan makes many values and no cycles; the cyclic collector would only walk them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Scanner:
    """Scans one cache again and again, and reads only what is told to have changed.

    Args:
        cache_dir: the hub cache's folder; it may be absent.
    """

    def __init__(self, cache_dir: str | os.PathLike[str]) -> None:
        self.dir = os.path.abspath(cache_dir)
        self._scanned: dict[str, _ScannedRepo] = {}

    def scan(
        self,
        touched: Collection[str] | None = None,
        *,
        now: float | None = None,
        only: Collection[str] | None = None,
    ) -> CacheState:
        """Return what is in the cache folder.

        Args:
            touched: names in the cache folder below which something may have changed since the
                last scan; all of them if not given. Repos that are none of these are taken from
                the last scan, as the very same values. Repos that came or went need not be named.
            now: seconds since the epoch, against which partial downloads are judged.
            only: the repo folders to read; all of them if not given.

        Raises:
            ConfigError: the path exists and is no folder.
            CacheError: the folder cannot be read: what it holds is not known.
        """
        now = time.time() if now is None else now
        known = {} if touched is None else self._untouched(touched)
        self._scanned = {}
        if _is_there(self.dir):
            with _without_collection():
                cache_scan = _CacheScan(self.dir, now, known, only)
                state = cache_scan.run()
            self._scanned = cache_scan.scanned
            return state
        return CacheState(
            dir=self.dir,
            exists=False,
            repos=(),
            shared={},
            shared_marked=False,
            strays=(),
            by_class=ByClass(),
            findings=(),
            scanned_at=now,
        )

    def _untouched(self, touched: Collection[str]) -> dict[str, _ScannedRepo]:
        # What a repo's blob says of itself depends on the shared blob that it is a link to.
        shared = layout.SHARED_STORE in touched
        return {
            folder: scanned
            for folder, scanned in self._scanned.items()
            if folder not in touched
            and not (shared and any(blob.shared for blob in scanned.repo.blobs.values()))
        }


def _is_there(path: str) -> bool:
    """Return whether the cache's folder is there.

    Raises:
        ConfigError: something else is.
        CacheError: that cannot be told.
    """
    try:
        folder = modes.S_ISDIR(os.stat(path).st_mode)
    except NotADirectoryError:
        folder = False
    except FileNotFoundError:
        if not os.path.lexists(path):
            return False
        folder = False
    except OSError as error:
        raise _unreadable_cache(path, error.strerror or str(error)) from error
    if not folder:
        raise ConfigError(
            f"the cache path is not a folder: {path}",
            "name another with --cache-dir or HF_HUB_CACHE; 'vlmcache doctor' shows the sources",
        )
    return True


def _unreadable_cache(path: str, reason: str) -> CacheError:
    return CacheError(
        f"the cache cannot be read: {reason}: {path}", "'vlmcache doctor' tells whose it is"
    )


def scan(
    cache_dir: str | os.PathLike[str],
    *,
    now: float | None = None,
    only: Collection[str] | None = None,
) -> CacheState:
    """Return what is in a cache folder.

    Args:
        cache_dir: the hub cache's folder; it may be absent.
        now: seconds since the epoch, against which partial downloads are judged.
        only: folder names of the repos to look at, where the others are of no interest; what is
            known only from all of them (users of shared blobs, sums) is then left out.

    Raises:
        ConfigError: the path exists and is no folder.
        CacheError: the folder cannot be read: what it holds is not known.
    """
    return Scanner(cache_dir).scan(now=now, only=only)


def scan_repo(cache_dir: str, folder: str, *, now: float | None = None) -> Repo | None:
    """Return one repo as it is now, by its folder's name; `None` if it is not there.

    Its blobs are not joined with the shared store: whether these are present is told by the disk.
    """
    parsed = layout.parse_repo_folder(folder)
    path = os.path.join(cache_dir, folder)
    if parsed is None or not os.path.lexists(path):
        return None
    stat = os.lstat(path)
    kind, repo_id = parsed
    linked_to = os.path.realpath(path) if modes.S_ISLNK(stat.st_mode) else None
    repo_scan = _RepoScan(path, folder, kind, repo_id, cache_dir, {}, linked_to)
    repo_scan.entry = entry_of(stat)
    if linked_to is not None and not os.path.isdir(path):
        return repo_scan.nothing()
    return repo_scan.run(time.time() if now is None else now)
