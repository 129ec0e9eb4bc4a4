"""`recall`: models come back from the drives that they were moved to."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.layout import name_by_path
from vlmcache.cache.moved import away_error, names_cache, read_moves
from vlmcache.cache.scan import scan
from vlmcache.cache.usage import who_uses
from vlmcache.change.moved_note import remove_record
from vlmcache.change.names import find_targets
from vlmcache.change.place import check_room
from vlmcache.change.plan import Kept, Outcome, Plan, Receipt, in_use_words, joined
from vlmcache.change.space import FreeSpace, free_bytes
from vlmcache.change.trash_room import expire
from vlmcache.commands.move.apply import repos_in_use
from vlmcache.commands.move.move import move
from vlmcache.commands.move.values import (
    DriveUse,
    MovedRepo,
    MoveOptions,
    MoveReport,
    MoveState,
    RecallReport,
    repo_row,
)
from vlmcache.config import Session
from vlmcache.errors import InUseError, UnknownModelError, UsageError, VlmcacheError
from vlmcache.progress import Progress


def recall(
    session: Session,
    names: Sequence[str],
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RecallReport:
    """Bring models back from where `move` or `clean --to` has brought them.

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
    return _Recalling(session, progress).run(names, dry_run=dry_run)


class _Recalling:
    """One `recall`, place by place."""

    def __init__(self, session: Session, progress: Progress | None) -> None:
        place = msgspec.structs.replace(session.cache, dir=os.path.realpath(session.cache.dir))
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
        for folder in dict.fromkeys(map(self._folder_named, names)):
            self._choose(folder)
        planned = [self._move(place, folders, True) for place, folders in self.places.items()]
        report = self._planned(planned)
        check_room(
            self.state.dir,
            report.plan.needs,
            "make room, for example by 'vlmcache clean', or name fewer models",
        )
        if dry_run or report.in_use:
            return report
        for kept in self.kept:
            # An interrupted run may have left it, and nothing needs it.
            with contextlib.suppress(OSError):
                remove_record(self.state.dir, os.path.basename(kept.path))
        space, done = FreeSpace(self.state.dir), [*self._carried_out()]
        receipts = [one.receipt for one in done if one.receipt is not None]
        receipt = Receipt(
            tuple(outcome for each in receipts for outcome in each.outcomes),
            sum(each.freed for each in receipts),
        )
        return msgspec.structs.replace(
            report,
            repos=(*self._rows(done, "recalled"), *self.away),
            receipt=space.measured(receipt),
            drives=tuple(self._drives(done)),
            seconds=time.monotonic() - begun,
        )

    def _folder_named(self, name: str) -> str:
        """Return the folder of the repo that a name means."""
        try:
            target = find_targets(self.state, self.session.config, [name])[0]
        except UnknownModelError:
            kind, repo = layout.split_name(name)
            model = self.session.config.models.get(name)
            folder = layout.repo_folder(kind, repo if model is None else model.repo)
            if folder not in self.begun:
                raise
            return folder
        if target.folder is None or target.commit is not None or target.ref is not None:
            raise UsageError(f"{name} is not a complete model: only complete models are recalled")
        return target.folder

    def _choose(self, folder: str) -> None:
        repo = self.state.repo_in(folder)
        if folder in self.begun:
            self.places.setdefault(self.begun[folder], []).append(folder)
        elif repo is None or repo.linked_to is None:
            path = os.path.join(self.state.dir, folder)
            self.kept.append(Kept(path, _id_of(folder), "is in the cache already"))
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

    def _move(self, place: str, folders: Iterable[str], dry_run: bool) -> MoveReport:
        """Move repos out of another cache into this one."""
        location = msgspec.structs.replace(self.session.cache, dir=place)
        names = [name_by_path(_id_of(folder), folder) for folder in folders]
        options = MoveOptions(link=False, dry_run=dry_run)
        session = self.session._replace(cache=location)
        try:
            return move(session, self.state.dir, names, options, self.progress)
        except VlmcacheError as error:
            raise error.saying(*_in_other_words(error.message, error.hint)) from error

    def _carried_out(self) -> Iterator[MoveReport]:
        """Yield what became of each place; one that is refused does not keep the next from it."""
        for place, folders in self.places.items():
            try:
                report = self._move(place, folders, False)
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
        # The locks of what is used through a link are here.
        used = repos_in_use(self.state, repos, who_uses(self.state, chosen))
        in_use = {kept.repo: kept for kept in used}
        in_use |= {kept.repo: kept for one in planned for kept in one.in_use}
        plan = joined([one.plan for one in planned])
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
            hidden_processes=max((one.hidden_processes for one in planned), default=0),
            contained=any(one.contained for one in planned),
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
        yield DriveUse(here, 0, sum(one.copied for one in done), free_bytes(here))
        for report in done:
            freed = report.receipt.freed if report.receipt is not None else 0
            yield DriveUse(report.cache, freed, 0, free_bytes(report.cache))


def _in_other_words(message: str, hint: str | None) -> tuple[str, str | None]:
    """Return what a move says, for whom it is a way back."""
    message = message.replace("nothing was moved", "nothing was recalled")
    return message, None if hint is None else hint.replace("move again", "recall it again")


def _id_of(folder: str) -> str:
    return (layout.parse_repo_folder(folder) or ("model", folder))[1]
