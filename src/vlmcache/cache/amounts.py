"""How much of a model is here, and what is left to download: one set of figures for every view."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from vlmcache.cache.completeness import Judgement, judge
from vlmcache.cache.entries import begun_bytes, is_stale
from vlmcache.cache.state import CacheState, Repo, Revision, TreeFile


class Amounts(msgspec.Struct, frozen=True):
    """Bytes of one revision of a model."""

    size: int = 0
    """The length of its files that are here."""
    size_on_disk: int = 0
    """What these and its unfinished downloads occupy."""
    expected_size: int | None = None
    """The length of the complete download; `None` if it is not known."""
    to_fetch: int | None = None
    """What a plain pull would fetch."""
    progress: float | None = None
    """The fraction of the complete download that is here, 0 to 1, unfinished files included."""
    to_receive: int | None = None
    """`to_fetch` without what another program that is downloading it has received already."""


def amounts_of(
    state: CacheState,
    repo: Repo | None,
    judgement: Judgement,
    *,
    variant: str | None = None,
    estimate: int | None = None,
    kept: int = 0,
) -> Amounts:
    """Return how much of a revision is here, and how much is left to fetch.

    Args:
        state: the cache.
        repo: the repo in it; `None` if there is none.
        judgement: of a revision of the repo.
        variant: the GGUF variant that is asked for; files of others do not count then.
        estimate: the length of the complete download, if the cache has no listing of it.
        kept: the bytes of it that the trash has.
    """
    tree, division, revision = judgement.tree or {}, judgement.division, judgement.revision
    wanted = tree.keys() if division is None else division.needed | division.along
    size = size_on_disk = 0
    if repo is not None and revision is not None:
        others = division.left_out if variant is not None and division is not None else ()
        size, size_on_disk = revision_sizes(state, repo, revision, others)
    contents = {tree[name].etag: tree[name] for name in wanted if name in tree}
    if repo is not None:
        size_on_disk += sum(
            partial.allocated for partial in repo.partials if not tree or partial.etag in contents
        )
    expected = sum(listed.content_size for listed in contents.values())
    if judgement.state == "away":
        return Amounts()
    if judgement.state == "cached":
        return Amounts(size, size_on_disk, expected if tree else size, 0, 1.0, 0)
    if not tree:
        left = None if estimate is None else max(0, estimate - size - kept)
        share = 1 - left / estimate if left is not None and estimate else None
        return Amounts(size, size_on_disk, estimate, left, share, left)
    left = to_fetch(state, repo, judgement)
    others_sizes = _sizes_of_others(state, judgement)
    if others_sizes is None:
        return Amounts(size, size_on_disk, expected)
    expected_of_others, left_of_others = others_sizes
    left += left_of_others
    waiting = max(0, left - _arriving(state, repo, contents.values()))
    share = max(0.0, 1 - waiting / max(1, expected + expected_of_others))
    return Amounts(size, size_on_disk, expected, left, share, waiting)


def _arriving(state: CacheState, repo: Repo | None, contents: Iterable[TreeFile]) -> int:
    """Return the bytes that other programs have received of what they are downloading now."""
    received = 0
    if repo is None or not repo.partials:
        return 0
    for listed in contents:
        begun = begun_bytes(repo, listed, state.scanned_at)[0]
        live = (
            min(partial.size, partial.allocated, listed.content_size)
            for partial in repo.partials
            if partial.etag == listed.etag and not partial.damaged
            if not is_stale(partial, state.scanned_at)
        )
        if not repo.holds(listed):
            received += max(0, max(live, default=0) - begun)
    return received


def _sizes_of_others(state: CacheState, judgement: Judgement) -> tuple[int, int] | None:
    """Return the length of the missing repos that a model also needs, and the bytes left to fetch.

    `None` if they are not known for one of the repos.
    """
    expected = left = 0
    division = judgement.division
    for need in division.repos if division is not None else ():
        if need.id not in judgement.missing_repos:
            continue
        repo = state.repo(need.id)
        # Which files of another repo's code are needed shows only once they are here.
        other = None if need.code else amounts_of(state, repo, judge(repo, need.revision))
        if other is None or other.to_fetch is None or other.expected_size is None:
            return None
        expected += other.expected_size
        left += other.to_fetch
    return expected, left


def to_fetch(state: CacheState, repo: Repo | None, judgement: Judgement) -> int:
    """Return the bytes that a plain pull of a listed revision would fetch, each content once.

    That is the missing and damaged files and what comes along with them, without content that is
    here under another name and the bytes that partial downloads save.
    """
    names = {*judgement.missing, *judgement.damaged}
    tree, revision = judgement.tree or {}, judgement.revision
    if names and judgement.division is not None:
        here = {file.name for file in revision.files} if revision is not None else set()
        names |= judgement.division.along - here
    contents = {tree[name].etag: tree[name] for name in names if name in tree}
    return sum(
        listed.content_size - begun_bytes(repo, listed, state.scanned_at)[0]
        for listed in contents.values()
        if (repo is None or not repo.holds(listed))
        and not state.shares(repo, listed)
        and (repo is None or state.lends(repo.folder, listed) is None)
        and not (repo is not None and state.takes_back(repo.folder, listed))
    )


def revision_sizes(
    state: CacheState, repo: Repo, revision: Revision, without: Collection[str] = ()
) -> tuple[int, int]:
    """Return length and occupied bytes of a revision's content, each blob counted once.

    Args:
        state: the cache.
        repo: the repo in it.
        revision: the revision.
        without: files that do not count.
    """
    size = allocated = 0
    seen: set[tuple[int, int]] = set()
    counted = [
        file
        for file in revision.files
        if file.kind in ("link", "copy") and not (without and file.name in without)
    ]
    for file in counted:
        blob = repo.blobs.get(file.blob) if file.blob is not None else None
        entry = file if blob is None else blob
        place = entry.device, entry.inode
        if place in seen:
            continue
        seen.add(place)
        size += file.size
        allocated += entry.allocated
        if blob is not None and blob.linked:
            shared = state.shared.get(blob.shared or "")
            allocated += blob.allocated_there
            allocated += shared.allocated - blob.allocated if shared is not None else 0
    return size, allocated
