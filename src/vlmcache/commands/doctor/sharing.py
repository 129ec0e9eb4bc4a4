"""`doctor --shared GROUP` and `doctor --fix`: who may use the cache, and what has to change."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from vlmcache.cache.state import Finding
from vlmcache.change.plan import Plan, Receipt
from vlmcache.commands.doctor.access import entries, inherits
from vlmcache.commands.doctor.permissions import carry_out, plan_access
from vlmcache.commands.doctor.values import Access, Sharing
from vlmcache.errors import CacheError, PartlyError, UsageError, VlmcacheError

_ROUNDS = 16
"""How often folders are looked into that could not be entered before."""
_WELL = ("done", "absent")


def check_access(cache_dir: str, group: str | None, *, fix: bool) -> Access:
    """Return what has to change so that a group shares a cache, or its owner alone has it.

    Args:
        cache_dir: the hub cache.
        group: the name or number of the group, or `None` for a cache of one user.
        fix: change it.

    Raises:
        UsageError: there is no such group, or no such thing on this system.
    """
    if sys.platform == "win32":
        raise UsageError("permissions of groups cannot be set on Windows", "use its own dialogs")
    root = os.path.abspath(cache_dir)
    sharing = _sharing(group) if group is not None else None
    gid = sharing.gid if sharing is not None else None
    exists = os.path.isdir(root)
    plan = plan_access(entries(root), gid) if exists else Plan(())
    receipt = None
    if fix:
        plan, receipt = _fix(root, gid, plan)
    found = [] if sharing is None else list(_check_sharing(root, sharing))
    open_ends = len(plan.actions) if receipt is None else _undone(receipt)
    if open_ends:
        found.insert(0, _open_finding(root, open_ends, sharing, fixed=fix))
    return Access(sharing, plan, receipt, tuple(found))


def _fix(root: str, gid: int | None, plan: Plan) -> tuple[Plan, Receipt]:
    """Carry a plan out, and what shows only once closed folders are open."""
    receipt = carry_out(plan, root)
    for _ in range(_ROUNDS if plan.actions else 0):
        tried = {outcome.path for outcome in receipt.outcomes}
        left = plan_access(entries(root), gid)
        new = tuple(action for action in left.actions if action.path not in tried)
        plan = Plan(plan.actions + new, kept=left.kept)
        if not new:
            break
        receipt = Receipt(receipt.outcomes + carry_out(Plan(new), root).outcomes)
    return plan, receipt


def problem(receipt: Receipt | None) -> VlmcacheError | None:
    """Return the failure that a fix has to tell of, or `None` if all was done."""
    count = 0 if receipt is None else _undone(receipt)
    if receipt is None or not count:
        return None
    first = next(o.detail or o.path for o in receipt.outcomes if o.result not in _WELL)
    more = f" and {count - 1} more" if count > 1 else ""
    kind = PartlyError if count < len(receipt.outcomes) else CacheError
    return kind(
        f"{count} of {len(receipt.outcomes)} could not be changed: {first}{more}",
        "only the owner of an entry or root may change it: run it with sudo",
    )


def _undone(receipt: Receipt) -> int:
    return sum(outcome.result not in _WELL for outcome in receipt.outcomes)


def _sharing(name: str) -> Sharing:
    import grp
    import pwd

    try:
        found = grp.getgrgid(int(name)) if name.isdecimal() else grp.getgrnam(name)
    except (KeyError, OverflowError):
        raise UsageError(
            f"no such group: {name}",
            f"sudo groupadd {name}, and sudo usermod -aG {name} USER for each user",
        ) from None
    members = set(found.gr_mem)
    members |= {user.pw_name for user in pwd.getpwall() if user.pw_gid == found.gr_gid}
    return Sharing(found.gr_name, found.gr_gid, tuple(sorted(members)), _umask())


def _umask() -> str | None:
    """Return the process's umask in octal, where Linux tells it without a change (proc(5))."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            lines = file.readlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("Umask:")]
    return found[0] if found else None


def _check_sharing(root: str, sharing: Sharing) -> Iterator[Finding]:
    group = sharing.group
    if not os.path.isdir(root):
        yield Finding(
            "cache-not-there",
            "error",
            None,
            root,
            "there is no cache yet to share",
            f"mkdir -p {root}",
        )
    for folder in _closed_above(root, sharing.gid):
        yield Finding(
            "closed-above",
            "error",
            None,
            folder,
            f"{group} cannot enter {folder}, so it does not reach the cache",
            f"keep the cache where all can enter (HF_HUB_CACHE=/srv/hub), or: chmod a+x {folder}",
        )
    if os.geteuid() != 0 and sharing.gid not in (os.getegid(), *os.getgroups()):
        yield Finding(
            "not-a-member",
            "error",
            None,
            root,
            f"you are not in the group {group}",
            f"sudo usermod -aG {group} $USER, and log in again",
        )
    if not sharing.members:
        yield Finding(
            "no-members",
            "warning",
            None,
            root,
            f"nobody is in the group {group}",
            f"sudo usermod -aG {group} USER",
        )
    unaided = os.path.isdir(root) and inherits(root) is None
    if sharing.umask is not None and int(sharing.umask, 8) & 0o020 and unaided:
        yield Finding(
            "umask",
            "warning",
            None,
            root,
            f"this filesystem has no default permissions, and with umask {sharing.umask} the group "
            "cannot write what you add",
            "umask 002, in the profile of each user who shares the cache",
        )


def _closed_above(root: str, gid: int) -> Iterator[str]:
    """Yield the folders above the cache that a member of the group cannot enter."""
    folder = os.path.dirname(os.path.realpath(root))
    while True:
        try:
            found = os.stat(folder)
        except OSError:
            return
        needed = 0o010 if found.st_gid == gid else 0o001
        if not found.st_mode & needed:
            yield folder
        above = os.path.dirname(folder)
        if above == folder:
            return
        folder = above


def _open_finding(root: str, count: int, sharing: Sharing | None, *, fixed: bool) -> Finding:
    entry = "entry has" if count == 1 else "entries have"
    if sharing is None:
        text = f"{count} {entry} permissions that the owner's own cache should not have"
        return Finding("permissions", "error", None, root, text, "vlmcache doctor --fix")
    text = f"{count} {entry} to change before {sharing.group} can share the cache"
    remedy = f"vlmcache doctor --shared {sharing.group} --fix"
    return Finding("not-shared", "error", None, root, text, f"sudo {remedy}" if fixed else remedy)
