"""`recall`: models come back from the drives that they were moved to."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from vlmcache.cache.layout import name_by_path
from vlmcache.cache.moved import away_error, names_cache, read_moves
from vlmcache.cache.scan import scan
from vlmcache.cache.usage import who_uses
from vlmcache.change.move_results import DriveUse, MovedRepo, MoveState
from vlmcache.change.moved_note import remove_record
from vlmcache.change.place import check_room
from vlmcache.change.plan import Kept, Outcome, Plan, Receipt, in_use_words, joined
from vlmcache.change.space import FreeSpace, free_bytes
from vlmcache.change.trash_room import empty_for, expire, in_trash
from vlmcache.commands.move.apply import repos_in_use
from vlmcache.commands.move.move import move, prepare_move
from vlmcache.commands.move.survey import folder_named
from vlmcache.commands.move.values import (
    MoveOptions,
    MoveReport,
    RecallReport,
    id_of,
    repo_row,
)
from vlmcache.config import Session
from vlmcache.errors import InUseError, UsageError, VlmcacheError
from vlmcache.paths import real_path
from vlmcache.progress import Progress


def recall(
    session: Session,
    names: Sequence[str],
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RecallReport:
    """Bring models back from where `move` or `clean --to` has put them.

    Each is copied and hashed here first, then takes the place of its link, and then its bytes at
    the other place are freed. Interrupted anywhere, it is complete at one of the places, and the
    same call continues.

    Args:
        session: the hub cache, and the configuration whose keys count as names.
        names: keys or repo ids, `datasets/owner/name`.
        dry_run: only plan.
        progress: shows the progress.

    Raises:
        UsageError: no model is named, one is not a complete model, or its link was not left by a
            move.
        UnknownModelError: nothing of a name is in the cache.
        AwayError: all that are named are on drives that are not mounted.
        SourceDamagedError: something of a model is damaged; nothing is recalled.
        SpaceError: the cache's disk has too little room.
        CacheError: something cannot be written.
    """
    if not names:
        raise UsageError("no model is named", "'vlmcache status' shows which are elsewhere")
    if not dry_run:
        expire(session)
    return _Recaller(session, progress).run(names, dry_run=dry_run)


class _Recaller:
    """One `recall`, place by place."""

    def __init__(self, session: Session, progress: Progress | None) -> None:
        place = msgspec.structs.replace(session.cache, dir=real_path(session.cache.dir))
        self.session = session._replace(cache=place)
        self.progress = progress
        self.state = scan(place.dir)
        self.begun = {
            folder: noted.cache
            for folder, noted in read_moves(place.dir).items()
            if not noted.finished and names_cache(noted.cache, folder, place.dir)
        }
        """Folder of a repo that an interrupted run has begun to bring back -> where from."""
        self.places: dict[str, list[str]] = {}
        """Other cache -> the folders of repos that are to come back from there."""
        self.kept: list[Kept] = []
        self.away: list[MovedRepo] = []

    def run(self, names: Sequence[str], *, dry_run: bool) -> RecallReport:
        begun = time.monotonic()
        config = self.session.config
        folders = [
            folder_named(self.state, config, name, self.begun.__contains__, "recalled")
            for name in names
        ]
        for folder in dict.fromkeys(folders):
            self._choose(folder)
        planned = [
            self._move(place, folders, plan_only=True) for place, folders in self.places.items()
        ]
        report = self._planned(planned)
        cache_dir, needs = self.state.dir, report.plan.needs
        if not (dry_run or report.in_use):
            empty_for(self.session, cache_dir, needs)
        check_room(
            cache_dir,
            needs,
            "make room, for example by 'vlmcache clean', or name fewer models",
            in_trash=in_trash(self.session, cache_dir),
        )
        if dry_run or report.in_use:
            return report
        for kept in self.kept:
            # An interrupted run may have left it, and nothing needs it.
            with contextlib.suppress(OSError):
                remove_record(cache_dir, os.path.basename(kept.path))
        space, done = FreeSpace(cache_dir), [*self._carried_out()]
        receipts = [moved.receipt for moved in done if moved.receipt is not None]
        total = Receipt(
            tuple(outcome for receipt in receipts for outcome in receipt.outcomes),
            sum(receipt.freed for receipt in receipts),
        )
        return msgspec.structs.replace(
            report,
            repos=(*self._rows(done, "recalled"), *self.away),
            receipt=space.measured(total),
            drives=tuple(self._drives(done)),
            seconds=time.monotonic() - begun,
        )

    def _choose(self, folder: str) -> None:
        repo = self.state.repo_in(folder)
        if folder in self.begun:
            self.places.setdefault(self.begun[folder], []).append(folder)
        elif repo is None or repo.linked_to is None:
            path = os.path.join(self.state.dir, folder)
            self.kept.append(Kept(path, id_of(folder), "is in the cache already"))
        elif repo.away is not None:
            error = away_error(repo, repo.away)
            place = os.path.join(repo.away.destination, folder)
            self.away.append(repo_row(place, repo.path, error=error))
        elif repo.moved_to is None:
            raise UsageError(
                f"nothing was recalled: the link of {repo.id} was not left by 'vlmcache move': "
                f"{repo.linked_to}",
                "only what a trusted note there says is moved back",
            )
        else:
            self.places.setdefault(repo.moved_to, []).append(folder)

    def _move(self, place: str, folders: Iterable[str], *, plan_only: bool = False) -> MoveReport:
        """Move repos out of another cache into this one."""
        location = msgspec.structs.replace(self.session.cache, dir=place)
        names = [name_by_path(id_of(folder), folder) for folder in folders]
        session = self.session._replace(cache=location)
        try:
            if plan_only:
                return prepare_move(session, self.state.dir, names, link=False).report
            return move(session, self.state.dir, names, MoveOptions(link=False), self.progress)
        except VlmcacheError as error:
            raise error.saying(*_in_other_words(error.message, error.hint)) from error

    def _carried_out(self) -> Iterator[MoveReport]:
        """Yield what became of each place; if one is refused, the next is tried all the same."""
        for place, folders in self.places.items():
            try:
                report = self._move(place, folders)
                if report.receipt is None:
                    raise InUseError(in_use_words(report.in_use), "end it, then recall it again")
            except VlmcacheError as error:
                if len(self.places) == 1:
                    raise
                rows = tuple(
                    repo_row(os.path.join(place, folder), self._path(folder), error=error)
                    for folder in folders
                )
                failed = (Outcome("move", row.path, "failed", detail=error.message) for row in rows)
                receipt = Receipt(tuple(failed))
                report = MoveReport(place, self.state.dir, False, "", rows, Plan(()), receipt)
            yield report

    def _path(self, folder: str) -> str:
        return os.path.join(self.state.dir, folder)

    def _planned(self, planned: Sequence[MoveReport]) -> RecallReport:
        """Return the answer before anything is done."""
        chosen = {folder for folders in self.places.values() for folder in folders}
        repos = [repo for repo in self.state.repos if repo.folder in chosen]
        # The locks of models that are used through a link are here.
        used = repos_in_use(self.state, repos, who_uses(self.state, chosen))
        in_use = {kept.repo: kept for kept in used}
        in_use |= {kept.repo: kept for report in planned for kept in report.in_use}
        plan = joined([report.plan for report in planned])
        kept = [kept for kept in plan.kept if not kept.reason.startswith("is there already")]
        rows = (*self._rows(planned, "planned"), *self.away)
        if self.away and len(rows) == len(self.away):
            repo = self.state.repo_in(os.path.basename(self.away[0].path))
            assert repo is not None
            assert repo.away is not None
            raise away_error(repo, repo.away)
        return RecallReport(
            self.state.dir,
            rows,
            msgspec.structs.replace(plan, kept=(*kept, *self.kept)),
            in_use=tuple(in_use.values()),
            hidden_processes=max((report.hidden_processes for report in planned), default=0),
            contained=any(report.contained for report in planned),
        )

    def _rows(self, reports: Sequence[MoveReport], state: MoveState) -> Iterator[MovedRepo]:
        for row in (row for report in reports for row in report.repos):
            if row.error is None:
                yield msgspec.structs.replace(row, state=state)
                continue
            message, hint = _in_other_words(row.error.message, row.error.hint)
            error = msgspec.structs.replace(row.error, message=message, hint=hint)
            yield msgspec.structs.replace(row, error=error)

    def _drives(self, done: Sequence[MoveReport]) -> Iterator[DriveUse]:
        here = self.state.dir
        yield DriveUse(here, 0, sum(report.copied for report in done), free_bytes(here))
        for report in done:
            freed = report.receipt.freed if report.receipt is not None else 0
            yield DriveUse(report.cache, freed, 0, free_bytes(report.cache))


def _in_other_words(message: str, hint: str | None) -> tuple[str, str | None]:
    """Return what a move says, for whom it is a way back."""
    message = message.replace("nothing was moved", "nothing was recalled")
    return message, None if hint is None else hint.replace("move again", "recall it again")
