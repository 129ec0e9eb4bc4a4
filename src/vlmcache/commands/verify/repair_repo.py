"""What repairs one repo: downloads for each revision, and what is to be removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.state import CacheState, Repo, Revision, TreeFile
from vlmcache.change.place import check_places
from vlmcache.change.plan import Expected, Fetch, Link, Remove
from vlmcache.commands.pull.plan import (
    DownloadOrder,
    FileSelection,
    Listing,
    VariantError,
    lent_for,
    plan_pull,
)
from vlmcache.commands.pull.room import without_fetches
from vlmcache.commands.verify.values import Verification
from vlmcache.errors import HubError, VlmcacheError
from vlmcache.hub.client import Client
from vlmcache.hub.listing import check_names, find_commit, list_files

_BAD_REF = frozenset({"malformed-ref", "unreadable-ref", "ref-to-missing-commit"})
_NO_CONTENT = "other content than its hash says"


class RepoRepair:
    """What repairs one repo, as far as it can be planned.

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
        self.errors: list[VlmcacheError] = []
        """What could not be planned."""
        self._client = client
        self._state = state
        self._repo = repo
        self._name = layout.typed_name(repo.type, repo.id)
        # Nothing is removed through a link, except where `move` has put the repo.
        self._home = repo.path if repo.moved_to is None else repo.home
        self._damaged = {
            damage.path: damage
            for damage in verification.damaged
            if damage.repo == repo.id and f"{damage.path}{os.sep}".startswith(repo.path + os.sep)
        }
        self._missing = {
            (missing.revision, missing.file)
            for missing in verification.missing
            if (missing.repo, missing.type) == (repo.id, repo.type)
        }
        self._bad = {
            damage.blob
            for path, damage in self._damaged.items()
            if damage.blob is not None and path == repo.blob_path(damage.blob)
        }
        """Names of blobs that are damaged."""
        if self._damaged or self._missing:
            self._remove_orphans()
            try:
                self._plan_revisions()
            except VlmcacheError as error:
                self.errors.append(error)

    @cached_property
    def _doubted(self) -> CacheState:
        """The state of the cache as if what is damaged did not exist."""
        repo, state = self._repo, self._state
        shared = {blob.shared for name, blob in repo.blobs.items() if name in self._bad}
        revisions = []
        for revision in repo.revisions:
            names = self._bad_files(revision)
            files = tuple(
                msgspec.structs.replace(file, kind="dangling") if file.name in names else file
                for file in revision.files
            )
            revisions.append(msgspec.structs.replace(revision, files=files))
        blobs = {name: blob for name, blob in repo.blobs.items() if name not in self._bad}
        changed = msgspec.structs.replace(repo, blobs=blobs, revisions=tuple(revisions))
        return msgspec.structs.replace(
            state,
            repos=tuple(changed if other is repo else other for other in state.repos),
            shared={name: blob for name, blob in state.shared.items() if name not in shared},
            lent={key: lent for key, lent in state.lent.items() if key[1] not in self._bad},
        )

    def _bad_files(self, revision: Revision) -> set[str]:
        """Return the names of a revision's files that do not lead to their content."""
        return {
            file.name
            for file in revision.files
            if file.blob in self._bad
            or file.kind not in ("link", "copy")
            or revision.file_path(file.name) in self._damaged
        }

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
            self.removals.append(
                Remove(
                    layout.blob_path(self._home, blob.name),
                    "blob",
                    repo.id,
                    f"{_NO_CONTENT}, and nothing links to it",
                    blob.allocated if blob.links == 1 else 0,
                    Expected(blob.inode, blob.mtime_ns, blob.size),
                )
            )

    def _remove_unlisted(self, revision: Revision) -> None:
        """Remove broken links that the hub does not list: nothing could be fetched for them."""
        snapshot = layout.snapshot_path(self._home, revision.commit)
        for file in revision.files if revision.tree is not None and not revision.linked else ():
            if (
                file.kind not in ("dangling", "loop", "outside")
                or file.blob
                or file.name in (revision.tree or {})
            ):
                continue
            self.removals.append(
                Remove(
                    layout.file_path(snapshot, file.name),
                    "link",
                    self._repo.id,
                    f"the link is {file.kind}, and the hub lists no such file",
                    file.allocated,
                    Expected(file.inode, file.mtime_ns, None),
                )
            )

    def _plan_revisions(self) -> None:
        repo = self._repo
        refs = self._bad_refs()
        planned: set[tuple[str, str]] = set()
        for commit in _commits(repo, refs):
            names = {file for missing_from, file in self._missing if missing_from == commit}
            tree = repo.trees.get(commit, {})
            names |= {name for name in repo.lost_names(commit) if tree[name].etag in self._bad}
            its_refs = [ref for ref, named in refs.items() if named == commit]
            revision = repo.revision(commit)
            everything = revision is None
            if revision is not None:
                self._remove_unlisted(revision)
                names |= self._bad_files(revision)
                everything = (not revision.files or revision.linked) and (
                    revision.path in self._damaged or bool(its_refs)
                )
            bad_listing = repo.tree_path(commit) in self._damaged
            if not (names or its_refs or everything or bad_listing):
                continue
            order = self._order(commit, its_refs, names, everything=everything)
            order = _without_known(order, revision, planned)
            if order.plan.actions or bad_listing:
                self.orders.append(order)

    def _bad_refs(self) -> dict[str, str]:
        """Return ref -> the commit that it should name, for refs that are broken."""
        repo = self._repo
        commits: dict[str, str] = {}
        folder = repo.ref_path("")
        for path, damage in self._damaged.items():
            if damage.problem in _BAD_REF and path.startswith(folder):
                ref = path[len(folder) :].replace(os.sep, "/")
                # A ref that names a commit keeps it, even if the hub has a newer one now.
                commit = repo.refs.get(ref, "")
                if layout.COMMIT.fullmatch(commit) is None:
                    commit = find_commit(self._client, self._name, ref).commit
                commits[ref] = commit
            elif damage.problem == "missing-snapshots":
                commits |= repo.refs
        return commits

    def _order(
        self, commit: str, refs: Sequence[str], names: set[str], *, everything: bool
    ) -> DownloadOrder:
        repo, bad = self._repo, self._bad
        files, new = self._listing(commit, names, everything=everything)
        wanted = {name for name in names & set(files) if layout.file_name_problem(name) is None}
        if everything or "*" in names:
            wanted |= repo.lost_names(commit)
            # Of several variants nobody knows which was here.
            with contextlib.suppress(VariantError):
                wanted |= FileSelection().choose(self._name, files).wanted
        # The shared store may hold the very content that is bad.
        files |= {
            name: msgspec.structs.replace(listed, xet_hash=None)
            for name, listed in files.items()
            if listed.etag in bad
        }
        listing = Listing(commit, files)
        plan = plan_pull(self._doubted, self._name, commit, listing, wanted)
        check_places(plan.placed)
        actions = [
            msgspec.structs.replace(action, reason=f"damaged: {_NO_CONTENT}")
            if isinstance(action, Fetch) and action.etag in bad and not action.have
            else action
            for action in plan.actions
        ]
        for ref in refs:
            actions += plan_pull(self._doubted, self._name, ref, listing, ()).actions
        plan = msgspec.structs.replace(plan, actions=tuple(actions))
        order = DownloadOrder(
            self._state.dir, self._name, commit, files, frozenset(wanted), plan, new, frozenset(bad)
        )
        return order._replace(lent=lent_for(self._doubted, self._name, plan, files))

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
            return list_files(self._client, self._name, commit), True
        except HubError as error:
            missing = type(error)(
                f"{repo.id}: the cache holds no listing of commit {commit[:12]}, "
                f"and the network is needed for it: {error.message}",
                error.hint,
            )
            if everything or not names & linked.keys():
                raise missing from error
            self.errors.append(missing)
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
    meant = {
        file.name: repo.blobs.get(file.blob or "")
        for file in (revision.files if revision is not None else ())
        if file.kind in ("stub", "dangling", "outside")
    }
    return {
        name: TreeFile(blob.size, blob.name)
        for name, blob in meant.items()
        if blob is not None and blob.present and layout.is_etag(blob.name)
    }


def _without_known(
    order: DownloadOrder, revision: Revision | None, planned: set[tuple[str, str]]
) -> DownloadOrder:
    """Leave out what an order before this one fetches, and links that are correct already."""
    files = revision.files if revision is not None else ()
    linked = {(file.name, file.blob) for file in files if file.kind == "link"}
    plan = without_fetches(order.plan, planned)
    actions = tuple(
        action
        for action in plan.actions
        if not (isinstance(action, Link) and (action.file, action.etag) in linked)
    )
    return order._replace(
        plan=msgspec.structs.replace(plan, actions=actions),
        wanted=order.wanted if actions else frozenset(),
    )
