"""What a pull has to do for one model: reads the cache, asks the hub, makes a download order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from vlmcache import log, units
from vlmcache.cache import layout
from vlmcache.cache.completeness import Judgement, is_here, judge, loader_note, reader
from vlmcache.cache.lending import lent_from
from vlmcache.cache.model_configs import DECIDING
from vlmcache.cache.moved import away_error
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.scan import repo_finder, scan
from vlmcache.cache.state import CacheState, Finding, Revision, TreeFile
from vlmcache.cache.trash import with_trash
from vlmcache.change.abilities import refused_names
from vlmcache.change.place import check_places
from vlmcache.change.plan import Fetch, Link, Plan
from vlmcache.commands.pull.listed import ListingFinder, origins_of
from vlmcache.commands.pull.plan import (
    ChosenFiles,
    DownloadOrder,
    FileSelection,
    Listing,
    lent_for,
    plan_pull,
)
from vlmcache.commands.pull.values import PlannedModel
from vlmcache.config import ModelConfig
from vlmcache.errors import (
    AccessError,
    HubError,
    NoSuchFileError,
    NoSuchRepoError,
    OfflineError,
    UnloadableError,
    UnreachableError,
    UsageError,
    VlmcacheError,
)
from vlmcache.home.journal import read_damaged
from vlmcache.hub.client import Client
from vlmcache.hub.listing import check_download_access, find_commit
from vlmcache.hub.quick import commit_of
from vlmcache.units import short_text

_CONFIG_LIMIT = 16_000_000
"""The most bytes of a file that is fetched to plan with."""


def prepare_pull(
    client: Client,
    cache_dir: str,
    model: ModelConfig,
    selection: FileSelection,
    bases: Sequence[str] = (),
    *,
    kept: bool = False,
) -> PlannedModel:
    """Return what is to be done for a model, or why that is not known.

    Args:
        client: the hub.
        cache_dir: the cache.
        model: the model.
        selection: which of its files are wanted.
        bases: the folders of the caches beneath this one.
        kept: whether what is in the trash counts as cached.
    """
    begun = time.monotonic()
    findings: list[Finding] = []
    try:
        damaged = read_damaged(client.environment)
        state = scan(cache_dir, only={layout.folder_of(model.repo)})
        state = state.with_damage(damaged)
        repo = state.repo(model.repo)
        if repo is not None and repo.away is not None:
            raise away_error(repo, repo.away)
        state = lent_from(state, bases, {layout.folder_of(model.repo)}, damaged)
        state = with_trash(state) if kept else state
        order = _Preparation(client, state, model, selection, findings).order()
        check_places(order.plan.placed)
        if not (order.judged or order.plan.actions or order.new_listing) and selection.is_plain:
            # There is nothing to fetch, and yet something may be wrong.
            problem = _problem(order, judge(repo, order.commit, variant=selection.variant))
            if problem is not None:
                raise problem
    except VlmcacheError as error:
        return PlannedModel(model, None, error, time.monotonic() - begun, tuple(findings))
    for name, why in order.left_out.items():
        log.info("pull", "skipped: %s of %s: %s", name, model.repo, why)
    note = loader_note(model.repo, order.snapshot, order.note)
    findings += [note] if note is not None else []
    findings += _remarks(order)
    code = sorted(name for name in order.wanted if name.endswith(".py"))
    if code and layout.split_name(model.repo)[0] == "model":
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


def _remarks(order: DownloadOrder) -> Iterator[Finding]:
    """Yield findings about single files of an order."""
    refused = [f"{short_text(name)}: {why}" for name, why in order.refused.items()]
    if refused:
        files = units.counted(len(refused), "file")
        detail = f"{files} left out: {'; '.join(refused[:3])}{units.and_more(len(refused) - 3)}"
        yield Finding("refused-name", "warning", order.repo, order.snapshot, detail)
    fetched = [action for action in order.plan.actions if isinstance(action, Fetch)]
    unknown = [action.file for action in fetched if not layout.is_etag(action.etag)]
    if unknown:
        names = f"{', '.join(unknown[:3])}{units.and_more(len(unknown) - 3)}"
        detail = f"the mirror names no hash of {names}: only the length can be checked"
        yield Finding("unverifiable-file", "warning", order.repo, order.snapshot, detail)


def prepare_needed(
    client: Client,
    cache_dir: str,
    planned: Sequence[PlannedModel],
    prepared: Callable[[ModelConfig, FileSelection], PlannedModel] | None = None,
) -> list[PlannedModel]:
    """Return what is to be done for other repos that models need and that are not cached.

    Args:
        client: the hub.
        cache_dir: the cache.
        planned: the models.
        prepared: returns what is to be done for one of them; `prepare_pull` if not given.
    """
    cached = repo_finder(cache_dir, read_damaged(client.environment))
    prepared = prepared or partial(prepare_pull, client, cache_dir)
    others: list[PlannedModel] = []
    known = {part.model.repo.casefold() for part in planned}
    pending = list(planned)
    while pending:
        part = pending.pop(0)
        for need in part.order.repos if part.order is not None else ():
            if need.id.casefold() in known or is_here(need, cached):
                continue
            known.add(need.id.casefold())
            model = ModelConfig(need.id, need.id, need.revision, configured=False)
            selection = FileSelection(include=("*.py",) if need.code else ())
            other = prepared(model, selection)._replace(needed_by=part.model)
            others.append(other)
            pending.append(other)
    return others


def check_result(order: DownloadOrder, variant: str | None) -> VlmcacheError | None:
    """Return what is wrong with a model that was pulled, by the rules of `status`."""
    others = repo_finder(order.cache_dir)
    return _problem(order, judge(others(order.repo), order.commit, others, variant))


def _problem(order: DownloadOrder, judgement: Judgement) -> VlmcacheError | None:
    """Return what is wrong with a model although all that the hub has of it is here."""
    if judgement.state == "cached":
        return None
    is_model = layout.split_name(order.repo)[0] == "model"
    begin = f"{order.repo} was pulled and {'cannot be loaded' if is_model else 'is incomplete'}"
    absent = [name for name in judgement.missing if name not in order.files]
    if absent:
        others = units.and_more(len(absent) - 1)
        return UnloadableError(
            f"{begin}: its index names {absent[0]}{others}, which the hub does not have",
            "ask whoever publishes it, or pull another revision",
        )
    if judgement.missing:
        reasons = {name: order.refused.get(name) for name in judgement.missing}
        names = [f"{name} ({why})" if why else name for name, why in reasons.items()]
        return UnloadableError(f"{begin}: missing {', '.join(names)}")
    if judgement.missing_repos:
        return UnloadableError(
            f"{begin}: it needs {', '.join(judgement.missing_repos)}",
            units.command("pull", order.repo),
        )
    return UnloadableError(
        f"{begin}: {', '.join(judgement.damaged) or judgement.state}",
        units.command("verify", order.repo, "--repair"),
    )


class _Preparation(NamedTuple):
    """One model, before anything is done for it."""

    client: Client
    state: CacheState
    model: ModelConfig
    selection: FileSelection
    findings: list[Finding]

    def order(self) -> DownloadOrder:
        """Ask the hub; use what is complete here if it does not answer, or lost the model."""
        complete = self._complete_order()
        if complete is not None and self._is_current(complete):
            return complete
        try:
            # With a complete revision to fall back on, the hub gets one attempt.
            return self._ask(attempts=None if complete is None else 1)
        except (HubError, NoSuchRepoError) as error:
            if (
                complete is None
                and self.client.sources.uses
                and isinstance(error, OfflineError | UnreachableError)
            ):
                message = f"no source has {self.model.repo}, and {error.message}"
                raise error.saying(message, error.hint) from error
            if complete is None or isinstance(error, AccessError):
                raise
            offline = isinstance(error, OfflineError)
            reason = f"{self.client.environment.offline_by} is set" if offline else error.message
            self._note_not_asked(complete, reason, None if offline else error)
            return complete

    def _is_current(self, complete: DownloadOrder) -> bool:
        """Whether the cached commit is the wanted one; asks at most one quick question."""
        revision = self._revision(complete.commit)
        if revision is None or revision.tree is None:
            return False
        if complete.commit == self.model.revision:
            return True
        if self.client.sources.first:
            self._note_not_asked(complete, "with --from, the hub is not asked")
            return True
        return commit_of(self.client, self.model.repo, self.model.revision) == complete.commit

    def _revision(self, commit: str) -> Revision | None:
        repo = self.state.repo(self.model.repo)
        return repo.revision(commit) if repo is not None else None

    def _note_not_asked(
        self, complete: DownloadOrder, reason: str, error: VlmcacheError | None = None
    ) -> None:
        self.findings.append(
            Finding(
                "hub-not-asked",
                "info" if error is None else "warning",
                self.model.repo,
                complete.snapshot,
                f"cached at commit {complete.commit}; whether there is a newer one is not "
                f"known: {reason}",
                None if error is None else error.hint,
            )
        )

    def _complete_order(self) -> DownloadOrder | None:
        """Return an order without actions if the cache alone shows that nothing is missing."""
        model = self.model
        repo, variant = self.state.repo(model.repo), self.selection.variant
        judgement = judge(repo, model.revision, variant=variant)
        if judgement.state != "cached" or judgement.revision is None:
            return None
        commit, files = judgement.revision.commit, judgement.revision.tree
        plan = Plan(())
        if files is None:
            # An older client pulled it: what loading needs is here, and nothing else is known.
            if self.selection != FileSelection():
                return None
            files = {file.name: TreeFile(file.size, "") for file in judgement.revision.files}
            repos = judgement.division.repos if judgement.division is not None else ()
            note = judgement.division.note if judgement.division is not None else None
            choice = ChosenFiles(frozenset(files), repos=repos, note=note)
        else:
            try:
                choice = self.selection.choose(
                    model.repo, files, judgement.revision, reader(judgement.revision)
                )
            except UsageError:
                return None
            plan, choice = self._planned(Listing(commit, files), choice)
        if plan.actions:
            return None
        order = self._order_of(Listing(commit, files), choice, plan, new_listing=False)
        return order._replace(judged=True)

    def _order_of(
        self, listing: Listing, choice: ChosenFiles, plan: Plan, *, new_listing: bool
    ) -> DownloadOrder:
        return DownloadOrder(
            self.state.dir,
            self.model.repo,
            listing.commit,
            listing.files,
            choice.wanted,
            plan,
            new_listing,
            left_out=choice.left_out,
            repos=choice.repos,
            note=choice.note,
            refused=choice.refused,
        )

    def _ask(self, attempts: int | None) -> DownloadOrder:
        model = self.model
        finder = ListingFinder(self.client, self.state, model, self.findings)
        commit, files, resolved, new = finder.find(attempts)
        revision = self._revision(commit)
        if not files:
            raise NoSuchFileError(f"{model.repo}@{model.revision} holds no files")
        read = self._reader(commit, files, revision)
        choice = self.selection.choose(model.repo, files, revision, read)
        listing = Listing(commit, files)
        plan, choice = self._planned(listing, choice)
        for name, why in choice.refused.items() if not choice.wanted else ():
            raise NoSuchFileError(
                f"{model.repo}@{model.revision} holds no file that can be written here: "
                f"{short_text(name)}: {why}"
            )
        origins = origins_of(self.client, plan, files)
        needs_hub = plan.needs and any(
            isinstance(action, Fetch) and action.etag not in origins for action in plan.actions
        )
        if resolved is None and needs_hub:
            # A mirror may not know this question.
            with contextlib.suppress(VlmcacheError):
                resolved = find_commit(self.client, model.repo, commit, attempts=1)
        if (resolved is None or resolved.gated) and needs_hub:
            # Everybody may read the listing, but not the files: say so before anything is written.
            check_download_access(self.client, model.repo)
        order = self._order_of(listing, choice, plan, new_listing=new)
        return order._replace(
            distrusted=self._damaged(),
            restriction="" if resolved is None else resolved.restriction,
            origins=origins,
            lent=lent_for(self.state, model.repo, plan, files),
        )

    def _planned(self, listing: Listing, choice: ChosenFiles) -> tuple[Plan, ChosenFiles]:
        """Return what is to be done, without files that this filesystem cannot hold."""
        name, cache_dir = self.model.repo, self.state.dir
        plan = plan_pull(self.state, name, self.model.revision, listing, choice.wanted)
        new = {action.file for action in plan.actions if isinstance(action, Fetch | Link)}
        revision = self._revision(listing.commit)
        here = [file.name for file in revision.files] if revision is not None and new else []
        # Of two names that are one to this filesystem, the one that is here or needed stays.
        names = [*here, *sorted(new, key=lambda file: (file not in choice.needed, file))]
        snapshot = f"{layout.folder_of(name)}/{layout.SNAPSHOTS}/{listing.commit}"
        refused = refused_names(cache_dir, [f"{snapshot}/{file}" for file in names])
        words = {path[len(snapshot) + 1 :]: why for path, why in refused.items()}
        reasons = {file: f"the filesystem {words[file]}" for file in sorted(words.keys() & new)}
        if reasons:
            choice = choice.without(reasons)
            plan = plan_pull(self.state, name, self.model.revision, listing, choice.wanted)
        return plan, choice

    def _damaged(self) -> frozenset[str]:
        """Return the blobs whose length alone does not show that they are good."""
        repo = self.state.repo(self.model.repo)
        blobs = repo.blobs.values() if repo is not None else ()
        return frozenset(blob.name for blob in blobs if blob.damaged)

    def _reader(
        self, commit: str, files: Mapping[str, TreeFile], revision: Revision | None
    ) -> Callable[[str], bytes | None]:
        """Return what reads a file of the commit; the few that decide are fetched for that."""
        here = reader(revision) if revision is not None else None
        present = {file.name for file in revision.files} if revision is not None else set()
        asked: dict[str, bytes | None] = {}

        def read(name: str) -> bytes | None:
            if here is not None and name in present:
                return here(name)
            decides = name in DECIDING or name.endswith(".index.json")
            if not decides or name not in files or files[name].content_size > _CONFIG_LIMIT:
                return None
            if name not in asked:
                address = self.client.file_address(self.model.repo, commit, name)
                asked[name] = (
                    self._content_here(files[name])
                    or self.client.sources.content(files[name])
                    or self.client.content(address)
                )
            return asked[name]

        return read

    def _content_here(self, listed: TreeFile) -> bytes | None:
        """Return a file's content if another revision, or a base, has it."""
        repo = self.state.repo(self.model.repo)
        lent = self.state.lends(layout.folder_of(self.model.repo), listed)
        if repo is not None and repo.holds(listed):
            path = repo.blob_path(listed.etag)
        elif lent is not None:
            path = lent.path
        else:
            return None
        try:
            return read_bytes(path, _CONFIG_LIMIT)
        except OSError:
            return None
