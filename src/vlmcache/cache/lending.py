"""What bases have that a cache can link to."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.base import bases_beneath
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Lent, Repo
from vlmcache.errors import VlmcacheError


def lent_by(base: CacheState, repo: Repo) -> dict[str, Lent]:
    """Return blob -> where a base has it, of what a cache can link to: good files that are read.

    Args:
        base: the base, as a cache of its own.
        repo: the repo of it.
    """
    sizes: dict[str, set[int]] = {}
    for tree in repo.trees.values():
        for listed in tree.values():
            sizes.setdefault(listed.etag, set()).add(listed.content_size)
    lent: dict[str, Lent] = {}
    for name, blob in repo.blobs.items():
        wrong = name in sizes and blob.size not in sizes[name]
        if not blob.present or blob.damaged or wrong or not layout.is_etag(name):
            continue
        path = repo.blob_path(name)
        there = blob.device, blob.inode, blob.size, blob.mtime_ns
        if blob.linked:
            shared = base.shared.get(blob.shared or "")
            if shared is None:
                continue  # a link out of it, such as into a base of its own
            path = shared.path
            there = shared.device, shared.inode, shared.size, shared.mtime_ns
        if os.access(path, os.R_OK):
            lent[name] = Lent(base.dir, path, *there)
    return lent


def with_bases(
    state: CacheState, configured: str | None, damaged: Collection[tuple[int, int, int, int]]
) -> CacheState:
    """Return the state of a cache that knows what its bases have.

    Args:
        state: the cache.
        configured: the base that the user's own configuration names.
        damaged: the files that are known not to be what they should be.
    """
    return lent_from(state, bases_beneath(state.dir, configured), None, damaged)


def lent_from(
    state: CacheState,
    folders: Sequence[str],
    only: Collection[str] | None,
    damaged: Collection[tuple[int, int, int, int]],
) -> CacheState:
    """Return the state of a cache that knows what bases have.

    Args:
        state: the cache.
        folders: the bases, the first of them first. One that cannot be read has nothing.
        only: the repo folders that are asked for; all of them if not given.
        damaged: the files that are known not to be what they should be.
    """
    lent: dict[tuple[str, str], Lent] = {}
    for folder in folders:
        try:
            base = scan(folder, only=only).with_damage(damaged)
        except VlmcacheError:
            continue
        for key, one in _all_lent(base):
            lent.setdefault(key, one)
    return msgspec.structs.replace(state, lent=lent) if lent else state


def _all_lent(base: CacheState) -> Iterator[tuple[tuple[str, str], Lent]]:
    """Yield (repo folder, blob), or ("", Xet hash), and where a base has it."""
    for repo in base.repos:
        for name, lent in lent_by(base, repo).items():
            yield (repo.folder, name), lent
    for name, shared in base.shared.items() if base.shared_marked else ():
        if not shared.damaged and os.access(shared.path, os.R_OK):
            there = shared.device, shared.inode, shared.size, shared.mtime_ns
            yield ("", name), Lent(base.dir, shared.path, *there)
