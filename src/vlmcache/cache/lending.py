"""Which blobs of its bases a cache can link to."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.base import bases_beneath
from vlmcache.cache.scan import scan
from vlmcache.cache.state import Blob, CacheState, FileMark, Lent, Repo, SharedBlob
from vlmcache.errors import VlmcacheError


def lent_by(base: CacheState, repo: Repo) -> dict[str, Lent]:
    """Return blob -> where a base has it, for the good blobs of a repo that this user can read.

    Args:
        base: the base, as a cache of its own.
        repo: a repo of the base.
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
        content: Blob | SharedBlob = blob
        if blob.linked:
            shared = base.shared.get(blob.shared or "")
            if shared is None:
                continue  # a link out of the base, such as into a base of its own
            content, path = shared, shared.path
        if os.access(path, os.R_OK):
            lent[name] = _lent(base, path, content)
    return lent


def _lent(base: CacheState, path: str, content: Blob | SharedBlob) -> Lent:
    return Lent(base.dir, path, content.device, content.inode, content.size, content.mtime_ns)


def with_bases(
    state: CacheState, configured: str | None, damaged: Collection[FileMark]
) -> CacheState:
    """Return the state of a cache together with what its bases have.

    Args:
        state: the cache.
        configured: the base that the user's own configuration names.
        damaged: the files that are known to be damaged, as for `CacheState.with_damage`.
    """
    return lent_from(state, bases_beneath(state.dir, configured), None, damaged)


def lent_from(
    state: CacheState,
    folders: Sequence[str],
    only: Collection[str] | None,
    damaged: Collection[FileMark],
) -> CacheState:
    """Return the state of a cache together with what bases have.

    Args:
        state: the cache.
        folders: the bases, the preferred one first. One that cannot be read has nothing.
        only: the repo folders that are asked for; all of them if not given.
        damaged: the files that are known to be damaged, as for `CacheState.with_damage`.
    """
    lent: dict[tuple[str, str], Lent] = {}
    for folder in folders:
        try:
            base = scan(folder, only=only).with_damage(damaged)
        except VlmcacheError:
            continue
        for key, content in _all_lent(base):
            lent.setdefault(key, content)
    return msgspec.structs.replace(state, lent=lent) if lent else state


def _all_lent(base: CacheState) -> Iterator[tuple[tuple[str, str], Lent]]:
    """Yield (repo folder, blob) or ("", Xet hash), and where a base has that content."""
    for repo in base.repos:
        for name, lent in lent_by(base, repo).items():
            yield (repo.folder, name), lent
    for name, shared in base.shared.items() if base.shared_marked else ():
        if not shared.damaged and os.access(shared.path, os.R_OK):
            yield ("", name), _lent(base, shared.path, shared)
