"""Which files a revision has, according to this cache, the hub, or else a source of the pull."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.state import CacheState, Finding, TreeFile
from vlmcache.change.plan import Fetch, Plan
from vlmcache.config import ModelConfig
from vlmcache.errors import AccessError, HostileListingError, HubError
from vlmcache.hub.client import Client
from vlmcache.hub.listing import Resolved, check_names, find_commit, list_files


class Listed(NamedTuple):
    """What is in a revision."""

    commit: str
    files: dict[str, TreeFile]
    resolved: Resolved | None
    """What the hub says of it, if it was asked."""
    new: bool
    """Whether the listing is the hub's and is not in the cache yet."""


class ListingFinder(NamedTuple):
    """Finds what is in a revision of a model, and adds findings about that."""

    client: Client
    state: CacheState
    model: ModelConfig
    findings: list[Finding]

    def find(self, attempts: int | None) -> Listed:
        """Return what is in the revision, according to this cache, the hub, or else a source.

        Args:
            attempts: how often to ask the hub; as often as patience allows if `None`.

        Raises:
            VlmcacheError: neither the hub nor a source lists it.
        """
        sources = self.client.sources
        try:
            return self._by_hub(1 if sources else attempts)
        except HubError as error:
            if isinstance(error, AccessError):
                raise
            listing = sources.listing(self.model.repo, self.model.revision)
            if listing is None:
                raise
            source, commit, files = listing
            check_names(self.model.repo, files)
            folder = os.path.join(self.state.dir, layout.folder_of(self.model.repo))
            self.findings.append(
                Finding(
                    "vouched-by-source",
                    "warning",
                    self.model.repo,
                    layout.snapshot_path(folder, commit),
                    f"content vouched for by {source.name}, not by the hub: {error.message}",
                    "pull again once the hub answers: it compares",
                )
            )
            # It is not kept as the hub's listing, so that a later pull asks the hub.
            return Listed(commit, files, None, new=False)

    def _by_hub(self, attempts: int | None) -> Listed:
        model, cache_dir = self.model, self.state.dir
        repo = self.state.repo(model.repo)
        commit = model.revision
        if self.client.sources.first and repo is not None:
            commit = repo.refs.get(commit, commit)
            commit = commit if commit in repo.trees else model.revision
        # For a pinned commit the hub is not asked, and whether the repo is gated stays unknown.
        resolved = None
        if layout.COMMIT.fullmatch(commit) is None:
            resolved = find_commit(self.client, model.repo, model.revision, attempts=attempts)
            commit = resolved.commit
            if resolved.name != model.repo:
                self.findings.append(
                    Finding(
                        "renamed",
                        "info",
                        model.repo,
                        os.path.join(cache_dir, layout.folder_of(model.repo)),
                        f"the hub calls it {resolved.name} now; the cache keeps the name asked for",
                    )
                )
        revision = repo.revision(commit) if repo is not None else None
        files = revision.tree if revision is not None else None
        if files is None and repo is not None and self.client.sources.first:
            files = repo.trees.get(commit)
        try:
            check_names(model.repo, files or {})
        except HostileListingError:
            # Another program may have written it; the hub's own listing counts.
            files = None
        new = files is None
        if files is None:
            files = list_files(self.client, model.repo, commit, attempts=attempts)
        return Listed(commit, files, resolved, new)


def origins_of(client: Client, plan: Plan, files: Mapping[str, TreeFile]) -> dict[str, str]:
    """Return the etags that a plan fetches -> the source that would be asked for each."""
    sources = client.sources
    origins: dict[str, str] = {}
    for action in plan.actions if sources else ():
        if isinstance(action, Fetch) and layout.is_etag(action.etag):
            name = sources.origin(files[action.file])
            if name is not None:
                origins[action.etag] = name
    return origins
