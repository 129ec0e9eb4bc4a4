"""`rm`: models, single revisions, variants or files, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

import msgspec

from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.usage import Usage, distinct, find_users, in_container, who_uses
from vlmcache.change.known import (
    Known,
    forget_missing,
    moved_repos,
    scan_places,
    users_of,
)
from vlmcache.change.names import NamingOptions, Target, find_targets
from vlmcache.change.plan import Kept, Plan
from vlmcache.change.remove import apply_removals
from vlmcache.change.trash_room import expire
from vlmcache.change.waste import kept_in_use
from vlmcache.commands.remove.choose import ModelFacts, numbers_of, offered_models
from vlmcache.commands.remove.facts import (
    copies_of,
    inodes_below,
    needed_elsewhere,
    pinned_models,
)
from vlmcache.commands.remove.keeping import decide_keeping, keep_of
from vlmcache.commands.remove.offered import Choose, IsKept
from vlmcache.commands.remove.plan import plan_targets, targets_at
from vlmcache.commands.remove.values import Confirm, Removal, RemoveOptions
from vlmcache.config import Session, parse_page
from vlmcache.errors import UsageError, require_consent
from vlmcache.units import command


def remove(
    session: Session,
    names: Sequence[str],
    options: RemoveOptions | None = None,
    *,
    dry_run: bool = False,
    confirm: Confirm | None = None,
    choose: Choose | None = None,
) -> Removal:
    """Remove models, single revisions, variants or files, and nothing else.

    Args:
        session: the cache, and the configuration whose keys count as names.
        names: keys, repo ids with `@revision` and `:VARIANT` or without, or paths (see
            `change.names`); none if `choose` is to say what.
        options: how to remove them.
        dry_run: only plan.
        confirm: is given the plan, and returns whether to continue; without it nobody is asked.
        choose: is given all models, and returns which of them to remove.

    Returns:
        The plan, and the receipt if it was carried out.

    Raises:
        UnknownModelError: nothing of a name is in the cache.
        UnconfirmedError: `confirm` said no.
        UsageError: an address is one of a file: the complete model is not what it says.
        ConfigError: the cache path is not a folder.
        CacheError, SpaceError: it is to be kept, and the trash cannot be written.
    """
    options = options or RemoveOptions()
    environment, force = session.environment, options.force
    for name in names:
        page = parse_page(name, session.config.hub)
        if page is not None and page.path is not None:
            raise UsageError(
                f"{name} is the address of a file or folder, and names no complete model",
                f"type {command('rm', page.name, '--include', page.path)}",
            )
    if not dry_run:
        expire(session)
    state = scan(session.cache.dir)
    if choose is None:
        naming = NamingOptions(options.revision, environment.folder, options.include, variants=True)
        targets = find_targets(state, session.config, names, naming)
        moved = moved_repos(state)
        places = scan_places(
            state, {moved[target.folder] for target in targets if target.folder in moved}
        )
    else:

        def is_kept(plan: Plan) -> bool:
            paths = [action.path for action in plan.actions]
            reached = {
                place
                for place in moved_repos(state).values()
                if any(path.startswith(os.path.join(place, "")) for path in paths)
            }
            return decide_keeping(
                session, plan, reached, options.trash, asked=confirm is not None
            ).kept

        targets, places = _chosen(session, state, choose, is_kept, force=force)
    plan = plan_targets(state, places, targets)
    plan.log("remove")
    usage, in_use = _find_use(state, places.values(), targets)
    keeping = decide_keeping(session, plan, places, options.trash, asked=confirm is not None)
    removal = Removal(
        plan,
        in_use=in_use,
        hidden_processes=usage.hidden,
        contained=in_container(),
        copies=() if keeping.kept else copies_of(environment, state, plan),
        findings=needed_elsewhere(state, plan),
        cache=state.dir,
        trash=keeping,
    )
    if dry_run or (in_use and not force):
        return removal.with_problem(None) if force else removal
    require_consent(confirm if removal.plan.actions else None, removal, "was removed")
    if confirm is not None and not force:
        # The question may have been open for hours.
        usage, in_use = _find_use(state, places.values(), targets)
        if in_use:
            return msgspec.structs.replace(removal, in_use=in_use)
    keep = keep_of(removal, state, places.values())
    receipt = apply_removals(removal.plan, state, in_use=usage.files, force=force, keep=keep)
    if keep is None:
        forget_missing(environment, state)
    return msgspec.structs.replace(removal, receipt=receipt)


def _chosen(
    session: Session, state: CacheState, choose: Choose, is_kept: IsKept, *, force: bool
) -> tuple[list[Target], dict[str, CacheState]]:
    """Return the repos that a person chooses, and the places to which they were moved.

    Raises:
        UnconfirmedError: none is chosen.
    """
    known = Known(session.environment, state)
    moved = moved_repos(state)
    places = scan_places(state, set(moved.values()))
    every = [Target(repo.id, repo.folder) for repo in state.repos]
    facts = ModelFacts(
        known.used,
        known.needs,
        pinned_models(session.config, state),
        _find_use(state, places.values(), every)[1],
        force,
    )
    offer, targets = offered_models(state, places, facts, is_kept)
    chosen = [targets[number] for number in numbers_of(offer, choose)]
    reached = {moved.get(target.folder or "") for target in chosen}
    return chosen, {path: place for path, place in places.items() if path in reached}


def _only(repo: Repo, files: Mapping[str, Collection[str]] | None) -> Repo:
    """Return a repo with no other content than some files of it."""
    if files is None:
        return repo
    revisions = tuple(
        msgspec.structs.replace(
            revision,
            files=tuple(file for file in revision.files if file.name in files[revision.commit]),
        )
        for revision in repo.revisions
        if revision.commit in files
    )
    blobs = {file.blob for revision in revisions for file in revision.files}
    return msgspec.structs.replace(
        repo,
        revisions=revisions,
        blobs={name: blob for name, blob in repo.blobs.items() if name in blobs},
        strays=(),
    )


def _find_use(
    state: CacheState, places: Collection[CacheState], targets: Sequence[Target]
) -> tuple[Usage, tuple[Kept, ...]]:
    """Return who uses what of the targets, here and where `move` has brought them."""
    folders = {target.folder for target in targets if target.folder is not None}
    usage = users_of(state, folders)
    moved = moved_repos(state)
    in_use = _targets_in_use(state, targets, usage)
    files = usage.files
    for place in places:
        at_place = who_uses(place, folders)
        files = files | at_place.files
        # The locks of what is used through a link are here.
        at_place = Usage(at_place.files, at_place.locks | usage.locks, at_place.hidden)
        in_use += _targets_in_use(place, targets_at(targets, moved, place.dir), at_place)
    return Usage(files, usage.locks, usage.hidden), tuple(in_use)


def _targets_in_use(state: CacheState, targets: Sequence[Target], usage: Usage) -> list[Kept]:
    in_use: list[Kept] = []
    for target in targets:
        if target.stray is not None:
            users = distinct(find_users(inodes_below(target.stray.path)).files.values())
            if users:
                in_use.append(Kept(target.stray.path, None, "in use", users))
        repo = state.repo_in(target.folder)
        if repo is not None and repo.linked_to is None:
            busy = usage.of_repo(state, _only(repo, target.files))
            if busy is not None:
                in_use.append(kept_in_use(repo.path, repo, busy))
    return in_use
