"""`attach` and `detach`: links to what a base has are added to this cache, or removed from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.base import recorded_bases
from vlmcache.cache.lending import lent_by
from vlmcache.cache.moved import away_remedy, away_words
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.tree import CacheTree
from vlmcache.cache.usage import who_uses
from vlmcache.change.base import RepoLinks, attach_repo, base_at, forget_bases
from vlmcache.change.known import Known, forget_missing
from vlmcache.change.place import disk_failure
from vlmcache.change.plan import Attach, Failure, Outcome, Plan, Receipt, Result
from vlmcache.change.remove import apply_removals
from vlmcache.change.space import FreeSpace
from vlmcache.change.trash_room import expire
from vlmcache.change.tree import Tree
from vlmcache.change.waste import kept_in_use
from vlmcache.commands.attach.plan import plan_attach, plan_detach
from vlmcache.commands.attach.values import AttachedRepo, AttachReport, Confirm
from vlmcache.config import Session
from vlmcache.environment import user_config
from vlmcache.errors import (
    ChangedError,
    InUseError,
    UsageError,
    VlmcacheError,
    reason_of,
    require_consent,
)
from vlmcache.paths import real_path
from vlmcache.units import counted

_MOST_ABSENT = 10_000


def attach(
    session: Session,
    base: str | None = None,
    *,
    dry_run: bool = False,
) -> AttachReport:
    """Link all that a base has and this cache does not have into this cache.

    Args:
        session: the cache, and the base that the user's configuration names.
        base: the folder of the base; the configured one if not given.
        dry_run: only plan.

    Returns:
        The plan, and the receipt if it was carried out.

    Raises:
        UsageError: no base is named, or it is not a cache, or it is this very cache.
    """
    if not dry_run:
        expire(session)
    state = scan(session.cache.dir)
    folder = _base_folder(session, state, base)
    beneath = Known(session.environment, scan(folder)).state
    lent = {repo.folder: lent_by(beneath, repo) for repo in beneath.repos}
    attaching = plan_attach(state, beneath, base_at(folder), lent, dict(_absent(beneath)))
    attaching.plan.log("attach")
    rows = tuple(_row(action, beneath) for action in attaching.plan.actions)
    report = AttachReport(
        state.dir,
        folder,
        rows,
        attaching.plan,
        unchanged=attaching.unchanged,
    )
    if dry_run or not attaching.links:
        return report if dry_run else msgspec.structs.replace(report, receipt=Receipt(()))
    space = FreeSpace(state.dir)
    cache = Tree(state.dir)
    outcomes: list[Outcome] = []
    done: list[AttachedRepo] = []
    for links, row in zip(attaching.links, rows, strict=True):
        outcome, error = _attach_one(cache, links, row.path)
        outcomes.append(outcome)
        if error is None:
            done.append(msgspec.structs.replace(row, state="attached"))
        else:
            done.append(msgspec.structs.replace(row, state="failed", error=Failure.of(error)))
    receipt = space.measured(Receipt(tuple(outcomes)))
    return msgspec.structs.replace(report, repos=tuple(done), receipt=receipt)


def _attach_one(cache: Tree, links: RepoLinks, path: str) -> tuple[Outcome, VlmcacheError | None]:
    problem: VlmcacheError
    try:
        stale = attach_repo(cache, links)
    except VlmcacheError as error:
        problem = error
    except OSError as error:
        problem = disk_failure(error, path)
    else:
        if not stale:
            return Outcome("attach", path, "done"), None
        problem = ChangedError(
            f"{counted(len(stale), 'file')} changed meanwhile: {stale[0]}", "attach again"
        )
    result: Result = "busy" if isinstance(problem, InUseError) else "failed"
    result = "stale" if isinstance(problem, ChangedError) else result
    return Outcome("attach", path, result, detail=problem.message), problem


def _row(action: object, base: CacheState) -> AttachedRepo:
    assert isinstance(action, Attach)
    repo = base.repo_in(os.path.basename(action.path))
    kind = repo.type if repo is not None else "model"
    return AttachedRepo(
        action.repo, kind, action.path, "planned", action.blobs, action.size, action.revisions
    )


def _absent(base: CacheState) -> Iterator[tuple[tuple[str, str], tuple[str, ...]]]:
    """Yield (repo folder, commit) and the names that the hub is known not to have there."""
    tree = CacheTree(base.dir)
    for repo in base.repos:
        for commit in repo.no_exist:
            if layout.COMMIT.fullmatch(commit) is None:
                continue
            top = repo.no_exist_path(commit)
            names: list[str] = []
            pending = [""]
            while pending and len(names) < _MOST_ABSENT:
                prefix = pending.pop()
                with contextlib.suppress(OSError):
                    for name in tree.names(os.path.join(top, prefix)):
                        path = os.path.join(prefix, name)
                        if os.path.isdir(os.path.join(top, path)):
                            pending.append(path)
                        elif layout.file_name_problem(path) is None:
                            names.append(path)
            if names:
                yield (repo.folder, commit), tuple(sorted(names))


def _base_folder(session: Session, state: CacheState, base: str | None) -> str:
    """Return the absolute path of the cache that is named as a base.

    Raises:
        UsageError: none is named, it is not a cache, or it is this one, or in it.
    """
    named = base or session.config.base
    if named is None:
        known = {folder for bases in recorded_bases(state.dir).values() for folder in bases}
        if len(known) != 1:
            several = f"several bases are attached: {', '.join(sorted(known))}"
            raise UsageError(
                several if known else "no base is named",
                f"'vlmcache attach FOLDER', or set base: in {user_config()}",
            )
        named = known.pop()
    path = os.path.normpath(session.environment.absolute(os.path.expanduser(named)))
    for folder in (path, os.path.join(path, "hub")):
        if _is_cache(folder):
            path = folder
            break
    else:
        if not os.path.isdir(path):
            raise _absent_base(state, path)
        try:
            os.listdir(path)
        except OSError as error:
            raise UsageError(
                f"the base cannot be read: {reason_of(error)}: {path}",
                "ask whoever manages it; 'vlmcache doctor' shows whose it is",
            ) from error
        raise UsageError(
            f"the base holds no models: {path}",
            "name the folder that holds models--owner--name",
        )
    own, other = real_path(state.dir), real_path(path)
    if f"{own}/".startswith(f"{other}/") or f"{other}/".startswith(f"{own}/"):
        raise UsageError(
            f"the base is this very cache, or in it: {path}",
            "name your own cache with --cache-dir or HF_HUB_CACHE",
        )
    return path


def _absent_base(state: CacheState, path: str) -> UsageError:
    for repo in state.repos:
        if repo.away is not None and repo.away.base and repo.away.destination == path:
            return UsageError(away_words(repo.away, repo.id), away_remedy(repo.away))
    return UsageError(f"the base does not exist: {path}", "is it mounted?")


def _is_cache(folder: str) -> bool:
    """Whether a folder holds repos, as a hub cache does."""
    try:
        return any(layout.parse_repo_folder(name) is not None for name in os.listdir(folder))
    except OSError:
        return False


def detach(
    session: Session,
    base: str | None = None,
    *,
    dry_run: bool = False,
    confirm: Confirm | None = None,
) -> AttachReport:
    """Remove the links into a base, and nothing else: the base itself need not exist.

    Args:
        session: the cache.
        base: the folder of the base; the only one if not given.
        dry_run: only plan.
        confirm: called with the plan, returns whether to continue; nobody is asked if `None`.

    Raises:
        UsageError: nothing of the cache is in that base, or one of several has to be named.
        UnconfirmedError: `confirm` said no.
    """
    if not dry_run:
        expire(session)
    state = scan(session.cache.dir)
    records = recorded_bases(state.dir)
    folders = _named_bases(session, state, records, base)
    if not folders:
        return AttachReport(state.dir, None, (), Plan(()), None if dry_run else Receipt(()))
    recorded = {folder for folder, bases in records.items() if folders & set(bases)}
    plan = plan_detach(state, folders, recorded)
    plan.log("detach")
    rows = tuple(_attached_row(repo, folders) for repo in state.repos if _leads(repo, folders))
    usage = who_uses(state, {repo.folder for repo in state.repos if _leads(repo, folders)})
    in_use = tuple(
        kept_in_use(repo.path, repo, users)
        for repo in state.repos
        if _leads(repo, folders) and (users := usage.of_repo(state, repo)) is not None
    )
    report = AttachReport(state.dir, min(folders), rows, plan, in_use=in_use)
    if dry_run or in_use:
        return report
    require_consent(confirm if rows else None, report, "was detached")
    receipt = apply_removals(plan, state, in_use=usage.files)
    outcomes = list(receipt.outcomes)
    cache = Tree(state.dir)
    for folder in sorted(recorded | {os.path.basename(row.path) for row in rows}):
        try:
            forget_bases(cache, folder, folders)
        except (OSError, VlmcacheError) as caught:
            error = caught if isinstance(caught, VlmcacheError) else disk_failure(caught, folder)
            path = os.path.join(state.dir, folder)
            outcomes.append(Outcome("detach", path, "failed", detail=error.message))
    forget_missing(session.environment, state)
    receipt = msgspec.structs.replace(receipt, outcomes=tuple(outcomes))
    after = scan(state.dir)
    done = tuple(_outcome_of(row, after, folders, receipt) for row in rows)
    return msgspec.structs.replace(report, repos=done, receipt=receipt)


def _leads(repo: Repo, folders: set[str]) -> bool:
    return any(blob.base in folders for blob in repo.blobs.values())


def _attached_row(repo: Repo, folders: set[str]) -> AttachedRepo:
    blobs = [blob for blob in repo.blobs.values() if blob.base in folders]
    size = sum(blob.size for blob in blobs)
    return AttachedRepo(repo.id, repo.type, repo.path, "planned", len(blobs), size)


def _outcome_of(
    row: AttachedRepo, after: CacheState, folders: set[str], receipt: Receipt
) -> AttachedRepo:
    repo = after.repo_in(os.path.basename(row.path))
    if repo is None or not _leads(repo, folders):
        return msgspec.structs.replace(row, state="detached")
    inside = row.path + os.sep
    undone = [step for step in receipt.undone if f"{step.path}{os.sep}".startswith(inside)]
    why = next((step.detail for step in undone if step.detail), "links stay")
    busy = any(step.result == "busy" for step in undone)
    error = (InUseError if busy else ChangedError)(why, "detach again")
    return msgspec.structs.replace(row, state="failed", error=Failure.of(error))


def _named_bases(
    session: Session,
    state: CacheState,
    records: dict[str, tuple[str, ...]],
    base: str | None,
) -> set[str]:
    """Return the bases that are meant, as they are recorded; none if nothing is attached.

    Raises:
        UsageError: that base is not attached, or one of several has to be named.
    """
    known = {folder for bases in records.values() for folder in bases}
    known |= {folder for repo in state.repos for folder in repo.bases}
    if base is None:
        named = {session.config.base} & known
        if named or len(known) == 1:
            return {name for name in named if name} or known
        if not known:
            return set()
        names = ", ".join(sorted(known))
        raise UsageError(f"several bases are attached: {names}", "name one of them")
    path = os.path.normpath(session.environment.absolute(os.path.expanduser(base)))
    places = {path, os.path.join(path, "hub")}
    real = {real_path(place) for place in places}
    meant = {folder for folder in known if folder in places or real_path(folder) in real}
    if not meant:
        attached = f"; attached: {', '.join(sorted(known))}" if known else ""
        raise UsageError(
            f"nothing of this cache is in that base: {path}{attached}",
            "'vlmcache status' shows what is attached",
        )
    return meant
