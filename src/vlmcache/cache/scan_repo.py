"""Reads one repo's folder."""

from __future__ import annotations

import contextlib
import os
import stat as modes
import time

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.base import InBase
from vlmcache.cache.entries import (
    FILE,
    HAS_BLOCKS,
    KIND,
    LINK,
    REF_LIMIT,
    TREE_LIMIT,
    add_below,
    add_stray,
    allocated_bytes,
    entry_of,
    is_left_behind,
    read_entries,
    read_link,
)
from vlmcache.cache.locks import lock_held, partial_in_use
from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.cache.repo_content import RepoContent, check_repo
from vlmcache.cache.scan_snapshots import read_snapshots
from vlmcache.cache.state import Blob, Partial, Repo, TreeFile
from vlmcache.cache.tree import CacheTree
from vlmcache.errors import reason_of
from vlmcache.paths import real_path


class _TreeDocument(msgspec.Struct):
    format_version: int
    files: dict[str, TreeFile]


_TREE_DECODER = msgspec.json.Decoder(_TreeDocument)


def parse_listing(content: bytes) -> dict[str, TreeFile]:
    """Return the content of a listing's file; nothing if it is of an unknown version.

    Raises:
        MsgspecError, RecursionError: it is not JSON, or does not hold a listing.
    """
    document = _TREE_DECODER.decode(content)
    return document.files if document.format_version == 1 else {}


def scan_repo(cache_dir: str, folder: str, *, now: float | None = None) -> Repo | None:
    """Return one repo as it is now, by its folder's name; `None` if it does not exist.

    The shared store is not read: whether a blob that links to it is present is asked of the disk.
    """
    if layout.parse_repo_folder(folder) is None:
        return None
    try:
        status = os.lstat(os.path.join(cache_dir, folder))
    except OSError:
        return None
    content = RepoContent(cache_dir, folder, status, {})
    return read_repo(content, time.time() if now is None else now)


def read_repo(content: RepoContent, now: float) -> Repo:
    """Read a repo's folder and return what it holds.

    Args:
        content: what is known about the repo; all that is read is added to it.
        now: seconds since the epoch, against which partial downloads are judged.
    """
    if not content.exists:
        return content.repo()
    folders: dict[str, str] = {}
    for name, stat in read_entries(content.path, content.notes):
        path = os.path.join(content.path, name)
        if name not in _READERS:
            add_stray(path, stat, content.notes)
        elif modes.S_ISDIR(stat.st_mode):
            content.notes.tally.add("metadata", stat)
            folders[name] = path
        else:
            add_stray(path, stat, content.notes, detail="a folder should be in its place")
    for name, read in _READERS.items():
        if name in folders:
            read(content, folders[name])
    if layout.SNAPSHOTS not in folders and content.notes.could_read(content.path):
        content.notes.error(
            "missing-snapshots",
            content.path,
            "the repo has no snapshots folder: nothing in it can be loaded",
            content.remedy(*content.refs.values()),
        )
    check_repo(content, now)
    return content.repo()


def _read_no_exist(content: RepoContent, path: str) -> None:
    for name, stat in read_entries(path, content.notes):
        content.notes.tally.add("metadata", stat)
        if modes.S_ISDIR(stat.st_mode):
            below, _ = add_below(os.path.join(path, name), "metadata", content.notes)
            content.no_exist[name] = entry_of(stat, below)


def _read_blobs(content: RepoContent, path: str) -> None:
    blobs = content.blobs
    entries = read_entries(path, content.notes)
    # Nearly every entry is a file named by a hash, which needs no further checks.
    all_known = layout.are_etags([name for name, _ in entries])
    device = allocated = -1
    for name, stat in entries:
        kind = stat.st_mode & KIND
        known = all_known or layout.is_etag(name)
        if kind == LINK:
            _read_linked_blob(content, os.path.join(path, name), stat)
        elif kind != FILE:
            add_stray(os.path.join(path, name), stat, content.notes)
        elif not known and (etag := layout.partial_etag(name)) is not None:
            _read_partial(content, os.path.join(path, name), stat, etag)
        elif not known and layout.is_temporary(name):
            add_stray(os.path.join(path, name), stat, content.notes)
        elif not known and layout.is_blob_lock(name):
            content.notes.tally.add("metadata", stat)
        else:
            if not known:
                content.unknown[name] = stat
            # Neighbors mostly share these numbers, which are then held once.
            if stat.st_dev != device:
                device = stat.st_dev
            occupied = stat.st_blocks * 512 if HAS_BLOCKS else stat.st_size
            if occupied != allocated:
                allocated = occupied
            blobs[name] = Blob(
                stat.st_ino,
                stat.st_mtime_ns,
                stat.st_size,
                allocated,
                name,
                device,
                stat.st_nlink,
                stat.st_atime_ns,
            )


def _read_partial(content: RepoContent, path: str, stat: os.stat_result, etag: str) -> None:
    name = os.path.basename(path)
    locks = os.path.join(content.cache_dir, layout.LOCKS, content.folder)
    folders = (locks, os.path.dirname(path))
    tree = CacheTree(content.cache_dir)
    content.partials.append(
        Partial(
            stat.st_ino,
            stat.st_mtime_ns,
            stat.st_size,
            content.notes.tally.add("partial", stat),
            name,
            etag,
            path,
            any(
                lock_held(os.path.join(folder, etag + layout.LOCK_SUFFIX), tree)
                for folder in folders
            )
            or partial_in_use(path, tree),
            stat.st_dev,
            layout.partial_client(name),
        )
    )


def _read_linked_blob(content: RepoContent, path: str, stat: os.stat_result) -> None:
    """Read a blob that is a link, into the shared store or anywhere."""
    name = os.path.basename(path)
    if layout.is_temporary(name):
        add_stray(path, stat, content.notes)
        return
    if not layout.is_etag(name):
        content.unknown[name] = stat
    content.notes.tally.add("metadata", stat)
    content.linked_blobs.add(name)
    target = read_link(path)
    in_base = content.bases.find(path, target) if content.bases is not None else None
    if in_base is not None:
        _read_blob_in_base(content, path, stat, in_base)
        return
    shared_hash = layout.shared_hash_of(target)
    shared = content.shared.get(shared_hash or "")
    size, atime, present = shared.size if shared else 0, stat.st_atime_ns, False
    outside, allocated_there = shared_hash is None, 0
    with contextlib.suppress(OSError):
        status = os.stat(path)
        size, atime, present = status.st_size, status.st_atime_ns, modes.S_ISREG(status.st_mode)
        # A moved repo has its shared store next to it there, not here.
        ours = shared and real_path(shared.path) == real_path(path)
        if content.linked_to is not None and not outside and not ours:
            shared_hash, allocated_there = None, allocated_bytes(status)
    content.blobs[name] = Blob(
        stat.st_ino,
        stat.st_mtime_ns,
        size,
        allocated_bytes(stat),
        name,
        stat.st_dev,
        stat.st_nlink,
        atime,
        shared_hash,
        present,
        linked=True,
        allocated_there=allocated_there,
    )
    if not present:
        detail = "the blob is a link that leads to no file"
        content.notes.error("missing-blob", path, detail, content.pull)
    elif outside:
        content.notes.warning("outside-link", path, "the blob is a link out of the cache")


def _read_blob_in_base(
    content: RepoContent, path: str, stat: os.stat_result, in_base: InBase
) -> None:
    """Read a blob that is a link of ours into a base: its bytes do not belong to this cache."""
    name, target = os.path.basename(path), in_base.status
    content.blobs[name] = Blob(
        stat.st_ino,
        stat.st_mtime_ns,
        target.st_size if target is not None else 0,
        allocated_bytes(stat),
        name,
        stat.st_dev,
        stat.st_nlink,
        target.st_atime_ns if target is not None else stat.st_atime_ns,
        present=target is not None,
        linked=True,
        base=in_base.base.folder,
        target=(
            (target.st_dev, target.st_ino, target.st_size, target.st_mtime_ns)
            if target is not None
            else None
        ),
    )
    if in_base.error is not None:
        content.notes.error(
            "unreadable-file",
            path,
            f"the file in the base cannot be read: {reason_of(in_base.error)}: {read_link(path)}",
            units.command("doctor"),
        )
    elif target is None:
        content.gone[name] = in_base.base


def _read_refs(content: RepoContent, path: str) -> None:
    pending = [(path, "")]
    while pending:
        folder, prefix = pending.pop()
        for own_name, stat in read_entries(folder, content.notes):
            name, place = prefix + own_name, os.path.join(folder, own_name)
            if is_left_behind(own_name, stat) or own_name in layout.DESKTOP_FILES:
                add_stray(place, stat, content.notes)
                continue
            content.notes.tally.add("metadata", stat)
            if modes.S_ISDIR(stat.st_mode):
                pending.append((place, name + "/"))
                content.ref_folders[name] = entry_of(stat)
                # An empty folder in place of a branch; below `refs/refs` the hub leaves such.
                top = not prefix and name != layout.REFS
                if top and not read_entries(place, content.notes):
                    content.notes.error(
                        "malformed-ref", place, "a folder is in place of the ref", content.pull
                    )
            else:
                content.ref_files[name] = entry_of(stat)
                _read_ref(content, place, name)


def _read_ref(content: RepoContent, path: str, name: str) -> None:
    try:
        text = read_bytes(path, REF_LIMIT, follow=False).decode()
    except PermissionError as error:
        content.notes.error(
            "unreadable-file",
            path,
            f"you may not read the ref: {reason_of(error)}",
            units.command("doctor"),
        )
        return
    except (OSError, UnicodeDecodeError) as error:
        content.notes.error(
            "unreadable-ref", path, f"the ref cannot be read: {reason_of(error)}", content.pull
        )
        return
    commit = text.strip()
    if not layout.is_commit_folder(commit):
        content.notes.error("malformed-ref", path, "the ref does not hold a commit", content.pull)
        return
    if commit != text:
        content.notes.error(
            "malformed-ref",
            path,
            "the ref has whitespace around its commit, so loading it offline fails",
            content.pull,
        )
    content.refs[name] = commit


def _read_trees(content: RepoContent, path: str) -> None:
    entries = read_entries(path, content.notes)
    for name, stat in sorted(entries, key=lambda entry: entry[0].endswith(layout.OWN_TREE)):
        own, place = name.endswith(layout.OWN_TREE), os.path.join(path, name)
        commit = name.removesuffix(layout.OWN_TREE if own else ".json")
        if not modes.S_ISREG(stat.st_mode) or not name.endswith(".json"):
            add_stray(place, stat, content.notes)
            continue
        if own and commit in content.tree_files:
            # The client has since written the listing under its own name.
            add_stray(place, stat, content.notes, leftover=True)
            continue
        content.notes.tally.add("metadata", stat)
        content.tree_files[commit] = entry_of(stat)
        if own:
            content.own_trees.add(commit)
        try:
            files = parse_listing(read_bytes(place, TREE_LIMIT, follow=False))
        except PermissionError as error:
            # The hub's library makes listings readable only for the user who runs it.
            content.notes.info(
                "unreadable-file",
                place,
                f"you may not read the listing: {reason_of(error)}",
                units.command("doctor"),
            )
            continue
        except (OSError, *JSON_ERRORS) as error:
            content.notes.warning(
                "unreadable-tree",
                place,
                f"the listing cannot be read: {reason_of(error)}",
                content.pull,
            )
            continue
        if files:
            content.trees[commit] = files


_READERS = {
    layout.BLOBS: _read_blobs,
    layout.REFS: _read_refs,
    layout.TREES: _read_trees,
    layout.NO_EXIST: _read_no_exist,
    layout.SNAPSHOTS: read_snapshots,
}
"""Folder in a repo -> the function that reads it, in the order in which they need each other."""
