"""What of a repo somebody may need, so that it is not waste: the rules of plain `clean` (pure).

That no ref names a revision, or no snapshot links to a blob, does not mean that nobody needs it. In
doubt it stays, and the plan says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.entries import STALE_AFTER
from vlmcache.cache.state import UNREADABLE, File, Repo, Revision, State
from vlmcache.cache.usage import LastUse
from vlmcache.change.plan import Kept
from vlmcache.change.removals import Removals

UNUSED_AFTER = 30 * 86400.0
"""Seconds without a use after which what a newer revision replaces is waste."""

UNKNOWN_USE = "its last use is unknown"
LISTED = "the listing of a revision that stays names it"
REPLACED = "something else is in the place of a folder of the repo"
IN_BASE = "all of it is in the base: it takes no room here"
FOREIGN = "it holds files that are not the hub's"

_LINK_SIZES = frozenset({len(layout.link_target("0" * digits, 0)) for digits in (40, 64)})
"""Lengths of the text of a link at the top of a snapshot."""


class Evidence(msgspec.Struct, frozen=True):
    """What the state of a cache does not say about its revisions, by (repo folder, commit).

    What is missing from either is not known, and never counts for waste.
    """

    states: Mapping[tuple[str, str], State] = {}
    """Whether each can be loaded."""
    uses: Mapping[tuple[str, str], LastUse] = {}
    """Last uses as only their own files show them, see `usage.own_uses`."""


class Waste(msgspec.Struct):
    """What of one repo is waste, and why the rest of what looks like it stays."""

    revisions: list[str] = []
    """Commits."""
    blobs: list[str] = []
    listings: list[str] = []
    """Commits of which only the listing is left."""
    listed: frozenset[str] = frozenset()
    """Blobs that a listing names of what stays; they are not waste even after the last link to them
    is removed."""
    unknown: list[str] = []
    """Commits that stay only because their last use is unknown."""
    kept: list[Kept] = []
    damage: str | None = None


def is_young(mtime_ns: int, now: float) -> bool:
    """Return whether something was written within the last hour, or in the future."""
    return now - mtime_ns / 1e9 <= STALE_AFTER


def is_read(repo: Repo) -> bool:
    """Return whether all folders of a repo could be read, so that what it holds is known."""
    return repo.away is None and all(finding.code != UNREADABLE for finding in repo.findings)


def foreign_files(repo: Repo, revision: Revision) -> list[str]:
    """Return the files of a snapshot that somebody else put there.

    They are regular files that the hub's listing does not name. Without a listing, they can be
    recognized only among links: a cache on a disk without links has copies alone.
    """
    copies = list(revision.files_of("copy"))
    if not copies:
        return []
    if revision.tree is None:
        inodes = {(blob.device, blob.inode) for blob in repo.blobs.values()}
        copies = [
            file
            for file in copies
            if (file.device, file.inode) not in inodes and not _stands_for_a_link(file)
        ]
        return [file.name for file in copies if len(copies) < len(revision.files)]
    return [
        file.name
        for file in copies
        if file.name not in revision.tree and file.name not in layout.DESKTOP_FILES
    ]


def only_in_base(repo: Repo, revision: Revision) -> bool:
    """Return whether all content of a revision is in bases, so that it takes no room here."""
    blobs = {file.blob for file in revision.files}
    known = [repo.blobs[name] for name in blobs if name is not None and name in repo.blobs]
    return bool(known) and None not in blobs and all(blob.base is not None for blob in known)


def looks_wasted(repo: Repo) -> list[tuple[str, str]]:
    """Return name and path of the blobs that nothing links to, and of revisions without a ref."""
    users = repo.blob_users()
    return [
        *((name, repo.blob_path(name)) for name in users if not users[name]),
        *((revision.commit, revision.path) for revision in repo.revisions if not revision.refs),
    ]


def in_question(repo: Repo) -> bool:
    """Return whether anything of a repo looks like waste, so that its revisions must be judged."""
    if any(not revision.refs for revision in repo.revisions):
        return True
    # Nearly every repo has nothing of it, which a set of names shows quickly.
    linked = {file.blob for revision in repo.revisions for file in revision.files}
    if not repo.blobs.keys() <= linked and looks_wasted(repo):
        return True
    return bool({*repo.tree_files, *repo.no_exist} - known_commits(repo))


def known_commits(repo: Repo) -> set[str]:
    """Return the commits that refs name or that have a snapshot."""
    return {*repo.refs.values(), *(revision.commit for revision in repo.revisions)}


def find_waste(
    repo: Repo,
    evidence: Evidence,
    now: float,
    chosen: Removals,
    why: Callable[[str], str | None],
) -> Waste:
    """Return what of a repo is waste.

    Args:
        repo: the repo.
        evidence: what is known of its revisions.
        now: seconds since the epoch.
        chosen: what is removed for another reason.
        why: returns why a revision is protected, and for an empty commit why the repo is.
    """
    waste = Waste()
    gone, users = chosen.commits_of(repo.folder), repo.blob_users()
    remaining = [revision for revision in repo.revisions if revision.commit not in gone]
    detached = [revision for revision in remaining if not revision.refs]
    stays = {
        revision.commit: why(revision.commit)
        or (IN_BASE if only_in_base(repo, revision) else None)
        or _why_too_young(repo, revision, users, now)
        or _why_needed(repo, revision, evidence, now, gone)
        for revision in detached
    }
    staying = [revision for revision in remaining if stays.get(revision.commit, "ref")]
    waste.damage = damage(repo, staying, evidence.states)
    everything = why("") or waste.damage
    for revision in detached:
        reason = stays[revision.commit] or everything
        if reason is None:
            waste.revisions.append(revision.commit)
            continue
        waste.kept.append(Kept(revision.path, repo.id, reason))
        if reason == UNKNOWN_USE and everything is None:
            waste.unknown.append(revision.commit)
    waste.listed = frozenset(_listed(repo, staying))
    folder = os.path.join(repo.path, layout.BLOBS)
    loose = [name for name, by in users.items() if not by]
    doubt = None
    if repo.partials:
        # What is next to a partial may be another part of the same download, so it stays for this
        # run even if the partial is removed.
        doubt = "a download of the repo is unfinished"
    elif not all(map(layout.is_etag, loose)) or any(
        os.path.dirname(stray.path) == folder and not stray.leftover for stray in repo.strays
    ):
        doubt = "another program writes into this folder"
    for name in loose:
        reason = everything or _why_blob_needed(repo, name, waste.listed, now) or doubt
        if reason is None:
            waste.blobs.append(name)
        else:
            waste.kept.append(Kept(repo.blob_path(name), repo.id, reason))
    if everything is None and not repo.partials:
        remembered = (*repo.tree_files.items(), *repo.no_exist.items())
        young = {commit for commit, entry in remembered if is_young(entry.mtime_ns, now)}
        waste.listings = sorted({commit for commit, _ in remembered} - known_commits(repo) - young)
    return waste


def _written(revision: Revision) -> int:
    """Return when a snapshot was last written to, in nanoseconds since the epoch."""
    return max(revision.mtime_ns, *(file.mtime_ns for file in revision.files), 0)


def _why_too_young(
    repo: Repo, revision: Revision, users: Mapping[str, Collection[tuple[str, str]]], now: float
) -> str | None:
    """Return that a revision or a blob that it alone has is new, `None` if neither is."""
    own = (
        blob.mtime_ns
        for name, blob in repo.blobs.items()
        if users[name] and all(commit == revision.commit for commit, _ in users[name])
    )
    young = any(is_young(mtime_ns, now) for mtime_ns in (_written(revision), *own))
    return "written within the last hour" if young else None


def _why_needed(
    repo: Repo, revision: Revision, evidence: Evidence, now: float, gone: Collection[str]
) -> str | None:
    """Return why a revision that no ref names may be needed, `None` if it is not."""
    if layout.COMMIT.fullmatch(revision.commit) is None:
        return "its name is not a commit"
    written = _written(revision)
    if any(is_young(partial.mtime_ns, now) or partial.locked for partial in repo.partials):
        return "a download into the repo is in progress"
    names = {file.name for file in revision.files}
    if not any(
        repo.ref_files[ref].mtime_ns > written
        for other in repo.revisions
        if other.commit not in gone and evidence.states.get((repo.folder, other.commit)) == "cached"
        # Without the hub's listing, only what was there before shows what is complete.
        if other.tree is not None or names <= {file.name for file in other.files}
        for ref in other.refs
        # A time in the future says nothing of when the ref was written.
        if ref in repo.ref_files and repo.ref_files[ref].mtime_ns / 1e9 <= now
    ):
        return "no newer complete revision replaces it"
    use = evidence.uses.get((repo.folder, revision.commit))
    if use is not None and now - use.at <= UNUSED_AFTER:
        return "used or written within the last 30 days"
    if use is None or use.source != "access":
        return UNKNOWN_USE
    return None


def _why_blob_needed(repo: Repo, name: str, listed: Collection[str], now: float) -> str | None:
    if not layout.is_etag(name):
        return "not a name that the hub's libraries give a blob"
    if is_young(repo.blobs[name].mtime_ns, now):
        return "written within the last hour"
    return LISTED if name in listed else None


def _listed(repo: Repo, staying: Iterable[Revision]) -> set[str]:
    """Return the blobs that the listings name, of revisions that stay and of what refs name."""
    commits = {*repo.refs.values(), *(revision.commit for revision in staying)}
    return {file.etag for commit in commits for file in repo.trees.get(commit, {}).values()}


def folders_of(repo: Repo) -> set[str]:
    """Return the paths of the folders that every repo has."""
    return {os.path.join(repo.path, name) for name in (layout.BLOBS, layout.SNAPSHOTS, layout.REFS)}


def unsure(repo: Repo) -> str | None:
    """Return why it cannot be known what a repo's revisions need, `None` if it can."""
    if not is_read(repo):
        return "a folder of the repo cannot be read"
    if set(repo.ref_files) != set(repo.refs):
        return "a ref of the repo cannot be read"
    if any(stray.path in folders_of(repo) for stray in repo.strays):
        return REPLACED
    if any(revision.linked for revision in repo.revisions):
        return "a snapshot of the repo is a link"
    return None


def damage(
    repo: Repo, staying: Collection[Revision], states: Mapping[tuple[str, str], State]
) -> str | None:
    """Return what is wrong with a repo, so that nothing of it is waste; `None` if all is well.

    What a damaged repo does not link to may be just what repairs it without a download.

    Args:
        repo: the repo.
        staying: its revisions that are not removed.
        states: (repo folder, commit) -> whether the revision can be loaded.
    """
    doubt = unsure(repo)
    if doubt is not None:
        return doubt
    for finding in repo.findings:
        if finding.severity == "error" or finding.code == "outside-link":
            return f"the repo is damaged: {finding.detail}"
    if set(repo.trees) != set(repo.tree_files):
        return "a listing of the repo cannot be read"
    if any(stray.folder and not stray.leftover for stray in repo.strays):
        return "the repo has a folder that is not the hub's"
    if not any(revision.refs for revision in staying):
        return "no ref names a revision of the repo"
    for revision in staying:
        if states.get((repo.folder, revision.commit)) != "cached":
            return f"revision {revision.commit[:12]} of the repo is not complete"
    users = repo.blob_users()
    for revision in repo.revisions:
        for file in revision.files:
            if revision.tree is None and _stands_for_a_link(file):
                return f"a file is in the place of a link ({file.name})"
        names = {file.name for file in revision.files}
        for name, listed in (revision.tree or {}).items():
            if name not in names and users.get(listed.etag) == set():
                return f"a link to a blob was lost ({name})"
    return None


def _stands_for_a_link(file: File) -> bool:
    """Whether a file may be what some copying tools make of a link: empty, or the link's text."""
    deeper = 3 * file.name.count("/")
    alone = file.kind == "copy" and file.links == 1
    return alone and (not file.size or file.size - deeper in _LINK_SIZES)
