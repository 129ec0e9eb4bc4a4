"""What one model needs: the cache is read and the hub asked, and a download order comes out."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.completeness import judge
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.moved import away_error
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding, TreeFile
from vlmcache.change.place import check_places
from vlmcache.change.plan import Plan
from vlmcache.commands.pull.plan import DownloadOrder, FileSelection, Listing, plan_pull
from vlmcache.commands.pull.values import PlannedModel
from vlmcache.config import ModelConfig
from vlmcache.errors import (
    AccessError,
    HostileListingError,
    HubError,
    NoSuchFileError,
    OfflineError,
    UsageError,
    VlmcacheError,
)
from vlmcache.hub.client import Client
from vlmcache.hub.listing import check_download_access, check_names, find_commit, list_files
from vlmcache.hub.quick import commit_of


def prepare_pull(
    client: Client, cache_dir: str, model: ModelConfig, selection: FileSelection
) -> PlannedModel:
    """Return what is to be done for a model, or why that is not known."""
    begun = time.monotonic()
    findings: list[Finding] = []
    try:
        state = scan(cache_dir, only={layout.repo_folder("model", model.repo)})
        repo = state.repo(model.repo)
        if repo is not None and repo.away is not None:
            raise away_error(repo, repo.away)
        order = _Preparation(client, state, model, selection, findings).order()
        check_places(order.plan.placed)
    except VlmcacheError as error:
        return PlannedModel(model, None, error, time.monotonic() - begun, tuple(findings))
    for name in sorted(order.files.keys() - order.wanted):
        log.info("pull", "skipped: %s of %s: not needed or not asked for", name, model.repo)
    code = sorted(name for name in order.wanted if name.endswith(".py"))
    if code:
        advice = f"to trust just this code: revision: {order.commit}"
        findings.append(
            Finding(
                "remote-code",
                "info",
                model.repo,
                order.snapshot,
                f"remote code at commit {order.commit} ({', '.join(code)}); nothing of it was run",
                None if model.revision == order.commit else advice,
            )
        )
    return PlannedModel(model, order, None, time.monotonic() - begun, tuple(findings))


def ignores_case(path: str) -> bool:
    """Return whether the filesystem that a path is on, or would be, takes `a` and `A` for one."""
    place = nearest_folder(path)
    while place.swapcase() == place and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    try:
        return place.swapcase() != place and os.path.samefile(place, place.swapcase())
    except OSError:
        return False


class _Preparation(NamedTuple):
    """One model, before anything is done for it."""

    client: Client
    state: CacheState
    model: ModelConfig
    selection: FileSelection
    findings: list[Finding]

    def order(self) -> DownloadOrder:
        """Ask the hub, or use what is cached if that is complete and the hub does not answer."""
        complete = self._complete_order()
        if complete is not None and self._is_current(complete):
            return complete
        try:
            # With something complete to fall back on, the hub gets one attempt.
            return self._ask(attempts=None if complete is None else 1)
        except HubError as error:
            if complete is None or isinstance(error, AccessError):
                raise
            offline = isinstance(error, OfflineError)
            reason = "HF_HUB_OFFLINE is set" if offline else error.message
            self.findings.append(
                Finding(
                    "hub-not-asked",
                    "info" if offline else "warning",
                    self.model.repo,
                    complete.snapshot,
                    f"cached at commit {complete.commit}; whether there is a newer one is not "
                    f"known: {reason}",
                )
            )
            return complete

    def _is_current(self, complete: DownloadOrder) -> bool:
        """Whether the cached commit is the wanted one; asks at most one quick question."""
        repo = self.state.repo(self.model.repo)
        revision = repo.revision(complete.commit) if repo is not None else None
        if revision is None or revision.tree is None:
            return False
        name, ref = self.model.repo, self.model.revision
        return complete.commit == ref or commit_of(self.client, name, ref) == complete.commit

    def _complete_order(self) -> DownloadOrder | None:
        """Return an order of nothing to do, if the cache alone shows that everything is there."""
        model = self.model
        judgement = judge(self.state.repo(model.repo), model.revision)
        if judgement.state != "cached" or judgement.revision is None:
            return None
        commit, files = judgement.revision.commit, judgement.revision.tree
        plan = Plan(())
        if files is None:
            # Of an older client: what loading needs is there, and more is not known.
            if self.selection != FileSelection():
                return None
            files = {file.name: TreeFile(file.size, "") for file in judgement.revision.files}
            wanted = frozenset(files)
        else:
            try:
                wanted = frozenset(self.selection.choose(model.repo, files))
            except UsageError:
                return None
            listing = Listing(commit, files)
            plan = plan_pull(self.state, model.repo, model.revision, listing, wanted)
        if plan.actions:
            return None
        return DownloadOrder(
            self.state.dir, model.repo, commit, files, wanted, plan, new_listing=False
        )

    def _ask(self, attempts: int | None) -> DownloadOrder:
        model, cache_dir = self.model, self.state.dir
        commit = model.revision
        # Whether a pinned commit's repo is gated is not known: nothing has been asked.
        gated = True
        if layout.COMMIT.fullmatch(commit) is None:
            resolved = find_commit(self.client, model.repo, model.revision, attempts=attempts)
            commit, gated = resolved.commit, resolved.gated
            if resolved.name != model.repo:
                self.findings.append(
                    Finding(
                        "renamed",
                        "info",
                        model.repo,
                        os.path.join(cache_dir, layout.repo_folder("model", model.repo)),
                        f"the hub calls it {resolved.name} now; the cache keeps the name asked for",
                    )
                )
        repo = self.state.repo(model.repo)
        revision = repo.revision(commit) if repo is not None else None
        files = revision.tree if revision is not None else None
        try:
            check_names(model.repo, files or {})
        except HostileListingError:
            # Another program may have written it here; the hub's own listing counts.
            files = None
        new = files is None
        if files is None:
            files = list_files(self.client, model.repo, commit, attempts=attempts)
        if not files:
            raise NoSuchFileError(f"{model.repo}@{model.revision} holds no files")
        wanted = frozenset(self.selection.choose(model.repo, files))
        if len({name.casefold() for name in wanted}) < len(wanted) and ignores_case(cache_dir):
            raise HostileListingError(
                f"{model.repo} has files whose names differ only by case, and this filesystem "
                "holds only one of them",
                "--exclude one, or name a cache on another filesystem with --cache-dir",
            )
        plan = plan_pull(self.state, model.repo, model.revision, Listing(commit, files), wanted)
        if gated and plan.needs:
            # Everybody may read the listing, but not the files: say so before anything is written.
            check_download_access(self.client, model.repo)
        return DownloadOrder(cache_dir, model.repo, commit, files, wanted, plan, new)
