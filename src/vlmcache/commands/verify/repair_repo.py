"""What repairs one repo: download orders for its revisions, and what is to be removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.state import CacheState, Repo, Revision, TreeFile
from vlmcache.change.place import check_places
from vlmcache.change.plan import Action, Expected, Fetch, Link, Remove
from vlmcache.commands.pull.plan import (
    DownloadOrder,
    FileSelection,
    Listing,
    VariantError,
    plan_pull,
)
from vlmcache.commands.verify.values import Damage, Verification
from vlmcache.errors import HubError, VlmcacheError
from vlmcache.hub.client import Client
from vlmcache.hub.listing import check_names, find_commit, list_files

_BAD_REF = frozenset({"malformed-ref", "unreadable-ref", "ref-to-missing-commit"})
_NO_CONTENT = "other content than its hash says"


class RepoRepair:
    """What repairs one repo; `plan` fills it in.

    Args:
        client: the hub; it is asked only if the cache does not know a commit or its files.
        state: the cache.
        repo: the repo.
        verification: what is damaged and missing.
    """

    def __init__(
        self, client: Client, state: CacheState, repo: Repo, verification: Verification
    ) -> None:
        self.orders: list[DownloadOrder] = []
        self.removals: list[Remove] = []
        self.error: VlmcacheError | None = None
        """The first thing that could not be planned."""
        self._client = client
        self._state = state
        self._repo = repo
        # Nothing is removed through a link, except where `move` has put the repo.
        self._home = repo.path if repo.moved_to is None else repo.home
        inside = repo.path + os.sep
        self._damaged = {
            damage.path: damage
            for damage in verification.damaged
            if damage.repo == repo.id and f"{damage.path}{os.sep}".startswith(inside)
        }
        self._missing = {
            (missing.revision, missing.file)
            for missing in verification.missing
            if (missing.repo, missing.type) == (repo.id, repo.type)
        }
        blobs = os.path.join(repo.path, layout.BLOBS)
        self._bad = {
            damage.blob
            for path, damage in self._damaged.items()
            if damage.blob is not None and os.path.dirname(path) == blobs
        }
        """Names of blobs that are damaged."""

    def plan(self) -> None:
        """Plan what repairs the repo; what cannot be planned becomes the error."""
        if self._repo.type != "model" or not (self._damaged or self._missing):
            return
        self._remove_orphans()
        try:
            self._plan_revisions()
        except VlmcacheError as error:
            self.error = self.error or error

    @cached_property
    def _doubted(self) -> CacheState:
        return _doubted(self._state, self._repo, self._damaged, self._bad)

    def _remove_orphans(self) -> None:
        repo = self._repo
        users = repo.blob_users()
        # What lost its link is fetched again in its place.
        listed = {
            file.etag for commit in _commits(repo) for file in repo.trees.get(commit, {}).values()
        }
        for damage in self._damaged.values():
            blob = repo.blobs.get(damage.blob or "")
            if (
                blob is None
                or damage.problem != "wrong-content"
                or users[blob.name]
                or blob.linked
                or blob.name in listed
            ):
                continue
            frees = blob.allocated if blob.links == 1 else 0
            reason = f"{_NO_CONTENT}, and nothing links to it"
            expected = Expected(blob.inode, blob.mtime_ns, blob.size)
            path = os.path.join(self._home, layout.BLOBS, blob.name)
            self.removals.append(Remove(path, "blob", repo.id, reason, frees, expected))

    def _remove_unlisted(self, revision: Revision) -> None:
        """Remove broken links that the hub does not list: nothing could be fetched for them."""
        repo = self._repo
        for file in revision.files:
            if revision.tree is None or file.name in revision.tree:
                continue
            if file.kind not in ("dangling", "loop", "outside") or revision.linked or file.blob:
                continue
            snapshot = os.path.join(self._home, layout.SNAPSHOTS, revision.commit)
            path = os.path.join(snapshot, *file.name.split("/"))
            reason = f"the link is {file.kind}, and the hub lists no such file"
            expected = Expected(file.inode, file.mtime_ns, None)
            self.removals.append(Remove(path, "link", repo.id, reason, file.allocated, expected))

    def _plan_revisions(self) -> None:
        repo, damaged, bad = self._repo, self._damaged, self._bad
        refs = self._bad_refs()
        planned: set[str] = set()
        for commit in _commits(repo, refs):
            revision = repo.revision(commit)
            if revision is not None:
                self._remove_unlisted(revision)
            names = _bad_files(revision, damaged, bad) if revision is not None else set()
            names |= {file for missing_from, file in self._missing if missing_from == commit}
            tree = repo.trees.get(commit, {})
            names |= {name for name in repo.lost_names(commit) if tree[name].etag in bad}
            its_refs = [ref for ref, named in refs.items() if named == commit]
            everything = revision is None or (
                (not revision.files or revision.linked)
                and (revision.path in damaged or bool(its_refs))
            )
            listing = repo.tree_path(commit)
            if not names and not its_refs and not everything and listing not in damaged:
                continue
            order = self._order(commit, its_refs, names, everything=everything)
            order = _without_known(order, repo, planned)
            planned |= {action.etag for action in order.plan.actions if isinstance(action, Fetch)}
            if order.plan.actions or listing in damaged:
                self.orders.append(order)

    def _bad_refs(self) -> dict[str, str]:
        """Return ref -> the commit that it should name, for refs that are broken."""
        repo = self._repo
        commits: dict[str, str] = {}
        folder = os.path.join(repo.path, layout.REFS) + os.sep
        for path, damage in self._damaged.items():
            if damage.problem in _BAD_REF and path.startswith(folder):
                ref = path[len(folder) :].replace(os.sep, "/")
                # A ref that names a commit keeps it, even if the hub has a newer one now.
                commit = repo.refs.get(ref)
                if commit is None or layout.COMMIT.fullmatch(commit) is None:
                    commit = find_commit(self._client, repo.id, ref).commit
                commits[ref] = commit
            elif damage.problem == "missing-snapshots":
                commits |= repo.refs
        return commits

    def _order(
        self, commit: str, refs: Sequence[str], names: set[str], *, everything: bool
    ) -> DownloadOrder:
        repo, bad = self._repo, self._bad
        files, new = self._listing(commit, names, everything=everything)
        wanted = names & set(files)
        if everything or "*" in names:
            wanted |= repo.lost_names(commit)
            # Of several variants nobody knows which was here.
            with contextlib.suppress(VariantError):
                wanted |= FileSelection().choose(repo.id, files).wanted
        for name, listed in files.items():
            if listed.etag in bad:
                # The shared store may hold the very content that is bad.
                files[name] = msgspec.structs.replace(listed, xet_hash=None)
        listing = Listing(commit, files)
        plan = plan_pull(self._doubted, repo.id, commit, listing, wanted)
        check_places(action.path for action in plan.actions if isinstance(action, Fetch | Link))
        actions = [_explained(action, bad) for action in plan.actions]
        for ref in refs:
            actions += plan_pull(self._doubted, repo.id, ref, listing, ()).actions
        plan = msgspec.structs.replace(plan, actions=tuple(actions))
        return DownloadOrder(
            self._state.dir, repo.id, commit, files, frozenset(wanted), plan, new, frozenset(bad)
        )

    def _listing(
        self, commit: str, names: set[str], *, everything: bool
    ) -> tuple[dict[str, TreeFile], bool]:
        """Return the files of a commit, and whether they are the hub's answer and to be kept."""
        repo = self._repo
        files = dict(repo.trees.get(commit, {}))
        linked = _named_by_links(repo, commit)
        if files or (names and not everything and names <= linked.keys()):
            files = linked | files
            check_names(repo.id, files)
            return files, False
        try:
            return list_files(self._client, repo.id, commit), True
        except HubError as error:
            missing = type(error)(
                f"{repo.id}: the cache holds no listing of commit {commit[:12]}, "
                f"and the network is needed for it: {error.message}",
                error.hint,
            )
            if everything or not names & linked.keys():
                raise missing from error
            self.error = self.error or missing
            return {name: linked[name] for name in names & linked.keys()}, False


def _commits(repo: Repo, refs: Mapping[str, str] | None = None) -> list[str]:
    """Return the commits that a repo should hold: those of its snapshots and refs, bad ones too.

    If all of these were lost, the listings name them.
    """
    commits = [revision.commit for revision in repo.revisions]
    commits += (repo.refs if refs is None else refs).values()
    if not commits and not repo.ref_files:
        listed = filter(layout.COMMIT.fullmatch, repo.trees)
        commits += (commit for commit in listed if repo.lost_names(commit))
    return list(dict.fromkeys(commits))


def _named_by_links(repo: Repo, commit: str) -> dict[str, TreeFile]:
    """Return the files of a snapshot whose broken links still name their blobs."""
    revision = repo.revision(commit)
    files: dict[str, TreeFile] = {}
    for file in revision.files if revision is not None else ():
        blob = repo.blobs.get(file.blob or "")
        if file.kind not in ("stub", "dangling", "outside") or blob is None:
            continue
        if blob.present and layout.is_etag(blob.name):
            files[file.name] = TreeFile(blob.size, blob.name)
    return files


def _doubted(
    state: CacheState, repo: Repo, damaged: dict[str, Damage], bad: set[str]
) -> CacheState:
    """Return the state of the cache as if what is damaged did not exist."""
    blobs = {name: blob for name, blob in repo.blobs.items() if name not in bad}
    shared = {blob.shared for name, blob in repo.blobs.items() if name in bad}
    revisions = []
    for revision in repo.revisions:
        names = _bad_files(revision, damaged, bad)
        files = tuple(
            msgspec.structs.replace(file, kind="dangling") if file.name in names else file
            for file in revision.files
        )
        revisions.append(msgspec.structs.replace(revision, files=files))
    changed = msgspec.structs.replace(repo, blobs=blobs, revisions=tuple(revisions))
    return msgspec.structs.replace(
        state,
        repos=tuple(changed if other is repo else other for other in state.repos),
        shared={name: blob for name, blob in state.shared.items() if name not in shared},
    )


def _bad_files(revision: Revision, damaged: dict[str, Damage], bad: set[str]) -> set[str]:
    """Return the names of a revision's files that do not lead to their content."""
    return {
        file.name
        for file in revision.files
        if file.blob in bad
        or file.kind not in ("link", "copy")
        or os.path.join(revision.path, *file.name.split("/")) in damaged
    }


def _explained(action: Action, bad: set[str]) -> Action:
    if isinstance(action, Fetch) and action.etag in bad and not action.have:
        return msgspec.structs.replace(action, reason=f"damaged: {_NO_CONTENT}")
    return action


def _without_known(order: DownloadOrder, repo: Repo, planned: set[str]) -> DownloadOrder:
    """Leave out what an order before this one fetches, and links that are correct already."""
    revision = repo.revision(order.commit)
    linked = {file.name: file for file in revision.files} if revision is not None else {}
    actions: list[Action] = []
    needs = order.plan.needs
    for action in order.plan.actions:
        if isinstance(action, Fetch) and action.etag in planned:
            needs -= min(needs, action.size)
            action = Link(
                action.repo, action.file, action.path, action.etag, "the same content as another"
            )
        if isinstance(action, Link):
            file = linked.get(action.file)
            if file is not None and file.kind == "link" and file.blob == action.etag:
                continue
        actions.append(action)
    wanted = order.wanted if actions else frozenset()
    plan = msgspec.structs.replace(order.plan, actions=tuple(actions), needs=needs)
    return order._replace(plan=plan, wanted=wanted)
