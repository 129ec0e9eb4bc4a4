"""Who may read and write the entries of a cache, and what new entries will inherit."""

from __future__ import annotations

import errno
import os
import stat as modes
import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

from vlmcache.cache import layout

EntryKind = Literal["folder", "blob", "file"]
"""blob: content that is written once. file: a ref, lock, listing, partial or manifest."""

_DEFAULT_ACL = "system.posix_acl_default"
# A header with the version, then tag, permissions and id of each entry: linux/posix_acl_xattr.h.
_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_VERSION = 2
_USER, _GROUP, _OTHER = 0x01, 0x04, 0x20
_NO_ID = 0xFFFFFFFF
_WRITING = 7


class Entry(NamedTuple):
    """A folder or file as the filesystem tells of it; mode without the file's type.

    names is the count of its hard links. inherits tells of a folder whether what is made in it can
    be written by its group whatever the umask is: `None` where the filesystem has no such thing.
    """

    path: str
    kind: EntryKind
    mode: int
    owner: int
    group: int
    device: int
    inode: int
    names: int
    inherits: bool | None = None


class Unseen(NamedTuple):
    """Something that was not looked into, and why."""

    path: str
    reason: str


def entries(cache_dir: str) -> Iterator[Entry | Unseen]:
    """Yield all entries of a hub cache, folders before what they hold. Links are not followed.

    What is not the hub's is passed by, and so are links.

    Args:
        cache_dir: the hub cache, an absolute path.
    """
    pending = [(cache_dir, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            found = os.stat(folder, follow_symlinks=depth == 0)
            yield _entry(folder, "folder", found, inherits(folder))
            with os.scandir(folder) as names:
                listed = sorted(names, key=lambda one: one.name)
            for one in listed:
                if depth == 0 and not _is_the_hubs(one.name):
                    yield Unseen(one.path, "not the hub's")
                elif one.is_symlink():
                    if depth == 0:
                        yield Unseen(one.path, "a link: what it leads to has to be shared there")
                elif one.is_dir(follow_symlinks=False):
                    pending.append((one.path, depth + 1))
                elif one.is_file(follow_symlinks=False):
                    found = one.stat(follow_symlinks=False)
                    yield _entry(one.path, _kind(os.path.relpath(one.path, cache_dir)), found)
        except OSError as error:
            yield Unseen(folder, f"cannot be looked into: {error.strerror or error}")


def inherits(folder: str | int) -> bool | None:
    """Return whether the group may write what is made in a folder, by its default ACL (acl(5)).

    Args:
        folder: its path, or a descriptor of it.

    Returns:
        `None` where the filesystem has no such lists.
    """
    if not hasattr(os, "getxattr"):
        return None
    try:
        content = os.getxattr(folder, _DEFAULT_ACL)
    except OSError as error:
        return False if error.errno == getattr(errno, "ENODATA", None) else None
    if len(content) < _ACL_HEADER.size:
        return False
    rows = content[_ACL_HEADER.size :]
    whole = rows[: len(rows) - len(rows) % _ACL_ENTRY.size]
    return any(
        tag == _GROUP and permissions == _WRITING
        for tag, permissions, _ in _ACL_ENTRY.iter_unpack(whole)
    )


def let_inherit(folder: str | int, mode: int) -> None:
    """Let what is made in a folder be writable by its group, and readable by others as it is.

    Args:
        folder: its path, or a descriptor of it.
        mode: its own mode.

    Raises:
        OSError: the filesystem has no such lists, or the folder is somebody else's.
    """
    rows = ((_USER, _WRITING), (_GROUP, _WRITING), (_OTHER, mode & 0o5))
    content = _ACL_HEADER.pack(_ACL_VERSION) + b"".join(
        _ACL_ENTRY.pack(tag, permissions, _NO_ID) for tag, permissions in rows
    )
    os.setxattr(folder, _DEFAULT_ACL, content)


def _entry(
    path: str, kind: EntryKind, found: os.stat_result, inherited: bool | None = None
) -> Entry:
    return Entry(
        path,
        kind,
        modes.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_dev,
        found.st_ino,
        found.st_nlink,
        inherited,
    )


def _is_the_hubs(name: str) -> bool:
    return (
        layout.parse_repo_folder(name) is not None
        or name in layout.ROOT_FILES
        or name in (layout.LOCKS, layout.SHARED_STORE, layout.SHARED_MARKER, layout.LEFTOVERS)
    )


def _kind(relative: str) -> EntryKind:
    """Return what a file is, from its path in the cache."""
    parts = relative.split(os.sep)
    if parts[0] == layout.LOCKS:
        return "file"
    changing = (layout.MANIFEST_SUFFIX, layout.LOCK_SUFFIX)
    in_blobs = parts[0] == layout.SHARED_STORE or parts[1:2] == [layout.BLOBS]
    if in_blobs:
        partial = layout.partial_etag(parts[-1]) is not None
        return "file" if partial or parts[-1].endswith(changing) else "blob"
    return "blob" if parts[1:2] == [layout.SNAPSHOTS] else "file"
