"""`clean --to`: waste is removed, and models move to another drive instead of being evicted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import msgspec

from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState
from vlmcache.change.known import forget_missing, users_of
from vlmcache.change.move_results import DriveUse, MovedRepo
from vlmcache.change.plan import Failure, Plan, Receipt, stamp
from vlmcache.change.remove import apply_removals
from vlmcache.change.space import FreeSpace, free_bytes
from vlmcache.commands.move.apply import Mover
from vlmcache.commands.move.archive_plan import ArchiveFacts, goal_of, plan_archiving
from vlmcache.commands.move.move import (
    check_filesystems,
    locked_destination,
    planned_report,
    planned_repos,
)
from vlmcache.commands.move.plan import Destination, MoveChoice, plan_move
from vlmcache.commands.move.survey import check_same, choose_repos, open_archive, read_destination
from vlmcache.commands.move.values import MoveReport, repo_row
from vlmcache.commands.remove.clean import clean, kept_models, planned_cleaning
from vlmcache.commands.remove.facts import pinned_models
from vlmcache.commands.remove.values import Archive, CleanOptions, Confirm, Removal
from vlmcache.config import Session
from vlmcache.errors import AwayError, ChangedError, UsageError, VlmcacheError, require_consent
from vlmcache.paths import real_path
from vlmcache.progress import Progress, continued_by


def clean_to(
    session: Session,
    options: CleanOptions,
    *,
    dry_run: bool = False,
    confirm: Confirm | None = None,
    progress: Progress | None = None,
) -> Removal:
    """Remove waste, and move the least recently used models to another drive; links stay.

    No model is deleted. Those that config.yaml names are moved last, those that are in use or kept
    are not moved, and what does not fit stays.

    Args:
        session: the cache, and the configuration whose models are moved last.
        options: what to remove in addition to waste, where models go, and until when.
        dry_run: only plan.
        confirm: is given the plan, and returns whether to continue; without it nobody is asked.
        progress: shows the progress.

    Raises:
        UsageError: the folder cannot be one to move to, nothing would be gained by it, or nothing
            says how much is to be moved.
        AwayError: the drive with the models that were moved there is not mounted.
        CacheError: the folder cannot be written.
        UnknownModelError: a name to keep or to move like others is not a model.
        UnconfirmedError: `confirm` said no.
        ConfigError: another file on the search path of config.yaml cannot be read.
    """
    if not os.path.isdir(session.cache.dir):
        return clean(session, msgspec.structs.replace(options, free=None), dry_run=dry_run)
    if not options.evicts:
        raise UsageError(
            "nothing says how much is to be moved",
            "add --max-size, --free or --older-than, or set vlmcache.max_size in your config.yaml",
        )
    if options.trash:
        raise UsageError(
            "what the trash keeps makes no room, and models that are moved need no trash",
            "leave out --trash",
        )
    archiver = _Archiver(session, options)
    removal = archiver.planned(dry_run=dry_run)
    if dry_run:
        return removal
    require_consent(confirm if removal.plan.actions else None, removal, "was removed")
    return archiver.carry_out(removal, progress or Progress())


class _Archiver:
    """One `clean --to`: planned, then carried out."""

    def __init__(self, session: Session, options: CleanOptions) -> None:
        place = msgspec.structs.replace(session.cache, dir=real_path(session.cache.dir))
        self.session = session._replace(cache=place)
        self.options = options
        self.folders: Sequence[str] = ()
        self.rest: Sequence[str] = ()
        """What an interrupted move has brought over and not finished."""
        self.target: Destination
        self.device: int | None = None
        """Number of the filesystem that the archive is on."""
        self.state: CacheState

    def planned(self, *, dry_run: bool) -> Removal:
        """Return the answer before anything is done."""
        options, config = self.options, self.session.config
        limits = msgspec.structs.replace(config.limits, max_size=None)
        waste_only = msgspec.structs.replace(options, older_than=None, max_size=None, free=None)
        session = self.session._replace(config=msgspec.structs.replace(config, limits=limits))
        assert options.to is not None
        known, removal = planned_cleaning(session, waste_only, dry_run=dry_run)
        state = self.state = known.state
        free = free_bytes(state.dir)
        if (
            options.older_than is None
            and options.to == config.archive
            and not goal_of(state, options, free, removal.plan)
        ):
            return removal  # nothing has to move, so the drive need not be there
        self.target = target = open_archive(state, options.to)
        self.device = _device(target.path)
        room = free_bytes(target.path)
        self.rest = choose_repos(state, config, target, ()).rest
        facts = ArchiveFacts(
            state.scanned_at,
            free,
            0 if room is None else room,
            known.used,
            pinned_models(config, state, options.evict),
            kept_models(config, state, options.keep),
            known.usage,
            self.rest,
        )
        archiving = plan_archiving(state, target, options, facts, removal.plan)
        self.folders = archiving.folders
        chosen = set(archiving.folders)
        check_filesystems(
            [repo for repo in state.repos if repo.folder in chosen], state, target.path
        )
        plan = archiving.plan
        plan.log("clean")
        moves = Plan(plan.actions[len(removal.plan.actions) :])
        return msgspec.structs.replace(
            removal,
            plan=plan,
            missed_by=archiving.missed,
            in_use=tuple({kept.path: kept for kept in plan.kept if kept.processes}.values()),
            archive=Archive(target.path, planned_repos(moves), room),
        )

    def carry_out(self, removal: Removal, progress: Progress) -> Removal:
        """Carry the plan out: waste first, since it may be in what is moved."""
        space = FreeSpace(self.state.dir)
        waste, receipt = Plan(removal.removals), Receipt(())
        if waste.actions:
            # The question may have been open for hours.
            usage = users_of(self.state)
            receipt = apply_removals(waste, self.state, in_use=usage.files)
            forget_missing(self.session.environment, self.state)
        archive = removal.archive
        if archive is None:
            return msgspec.structs.replace(removal, receipt=space.measured(receipt))
        begun, outcomes, freed, copied = time.monotonic(), receipt.outcomes, receipt.freed, 0
        if archive.repos or self.rest:
            try:
                moved = self._move(waste, progress)
            except VlmcacheError as error:
                archive = msgspec.structs.replace(archive, error=Failure.of(error))
            else:
                archive = msgspec.structs.replace(archive, repos=moved.repos)
                copied = moved.copied
                if moved.receipt is not None:
                    outcomes += moved.receipt.outcomes
                    freed += moved.receipt.freed
        return msgspec.structs.replace(
            removal,
            archive=msgspec.structs.replace(
                archive,
                drives=tuple(self._drives(receipt, freed, copied)),
                seconds=time.monotonic() - begun,
            ),
            receipt=space.measured(Receipt(outcomes, freed)),
        )

    def _move(self, waste: Plan, progress: Progress) -> MoveReport:
        """Move the chosen repos that did not change meanwhile."""
        cache_dir, place = self.state.dir, self.target.path
        if _device(place) != self.device:
            raise AwayError(
                f"another drive is at {place} by now, or none", "mount it, then run it again"
            )
        back = self.session.command("move", place, "--undo")
        again = f"the same command continues, '{back}' takes it back"
        with continued_by(progress, again), locked_destination(place, cache_dir) as tree:
            check_same(self.target, tree)
            state = scan(cache_dir)
            target = read_destination(state, place)
            check_same(target, tree)
            folders, changed = self._unchanged(state, waste)
            rest = choose_repos(state, self.session.config, target, ()).rest
            plan = plan_move(state, target, MoveChoice(folders, rest), link=True)
            report = planned_report(cache_dir, place, plan)
            report = Mover(state, target, report, tree).run(rest, progress)
        rows = {row.path: row for row in (*report.repos, *changed)}
        last = next((row.error for row in reversed(report.repos) if row.error), None)
        for folder in folders:
            # Once the disk is full, no other repo is tried.
            path = os.path.join(cache_dir, folder)
            if path not in rows and last is not None:
                row = repo_row(path, target.place(folder))
                rows[path] = msgspec.structs.replace(row, state="failed", error=last)
        return msgspec.structs.replace(report, repos=tuple(rows.values()))

    def _unchanged(self, state: CacheState, waste: Plan) -> tuple[list[str], list[MovedRepo]]:
        """Return the folders of chosen repos that did not change, and rows of those that did.

        If waste was removed from a repo, exactly the revisions that were to stay must be left.
        """
        gone = {getattr(action, "path", "") for action in waste.actions}
        folders: list[str] = []
        changed: list[MovedRepo] = []
        for folder in self.folders:
            before, now = self.state.repo_in(folder), state.repo_in(folder)
            assert before is not None
            inside = os.path.join(before.path, "")
            if now is None or now.linked_to is not None:
                same = False
            elif any(path.startswith(inside) for path in gone):
                stay = {
                    revision.commit for revision in before.revisions if revision.path not in gone
                }
                same = {revision.commit for revision in now.revisions} == stay
            else:
                same = stamp(now) == stamp(before)
            if same:
                folders.append(folder)
                continue
            error = ChangedError(f"{before.id} changed since the plan was made", "run it again")
            changed.append(repo_row(before.path, self.target.place(folder), error=error))
        return folders, changed

    def _drives(self, receipt: Receipt, freed: int, copied: int) -> Iterator[DriveUse]:
        """Yield what became of the room here, at the archive, and where else waste was removed.

        Args:
            receipt: of the removals.
            freed: bytes that they and the moves gave back.
            copied: bytes that were written at the archive.
        """
        places = {repo.moved_to for repo in self.state.repos if repo.moved_to is not None}
        freed_at = dict.fromkeys([self.target.path, *sorted(places)], 0)
        for outcome in receipt.outcomes:
            for place in freed_at:
                if outcome.path.startswith(os.path.join(place, "")):
                    freed_at[place] += outcome.freed
        here = self.state.dir
        yield DriveUse(here, freed - sum(freed_at.values()), 0, free_bytes(here))
        for place, amount in freed_at.items():
            written = copied if place == self.target.path else 0
            if amount or written:
                yield DriveUse(place, amount, written, free_bytes(place))


def _device(place: str) -> int | None:
    """Return the number of the filesystem that a folder is on, or will be made on."""
    try:
        return os.stat(nearest_folder(place)).st_dev
    except OSError:
        return None
