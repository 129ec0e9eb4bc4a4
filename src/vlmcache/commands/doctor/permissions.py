"""Permissions of a cache that users share, or that is one user's own: facts, plan, execution.

The only code that changes modes, groups and owners.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.owners import owner_name
from vlmcache.cache.tree import StaleError
from vlmcache.change.plan import REFUSALS, Kept, Outcome, Plan, Receipt, SetAccess, result_of
from vlmcache.change.tree import HAS_HANDLES, Tree
from vlmcache.errors import reason_of

EntryKind = Literal["folder", "blob", "file", "link"]
"""blob: what is written once, and replaced by a new file if it changes: content, records of moves
and bases. file: a ref, lock, listing, partial or manifest. link: in a repo, of which only the owner
is of interest."""
_RECORDS = (layout.NOTE_SUFFIX, layout.RECORD_SUFFIX, layout.BASE_SUFFIX)

_DEFAULT_ACL = "system.posix_acl_default"
# A header with the version, then tag, permissions and id of each entry: linux/posix_acl_xattr.h.
_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_VERSION = 2
_USER, _GROUP, _OTHER = 0x01, 0x04, 0x20
_NO_ID = 0xFFFFFFFF
_WRITING = 7


class AccessEntry(NamedTuple):
    """A folder or file as the filesystem reports it."""

    path: str
    kind: EntryKind
    status: os.stat_result
    inherits: bool | None = None
    """Of a folder, whether its group can write what is made in it, whatever the umask is.

    `None` if the filesystem has no such thing.
    """


def entries(cache_dir: str) -> Iterator[AccessEntry | Kept]:
    """Yield all entries of a hub cache, folders before what they hold. Links are not followed.

    What is not the hub's is kept as it is, and so are links in the place of a repo.

    Args:
        cache_dir: the hub cache, an absolute path.
    """
    pending = [(cache_dir, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            status = os.stat(folder, follow_symlinks=depth == 0)
            if modes.S_ISDIR(status.st_mode):
                yield AccessEntry(folder, "folder", status, inherits(folder))
            with os.scandir(folder) as names:
                listed = sorted(names, key=lambda entry: entry.name)
            for entry in listed:
                if depth == 0 and not _is_the_hubs(entry.name):
                    yield Kept(entry.path, None, "not the hub's")
                elif entry.is_symlink():
                    if depth == 0:
                        reason = "a link: the place that it leads to has to be shared there"
                        yield Kept(entry.path, None, reason)
                    elif HAS_HANDLES:
                        yield AccessEntry(entry.path, "link", entry.stat(follow_symlinks=False))
                elif entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, depth + 1))
                elif entry.is_file(follow_symlinks=False):
                    kind = _kind(os.path.relpath(entry.path, cache_dir))
                    yield AccessEntry(entry.path, kind, entry.stat(follow_symlinks=False))
        except OSError as error:
            yield Kept(folder, None, f"cannot be read: {reason_of(error)}")


def inherits(folder: str | int) -> bool | None:
    """Return whether the group may write what is made in a folder, by its default ACL (acl(5)).

    Args:
        folder: its path, or a descriptor of it.

    Returns:
        `None` if the filesystem has no such lists.
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
    complete = rows[: len(rows) - len(rows) % _ACL_ENTRY.size]
    return any(
        tag == _GROUP and permissions == _WRITING
        for tag, permissions, _ in _ACL_ENTRY.iter_unpack(complete)
    )


def let_inherit(folder: str | int, mode: int) -> None:
    """Let the group write what is made in a folder, and others read it as they can the folder.

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


def _is_the_hubs(name: str) -> bool:
    return (
        layout.parse_repo_folder(name) is not None
        or name in layout.ROOT_FILES
        or name in (layout.LOCKS, layout.SHARED_STORE, layout.SHARED_MARKER, layout.LEFTOVERS)
    )


def _kind(relative: str) -> EntryKind:
    """Return what a file is, from its path in the cache."""
    parts = relative.split(os.sep)
    written_once = parts[1:2] == [layout.SNAPSHOTS]
    if parts[0] == layout.SHARED_STORE or parts[1:2] == [layout.BLOBS]:
        changing = parts[-1].endswith((layout.MANIFEST_SUFFIX, layout.LOCK_SUFFIX))
        written_once = not changing and layout.partial_etag(parts[-1]) is None
    if parts[0] == layout.LOCKS:
        written_once = parts[-1].endswith(_RECORDS)
    return "blob" if written_once else "file"


# What has to change.

_OTHERS_WRITE = 0o002


def plan_access(entries: Iterable[AccessEntry | Kept], group: int | None) -> Plan:
    """Return what has to change so that a group shares a cache, or its owner alone has it.

    Shared: everything is the group's; folders can be written by it and hand the group on; blobs can
    be read, and refs, locks, listings and partials written by it. Both: the owner can read and
    write, not every user of the machine can write, and the owner of the cache has what is `astray`.

    Args:
        entries: the entries of the cache.
        group: the group's number, or `None` for a cache of one user.
    """
    seen = list(entries)
    listed = [entry for entry in seen if isinstance(entry, AccessEntry)]
    names = Counter(
        (entry.status.st_dev, entry.status.st_ino) for entry in listed if entry.kind != "folder"
    )
    kept = [entry for entry in seen if isinstance(entry, Kept)]
    actions: list[SetAccess] = []
    shared = group is not None or (bool(listed) and is_shared(listed))
    for entry in listed:
        action = _action(entry, group, listed[0].status, shared=shared)
        if action is None:
            continue
        if entry.kind != "folder" and entry.status.st_nlink > names[action.device, action.inode]:
            # Whoever may write here could have linked a file of somebody else's.
            kept.append(Kept(entry.path, None, "it has another name outside the cache"))
        else:
            actions.append(action)
    return Plan(tuple(actions), kept=tuple(kept))


def is_shared(listed: Sequence[AccessEntry]) -> bool:
    """Return whether a cache has several users: by its mode, as root's, or by owners of its repos.

    Args:
        listed: its entries, its folder first.
    """
    top = listed[0]
    owners = {
        entry.status.st_uid
        for entry in listed
        if entry.kind == "folder"
        and os.path.dirname(entry.path) == top.path
        and layout.parse_repo_folder(os.path.basename(entry.path)) is not None
    }
    several = len(owners - {0}) > 1
    return several or top.status.st_uid == 0 or bool(top.status.st_mode & 0o022)


def astray(entry: AccessEntry, top: os.stat_result, *, shared: bool) -> bool:
    """Return whether an entry belongs to another user than it should: that of the cache's folder.

    In a shared cache each user owns what they have added; what root has made should be the cache
    owner's.

    Args:
        entry: of the cache.
        top: the cache's folder.
        shared: whether others share the cache.
    """
    owner = entry.status.st_uid
    return owner != top.st_uid and (owner == 0 or not shared)


def _action(
    entry: AccessEntry, group: int | None, top: os.stat_result, *, shared: bool
) -> SetAccess | None:
    wanted = {"folder": 0o700, "blob": 0o400, "file": 0o600, "link": 0}[entry.kind]
    inherit = False
    if group is not None:
        shared_modes = {"folder": modes.S_ISGID | 0o070, "blob": 0o040, "file": 0o060, "link": 0}
        wanted |= shared_modes[entry.kind]
        inherit = entry.kind == "folder" and entry.inherits is False
    old_mode, old_group = modes.S_IMODE(entry.status.st_mode), entry.status.st_gid
    mode = old_mode if entry.kind == "link" else (old_mode | wanted) & ~_OTHERS_WRITE
    old_owner, owner = entry.status.st_uid, entry.status.st_uid
    new_group = old_group if group is None or entry.kind == "link" else group
    if astray(entry, top, shared=shared):
        owner = top.st_uid
        new_group = top.st_gid if group is None else group
    reasons = {
        f"owner {owner_name(old_owner)} to {owner_name(owner)}": owner != old_owner,
        "group": new_group != old_group,
        f"mode {old_mode:o} to {mode:o}": mode != old_mode,
        "default ACL": inherit,
    }
    if not any(reasons.values()):
        return None
    return SetAccess(
        entry.path,
        entry.kind,
        ", ".join(reason for reason, holds in reasons.items() if holds),
        mode,
        new_group,
        old_mode,
        old_group,
        entry.status.st_dev,
        entry.status.st_ino,
        inherit,
        owner if owner != old_owner else None,
        old_owner,
    )


def set_access(plan: Plan, cache_dir: str) -> Receipt:
    """Set modes, groups and owners as planned, as far as the system allows it.

    Args:
        plan: of `plan_access`, for this cache.
        cache_dir: the hub cache, an absolute path.
    """
    tree = Tree(cache_dir)
    return Receipt(
        tuple(_attempt(action, tree) for action in plan.actions if isinstance(action, SetAccess))
    )


def _attempt(action: SetAccess, tree: Tree) -> Outcome:
    try:
        with tree.handle(action.path) as entry:
            _set(entry, action)
    except REFUSALS as error:
        result, detail = result_of(error, action.path)
        return Outcome("set-access", action.path, result, detail=detail)
    return Outcome("set-access", action.path, "done")


def _set(entry: int | str, action: SetAccess) -> None:
    facts = os.stat(entry)
    if (
        (facts.st_dev, facts.st_ino) != (action.device, action.inode)
        or modes.S_IMODE(facts.st_mode) != action.old_mode
        or facts.st_gid != action.old_group
        or action.old_owner not in (None, facts.st_uid)
    ):
        raise StaleError(f"it changed since the plan was made: {action.path}")
    owner = facts.st_uid if action.owner is None else action.owner
    if (action.group, owner) != (facts.st_gid, facts.st_uid):
        os.chown(entry, owner, action.group)
    # After the group, since a change of owners can take bits of the mode away (chown(2)).
    if modes.S_IMODE(os.stat(entry).st_mode) != action.mode:
        os.chmod(entry, action.mode)
    if action.inherit:
        let_inherit(entry, action.mode)
    # Some filesystems accept what they do not keep, and the system drops setgid without a word if
    # the user is not in the group (chmod(2)).
    facts = os.stat(entry)
    kept = {
        "group": facts.st_gid == action.group,
        "mode": modes.S_IMODE(facts.st_mode) == action.mode,
        "default ACL": not action.inherit or bool(inherits(entry)),
    }
    for name, holds in kept.items():
        if not holds:
            raise PermissionError(errno.EPERM, f"the system did not set the {name}", action.path)
