"""`doctor --shared GROUP` and `doctor --fix`: who may use the cache, and what has to change."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from vlmcache.cache.owners import fix_access, is_member, join_group, owner_name
from vlmcache.cache.state import Finding
from vlmcache.cache.tree import is_root
from vlmcache.change.abilities import keeps_modes
from vlmcache.change.plan import Plan, Receipt, SetAccess
from vlmcache.change.tree import Tree
from vlmcache.commands.doctor.checks import finding, those_that_hold
from vlmcache.commands.doctor.permissions import (
    AccessEntry,
    astray,
    entries,
    inherits,
    is_shared,
    plan_access,
    set_access,
)
from vlmcache.commands.doctor.values import AccessReport, Sharing
from vlmcache.errors import UsageError
from vlmcache.paths import real_path
from vlmcache.units import and_more, command, did_you_mean, shell_words

_FIRST_OF_USERS = 1000
"""Groups below this number are the system's own (login.defs(5))."""
_ROUNDS = 16
"""How often closed folders are read again after they were opened, one depth after the other."""


def check_sharing(cache_dir: str, group: str | None, *, fix: bool) -> AccessReport:
    """Return what has to change so that a group shares a cache, or its owner alone has it.

    Args:
        cache_dir: the hub cache.
        group: the name or number of the group, or `None` for a cache of one user.
        fix: change it.

    Raises:
        UsageError: the group does not exist, or the system has no such permissions.
    """
    if sys.platform == "win32":
        raise UsageError(
            "permissions of groups cannot be set on Windows", "use the dialogs of Windows"
        )
    root = os.path.abspath(cache_dir)
    sharing = _sharing(group) if group is not None else None
    gid = sharing.gid if sharing is not None else None
    exists = os.path.isdir(root)
    if exists and keeps_modes(Tree(root), root) is False:
        return AccessReport(sharing, Plan(()), Receipt(()) if fix else None, (_no_modes(root),))
    plan = plan_access(entries(root), gid) if exists else Plan(())
    receipt = None
    if fix:
        plan, receipt = _fix(root, gid, plan)
    findings = [] if sharing is None else _sharing_findings(root, sharing)
    left = len(plan.actions if receipt is None else receipt.undone)
    if left:
        findings.insert(0, _open_finding(root, left, plan, sharing))
    return AccessReport(sharing, plan, receipt, tuple(findings))


def _no_modes(root: str) -> Finding:
    return finding(
        "no-modes",
        "warning",
        root,
        "this filesystem keeps no permissions of files: who may use the cache is decided by how it "
        "is mounted, and nothing was changed",
        "mount it with the options 'uid=', 'gid=' and 'umask='",
    )


def _fix(root: str, gid: int | None, plan: Plan) -> tuple[Plan, Receipt]:
    """Carry a plan out, then plan and fix what was in folders that could not be read before."""
    receipt = set_access(plan, root)
    for _ in range(_ROUNDS if plan.actions else 0):
        tried = {outcome.path for outcome in receipt.outcomes}
        left = plan_access(entries(root), gid)
        new = tuple(action for action in left.actions if action.path not in tried)
        plan = Plan(plan.actions + new, kept=left.kept)
        if not new:
            break
        receipt = Receipt(receipt.outcomes + set_access(Plan(new), root).outcomes)
    return plan, receipt


def check_owners(cache_dir: str) -> Iterator[Finding]:
    """Yield the finding of entries that belong to another user than they should, such as root."""
    root = os.path.abspath(cache_dir)
    listed = [entry for entry in entries(root) if isinstance(entry, AccessEntry)]
    shared = bool(listed) and is_shared(listed)
    strays = [entry for entry in listed if astray(entry, listed[0].status, shared=shared)]
    if strays:
        owners = sorted({owner_name(entry.status.st_uid) for entry in strays})
        belongs = "entry belongs" if len(strays) == 1 else "entries belong"
        detail = (
            f"{len(strays)} {belongs} to {', '.join(owners)}, and the cache to "
            f"{owner_name(listed[0].status.st_uid)}: {strays[0].path}{and_more(len(strays) - 1)}"
        )
        yield finding("wrong-owner", "warning", strays[0].path, detail, fix_access(root))


def _sharing(name: str) -> Sharing:
    import grp
    import pwd

    try:
        entry = grp.getgrgid(int(name)) if name.isdecimal() else grp.getgrnam(name)
    except (KeyError, OverflowError, ValueError):
        users = [group.gr_name for group in grp.getgrall() if group.gr_gid >= _FIRST_OF_USERS]
        meant = did_you_mean(name, users, most=1)
        raise UsageError(
            f"no such group: {name}" + (f"; {meant}" if meant else ""),
            f"sudo {shell_words('groupadd', name)} && {join_group(name)}",
        ) from None
    members = set(entry.gr_mem)
    members |= {user.pw_name for user in pwd.getpwall() if user.pw_gid == entry.gr_gid}
    return Sharing(entry.gr_name, entry.gr_gid, tuple(sorted(members)), _umask())


def _umask() -> str | None:
    """Return the process's umask in octal, if Linux shows it without a change (proc(5))."""
    with (
        contextlib.suppress(OSError),
        open("/proc/self/status", encoding="ascii", errors="replace") as file,
    ):
        return next((line.split()[1] for line in file if line.startswith("Umask:")), None)
    return None


def _sharing_findings(root: str, sharing: Sharing) -> list[Finding]:
    group = sharing.group
    exists = os.path.isdir(root)
    masked = sharing.umask is not None and bool(int(sharing.umask, 8) & 0o020)
    closed = [
        finding(
            "closed-above",
            "error",
            folder,
            f"{group} cannot enter {folder}, so it does not reach the cache",
            f"use a cache that all can enter (HF_HUB_CACHE=/srv/hub), or: chmod a+x {folder}",
        )
        for folder in _closed_above(root, sharing.gid)
    ]
    return those_that_hold(
        (
            not exists,
            finding(
                "cache-not-there",
                "error",
                root,
                "the cache to share does not exist yet",
                shell_words("mkdir", "-p", root),
            ),
        ),
        *((True, above) for above in closed),
        (
            not is_member(sharing.gid),
            finding(
                "not-a-member",
                "error",
                root,
                f"you are not in the group {group}, or joined it after you logged in",
                join_group(group),
            ),
        ),
        (
            not sharing.members,
            finding(
                "no-members",
                "warning",
                root,
                f"nobody is in the group {group}",
                f"sudo usermod -aG {group} USER",
            ),
        ),
        (
            masked and exists and inherits(root) is None,
            finding(
                "umask",
                "warning",
                root,
                f"this filesystem has no default permissions, and with umask {sharing.umask} the "
                "group cannot write what you add",
                "umask 002, in the profile of each user who shares the cache",
            ),
        ),
    )


def _closed_above(root: str, gid: int) -> Iterator[str]:
    """Yield the folders above the cache that a member of the group cannot enter."""
    with contextlib.suppress(OSError):
        for folder in map(str, Path(real_path(root)).parents):
            facts = os.stat(folder)
            if not facts.st_mode & (0o010 if facts.st_gid == gid else 0o001):
                yield folder


def _open_finding(root: str, count: int, plan: Plan, sharing: Sharing | None) -> Finding:
    entry = "entry has" if count == 1 else "entries have"
    group = None if sharing is None else sharing.group
    actions = [action for action in plan.actions if isinstance(action, SetAccess)]
    # Only its owner may change an entry, and only root may give it to another one.
    needs_root = not is_root() and any(
        action.owner is not None or action.old_owner != os.geteuid() for action in actions
    )
    remedy = fix_access(root, group) if needs_root else None
    if group is None:
        text = f"{count} {entry} permissions that the owner's own cache should not have"
        usual = command("doctor", "--fix")
        return finding("permissions", "error", root, text, remedy or usual)
    text = f"{count} {entry} to change before {group} can share the cache"
    usual = command("doctor", "--shared", group, "--fix")
    return finding("not-shared", "error", root, text, remedy or usual)
