"""`verify --repair`: what is bad or lacks is fetched again, links and refs are mended; no more."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo, Revision, TreeFile
from vlmcache.change import apply
from vlmcache.change.place import check_places
from vlmcache.change.plan import (
    Action,
    Expected,
    Fetch,
    Link,
    Outcome,
    Plan,
    Receipt,
    Remove,
    WriteRef,
)
from vlmcache.commands.pull.plan import Order, Selection, plan_pull
from vlmcache.commands.pull.room import find_shortage
from vlmcache.commands.pull.values import WORKERS
from vlmcache.commands.remove.facts import Known
from vlmcache.commands.status.recommend import what_makes_room
from vlmcache.commands.verify.values import Damage, Verification
from vlmcache.commands.verify.verify import verify_state
from vlmcache.config import CacheLocation, Config, Environment
from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.hub.client import Client, Patience
from vlmcache.hub.errors import HubError, OfflineError
from vlmcache.hub.listing import check_names, list_files, resolve
from vlmcache.progress import Watcher
from vlmcache.units import size_text

_WHOLE_REF = frozenset({"malformed-ref", "unreadable-ref", "ref-to-missing-commit"})
_NO_CONTENT = "other content than its hash says"


class RepairError(VlmcacheError):
    """Not everything could be mended."""

    code = "not-repaired"
    exit_code = ExitCode.PARTLY


class Run(NamedTuple):
    """An answer, and the failure that it tells of, if any."""

    value: Verification
    error: VlmcacheError | None


def repair(
    environment: Environment,
    config: Config,
    location: CacheLocation,
    names: Sequence[str] = (),
    *,
    max_age: float,
    workers: int | None = None,
    dry_run: bool = False,
    watcher: Watcher | None = None,
    patience: Patience | None = None,
) -> Run:
    """Verify, then mend what is damaged or lacks, and look once more.

    A bad blob stays where it is until the right one has arrived and been checked, which then takes
    its place by one rename; a bad blob that nothing links to is removed. Models only: of other repo
    types, damage stays as it is.

    Args:
        environment: the variables in force.
        config: the configuration in force.
        location: the hub cache.
        names: as for `verify`.
        max_age: seconds, as for `verify`.
        workers: threads that hash.
        dry_run: only plan.
        watcher: is told of the progress, from several threads.
        patience: how long to try to reach the hub.

    Raises:
        UnknownModelError: nothing of that name is configured or in the cache.
        ConfigError: the cache path is no folder.
    """
    watcher = watcher or Watcher()
    state = scan(location.dir)
    found = verify_state(
        environment, config, state, names, max_age=max_age, workers=workers, watcher=watcher
    )
    client = Client(environment, patience=patience, note=watcher.note)
    work = _Repair(client, state, found)
    try:
        for repo in state.repos:
            work.plan_repo(repo)
        plan = work.plan()
        value = msgspec.structs.replace(
            found,
            plan=plan,
            cache=location.dir,
        )
        shortage = find_shortage(location.dir, config.limits, [order.plan for order in work.orders])
        offline = work.offline_error()
        blocked: VlmcacheError | None = offline
        if offline is None and shortage is not None:
            known = Known(environment, state)
            repos = {order.repo for order in work.orders}
            blocked = shortage.error(what_makes_room(known, config, location, shortage, repos))
        if dry_run or (offline is None and blocked is not None):
            return Run(value, blocked or work.error)
        if offline is not None and not work.keep_links():
            return Run(value, offline)
        outcomes, failure = work.carry_out(watcher)
    finally:
        client.stop()
    # What was good is remembered, so that this reads little more than what came just now.
    after = verify_state(
        environment, config, scan(location.dir), names, max_age=max_age or 60.0, workers=workers
    )
    begun = [one.repo for one in after.missing if one.file == "*"]
    remaining = [one.path for one in after.damaged]
    remaining += [f"{one.repo}@{one.revision}: {one.file}" for one in after.missing]
    receipt = Receipt(
        tuple(outcomes),
        sum(one.freed for one in outcomes),
        sum(one.fetched for one in outcomes),
    )
    value = msgspec.structs.replace(value, receipt=receipt, remaining=tuple(remaining))
    return Run(value, failure or offline or work.error or _left(remaining, begun))


def _left(remaining: Sequence[str], begun: Sequence[str]) -> RepairError | None:
    """Return the failure of what is not right even now; of the begun repos nothing is here."""
    if not remaining:
        return None
    more = f" and {len(remaining) - 1} more" if len(remaining) > 1 else ""
    hint = "'vlmcache verify' shows what it is"
    if len(begun) == len(remaining):
        hint = f"finish the download: {units.command('pull', *begun)}"
    return RepairError(f"not repaired: {remaining[0]}{more}", hint)


class _Repair:
    """What mends a cache: orders for each revision, and what is to be removed."""

    def __init__(self, client: Client, state: CacheState, found: Verification) -> None:
        self.client = client
        self.state = state
        self.found = found
        self.orders: list[Order] = []
        self.removals: list[Remove] = []
        self.error: VlmcacheError | None = None

    def plan(self) -> Plan:
        """Return all that would be done."""
        actions: list[Action] = [action for order in self.orders for action in order.plan.actions]
        return Plan(
            (*actions, *self.removals),
            frees=sum(action.frees for action in self.removals),
            needs=sum(order.plan.needs for order in self.orders),
        )

    def plan_repo(self, repo: Repo) -> None:
        """Plan what mends one repo; what cannot be planned becomes the error."""
        damaged = {one.path: one for one in self.found.damaged if one.repo == repo.id}
        inside = repo.path + os.sep
        damaged = {p: one for p, one in damaged.items() if f"{p}{os.sep}".startswith(inside)}
        missing = {
            (one.revision, one.file)
            for one in self.found.missing
            if (one.repo, one.type) == (repo.id, repo.type)
        }
        if repo.type != "model" or not (damaged or missing):
            return
        self._remove_orphans(repo, damaged)
        try:
            self._plan_revisions(repo, damaged, missing)
        except VlmcacheError as error:
            self.error = self.error or error

    def _remove_orphans(self, repo: Repo, damaged: dict[str, Damage]) -> None:
        users = repo.blob_users()
        # What lost its link is fetched again in its place.
        listed = {
            one.etag for commit in _commits(repo) for one in repo.trees.get(commit, {}).values()
        }
        for damage in damaged.values():
            blob = repo.blobs.get(damage.blob or "")
            if blob is None or damage.problem != "wrong-content" or users[blob.name]:
                continue
            if blob.linked or blob.name in listed:
                continue
            frees = blob.allocated if blob.links == 1 else 0
            reason = f"{_NO_CONTENT}, and nothing links to it"
            expected = Expected(blob.inode, blob.mtime_ns, blob.size)
            # Nothing is removed through a link, but where `move` has brought the repo.
            folder = repo.path if repo.moved_to is None else repo.home
            path = layout.blob_path(folder, blob.name)
            self.removals.append(Remove(path, "blob", repo.id, reason, frees, expected))

    def _remove_unlisted(self, repo: Repo, revision: Revision) -> None:
        """Links that lead nowhere and that the hub does not list go: nothing could be fetched."""
        for file in revision.files:
            if revision.tree is None or file.name in revision.tree:
                continue
            if file.kind not in ("dangling", "loop", "outside") or revision.linked or file.blob:
                continue
            folder = revision.path
            if repo.moved_to is not None:
                folder = layout.snapshot_path(repo.home, revision.commit)
            path = layout.file_path(folder, file.name)
            reason = f"the link is {file.kind}, and the hub lists no such file"
            expected = Expected(file.inode, file.mtime_ns, None)
            self.removals.append(Remove(path, "link", repo.id, reason, file.allocated, expected))

    def _plan_revisions(
        self, repo: Repo, damaged: dict[str, Damage], missing: set[tuple[str, str]]
    ) -> None:
        blobs = os.path.join(repo.path, layout.BLOBS)
        bad = {
            one.blob
            for path, one in damaged.items()
            if one.blob is not None and os.path.dirname(path) == blobs
        }
        refs = self._bad_refs(repo, damaged)
        doubted = _doubted(self.state, repo, damaged, bad)
        planned: dict[str, int] = {}
        for commit in _commits(repo, refs):
            revision = repo.revision(commit)
            if revision is not None:
                self._remove_unlisted(repo, revision)
            names = _bad_files(revision, damaged, bad) if revision is not None else set()
            names |= {file for held, file in missing if held == commit}
            tree = repo.trees.get(commit, {})
            names |= {name for name in repo.lost_names(commit) if tree[name].etag in bad}
            its_refs = [ref for ref, named in refs.items() if named == commit]
            whole = revision is None or not revision.files or revision.linked
            if whole and revision is not None and revision.path not in damaged and not its_refs:
                whole = False
            listing = repo.tree_path(commit)
            if not names and not its_refs and not whole and listing not in damaged:
                continue
            order = self._order(doubted, repo, commit, its_refs, names, bad, whole=whole)
            order = _without_known(order, repo, planned)
            planned |= {
                action.etag: action.size
                for action in order.plan.actions
                if isinstance(action, Fetch)
            }
            if order.plan.actions or listing in damaged:
                self.orders.append(order)

    def _bad_refs(self, repo: Repo, damaged: dict[str, Damage]) -> dict[str, str]:
        """Return ref -> the commit that it should name, for refs that are broken."""
        found: dict[str, str] = {}
        folder = os.path.join(repo.path, layout.REFS) + os.sep
        for path, damage in damaged.items():
            if damage.problem in _WHOLE_REF and path.startswith(folder):
                ref = path[len(folder) :].replace(os.sep, "/")
                # A ref that names a commit keeps it, whatever the hub has by now.
                commit = repo.refs.get(ref)
                if commit is None or layout.COMMIT.fullmatch(commit) is None:
                    commit = resolve(self.client, repo.id, ref).commit
                found[ref] = commit
            elif damage.problem == "missing-snapshots":
                found |= repo.refs
        return found

    def _order(
        self,
        doubted: CacheState,
        repo: Repo,
        commit: str,
        refs: Sequence[str],
        names: set[str],
        bad: set[str],
        *,
        whole: bool,
    ) -> Order:
        files, new = self._listing(repo, commit, names, whole=whole)
        wanted = names & set(files)
        if whole or "*" in names:
            wanted |= Selection().choose(repo.id, files) | repo.lost_names(commit)
        for name, listed in files.items():
            if listed.etag in bad:
                # The shared store may hold the very content that is bad.
                files[name] = msgspec.structs.replace(listed, xet_hash=None)
        plan = plan_pull(doubted, repo.id, commit, commit, files, wanted)
        check_places(one.path for one in plan.actions if isinstance(one, Fetch | Link))
        actions = [_explained(action, bad) for action in plan.actions]
        for ref in refs:
            actions += plan_pull(doubted, repo.id, ref, commit, files, ()).actions
        plan = msgspec.structs.replace(plan, actions=tuple(actions))
        return Order(
            self.state.dir, repo.id, commit, files, frozenset(wanted), plan, new, frozenset(bad)
        )

    def _listing(
        self, repo: Repo, commit: str, names: set[str], *, whole: bool
    ) -> tuple[dict[str, TreeFile], bool]:
        """Return the files of a commit, and whether they are the hub's answer and to be kept."""
        files = dict(repo.trees.get(commit, {}))
        told = _told_by_links(repo, commit)
        if files or (names and not whole and names <= told.keys()):
            files = told | files
            check_names(repo.id, files)
            return files, False
        try:
            return list_files(self.client, repo.id, commit), True
        except HubError as error:
            lacking = (
                f"{repo.id}: the cache holds no listing of commit {commit[:12]}, "
                f"and the network is needed for it: {error.message}"
            )
            missing = type(error)(lacking, error.hint)
            if whole or not names & told.keys():
                raise missing from error
            self.error = self.error or missing
            return {name: told[name] for name in names & told.keys()}, False

    def keep_links(self) -> bool:
        """Leave out what would be fetched, and return whether anything is left to do."""
        fetched = {
            action.etag
            for order in self.orders
            for action in order.plan.actions
            if isinstance(action, Fetch)
        }
        orders = []
        for order in self.orders:
            held = {name for name in order.wanted if order.files[name].etag not in fetched}
            actions = tuple(
                action
                for action in order.plan.actions
                if (isinstance(action, Link) and action.file in held)
                or (isinstance(action, WriteRef) and held == order.wanted)
            )
            if actions:
                plan = msgspec.structs.replace(order.plan, actions=actions, needs=0)
                orders.append(order._replace(wanted=frozenset(held), plan=plan))
        self.orders = orders
        return bool(orders or self.removals)

    def offline_error(self) -> OfflineError | None:
        """Return the refusal of downloads where the network is switched off."""
        fetches = [a for order in self.orders for a in order.plan.actions if isinstance(a, Fetch)]
        if not fetches or not self.client.offline:
            return None
        size = size_text(sum(action.size - action.have for action in fetches))
        names = ", ".join(f"{action.repo}: {action.file}" for action in fetches[:3])
        more = f" and {len(fetches) - 3} more" if len(fetches) > 3 else ""
        return OfflineError(
            f"HF_HUB_OFFLINE is set: the repair would fetch {size} ({names}{more})",
            "unset HF_HUB_OFFLINE, then repair again",
        )

    def carry_out(self, watcher: Watcher) -> tuple[list[Outcome], VlmcacheError | None]:
        """Do all that is planned, as far as the hub and the disk let us."""
        from vlmcache.commands.pull.fetch import carry_out

        outcomes: list[Outcome] = []
        failure: VlmcacheError | None = None
        for order in self.orders:
            done = carry_out(self.client, order, watcher, WORKERS)
            outcomes += done.outcomes
            failure = failure or done.error
        if self.removals:
            places = {repo.moved_to for repo in self.state.repos if repo.moved_to is not None}
            plan = Plan(tuple(self.removals))
            outcomes += apply.apply_removals(plan, self.state.dir, places).outcomes
        return outcomes, failure


def _commits(repo: Repo, refs: Mapping[str, str] | None = None) -> list[str]:
    """Return the commits that a repo is to hold: of its snapshots, of its refs, of bad ones too.

    Where all of these were lost, the listings tell.
    """
    found = [revision.commit for revision in repo.revisions]
    found += (repo.refs if refs is None else refs).values()
    if not found and not repo.ref_files:
        commits = filter(layout.COMMIT.fullmatch, repo.trees)
        found += (commit for commit in commits if repo.lost_names(commit))
    return list(dict.fromkeys(found))


def _told_by_links(repo: Repo, commit: str) -> dict[str, TreeFile]:
    """Return the files of a snapshot whose links say by themselves which blob they mean."""
    revision = repo.revision(commit)
    found: dict[str, TreeFile] = {}
    for file in revision.files if revision is not None else ():
        blob = repo.blobs.get(file.blob or "")
        if file.kind not in ("stub", "dangling", "outside") or blob is None:
            continue
        if blob.present and layout.is_etag(blob.name):
            found[file.name] = TreeFile(blob.size, blob.name)
    return found


def _doubted(
    state: CacheState, repo: Repo, damaged: dict[str, Damage], bad: set[str]
) -> CacheState:
    """Return the cache as if what is damaged were not there."""
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
        repos=tuple(changed if one is repo else one for one in state.repos),
        shared={name: one for name, one in state.shared.items() if name not in shared},
    )


def _bad_files(revision: Revision, damaged: dict[str, Damage], bad: set[str]) -> set[str]:
    """Return the names of a revision's files that do not lead to what they should."""
    return {
        file.name
        for file in revision.files
        if file.blob in bad
        or file.kind not in ("link", "copy")
        or revision.file_path(file.name) in damaged
    }


def _explained(action: Action, bad: set[str]) -> Action:
    if isinstance(action, Fetch) and action.etag in bad and not action.have:
        return msgspec.structs.replace(action, reason=f"damaged: {_NO_CONTENT}")
    return action


def _without_known(order: Order, repo: Repo, planned: dict[str, int]) -> Order:
    """Leave out what an order before this one fetches, and links that are right already."""
    revision = repo.revision(order.commit)
    held = {file.name: file for file in revision.files} if revision is not None else {}
    actions: list[Action] = []
    needs = order.plan.needs
    for action in order.plan.actions:
        if isinstance(action, Fetch) and action.etag in planned:
            needs -= min(needs, action.size)
            action = Link(
                action.repo, action.file, action.path, action.etag, "the same content as another"
            )
        if isinstance(action, Link):
            file = held.get(action.file)
            if file is not None and file.kind == "link" and file.blob == action.etag:
                continue
        actions.append(action)
    wanted = order.wanted if actions else frozenset()
    plan = msgspec.structs.replace(order.plan, actions=tuple(actions), needs=needs)
    return order._replace(plan=plan, wanted=wanted)
