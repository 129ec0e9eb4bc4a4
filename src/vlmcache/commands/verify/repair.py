"""`verify --repair`: fetches what is damaged or missing again, and restores links and refs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vlmcache import units
from vlmcache.cache.lending import with_bases
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState
from vlmcache.change.plan import Fetch, Link, Outcome, Plan, Receipt, WriteRef, joined
from vlmcache.change.remove import apply_removals
from vlmcache.change.space import FreeSpace
from vlmcache.change.trash_room import empty_for, expire
from vlmcache.change.tree import Tree
from vlmcache.commands.pull.making_room import what_frees_room
from vlmcache.commands.pull.plan import downloads_shown
from vlmcache.commands.pull.room import find_shortage
from vlmcache.commands.pull.values import WORKERS
from vlmcache.commands.verify.repair_repo import RepoRepair
from vlmcache.commands.verify.values import RepairError, RepairReport, Verification, VerifyOptions
from vlmcache.commands.verify.verify import verify_state
from vlmcache.config import Session, options_in_force
from vlmcache.errors import OfflineError, PartlyError, SpaceError, VlmcacheError
from vlmcache.home.journal import read_damaged
from vlmcache.hub.client import Client
from vlmcache.hub.retry import Patience
from vlmcache.progress import Progress, continued_by
from vlmcache.units import and_more, size_text


def repair(
    session: Session,
    names: Sequence[str] = (),
    options: VerifyOptions | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> RepairReport:
    """Verify, then repair what is damaged or missing, and verify again.

    A bad blob stays where it is until the correct one has arrived and been checked, which then
    takes its place by one rename; a bad blob that nothing links to is removed.

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
    again = options.command(session, *names, "--repair")
    with continued_by(progress, f"'{again}' continues from here"):
        return _repair(session, names, options, progress, patience)


def _repair(
    session: Session,
    names: Sequence[str],
    options: VerifyOptions,
    progress: Progress,
    patience: Patience | None,
) -> RepairReport:
    cache_dir = session.cache.dir
    if not options.dry_run:
        expire(session)
    state = scan(cache_dir)
    verification = verify_state(session, state, names, options, progress)
    client = Client(session.environment, patience=patience, note=progress.note)
    try:
        state = with_bases(state, session.config.base, read_damaged(session.environment))
        work = _Repair(client, state, verification)
        report = RepairReport(
            **msgspec.structs.asdict(verification) | {"plan": work.plan, "cache": cache_dir}
        )
        plans = [order.plan for order in work.orders]
        shortage = find_shortage(cache_dir, session.config.limits, plans)
        failure: VlmcacheError | None = work.offline_error()
        emptied: tuple[Outcome, ...] = ()
        if failure is None and shortage is not None and not options.dry_run:
            emptied = empty_for(session, shortage.place, shortage.goal).outcomes
            shortage = find_shortage(cache_dir, session.config.limits, plans)
        if failure is None and shortage is not None:
            repos = {order.repo for order in work.orders}
            failure = shortage.error(what_frees_room(session, state, shortage, repos))
        too_full = isinstance(failure, SpaceError)
        if options.dry_run or too_full or (failure is not None and not work.keep_links()):
            return report.with_problem(failure or work.error or _unchecked(verification))
        space = FreeSpace(cache_dir)
        outcomes, error = work.carry_out(progress)
    finally:
        client.stop()
    # What was found good is remembered, so this reads little more than what has just arrived.
    again = msgspec.structs.replace(options, max_age=options.max_age or 60.0)
    after = verify_state(session, scan(cache_dir), names, again)
    absent = [missing.name for missing in after.missing if missing.file == "*"]
    remaining = [damage.path for damage in after.damaged]
    remaining += [f"{missing.repo}@{missing.revision}: {missing.file}" for missing in after.missing]
    receipt = space.measured(Receipt.of((*emptied, *outcomes)))
    report = msgspec.structs.replace(report, receipt=receipt, remaining=tuple(remaining))
    bad = _not_repaired(session, remaining, absent)
    return report.with_problem(error or failure or work.error or bad or _unchecked(after))


def _unchecked(verification: Verification) -> PartlyError | None:
    """Return the failure if nothing is known to be bad but something could not be checked."""
    problem = verification.problem
    return problem if isinstance(problem, PartlyError) else None


def _not_repaired(
    session: Session, remaining: Sequence[str], absent: Sequence[str]
) -> RepairError | None:
    """Return the failure if something is still bad, `None` if nothing is.

    Args:
        session: what the command works on.
        remaining: the paths and names of all that is bad.
        absent: the repos of which nothing is in the cache.
    """
    if not remaining:
        return None
    options = options_in_force(session.config, session.cache)
    hint = f"'{units.command('verify', *options)}' shows what it is"
    if len(absent) == len(remaining):
        hint = f"finish the download: {units.command('pull', *absent, *options)}"
    return RepairError(f"not repaired: {remaining[0]}{and_more(len(remaining) - 1)}", hint)


class _Repair:
    """What repairs a cache: orders for each revision, and what is to be removed."""

    def __init__(self, client: Client, state: CacheState, verification: Verification) -> None:
        self.client = client
        self.state = state
        repairs = [RepoRepair(client, state, repo, verification) for repo in state.repos]
        self.orders = [order for repair in repairs for order in repair.orders]
        self.removals = tuple(removal for repair in repairs for removal in repair.removals)
        errors = [error for repair in repairs for error in repair.errors]
        self.error = errors[0] if errors else None

    @property
    def plan(self) -> Plan:
        """Everything that would be done."""
        frees = sum(removal.frees for removal in self.removals)
        return joined([*(order.plan for order in self.orders), Plan(self.removals, frees)])

    @property
    def _fetches(self) -> list[Fetch]:
        return [action for action in self.plan.actions if isinstance(action, Fetch)]

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
        switch = self.client.environment.offline_by
        if not fetches or switch is None:
            return None
        size = size_text(sum(action.size - action.have for action in fetches))
        names = ", ".join(f"{action.repo}: {action.file}" for action in fetches[:3])
        return OfflineError(
            f"{switch} is set: the repair would fetch {size} ({names}{and_more(len(fetches) - 3)})",
            f"unset {switch}, then repair again",
        )

    def carry_out(self, progress: Progress) -> tuple[list[Outcome], VlmcacheError | None]:
        """Do everything that is planned, as far as the hub and the disk allow."""
        from vlmcache.commands.pull.fetch import download

        cache = Tree(self.state.dir)
        with downloads_shown(progress, self.orders):
            done = [download(self.client, order, progress, WORKERS, cache) for order in self.orders]
        outcomes = [outcome for fetched, _ in done for outcome in fetched]
        if self.removals:
            outcomes += apply_removals(Plan(self.removals), self.state).outcomes
        return outcomes, next((error for _, error in done if error is not None), None)
