"""Reads the snapshots of a repo: links to blobs, and what is in place of links."""

from __future__ import annotations

import errno
import os
import stat as modes
from sys import intern

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.entries import (
    HAS_BLOCKS,
    KIND,
    LINK,
    add_stray,
    allocated_bytes,
    entries_and_targets,
    entry_of,
    read_entries,
    read_link,
)
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.repo_content import RepoContent
from vlmcache.cache.state import File, FileKind, Revision
from vlmcache.errors import reason_of
from vlmcache.paths import real_path

_NEVER_EMPTY = (".json", ".safetensors", ".gguf", ".bin")
"""Endings of a model's files that make no sense without content."""
_LONGEST_STUB = 512
"""The most bytes of a file that may contain the target of a link."""


def read_snapshots(content: RepoContent, path: str) -> None:
    """Read a repo's `snapshots/`; its blobs, refs and listings have been read before."""
    for name, stat in read_entries(path, content.notes):
        place = os.path.join(path, name)
        if modes.S_ISLNK(stat.st_mode):
            content.notes.tally.add("metadata", stat)
            content.notes.error(
                "outside-link",
                place,
                "the snapshot is a link to another folder; it is not followed",
            )
            content.revisions.append(
                Revision(
                    name,
                    place,
                    content.refs_of(name),
                    (),
                    stat.st_mtime_ns,
                    linked=True,
                    entry=entry_of(stat),
                )
            )
        elif modes.S_ISDIR(stat.st_mode):
            content.notes.tally.add("metadata", stat)
            content.revisions.append(_read_snapshot(content, place, stat))
        else:
            add_stray(place, stat, content.notes)


def _read_snapshot(content: RepoContent, snapshot: str, stat: os.stat_result) -> Revision:
    commit = os.path.basename(snapshot)
    files: list[File] = []
    folders = links = copies = 0
    pending = [(snapshot, "", "../../" + layout.BLOBS + "/")]
    blobs = content.blobs
    while pending:
        folder, prefix, to_blobs = pending.pop()
        skip = len(to_blobs)
        for own_name, status, target in entries_and_targets(folder, content.notes):
            # Many repos have files of the same names: each name is kept in memory once.
            mode, name = status.st_mode, intern(prefix + own_name)
            if mode & KIND == LINK:
                count = status.st_nlink
                allocated = status.st_blocks * 512 if HAS_BLOCKS else status.st_size
                if count == 1:
                    links += allocated
                else:
                    content.notes.tally.add("metadata", status)
                blob = blobs.get(target[skip:]) if target.startswith(to_blobs) else None
                if blob is None or not blob.present:
                    path = os.path.join(folder, own_name)
                    files.append(_odd_link(content, commit, name, path, status))
                    continue
                # The same as `_file`; this line runs for nearly every entry of a cache.
                files.append(
                    File(
                        status.st_ino,
                        status.st_mtime_ns,
                        blob.size,
                        allocated,
                        name,
                        "link",
                        blob.name,
                        status.st_dev,
                        count,
                        status.st_atime_ns,
                    )
                )
                continue
            path = os.path.join(folder, own_name)
            if modes.S_ISDIR(mode) and _is_in_the_way(content, commit, name, path):
                add_stray(
                    path,
                    status,
                    content.notes,
                    detail="a folder is in place of a file of the model",
                    remedy="move that folder elsewhere, then pull the model again",
                )
            elif modes.S_ISDIR(mode):
                folders += content.notes.tally.add("metadata", status)
                pending.append((path, f"{name}/", "../" + to_blobs))
            elif modes.S_ISREG(mode) and own_name not in layout.DESKTOP_FILES:
                files.append(_regular_file(content, commit, name, path, status))
                copies += files[-1].kind == "copy"
            else:
                add_stray(path, status, content.notes)
    content.notes.tally.bytes["metadata"] += links
    if not files and content.notes.could_read(snapshot):
        content.notes.error(
            "empty-snapshot",
            snapshot,
            "the snapshot holds no files",
            content.remedy(commit),
        )
    if copies:
        content.notes.info(
            "copied-files",
            snapshot,
            "copies in place of links, which revisions cannot share: "
            f"{units.counted(copies, 'file')}",
        )
    return Revision(
        commit,
        snapshot,
        content.refs_of(commit),
        tuple(files),
        stat.st_mtime_ns,
        content.trees.get(commit),
        entry=entry_of(stat, folders),
    )


def _is_in_the_way(content: RepoContent, commit: str, name: str, path: str) -> bool:
    """Return whether a folder that is not empty is in place of a listed file."""
    if name not in content.trees.get(commit, {}):
        return False
    try:
        with os.scandir(path) as inside:
            return next(inside, None) is not None
    except OSError:
        return True


def _regular_file(
    content: RepoContent, commit: str, name: str, path: str, stat: os.stat_result
) -> File:
    """Return a file of a snapshot that is not a link: a copy, or what is left of its link."""
    listed = content.trees.get(commit, {}).get(name)
    blob, detail = None, f"{name} is an empty file in place of a link"
    if stat.st_size:
        blob = _blob_of_text(path, name.count("/"), stat)
        detail = f"{name} contains the target of its link in place of being the link"
    elif listed is not None:
        blob = listed.etag if listed.content_size and content.holds(listed) else None
    never_empty = content.kind == "model" and name.endswith(_NEVER_EMPTY)
    if blob is None and (stat.st_size or listed is not None or not never_empty):
        return _file(name, "copy", stat, None, stat.st_size)
    here = blob in content.blobs
    content.notes.tally.add("metadata", stat)
    content.notes.error("lost-link", path, detail, content.repair if here else content.pull)
    return _file(name, "stub", stat, blob if here else None)


def _blob_of_text(path: str, depth: int, stat: os.stat_result) -> str | None:
    """Return the blob that a file stands for if it contains a link's target; else `None`."""
    lengths = {len(layout.link_target("", depth)) + digits for digits in (40, 64)}
    if stat.st_size not in lengths or stat.st_size > _LONGEST_STUB:
        return None
    try:
        return layout.blob_of_text(read_bytes(path, _LONGEST_STUB, follow=False), depth)
    except OSError:
        return None


def _odd_link(
    content: RepoContent, commit: str, name: str, path: str, stat: os.stat_result
) -> File:
    """Return a link of a snapshot that is not the hub's usual link to an existing blob."""
    # A link to where the cache was before still names its blob.
    meant = content.blobs.get(read_link(path).replace("\\", "/").rpartition("/")[2])
    if meant is not None and meant.name in content.gone:
        return _file(name, "gone", stat, meant.name)
    blob_meant = meant.name if meant is not None and meant.present else None
    remedy = content.repair if blob_meant else content.remedy(commit, name=name)
    try:
        target = os.stat(path)
    except FileNotFoundError:
        detail = (
            f"the link does not lead to its blob, which is here ({name})"
            if blob_meant
            else f"the blob it links to is missing ({name})"
        )
        content.notes.error("dangling-link", path, detail, remedy)
        return _file(name, "dangling", stat, blob_meant)
    except OSError as error:
        if error.errno == errno.ELOOP:
            content.notes.error("link-loop", path, f"the link leads to itself ({name})", remedy)
            return _file(name, "loop", stat)
        detail = f"the link cannot be followed ({name}): {reason_of(error)}"
        code = "unreadable-file" if isinstance(error, PermissionError) else "dangling-link"
        content.notes.error(code, path, detail, units.command("doctor"))
        return _file(name, "unreadable", stat)
    real = real_path(path)
    blob = content.blobs.get(os.path.basename(real))
    if blob is not None and (blob.device, blob.inode) == (target.st_dev, target.st_ino):
        return _file(name, "link", stat, blob.name, blob.size)
    if f"{real_path(os.path.dirname(path))}{os.sep}".startswith(real + os.sep):
        content.notes.error("link-loop", path, f"the link leads back into itself ({name})", remedy)
        return _file(name, "loop", stat)
    content.notes.error("outside-link", path, f"the link leads out of the repo, to {real}", remedy)
    return _file(name, "outside", stat, blob_meant)


def _file(
    name: str, kind: FileKind, stat: os.stat_result, blob: str | None = None, size: int = 0
) -> File:
    return File(
        stat.st_ino,
        stat.st_mtime_ns,
        size,
        allocated_bytes(stat),
        name,
        kind,
        blob,
        stat.st_dev,
        stat.st_nlink,
        stat.st_atime_ns,
    )
