"""Who owns the entries of a cache, and what to type if that keeps this user out."""

from __future__ import annotations

import contextlib
import os
import stat as modes
from typing import NamedTuple

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.tree import is_root
from vlmcache.paths import real_path

_OF_A_CACHE = (layout.LOCKS, layout.LEFTOVERS, layout.SHARED_STORE)
_SHARED = modes.S_ISGID | modes.S_IWGRP


class Denial(NamedTuple):
    """What keeps this user out."""

    words: str
    remedy: str


def owner_name(uid: int) -> str:
    """Return a user's name, or the number if there is none."""
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return f"user {uid}"


def group_name(gid: int) -> str:
    """Return a group's name, or the number if there is none."""
    try:
        import grp

        return grp.getgrgid(gid).gr_name
    except (ImportError, KeyError):
        return f"group {gid}"


def owners_of(path: str) -> str | None:
    """Return who owns an entry, as `ada, group vlm`; `None` if there is no entry or no owner."""
    if not hasattr(os, "geteuid"):
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return f"{owner_name(status.st_uid)}, group {group_name(status.st_gid).removeprefix('group ')}"


def is_anothers(folder: str) -> bool:
    """Return whether this is root, and another user decides where the path of a folder leads.

    That is so if the folder, which need not exist, is a link, or if it or a folder above it does
    not belong to root.
    """
    if not is_root():
        return False
    for path in (os.path.abspath(folder), real_path(folder)):
        place, below = path, ""
        while place != below:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if os.lstat(place).st_uid != 0:
                    return True
            place, below = os.path.dirname(place), place
    return os.path.islink(folder)


def sharing_group(cache_dir: str) -> str | None:
    """Return the group that shares a cache, as `doctor --shared` sets it up; `None` if none does.

    Args:
        cache_dir: the hub cache, which need not exist.
    """
    with contextlib.suppress(OSError):
        status = os.stat(cache_dir)
        if status.st_mode & _SHARED == _SHARED:
            return group_name(status.st_gid).removeprefix("group ")
    return None


def is_member(gid: int) -> bool:
    """Return whether this process may do what a group may. A new member has to log in first."""
    return is_root() or gid in (os.getegid(), *os.getgroups())


def join_group(group: str) -> str:
    """Return the command that makes this user a member of a group."""
    return f"sudo {units.shell_words('usermod', '-aG', group)} $USER"


def fix_access(cache_dir: str, group: str | None = None) -> str:
    """Return the command of root that gives a cache to its owner, or to the group that shares it.

    It names the cache, since root's own is another one.

    Args:
        cache_dir: the hub cache.
        group: the group that is to share it; by default the one that does.
    """
    group = group or sharing_group(cache_dir)
    shared = [] if group is None else ["--shared", group]
    return "sudo " + units.command("doctor", *shared, "--fix", "--cache-dir", cache_dir)


def cache_of(path: str) -> str | None:
    """Return the cache, or the place to which models were moved, that a path lies in."""
    parts = path.split(os.sep)
    for count, name in enumerate(parts):
        if name in _OF_A_CACHE or layout.parse_repo_folder(name) is not None:
            return os.sep.join(parts[:count])
    return None


def denial(
    path: str, cache_dir: str, *, to_write: bool = False, linked_from: str | None = None
) -> Denial | None:
    """Return what keeps this user from an entry of a cache, and its owner; `None` if nothing does.

    Args:
        path: the entry.
        cache_dir: the hub cache.
        to_write: whether the entry is to be changed or removed, and not only read.
        linked_from: the cache from which models were moved to this one, whose group counts too.
    """
    if not hasattr(os, "geteuid") or not os.path.isabs(cache_dir):
        return None
    wanted = os.R_OK | (os.W_OK if to_write else 0)
    place = path
    while place.startswith(cache_dir) and place != os.path.dirname(place):
        try:
            status = os.lstat(place)
        except OSError:
            pass  # gone, or below a closed folder, which is named instead
        else:
            # Removing a file changes its folder; its own mode does not matter.
            counts = not to_write or os.path.isdir(place)
            if counts and status.st_uid != os.geteuid() and not os.access(place, wanted):
                return _denial(place, status.st_uid, cache_dir, linked_from or cache_dir)
        place = os.path.dirname(place)
    return None


def _denial(place: str, uid: int, cache_dir: str, shared: str) -> Denial:
    owner, top = owner_name(uid), os.stat(cache_dir)
    words = f"'{place}' belongs to {owner}, and you are {owner_name(os.geteuid())}"
    group = sharing_group(shared)
    if group is not None and not is_member(os.stat(shared).st_gid):
        return Denial(f"{words}, not a member of {group}", join_group(group))
    if group is not None or uid != top.st_uid:
        return Denial(words, fix_access(cache_dir, group))
    return Denial(words, f"the cache belongs to {owner}: ask {owner} to do it, or to share it")
