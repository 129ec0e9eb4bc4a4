"""The side caches of the hub's libraries: what `clean --xet` and `clean --modules` empty."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from vlmcache.cache.entries import entry_of
from vlmcache.cache.side_caches import LIBRARIES, library_entries
from vlmcache.cache.trash import weigh
from vlmcache.cache.usage import distinct, find_users
from vlmcache.change.plan import Kept, Plan, RemoveTree
from vlmcache.change.removals import expected_of
from vlmcache.commands.remove.facts import inodes_below
from vlmcache.commands.remove.values import CleanOptions, SideCache
from vlmcache.config import Environment, hub_home, own_home, side_caches
from vlmcache.paths import real_path
from vlmcache.units import and_more


def measured_caches(environment: Environment) -> tuple[SideCache, ...]:
    """Return the side caches with their sizes, those that do not exist included."""
    return tuple(
        SideCache(
            name,
            path,
            os.path.isdir(path),
            sum(
                weigh(os.path.join(path, entry)).size_on_disk
                for entry in library_entries(name, path)[0]
            ),
        )
        for name, path in side_caches(environment).items()
    )


def with_side_caches(
    plan: Plan,
    caches: Sequence[SideCache],
    options: CleanOptions,
    environment: Environment,
    cache_dir: str,
) -> tuple[Plan, tuple[Kept, ...]]:
    """Add what the libraries wrote into the side caches asked for, unless a process uses it.

    Returns:
        The plan, and what stays because a process uses it.
    """
    actions: list[RemoveTree] = []
    kept: list[Kept] = []
    needed = (
        ("the cache", cache_dir),
        ("a cache of models", os.path.join(hub_home(environment), "hub")),
        ("your home folder", os.path.expanduser("~")),
        ("vlmcache's own folder", own_home(environment)[0]),
    )
    for cache in caches:
        if not getattr(options, cache.name) or not cache.exists:
            continue
        if os.path.islink(cache.path):
            kept.append(Kept(cache.path, None, "it is a link: links are never followed"))
            continue
        inside = [what for what, path in needed if _is_at_or_below(path, cache.path)]
        if inside:
            kept.append(Kept(cache.path, None, f"it holds {inside[0]}, and is not emptied"))
            continue
        own, others = library_entries(cache.name, cache.path)
        if others:
            library = LIBRARIES[cache.name]
            shown = ", ".join(others[:3]) + and_more(len(others) - 3)
            why = (
                f"{library} did not write all of it: {shown}"
                if own
                else f"it does not look like a cache of {library}: nothing is removed"
            )
            kept.append(Kept(cache.path, None, why))
        for path in (os.path.join(cache.path, name) for name in own):
            users = distinct(find_users(inodes_below(path)).files.values())
            if users:
                kept.append(Kept(path, None, "in use", users))
                continue
            expected = expected_of(entry_of(os.lstat(path)), sized=False)
            actions.append(
                RemoveTree(
                    path, "side-cache", None, f"--{cache.name}", weigh(path).size_on_disk, expected
                )
            )
    plan = msgspec.structs.replace(
        plan,
        actions=(*plan.actions, *actions),
        frees=plan.frees + sum(action.frees for action in actions),
        kept=(*plan.kept, *kept),
    )
    return plan, tuple(stays for stays in kept if stays.processes)


def _is_at_or_below(path: str, folder: str) -> bool:
    real, root = real_path(path), real_path(folder)
    return os.path.join(real, "").startswith(os.path.join(root, ""))
