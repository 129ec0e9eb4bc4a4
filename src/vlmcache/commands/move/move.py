"""`move`: models to another drive, copied and hashed there, then switched by rename."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.moved import (
    can_relink,
    linked_destination,
    note_path,
    read_moves,
    read_record,
)
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.tree import CacheTree, identity_of
from vlmcache.cache.usage import in_container, who_uses
from vlmcache.change import abilities
from vlmcache.change import place as change_place
from vlmcache.change.locks import Lock
from vlmcache.change.move_results import MovedRepo
from vlmcache.change.moved_note import write_record
from vlmcache.change.plan import Kept, Move, Outcome, PlaceLink, Plan, PutBack, Receipt, RemoveTree
from vlmcache.change.space import FreeSpace
from vlmcache.change.trash_room import expire
from vlmcache.change.tree import Tree
from vlmcache.commands.move.apply import Mover, refusals, repos_in_use, take_moves_back
from vlmcache.commands.move.plan import Destination, MoveChoice, plan_move, plan_undo
from vlmcache.commands.move.survey import (
    check_mounted,
    check_same,
    check_sources,
    check_writable,
    choose_repos,
    find_destination,
    read_destination,
)
from vlmcache.commands.move.values import (
    BusyError,
    MoveOptions,
    MoveReport,
    NotMovedError,
    repo_row,
)
from vlmcache.config import Session
from vlmcache.errors import (
    CacheError,
    ChangedError,
    InUseError,
    UnknownModelError,
    VlmcacheError,
    require_consent,
)
from vlmcache.paths import real_path
from vlmcache.progress import Progress, continued_by
from vlmcache.units import and_more, shell_words


def move(
    session: Session,
    destination: str,
    names: Sequence[str] = (),
    options: MoveOptions | None = None,
    progress: Progress | None = None,
) -> MoveReport:
    """Move models to another folder, which becomes a hub cache of its own.

    Each repo is copied and hashed there first, and appears by one rename; then its folder here
    gives way to a link, and its bytes are freed. Interrupted anywhere, it is complete at one of the
    places, and the same call continues.

    Args:
        session: the hub cache, and the configuration whose keys and limits count.
        destination: a folder; it is made if the one above it exists.
        names: keys or repo ids, `datasets/owner/name`; every repo if none.
        options: whether to leave links, and whether only to plan.
        progress: shows the progress.

    Raises:
        UsageError: the destination cannot be one, or a name is not a complete repo.
        UnknownModelError: nothing of a name is in the cache.
        SourceDamagedError: something of it is damaged; nothing is moved.
        SpaceError: the destination has too little room.
        BusyError: another process moves to the same place.
        CacheError: the destination cannot be written.
        AwayError: a name, or what was moved to the destination before, is on a drive that is not
            mounted.
    """
    begun = time.monotonic()
    options = options or MoveOptions()
    state, target, choice, report = prepare_move(session, destination, names, link=options.link)
    if not options.dry_run:
        expire(session)
    place = target.path
    change_place.check_room(place, report.plan.needs, "make room there, or name fewer models")
    if not (options.dry_run or report.in_use):
        if report.plan.actions or choice.rest or os.path.lexists(target.staged_at("")):
            forward = [*names, *([] if options.link else ["--no-link"])]
            again, back = (
                session.command("move", destination, *words) for words in (forward, ["--undo"])
            )
            progress = progress or Progress()
            with (
                continued_by(progress, f"'{again}' continues, '{back}' takes it back"),
                locked_destination(place, state.dir) as tree,
            ):
                check_same(target, tree)
                report = Mover(state, target, report, tree).run(choice.rest, progress)
        else:
            receipt = FreeSpace(state.dir).measured(Receipt(()))
            report = msgspec.structs.replace(report, receipt=receipt)
    return msgspec.structs.replace(report, seconds=time.monotonic() - begun)


class PreparedMove(NamedTuple):
    """A move that was planned and found to be possible, but for the room that it needs.

    Args:
        state: the cache.
        target: what is at the destination.
        choice: which repos are to be moved.
        report: the answer before anything is done.
    """

    state: CacheState
    target: Destination
    choice: MoveChoice
    report: MoveReport


def prepare_move(
    session: Session, destination: str, names: Sequence[str], *, link: bool
) -> PreparedMove:
    """Plan a move; nothing is changed.

    Args:
        session: the hub cache, and the configuration whose keys count.
        destination: the folder to move to.
        names: keys or repo ids; every repo if none.
        link: leave links in the cache.

    Raises:
        VlmcacheError: as of `move`.
    """
    place = find_destination(session.cache.dir, destination)
    state = scan(real_path(session.cache.dir))
    check_mounted(state, place)
    target = read_destination(state, place)
    choice = choose_repos(state, session.config, target, names)
    repos = {repo.folder: repo for repo in state.repos}
    chosen = [repos[folder] for folder in choice.folders]
    check_sources(chosen, target)
    plan = plan_move(state, target, choice, link=link)
    usage = who_uses(state, set(choice.folders))
    report = msgspec.structs.replace(
        planned_report(state.dir, place, plan, link=link),
        in_use=repos_in_use(state, chosen, usage),
        hidden_processes=usage.hidden,
        contained=in_container(),
    )
    _check_source(chosen, state.dir)
    check_filesystems(chosen, state, place)
    if chosen:
        check_writable(place, "mount it so that it can be, or name a folder of yours")
    return PreparedMove(state, target, choice, report)


def _check_source(repos: Sequence[Repo], cache_dir: str) -> None:
    """Make sure that the repos can be replaced by links, before anything is copied.

    Raises:
        CacheError: the cache cannot be changed.
    """
    if repos and not os.access(cache_dir, os.W_OK | os.X_OK):
        raise CacheError(
            f"nothing was moved: {cache_dir} cannot be changed, and what is moved has to leave it",
            "'vlmcache backup FOLDER/' can copy it",
        )


def check_filesystems(repos: Sequence[Repo], state: CacheState, place: str) -> None:
    """Make sure that repos can be put to their new place, and renamed at their old one."""
    if not repos:
        return
    names = [
        layout.file_path(layout.snapshot_path(repo.folder, revision.commit), file.name)
        for repo in repos
        for revision in repo.revisions
        for file in revision.files
    ]
    names += (layout.ref_path(repo.folder, ref) for repo in repos for ref in repo.refs)
    sizes = [blob.size for repo in repos for blob in repo.blobs.values()]
    revisions = [revision for repo in repos for revision in repo.revisions]
    sizes += (file.size for revision in revisions for file in revision.files_of("copy"))
    links = any(revision.files_of("link") for revision in revisions)
    abilities.check_filesystem(place, abilities.Needs(names, max(sizes, default=0), links))
    abilities.check_renames(state.dir, [repo.folder for repo in repos])


def undo_move(session: Session, destination: str, *, dry_run: bool = False) -> MoveReport:
    """Take back every unfinished move of this cache to a destination.

    Args:
        session: whose hub cache it is.
        destination: where it was moved to.
        dry_run: only plan.

    Raises:
        UsageError: the destination cannot be one.
        BusyError: the move is still running.
        CacheError: something cannot be written.
    """
    begun = time.monotonic()
    place = find_destination(session.cache.dir, destination)
    # Planned under the lock: a move that ends meanwhile must not be taken for an unfinished one.
    is_begun = os.path.lexists(layout.staged_path(place)) or bool(read_moves(place))
    cache_dir = real_path(session.cache.dir)
    with contextlib.ExitStack() as stack:
        tree: Tree | None = None
        if is_begun and not dry_run:
            tree = stack.enter_context(locked_destination(place, cache_dir))
        state = scan(cache_dir)
        target = read_destination(state, place)
        value = planned_report(state.dir, place, plan_undo(state, target))
        if dry_run:
            return value
        receipt = Receipt(())
        if tree is not None:
            check_same(target, tree)
            stack.enter_context(refusals(place))
            receipt = take_moves_back(value, target.unfinished(state.dir), tree)
    repos = tuple(msgspec.structs.replace(repo, state="taken-back") for repo in value.repos)
    return msgspec.structs.replace(
        value, repos=repos, receipt=receipt, seconds=time.monotonic() - begun
    )


def planned_report(cache_dir: str, place: str, plan: Plan, *, link: bool = True) -> MoveReport:
    """Return the answer before anything is done."""
    setting = f"export HF_HUB_CACHE={shell_words(place)}"
    return MoveReport(cache_dir, place, link, setting, planned_repos(plan), plan)


def planned_repos(plan: Plan) -> tuple[MovedRepo, ...]:
    """Return a row for each repo of a plan."""
    rows: dict[str, MovedRepo] = {}
    for action in plan.actions:
        if isinstance(action, Move | PlaceLink):
            size = action.size if isinstance(action, Move) else 0
            row = repo_row(action.path, action.destination, size=size)
        elif isinstance(action, PutBack) or (
            isinstance(action, RemoveTree) and action.kind in ("leftover", "repo") and action.repo
        ):
            row = repo_row(action.path)
        else:
            continue
        rows.setdefault(os.path.basename(row.path), row)
    return tuple(rows.values())


@contextlib.contextmanager
def locked_destination(place: str, cache_dir: str) -> Iterator[Tree]:
    """Keep other moves to the same destination away, and yield its folder, opened.

    A folder that root makes is shared as the cache is.

    Raises:
        BusyError: another process moves to it.
        SpaceError: the disk is full.
        CacheError: it cannot be written.
    """
    path = layout.staged_path(place, layout.LOCK_SUFFIX)
    tree, above = Tree(place, patience=0.0), Tree(os.path.dirname(place))
    lock = Lock(tree, path)
    with refusals(place):
        above.check_real()
        if not above.exists(place):
            above.make_folders(place, like=CacheTree(cache_dir))
        tree.check_real()
        staged = Tree(tree)
        staged.gives = False
        staged.make_folders(os.path.dirname(path), 0o700)
        try:
            lock.take()
        except InUseError as error:
            raise BusyError(
                f"another process moves to {place}", "wait until it ends, then move again"
            ) from error
    try:
        yield tree
    finally:
        lock.release(remove=True)
        with contextlib.suppress(OSError):
            tree.rmdir(os.path.dirname(path))


def relink(
    session: Session,
    folder: str,
    *,
    dry_run: bool = False,
    confirm: Callable[[MoveReport], bool] | None = None,
) -> MoveReport:
    """Make the links of moved repos lead to where the repos are now; nothing else changes.

    Each link that leads nowhere is rewritten if a repo of its name is at the folder, and the note
    there says that it came from this cache.

    Args:
        session: whose hub cache it is.
        folder: where the repos are now.
        dry_run: only plan.
        confirm: is called with the plan, and returns whether to continue.

    Raises:
        UsageError: the folder cannot be one.
        UnknownModelError: none of these repos is at the folder.
        NotMovedError: nothing that can be trusted says that they came from this cache.
        UnconfirmedError: `confirm` said no.
        CacheError: the cache cannot be written.
    """
    begun = time.monotonic()
    place = find_destination(session.cache.dir, folder)
    state = scan(real_path(session.cache.dir))
    lost: list[Repo] = []
    linked: list[Repo] = []
    for repo in state.repos:
        if linked_destination(state.dir, repo.folder) is None:
            continue
        if repo.moved_to == place and os.path.isdir(repo.path):
            linked.append(repo)
        elif not os.path.isdir(repo.path):
            lost.append(repo)
    tree = CacheTree(place)
    relinkable = [repo for repo in lost if can_relink(state.dir, repo.folder, tree)]
    if not relinkable and not linked:
        raise _nothing_to_relink(lost, place)
    reason = "its drive is mounted elsewhere now"
    plan = Plan(
        tuple(
            PlaceLink(repo.id, repo.path, os.path.join(place, repo.folder), reason)
            for repo in relinkable
        ),
        kept=tuple(Kept(repo.path, repo.id, "its link leads there already") for repo in linked),
    )
    value = planned_report(state.dir, place, plan)
    if dry_run:
        return value
    require_consent(confirm if relinkable else None, value, "was changed")
    if relinkable and identity_of(place) != tree.identity:
        raise ChangedError(f"another folder is in its place by now: {place}", "run it again")
    space = FreeSpace(state.dir)
    rows: list[MovedRepo] = []
    outcomes: list[Outcome] = []
    try:
        for row, repo in zip(value.repos, relinkable, strict=True):
            if os.path.isdir(repo.path) or not os.path.islink(repo.path):
                changed = ChangedError(
                    f"its link leads to a model now: {repo.path}", "run it again"
                )
                rows.append(repo_row(repo.path, row.destination, error=changed))
                outcomes.append(Outcome("place-link", repo.path, "stale", detail=changed.message))
                continue
            change_place.replace_repo_link(Tree(state.dir), repo.path, row.destination)
            write_record(state.dir, repo.folder, place)
            rows.append(repo_row(repo.path, row.destination, "relinked"))
            outcomes.append(Outcome("place-link", repo.path, "done"))
        for repo in linked:
            # A run that was interrupted may have left the record as it was.
            if read_record(state.dir, repo.folder) is None:
                write_record(state.dir, repo.folder, place)
    except OSError as error:
        raise change_place.disk_failure(error, state.dir) from error
    return msgspec.structs.replace(
        value,
        repos=tuple(rows),
        receipt=space.measured(Receipt(tuple(outcomes))),
        seconds=time.monotonic() - begun,
    )


def _nothing_to_relink(lost: Sequence[Repo], place: str) -> VlmcacheError:
    """Return why no link can be rewritten."""
    if not lost:
        return UnknownModelError(
            "every link of this cache leads to its model: nothing was relinked"
        )
    present = [repo for repo in lost if os.path.isdir(os.path.join(place, repo.folder))]
    if present:
        return NotMovedError(
            f"{present[0].id} is at {place}, but no note there that can be trusted says that it "
            "was moved from this cache",
            f"the note would be {note_path(place, present[0].folder)}; 'vlmcache rm' removes the "
            "link",
        )
    names = ", ".join(repo.id for repo in lost[:5]) + and_more(len(lost) - 5)
    return UnknownModelError(
        f"{place} holds none of the models that are away: {names}",
        "name the folder that has their models--… folders in it",
    )
