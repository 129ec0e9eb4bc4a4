"""What `attach` links and `detach` removes, planned from the states of both caches (pure)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.base_record import BaseAt
from vlmcache.cache.moved import away_words
from vlmcache.cache.state import CacheState, Lent, Repo, Revision
from vlmcache.change.base import ListingOf, RepoLinks
from vlmcache.change.plan import Attach, Kept, Plan
from vlmcache.change.removal_plan import plan_of
from vlmcache.change.removals import Removals

_NOTHING = "the base has no files of it that could be linked"
_Refs = tuple[dict[str, str], dict[str, str]]


class Attaching(NamedTuple):
    """What is to be attached."""

    plan: Plan
    links: list[RepoLinks]
    """The links that each action of the plan makes, in the same order."""
    unchanged: int
    """Repos of the base that are here, or linked, completely."""


def plan_attach(
    state: CacheState,
    base: CacheState,
    place: BaseAt,
    lent: Mapping[str, Mapping[str, Lent]],
    absent: Mapping[tuple[str, str], tuple[str, ...]],
) -> Attaching:
    """Return what makes all that a base has part of a cache.

    Args:
        state: the cache.
        base: the base, as a cache of its own.
        place: the base as it is recorded.
        lent: repo folder -> blob -> where the base has it.
        absent: (repo folder, commit) -> names that the hub is known not to have.
    """
    links: list[RepoLinks] = []
    actions: list[Attach] = []
    kept: list[Kept] = []
    unchanged = 0
    for theirs in base.repos:
        mine = state.repo_in(theirs.folder)
        path = os.path.join(state.dir, theirs.folder)
        why = _why_not(theirs, mine)
        if why is not None:
            kept.append(Kept(path, theirs.id, why))
            continue
        wanted = _links_of(theirs, mine, place, lent.get(theirs.folder, {}), absent)
        if not wanted.files and not wanted.recorded and not (mine and mine.revisions):
            kept.append(Kept(path, theirs.id, _NOTHING))
        elif not (wanted.blobs or wanted.files or wanted.listings or wanted.refs):
            unchanged += 1
        else:
            links.append(wanted)
            actions.append(_action(theirs, mine, path, wanted))
        kept += _refs_that_stay(theirs, mine, wanted)
    return Attaching(Plan(tuple(actions), kept=tuple(kept)), links, unchanged)


def _why_not(theirs: Repo, mine: Repo | None) -> str | None:
    if not layout.is_repo_id(theirs.id):
        return "its name is not one of the hub's"
    if theirs.away is not None:
        return away_words(theirs.away)
    if mine is not None and mine.linked_to is not None:
        return f"it lies elsewhere here: {mine.linked_to}"
    return None


def _action(theirs: Repo, mine: Repo | None, path: str, links: RepoLinks) -> Attach:
    reason = "the base has it, this cache does not"
    if mine is not None:
        reason = "the base has more of it" if links.blobs or links.files else "the base names it"
    return Attach(
        theirs.id,
        path,
        links.base.folder,
        tuple(sorted(links.files)),
        len(links.blobs),
        sum(lent.size for lent in links.blobs.values()),
        tuple(sorted(links.refs)),
        reason,
    )


def _links_of(
    theirs: Repo,
    mine: Repo | None,
    place: BaseAt,
    lent: Mapping[str, Lent],
    absent: Mapping[tuple[str, str], tuple[str, ...]],
) -> RepoLinks:
    blobs: dict[str, Lent] = {}
    files: dict[str, dict[str, str]] = {}
    listings: dict[str, ListingOf] = {}
    commits: set[str] = set()
    for revision in theirs.revisions:
        commit = revision.commit
        if revision.linked or layout.COMMIT.fullmatch(commit) is None:
            continue
        linkable = _linkable(revision, lent)
        if not linkable:
            continue
        commits.add(commit)
        own = mine.revision(commit) if mine is not None else None
        here = {file.name for file in own.files if file.kind in ("link", "copy")} if own else set()
        needed = {name: etag for name, etag in linkable.items() if name not in here}
        if needed:
            files[commit] = needed
        for etag in linkable.values():
            blob = mine.blobs.get(etag) if mine is not None else None
            # A link into the base that is in no record becomes ours as soon as it is recorded.
            unknown = blob is not None and blob.linked and not (blob.base or blob.shared)
            if blob is None or not blob.present or unknown:
                blobs[etag] = lent[etag]
        tree = theirs.trees.get(commit)
        if tree and (mine is None or commit not in mine.trees):
            named = layout.listing_problem(tree.keys()) is None
            complete = commit not in theirs.own_trees and tree.keys() <= linkable.keys() | here
            if named:
                listings[commit] = ListingOf(tree, complete)
    refs, recorded = _refs(theirs, mine, commits)
    return RepoLinks(
        theirs.folder,
        place,
        blobs,
        files,
        listings,
        {
            commit: names
            for commit in commits
            if (names := absent.get((theirs.folder, commit)))
            and (mine is None or commit not in mine.no_exist)
        },
        refs,
        recorded,
    )


def _linkable(revision: Revision, lent: Mapping[str, Lent]) -> dict[str, str]:
    """Return file -> blob of what a base's snapshot has and a link can lead to."""
    return {
        file.name: file.blob
        for file in revision.files
        if file.blob is not None
        and file.kind == "link"
        and file.blob in lent
        and not file.damaged
        and layout.file_name_problem(file.name) is None
    }


def _refs(theirs: Repo, mine: Repo | None, commits: set[str]) -> _Refs:
    """Return the refs to write, and all refs that follow the base: none that was set here."""
    before = mine.base_refs if mine is not None else {}
    refs: dict[str, str] = {}
    recorded: dict[str, str] = {}
    for ref, commit in theirs.refs.items():
        if commit not in commits or not layout.is_revision(ref):
            continue
        named = mine.refs.get(ref) if mine is not None else None
        if named == commit:
            recorded[ref] = commit
        elif named is None or named == before.get(ref):
            refs[ref] = recorded[ref] = commit
    return refs, recorded


def _refs_that_stay(theirs: Repo, mine: Repo | None, links: RepoLinks) -> Iterator[Kept]:
    for ref, commit in theirs.refs.items() if mine is not None else ():
        named = mine.refs.get(ref) if mine is not None else None
        if mine is not None and named not in (None, commit) and ref not in links.refs:
            why = f"it names another commit than in the base: {named} and not {commit}"
            yield Kept(mine.ref_path(ref), theirs.id, why)


def plan_detach(state: CacheState, folders: set[str], recorded: set[str]) -> Plan:
    """Return what removes the links into bases, and all that would lead nowhere without them.

    Args:
        state: the cache.
        folders: the bases.
        recorded: the folders of repos whose records name these bases; they need not exist.
    """
    chosen = Removals()
    reason = "a link into the base"
    for repo in state.repos:
        attached = {name for name, blob in repo.blobs.items() if blob.base in folders}
        if not attached:
            continue
        users = repo.blob_users()
        if _is_all_attached(repo, attached):
            chosen.repos[repo.folder] = "all of it is in the base"
            continue
        for revision in repo.revisions:
            inside = [file.name for file in revision.files if file.blob in attached]
            if inside and len(inside) == len(revision.files):
                chosen.revisions[repo.folder, revision.commit] = "all of it is in the base"
                continue
            chosen.files |= {(repo.folder, revision.commit, name): reason for name in inside}
        chosen.blobs |= {(repo.folder, name): reason for name in attached if not users[name]}
    gone = recorded | {repo.folder for repo in state.repos if set(repo.bases) & folders}
    chosen.leftovers += (left for left in state.leftovers if left.repo_folder in gone)
    return plan_of(state, chosen)


def _is_all_attached(repo: Repo, attached: set[str]) -> bool:
    """Return whether a repo has nothing but what is in a base."""
    files = [file for revision in repo.revisions for file in revision.files]
    return (
        set(repo.blobs) == attached
        and not repo.partials
        and not repo.strays
        and all(file.blob in attached for file in files)
    )
