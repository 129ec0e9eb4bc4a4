"""`verify --repair`: what is bad or missing is fetched again, links and refs are restored."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vlmcache import units
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState
from vlmcache.change.plan import Action, Fetch, Link, Outcome, Plan, Receipt, WriteRef
from vlmcache.change.remove import apply_removals
from vlmcache.commands.pull.room import find_shortage
from vlmcache.commands.pull.values import WORKERS
from vlmcache.commands.remove.facts import Known
from vlmcache.commands.status.recommend import what_makes_room
from vlmcache.commands.verify.repair_repo import RepoRepair
from vlmcache.commands.verify.values import (
    RepairError,
    RepairReport,
    Verification,
    VerifyOptions,
)
from vlmcache.commands.verify.verify import verify_state
from vlmcache.config import Session
from vlmcache.errors import OfflineError, VlmcacheError
from vlmcache.hub.client import Client
from vlmcache.hub.retry import Patience
from vlmcache.progress import Progress
from vlmcache.units import size_text


def repair(
    session: Session,
    names: Sequence[str] = (),
    options: VerifyOptions | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> RepairReport:
    """Verify, then repair what is damaged or missing, and verify again.

    A bad blob stays where it is until the correct one has arrived and been checked, which then
    takes its place by one rename; a bad blob that nothing links to is removed. Only models are
    repaired: damage in repos of other types is left as it is.

    Args:
        session: what to work on.
        names: as for `verify`.
        options: how; with `dry_run`, the repair is only planned.
        progress: called as the work proceeds, from several threads.
        patience: how long to try to reach the hub.

    Raises:
        UnknownModelError: nothing of that name is configured or in the cache.
        ConfigError: the cache path is not a folder.
    """
    options = options or VerifyOptions()
    progress = progress or Progress()
    config, location = session.config, session.cache
    state = scan(location.dir)
    verification = verify_state(session, state, names, options, progress)
    client = Client(session.environment, patience=patience, note=progress.note)
    try:
        work = _Repair(client, state, verification)
        report = RepairReport(
            **msgspec.structs.asdict(verification) | {"plan": work.plan(), "cache": location.dir}
        )
        shortage = find_shortage(location.dir, config.limits, [order.plan for order in work.orders])
        offline = work.offline_error()
        too_full: VlmcacheError | None = None
        if offline is None and shortage is not None:
            known = Known(session.environment, state)
            repos = {order.repo for order in work.orders}
            too_full = shortage.error(what_makes_room(known, session, shortage, repos))
        if options.dry_run or too_full is not None:
            return report.with_problem(offline or too_full or work.error)
        if offline is not None and not work.keep_links():
            return report.with_problem(offline)
        outcomes, failure = work.carry_out(progress)
    finally:
        client.stop()
    # What was good is remembered, so that this reads little more than what has just arrived.
    again = msgspec.structs.replace(options, max_age=options.max_age or 60.0)
    after = verify_state(session, scan(location.dir), names, again)
    begun = [missing.repo for missing in after.missing if missing.file == "*"]
    remaining = [damage.path for damage in after.damaged]
    remaining += [f"{bad.repo}@{bad.revision}: {bad.file}" for bad in after.missing]
    receipt = Receipt(
        tuple(outcomes),
        sum(outcome.freed for outcome in outcomes),
        sum(outcome.fetched for outcome in outcomes),
    )
    report = msgspec.structs.replace(report, receipt=receipt, remaining=tuple(remaining))
    return report.with_problem(failure or offline or work.error or _left(remaining, begun))


def _left(remaining: Sequence[str], begun: Sequence[str]) -> RepairError | None:
    """Return the failure if something is bad even now; of the begun repos nothing is here."""
    if not remaining:
        return None
    more = f" and {len(remaining) - 1} more" if len(remaining) > 1 else ""
    hint = "'vlmcache verify' shows what it is"
    if len(begun) == len(remaining):
        hint = f"finish the download: {units.command('pull', *begun)}"
    return RepairError(f"not repaired: {remaining[0]}{more}", hint)


class _Repair:
    """What repairs a cache: orders for each revision, and what is to be removed."""

    def __init__(self, client: Client, state: CacheState, verification: Verification) -> None:
        self.client = client
        self.state = state
        self.repos = [RepoRepair(client, state, repo, verification) for repo in state.repos]
        for part in self.repos:
            part.plan()
        self.orders = [order for part in self.repos for order in part.orders]
        self.removals = [removal for part in self.repos for removal in part.removals]
        self.error = next((part.error for part in self.repos if part.error is not None), None)

    def plan(self) -> Plan:
        """Return everything that would be done."""
        actions: list[Action] = [action for order in self.orders for action in order.plan.actions]
        return Plan(
            (*actions, *self.removals),
            frees=sum(action.frees for action in self.removals),
            needs=sum(order.plan.needs for order in self.orders),
        )

    @property
    def _fetches(self) -> list[Fetch]:
        actions = [action for order in self.orders for action in order.plan.actions]
        return [action for action in actions if isinstance(action, Fetch)]

    def keep_links(self) -> bool:
        """Leave out what would be fetched, and return whether anything is left to do."""
        fetched = {action.etag for action in self._fetches}
        orders = []
        for order in self.orders:
            here = {name for name in order.wanted if order.files[name].etag not in fetched}
            actions = tuple(
                action
                for action in order.plan.actions
                if (isinstance(action, Link) and action.file in here)
                or (isinstance(action, WriteRef) and here == order.wanted)
            )
            if actions:
                plan = msgspec.structs.replace(order.plan, actions=actions, needs=0)
                orders.append(order._replace(wanted=frozenset(here), plan=plan))
        self.orders = orders
        return bool(orders or self.removals)

    def offline_error(self) -> OfflineError | None:
        """Return the refusal of downloads if the network is switched off."""
        fetches = self._fetches
        if not fetches or not self.client.offline:
            return None
        size = size_text(sum(action.size - action.have for action in fetches))
        names = ", ".join(f"{action.repo}: {action.file}" for action in fetches[:3])
        more = f" and {len(fetches) - 3} more" if len(fetches) > 3 else ""
        return OfflineError(
            f"HF_HUB_OFFLINE is set: the repair would fetch {size} ({names}{more})",
            "unset HF_HUB_OFFLINE, then repair again",
        )

    def carry_out(self, progress: Progress) -> tuple[list[Outcome], VlmcacheError | None]:
        """Do everything that is planned, as far as the hub and the disk allow."""
        from vlmcache.commands.pull.fetch import download

        outcomes: list[Outcome] = []
        failure: VlmcacheError | None = None
        for order in self.orders:
            done = download(self.client, order, progress, WORKERS)
            outcomes += done.outcomes
            failure = failure or done.error
        if self.removals:
            places = {repo.moved_to for repo in self.state.repos if repo.moved_to is not None}
            plan = Plan(tuple(self.removals))
            outcomes += apply_removals(plan, self.state.dir, places).outcomes
        return outcomes, failure
