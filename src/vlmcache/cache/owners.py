"""Who owns the entries of a cache, and what to type if that keeps this user out."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from vlmcache import units
from vlmcache.cache.tree import is_root


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
    for path in (os.path.abspath(folder), os.path.realpath(folder)):
        place, below = path, ""
        while place != below:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if os.lstat(place).st_uid != 0:
                    return True
            place, below = os.path.dirname(place), place
    return os.path.islink(folder)


def fix_owners(cache_dir: str) -> str:
    """Return the command that gives a cache's owner what root has made in it.

    It names the cache, since root's own is another one.
    """
    return "sudo " + units.command("doctor", "--fix", "--cache-dir", cache_dir)


def denial(path: str, cache_dir: str, *, to_write: bool = False) -> Denial | None:
    """Return what keeps this user from an entry of a cache, and its owner; `None` if nothing does.

    Args:
        path: the entry.
        cache_dir: the hub cache.
        to_write: whether the entry is to be changed or removed, and not only read.
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
                return _denial(place, status.st_uid, cache_dir)
        place = os.path.dirname(place)
    return None


def _denial(place: str, uid: int, cache_dir: str) -> Denial:
    owner, top = owner_name(uid), os.stat(cache_dir).st_uid
    words = f"'{place}' belongs to {owner}, and you are {owner_name(os.geteuid())}"
    if uid != top:
        return Denial(words, fix_owners(cache_dir))
    return Denial(words, f"the cache belongs to {owner}: ask {owner} to do it, or to share it")
