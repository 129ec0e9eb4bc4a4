"""`clean`: waste, and what was not used for a long time."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Sequence

import msgspec

from vlmcache import units
from vlmcache.cache.completeness import judge_revision
from vlmcache.cache.entries import STALE_AFTER
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState
from vlmcache.cache.trash import find_needs, read_trash
from vlmcache.cache.usage import Usage, content_of, in_container
from vlmcache.change.known import Known, forget_missing, users_of
from vlmcache.change.names import Target, find_targets
from vlmcache.change.needed import UNUSED_AFTER
from vlmcache.change.plan import Outcome, Plan, Receipt, Remove, RemoveTree, freed_by, joined
from vlmcache.change.removal_plan import plan_removal, whole_repos
from vlmcache.change.removals import Key, Protected
from vlmcache.change.waste import Facts, busy_repos
from vlmcache.commands.remove.facts import copies_of, needed_elsewhere, pinned_models
from vlmcache.commands.remove.offered import Choose
from vlmcache.commands.remove.plan import in_steps, plan_cleaning
from vlmcache.commands.remove.values import CleanOptions, Confirm, Removal, UnknownUse
from vlmcache.config import CacheLocation, Config, Session, options_in_force
from vlmcache.errors import ConfigError, UsageError, require_consent
from vlmcache.units import counted


def clean(
    session: Session,
    options: CleanOptions | None = None,
    *,
    dry_run: bool = False,
    confirm: Confirm | None = None,
    choose: Choose | None = None,
) -> Removal:
    """Remove waste, and what the options ask for in addition to it.

    Waste is what provably nobody needs (see `change.needed`): revisions that a newer one replaced
    and nobody used for 30 days, blobs that nothing links to or lists, downloads that nobody has
    continued for 30 days, leftovers. Then, without options, the least recently used models are
    removed until the cache is within `vlmcache.max_size` of config.yaml. Nothing that a process
    uses is removed.

    Args:
        session: the cache, and the configuration whose models are not evicted unless named.
        options: what to remove in addition to waste.
        dry_run: only plan.
        confirm: is given the plan, and returns whether to continue; without it nobody is asked.
        choose: is given all that could be removed, and returns what of it to remove; only that is.

    Raises:
        UnknownModelError: a name to keep or to evict is not a model.
        UnconfirmedError: `confirm` said no.
        ConfigError: the cache path is not a folder, or another file on the search path of
            config.yaml cannot be read: models that it names could be evicted.
    """
    from vlmcache.change.remove import apply_removals  # status plans a cleaning without them
    from vlmcache.change.space import FreeSpace
    from vlmcache.commands.remove.keeping import keep_of

    options = options or CleanOptions()
    if options.trash and options.free is not None:
        raise UsageError(
            "what the trash keeps frees nothing", "leave out --trash, or what is to be free"
        )
    known, removal = planned_cleaning(session, options, choose, dry_run=dry_run)
    state, plan, usage = known.state, removal.plan, known.usage
    if dry_run:
        return removal
    if not plan.actions:
        return msgspec.structs.replace(removal, receipt=FreeSpace(state.dir).measured(Receipt(())))
    require_consent(confirm, removal, "was removed")
    if confirm is not None:
        # The question may have been open for hours.
        usage = users_of(state)
    keep = keep_of(removal, state, [place.state for place in known.places])
    if options.free is None:
        receipt = apply_removals(plan, state, in_use=usage.files, keep=keep)
    else:
        receipt = _apply_in_steps(known, plan, options.free, usage)
    if keep is None:
        forget_missing(session.environment, state)
    if options.everything and keep is None:
        receipt = _with_emptied_trash(session, receipt)
    return msgspec.structs.replace(removal, receipt=receipt)


def with_archive(options: CleanOptions, config: Config, folder: str | None) -> CleanOptions:
    """Return options that say where models go instead of being evicted.

    Args:
        options: what is asked for; without an age or a size, the configured one counts.
        config: its `archive` counts if models are to give way.
        folder: what `--to` names.

    Raises:
        UsageError: all is to be deleted, and nothing is.
    """
    if options.everything:
        if folder is not None:
            raise UsageError("--to deletes no model, and --all deletes all: use one of them")
        return options
    if not options.evicts:
        options = msgspec.structs.replace(options, max_size=config.limits.max_size)
    if folder is None and options.evicts:
        folder = config.archive
    return msgspec.structs.replace(options, to=folder)


def planned_cleaning(
    session: Session,
    options: CleanOptions,
    choose: Choose | None = None,
    *,
    dry_run: bool = False,
) -> tuple[Known, Removal]:
    """Return what is known of the cache, and the answer of `clean` before anything is done.

    What has expired in the trash is removed first, unless `dry_run` is set.

    Raises:
        UnknownModelError: a name to keep or to evict is not a model.
        ConfigError: as of `clean`.
    """
    from vlmcache.change.trash_room import expire
    from vlmcache.commands.remove.keeping import decide_keeping
    from vlmcache.commands.remove.side_caches import measured_caches, with_side_caches

    environment, config, location = session
    if config.unread is not None:
        raise ConfigError(
            f"nothing was removed: which models another configuration names is not known: "
            f"{config.unread}",
            "repair or remove that file",
        )
    if not dry_run:
        expire(session)
    state = scan(location.dir)
    known = Known(environment, state)
    usage = known.usage
    if choose is None:
        plan, missed = plan_clean(known, config, options, usage)
    else:
        plan, missed = _plan_chosen(known, config, options, usage, choose), 0
    plan.log("clean")
    caches = measured_caches(environment) if choose is None else ()
    plan, used_caches = with_side_caches(plan, caches, options, environment, state.dir)
    places = {place.state.dir for place in known.places}
    keeping = decide_keeping(session, plan, places, bool(options.trash), asked=False)
    return known, Removal(
        plan,
        in_use=tuple(kept for kept in plan.kept if kept.processes) + used_caches,
        missed_by=missed,
        hidden_processes=usage.hidden,
        contained=in_container(),
        side_caches=caches,
        copies=() if keeping.kept else copies_of(environment, state, plan),
        cache=state.dir,
        unknown_use=_unknown_use(config, location, plan),
        trash=keeping,
        findings=() if choose is None else needed_elsewhere(state, plan),
    )


def _with_emptied_trash(session: Session, receipt: Receipt) -> Receipt:
    """Empty the trash too, and return the receipt of all that was removed."""
    from vlmcache.change.space import free_bytes
    from vlmcache.change.trash import removals_in
    from vlmcache.change.trash_room import empty_trash

    emptied = empty_trash(session, removals_in(session.cache.dir))
    return msgspec.structs.replace(
        receipt,
        outcomes=(*receipt.outcomes, *emptied.outcomes),
        freed=receipt.freed + emptied.freed,
        free_after=free_bytes(session.cache.dir),
    )


def _apply_in_steps(known: Known, plan: Plan, free: int, usage: Usage) -> Receipt:
    """Carry a plan out that is to free a disk, one evicted model after the other.

    Once it shows that the disk gets nothing back, the models that are left stay.
    """
    from vlmcache.change.remove import apply_removals
    from vlmcache.change.space import FreeSpace, Reclaim

    state = known.state
    space, reclaim = FreeSpace(state.dir), Reclaim(state.dir, free)
    steps = in_steps(plan, state.dir, known.used)
    inside = os.path.join(state.dir, "")
    outcomes: list[Outcome] = []
    freed, stopped = 0, None
    for number, step in enumerate(steps, 1):
        reclaim.expect(_removed_content(state, step))
        receipt = apply_removals(step, state, in_use=usage.files)
        outcomes += receipt.outcomes
        freed += receipt.freed
        here = (outcome.freed for outcome in receipt.outcomes if outcome.path.startswith(inside))
        stopped = reclaim.why_stop(sum(here)) if number < len(steps) else None
        if stopped is not None:
            stopped += f"; {counted(len(steps) - number, 'model')} of the plan stayed"
            break
    return space.measured(Receipt(tuple(outcomes), freed, stopped=stopped))


def _removed_content(state: CacheState, plan: Plan) -> dict[tuple[int, int], str]:
    """Return (device, inode) -> path of the files with content that a plan removes."""
    removals = [action for action in plan.actions if isinstance(action, Remove | RemoveTree)]
    repos, complete = {action.repo for action in removals}, whole_repos(plan)
    inodes = {
        action.expected.inode
        for action in removals
        if action.kind == "blob" and action.expected is not None
    }
    return {
        key: path
        for repo in state.repos
        if repo.id in repos and repo.linked_to is None
        for key, path in content_of(state, repo)
        if repo.folder in complete or key[1] in inodes
    }


def _unknown_use(config: Config, location: CacheLocation, plan: Plan) -> UnknownUse | None:
    if not plan.unknown_use:
        return None
    options = options_in_force(config, location)
    return UnknownUse(
        plan.unknown_use,
        units.command("clean", "--older-than", f"{UNUSED_AFTER / 86400:.0f}d", *options),
    )


def plan_clean(
    known: Known,
    config: Config,
    options: CleanOptions | None = None,
    usage: Usage | None = None,
) -> tuple[Plan, int]:
    """Return the plan of `clean` for a scanned cache, and the bytes by which it misses its goal.

    Args:
        known: the cache, and what is known of it.
        config: its models are not evicted unless named.
        options: what to remove in addition to waste.
        usage: who uses what now; nobody uses anything if not given.
    """
    options = options or CleanOptions()
    state = known.state
    plans = [_plan_clean_at(place, config, options, usage) for place in known.places]
    if not options.evicts and not options.everything:
        options = msgspec.structs.replace(options, max_size=config.limits.max_size)
    plan, missed = plan_cleaning(state, options, _facts(known, config, options, usage))
    return joined([*plans, plan]), missed


def _facts(known: Known, config: Config, options: CleanOptions, usage: Usage | None) -> Facts:
    """Return what a plan is made from: of the cache, or of what `move` has brought to one place."""
    state, cache = known.state, known.cache or known
    kept = kept_models(config, cache.state, options.keep)
    evict = options.evict
    free_now: int | None = None
    if known.cache is None:
        with contextlib.suppress(OSError):
            free_now = shutil.disk_usage(state.dir).free
    else:
        evict = ()
        if usage is not None:
            usage = Usage(usage.files | known.usage.files, usage.locks, usage.hidden)
        # What is in use in the cache may need what was moved.
        busy = busy_repos(cache.state, usage or Usage()).keys()
        active = busy - {repo.folder for repo in state.repos}
        kept = Protected(kept.revisions, dict.fromkeys(active, "in use") | kept.repos)
    return Facts(
        cache.state.scanned_at,
        free_now,
        known.used,
        pinned=pinned_models(config, state, evict),
        kept=kept,
        usage=usage or Usage(),
        needs=known.needs,
        evidence=known.evidence,
        duplicates=_duplicates(state) if options.duplicates else {},
        trash=find_needs(read_trash(state.dir)),
    )


def _plan_clean_at(
    place: Known, config: Config, options: CleanOptions, usage: Usage | None
) -> Plan:
    """Return the plan of `clean` for the repos that `move` has brought to one place.

    Their bytes count for no goal, which is this disk's.
    """
    assert place.cache is not None
    facts = _facts(place, config, options, usage)
    options = msgspec.structs.replace(options, max_size=None, free=None)
    plan, _ = plan_cleaning(place.state, options, facts)
    return _with_links(place.cache.state, place.state, plan)


def _with_links(state: CacheState, place: CacheState, plan: Plan) -> Plan:
    """Return the plan for a place without its locks, and with the links to it that are removed."""
    actions = tuple(
        action
        for action in plan.actions
        if not (isinstance(action, Remove | RemoveTree) and action.kind in ("lock", "locks"))
    )
    plan = msgspec.structs.replace(plan, actions=actions, frees=freed_by(actions))
    links = [Target(folder, folder) for folder in sorted(whole_repos(plan))]
    return joined([plan, plan_removal(state, links, why=f"it is removed at {place.dir}")])


def _plan_chosen(
    known: Known, config: Config, options: CleanOptions, usage: Usage, choose: Choose
) -> Plan:
    """Return the plan that removes what a person chooses of all that could be removed.

    Raises:
        UnconfirmedError: that is nothing.
    """
    from vlmcache.commands.remove.choose import Site, numbers_of, offered_waste

    state = known.state
    every = msgspec.structs.replace(options, duplicates=True)
    sites = [Site(state, _facts(known, config, every, usage), lambda plan: plan)]
    for place in known.places:
        finish = functools.partial(_with_links, state, place.state)
        sites.append(Site(place.state, _facts(place, config, every, usage), finish))
    unused = UNUSED_AFTER if options.older_than is None else options.older_than
    idle = max(options.older_than or 0, STALE_AFTER)
    offer = offered_waste(sites, unused, idle, lambda _plan: bool(options.trash))
    return offer.plan(numbers_of(offer, choose))


def kept_models(config: Config, state: CacheState, names: Sequence[str]) -> Protected:
    """Return the revisions and repos of which `--keep` wants nothing to be removed.

    Raises:
        UnknownModelError: a name is not a model.
        UsageError: it is something else.
    """
    if not names:
        return Protected()
    revisions: dict[Key, str] = {}
    repos: dict[str, str] = {}
    folders = {repo.folder for repo in state.repos}
    # A configured model that is not cached needs no keeping; any other name would be a mistake.
    absent = {
        name
        for model in config.models.values()
        if not state.repos_called(model.repo)
        for name in (model.key, model.repo)
        if name not in folders and not state.repos_called(name.partition("@")[0])
    }
    for target in find_targets(state, config, [name for name in names if name not in absent]):
        if target.folder is None:
            raise UsageError(f"--keep {target.name} is not a model")
        why = f"kept by --keep {target.name}"
        if target.commit is not None:
            revisions[target.folder, target.commit] = why
        else:
            repos[target.folder] = why
    return Protected(revisions, repos)


def _duplicates(state: CacheState) -> dict[Key, dict[str, str]]:
    """Return the second weight formats of revisions that are complete without them.

    Each is a file's name -> where the same weights are.
    """
    from vlmcache.cache.duplicates import find_duplicates

    duplicates: dict[Key, dict[str, str]] = {}
    for repo in state.repos:
        if repo.type != "model" or repo.linked_to is not None:
            continue
        for revision in repo.revisions:
            in_base = {
                file.name
                for file in revision.files
                if file.blob in repo.blobs and repo.blobs[file.blob].base is not None
            }
            # What is in a base takes no room here.
            found = find_duplicates(revision)
            extra = {name: where for name, where in found.items() if name not in in_base}
            rest = tuple(file for file in revision.files if file.name not in extra)
            without = msgspec.structs.replace(revision, files=rest)
            if extra and judge_revision(repo, without).state == "cached":
                duplicates[repo.folder, revision.commit] = extra
    return duplicates
