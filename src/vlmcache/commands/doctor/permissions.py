"""Permissions of a cache that several users share, or that is one user's own: plan and execution.

The only code that changes modes and groups.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
from collections import Counter
from collections.abc import Iterable, Iterator

from vlmcache.change.plan import Kept, Outcome, Plan, Receipt, SetAccess
from vlmcache.commands.doctor.access import Entry, Unseen, let_inherit

_OTHERS_WRITE = 0o002
# Where Linux lends a handle that needs no permission to read, that is enough. Elsewhere a pipe that
# somebody has put there must not hold us up.
_BY_HANDLE = hasattr(os, "O_PATH") and os.path.isdir("/proc/self/fd")
_READING = os.O_PATH if _BY_HANDLE else os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
_ENTRY = _READING | getattr(os, "O_NOFOLLOW", 0)
_FOLDER = _ENTRY | getattr(os, "O_DIRECTORY", 0)


class _ChangedError(Exception):
    """What is there is not what the plan expects."""


def plan_access(found: Iterable[Entry | Unseen], group: int | None) -> Plan:
    """Return what has to change so that a group shares a cache, or its owner alone has it.

    Shared: everything is the group's; folders can be written by it and hand the group on; blobs can
    be read, and refs, locks, listings and partials written by it. Both: the owner can read and
    write, and not every user of the machine can write.

    Args:
        found: what the cache holds.
        group: the group's number, or `None` for a cache of one user.
    """
    seen = list(found)
    listed = [one for one in seen if isinstance(one, Entry)]
    names = Counter((one.device, one.inode) for one in listed if one.kind != "folder")
    kept = [Kept(one.path, None, one.reason) for one in seen if isinstance(one, Unseen)]
    actions: list[SetAccess] = []
    for entry in listed:
        action = _action(entry, group)
        if action is None:
            continue
        if entry.kind != "folder" and entry.names > names[entry.device, entry.inode]:
            # Whoever may write here could have linked a file of somebody else's.
            kept.append(Kept(entry.path, None, "it has another name outside of the cache"))
        else:
            actions.append(action)
    return Plan(tuple(actions), kept=tuple(kept))


def _action(entry: Entry, group: int | None) -> SetAccess | None:
    wanted = {"folder": 0o700, "blob": 0o400, "file": 0o600}[entry.kind]
    inherit = False
    if group is not None:
        wanted |= {"folder": modes.S_ISGID | 0o070, "blob": 0o040, "file": 0o060}[entry.kind]
        inherit = entry.kind == "folder" and entry.inherits is False
    mode = (entry.mode | wanted) & ~_OTHERS_WRITE
    new_group = entry.group if group is None else group
    reasons = []
    if new_group != entry.group:
        reasons.append("group")
    if mode != entry.mode:
        reasons.append(f"mode {entry.mode:o} to {mode:o}")
    if inherit:
        reasons.append("default ACL")
    if not reasons:
        return None
    return SetAccess(
        entry.path,
        entry.kind,
        ", ".join(reasons),
        mode,
        new_group,
        entry.mode,
        entry.group,
        entry.device,
        entry.inode,
        inherit,
    )


def carry_out(plan: Plan, cache_dir: str) -> Receipt:
    """Set modes and groups as planned, as far as the system lets.

    Folders are entered one by one from the cache's root, and links among them are never followed.

    Args:
        plan: of `plan_access`, for this cache.
        cache_dir: the hub cache, an absolute path.
    """
    return Receipt(
        tuple(
            _attempt(action, cache_dir) for action in plan.actions if isinstance(action, SetAccess)
        )
    )


def _attempt(action: SetAccess, root: str) -> Outcome:
    try:
        with _opened(action.path, root) as descriptor:
            _set(descriptor, action)
    except FileNotFoundError:
        return Outcome("set-access", action.path, "absent")
    except _ChangedError as error:
        return Outcome("set-access", action.path, "stale", detail=str(error))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            detail = f"it is a link by now, or lies behind one: {action.path}"
            return Outcome("set-access", action.path, "stale", detail=detail)
        words = f"{error.strerror or error}: {action.path}"
        return Outcome("set-access", action.path, "failed", detail=words)
    return Outcome("set-access", action.path, "done")


@contextlib.contextmanager
def _opened(path: str, root: str) -> Iterator[int]:
    relative = os.path.relpath(path, root)
    parts = [] if relative == os.curdir else relative.split(os.sep)
    descriptor = os.open(root, _READING | getattr(os, "O_DIRECTORY", 0))
    try:
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            below = os.open(part, _ENTRY if last else _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _set(descriptor: int, action: SetAccess) -> None:
    found = os.fstat(descriptor)
    if (
        (found.st_dev, found.st_ino) != (action.device, action.inode)
        or modes.S_IMODE(found.st_mode) != action.old_mode
        or found.st_gid != action.old_group
    ):
        raise _ChangedError(f"it changed since the plan was made: {action.path}")
    # Such a handle is changed through its place in /proc (open(2), O_PATH).
    place = f"/proc/self/fd/{descriptor}" if _BY_HANDLE else descriptor
    if action.group != found.st_gid:
        os.chown(place, -1, action.group)
    # After the group, since a change of owners can take bits of the mode away (chown(2)).
    if modes.S_IMODE(os.fstat(descriptor).st_mode) != action.mode:
        os.chmod(place, action.mode)
    if modes.S_IMODE(os.fstat(descriptor).st_mode) != action.mode:
        # The system drops setgid without a word where the user is not in the group (chmod(2)).
        raise PermissionError(errno.EPERM, "the mode did not come to be", action.path)
    if action.inherit:
        let_inherit(place, action.mode)
