"""`rm` and `clean`: look, plan, see who uses it, ask, remove, and tell what became of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import msgspec

from vlmcache import advice
from vlmcache.cache.beside import LIBRARIES, library_entries
from vlmcache.cache.completeness import judge_content, judge_revision, resolve
from vlmcache.cache.moves import read_moves, record_path
from vlmcache.cache.scan import allocated_bytes, rebased, scan
from vlmcache.cache.state import CacheState
from vlmcache.cache.usage import (
    AccessTimes,
    LastUse,
    Mount,
    Process,
    Usage,
    find_users,
    last_uses,
    mount_of,
    own_uses,
    who_uses,
)
from vlmcache.change.needed import UNUSED_AFTER, Evidence, in_question
from vlmcache.change.plan import (
    Expected,
    Kept,
    Outcome,
    Plan,
    Receipt,
    ReleaseShared,
    Remove,
    RemoveTree,
)
from vlmcache.change.planning import (
    Cleaning,
    Key,
    Protected,
    Target,
    joined,
    plan_cleaning,
    plan_moved,
    plan_removal,
    whole_repos,
)
from vlmcache.config import (
    CacheLocation,
    Config,
    Environment,
    find_model,
    hub_home,
    options_in_force,
    own_home,
    side_caches,
)
from vlmcache.errors import (
    ChangedError,
    ConfigError,
    ExitCode,
    PartlyError,
    UsageError,
    VlmcacheError,
)
from vlmcache.load.copies import KeptCopy, list_copies, remove_copies
from vlmcache.memory import Memory
from vlmcache.units import size_text


class UnconfirmedError(VlmcacheError):
    """Nobody said yes."""

    code = "unconfirmed"
    exit_code = ExitCode.UNCONFIRMED


class InUseError(VlmcacheError):
    """A process uses what was to go."""

    code = "in-use"
    exit_code = ExitCode.BUSY


class RemovalError(VlmcacheError):
    """None of it was done."""

    code = "not-removed"
    exit_code = ExitCode.FAILED


class SideCache(msgspec.Struct, frozen=True):
    """A cache of the hub's libraries beside the hub cache: `xet` chunks, remote code `modules`.

    size_on_disk counts what that library wrote there, and nothing else of the folder.
    """

    name: str
    path: str
    exists: bool
    size_on_disk: int


class Known:
    """What plans need to know next to a scan. Each fact is read once, and only if it is asked for.

    Args:
        environment: the variables that say where our journal is.
        state: the cache as it was scanned.
    """

    def __init__(self, environment: Environment, state: CacheState) -> None:
        self.environment = environment
        self.state = state
        self._there: dict[str, tuple[dict[Key, LastUse], Evidence]] = {}
        self._usage_there: dict[str, Usage] = {}

    @cached_property
    def mount(self) -> Mount | None:
        """The filesystem of the cache."""
        return mount_of(self.state.dir)

    @cached_property
    def journal(self) -> Mapping[tuple[str, str, str], float]:
        """(type, repo, commit) -> seconds since the epoch of the last use that we remember."""
        with Memory(own_home(self.environment)[0]) as memory:
            return memory.uses(self.state.dir)

    @cached_property
    def used(self) -> dict[Key, LastUse]:
        """When each revision of the cache was last used."""
        return last_uses(self.state, self.journal, _access_times(self.mount))

    @cached_property
    def evidence(self) -> Evidence:
        """What shows whether revisions of the cache are needed."""
        return _evidence(self.state, self.journal, self.mount)

    @cached_property
    def usage(self) -> Usage:
        """What running processes use now."""
        return _users_of(self.state)

    @cached_property
    def places(self) -> dict[str, CacheState]:
        """The folders to which models were moved, scanned."""
        return _scan_places(self.state, set(_moved_repos(self.state).values()))

    def of_place(self, place: CacheState) -> tuple[dict[Key, LastUse], Evidence]:
        """Return last uses and evidence for the models that were moved to a place."""
        if place.dir not in self._there:
            mount = mount_of(place.dir)
            used = last_uses(place, self.journal, _access_times(mount))
            self._there[place.dir] = used, _evidence(place, self.journal, mount)
        return self._there[place.dir]

    def usage_at(self, place: CacheState) -> Usage:
        """Return what running processes use of models that were moved to a place."""
        if place.dir not in self._usage_there:
            self._usage_there[place.dir] = who_uses(place, {repo.folder for repo in place.repos})
        return self._usage_there[place.dir]


def _access_times(mount: Mount | None) -> AccessTimes:
    return mount.access_times if mount else "unknown"


class UnknownUse(msgspec.Struct, frozen=True):
    """Old revisions that stay only because their last use is unknown.

    size is what removing them would free, command what removes them.
    """

    size: int
    command: str


class Removal(msgspec.Struct, frozen=True):
    """What `vlmcache rm` and `vlmcache clean` answer.

    receipt is absent where nothing was carried out. in_use: what processes use, and who they are.
    missed_by: bytes that could not be freed of those asked for. hidden_processes: processes of
    other users that could not be looked into. copies: kept quantised copies that go with their
    models; they lie outside the cache, so that plan and receipt do not count them.
    """

    plan: Plan
    receipt: Receipt | None = None
    in_use: tuple[Kept, ...] = ()
    missed_by: int = 0
    hidden_processes: int = 0
    side_caches: tuple[SideCache, ...] = ()
    copies: tuple[KeptCopy, ...] = ()
    cache: str = ""
    """The hub cache."""
    unknown_use: UnknownUse | None = None


Confirm: TypeAlias = Callable[[Removal], bool]


def remove(
    environment: Environment,
    config: Config,
    location: CacheLocation,
    names: Sequence[str],
    *,
    revision: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    confirm: Confirm | None = None,
) -> Removal:
    """Remove models or single revisions, and nothing else.

    Args:
        environment: the variables in force.
        config: whose keys count as names.
        location: the hub cache.
        names: keys, repo ids with `@revision` or without, or paths (see `change.targets`).
        revision: the revision to remove of each; the whole repo if not given.
        force: remove although a process uses it.
        dry_run: only plan.
        confirm: is shown the plan, and says whether to go on; without it nobody is asked.

    Returns:
        The plan, and the receipt if it was carried out. `problem` tells whether all went well.

    Raises:
        UnknownModelError: nothing of a name is in the cache.
        UnconfirmedError: `confirm` said no.
        ConfigError: the cache path is no folder.
    """
    from vlmcache.change.targets import find_targets

    state = scan(location.dir)
    targets = find_targets(state, config, names, revision=revision, folder=environment.folder)
    moved = _moved_repos(state)
    here = [target for target in targets if target.folder not in moved]
    places = _scan_places(state, {moved[one.folder] for one in targets if one.folder in moved})
    plans = [
        plan_moved(state, place, [one for one in targets if moved.get(one.folder or "") == path])
        for path, place in places.items()
    ]
    plan = joined([*plans, plan_removal(state, here)])
    usage, in_use = _find_use(state, places.values(), targets)
    removal = Removal(
        plan,
        in_use=in_use,
        hidden_processes=usage.hidden,
        copies=_copies_of(environment, state, plan),
        cache=state.dir,
    )
    if dry_run or (in_use and not force):
        return removal
    _ask(removal, confirm)
    if confirm is not None and not force:
        # The question may have been open for long.
        usage, in_use = _find_use(state, places.values(), targets)
        if in_use:
            return msgspec.structs.replace(removal, in_use=in_use)
    receipt = carry_out(removal.plan, state.dir, places, in_use=usage.files, force=force)
    _forget(environment, state)
    return msgspec.structs.replace(removal, receipt=receipt)


class Wishes(msgspec.Struct, frozen=True):
    """What `clean` is asked for in addition to waste. Sizes are bytes, durations seconds.

    partials: unfinished downloads that nobody has written to for an hour, needed or not. evict:
    configured models that may be evicted like any other. keep: models of which nothing goes. xet,
    modules: empty that side cache.
    """

    older_than: float | None = None
    max_size: int | None = None
    free: int | None = None
    duplicates: bool = False
    everything: bool = False
    evict: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    xet: bool = False
    modules: bool = False
    partials: bool = False


def clean(
    environment: Environment,
    config: Config,
    location: CacheLocation,
    wishes: Wishes | None = None,
    *,
    dry_run: bool = False,
    confirm: Confirm | None = None,
) -> Removal:
    """Remove waste, and what the wishes ask for in addition to it.

    Waste is what provably nobody needs (see `change.needed`): revisions that a newer one replaced
    and nobody used for 30 days, blobs that nothing links to or lists, downloads that nobody has
    continued for 30 days, leftovers. Then, without wishes, the least recently used models are
    removed until the cache is within `vlmcache.max_size` of config.yaml. Nothing that a process
    uses is removed.

    Args:
        environment: the variables in force.
        config: its models are not evicted unless named.
        location: the hub cache.
        wishes: what to remove beside waste.
        dry_run: only plan.
        confirm: is shown the plan, and says whether to go on; without it nobody is asked.

    Raises:
        UnknownModelError: a name to keep or to evict is no model.
        UnconfirmedError: `confirm` said no.
        ConfigError: the cache path is not a folder, or another file on the search path of
            config.yaml cannot be read: models that it names could be evicted.
    """
    wishes = wishes or Wishes()
    if config.unread is not None:
        raise ConfigError(
            f"nothing was removed: which models another configuration names is not known: "
            f"{config.unread}",
            "repair or remove that file",
        )
    state = scan(location.dir)
    known = Known(environment, state)
    usage = known.usage
    plan, missed = plan_clean(environment, config, state, wishes, usage, known)
    beside = tuple(_side_caches(environment))
    plan, side_use = _with_side_caches(plan, beside, wishes, environment, state.dir)
    removal = Removal(
        plan,
        in_use=tuple(kept for kept in plan.kept if kept.processes) + side_use,
        missed_by=missed,
        hidden_processes=usage.hidden,
        side_caches=beside,
        copies=_copies_of(environment, state, plan),
        cache=state.dir,
        unknown_use=_unknown_use(config, location, plan),
    )
    if dry_run or not plan.actions:
        return removal if dry_run else msgspec.structs.replace(removal, receipt=Receipt(()))
    _ask(removal, confirm)
    if confirm is not None:
        usage = _users_of(state)
    places = set(_moved_repos(state).values())
    receipt = carry_out(plan, state.dir, places, in_use=usage.files)
    _forget(environment, state)
    return msgspec.structs.replace(removal, receipt=receipt)


def _unknown_use(config: Config, location: CacheLocation, plan: Plan) -> UnknownUse | None:
    if not plan.unknown_use:
        return None
    days = f"{UNUSED_AFTER / 86400:.0f}d"
    options = options_in_force(config, location)
    return UnknownUse(plan.unknown_use, advice.command("clean", "--older-than", days, *options))


def plan_clean(
    environment: Environment,
    config: Config,
    state: CacheState,
    wishes: Wishes | None = None,
    usage: Usage | None = None,
    known: Known | None = None,
) -> tuple[Plan, int]:
    """Return the plan of `clean` for a scanned cache, and the bytes by which it misses its goal.

    Args:
        environment: the variables in force.
        config: its models are not evicted unless named.
        state: the cache.
        wishes: what to remove in addition to waste.
        usage: who uses what now.
        known: the rest of what is known of the cache; it is read if not given.
    """
    wishes = wishes or Wishes()
    known = known or Known(environment, state)
    limits = config.limits
    budget = wishes.max_size
    asked = (wishes.older_than, wishes.max_size, wishes.free)
    if budget is None and asked == (None, None, None) and not wishes.everything:
        budget = limits.max_size
    try:
        free_now = shutil.disk_usage(state.dir).free
    except OSError:
        free_now = None
    kept = _kept_models(config, state, wishes.keep)
    plan, missed = plan_cleaning(
        state,
        Cleaning(
            older_than=wishes.older_than,
            max_size=budget,
            free=wishes.free,
            duplicates=_duplicates(state) if wishes.duplicates else {},
            everything=wishes.everything,
            partials=wishes.partials,
        ),
        now=state.scanned_at,
        free_now=free_now,
        last_used=known.used,
        pinned=pinned_models(config, state, wishes.evict),
        kept=kept,
        usage=usage or Usage(),
        evidence=known.evidence,
    )
    plans = [
        _plan_clean_there(config, known, place, wishes, kept, usage)
        for place in known.places.values()
    ]
    return joined([*plans, plan]), missed


def _plan_clean_there(
    config: Config,
    known: Known,
    place: CacheState,
    wishes: Wishes,
    kept: Protected,
    usage: Usage | None,
) -> Plan:
    """Return the plan of `clean` for the repos that `move` has brought to one place.

    What else is at that place is none of ours. Its bytes count for no goal, which is this disk's.
    """
    state = known.state
    moved = _moved_repos(state)
    ours = tuple(repo for repo in place.repos if moved.get(repo.folder) == place.dir)
    there = msgspec.structs.replace(
        place,
        repos=ours,
        shared={name: one for name, one in place.shared.items() if one.users},
        strays=(),
        leftovers=(),
        locks={folder: one for folder, one in state.locks.items() if folder in moved},
    )
    if usage is not None:
        files = known.usage_at(there).files
        usage = Usage(usage.files | files, usage.locks, usage.hidden)
    used, evidence = known.of_place(there)
    plan, _ = plan_cleaning(
        there,
        Cleaning(
            older_than=wishes.older_than,
            duplicates=_duplicates(there) if wishes.duplicates else {},
            everything=wishes.everything,
            partials=wishes.partials,
        ),
        now=state.scanned_at,
        last_used=used,
        pinned=pinned_models(config, there),
        kept=kept,
        usage=usage or Usage(),
        evidence=evidence,
    )
    actions = tuple(
        action
        for action in plan.actions
        if not (isinstance(action, Remove | RemoveTree) and action.kind in ("lock", "locks"))
    )
    frees = sum(getattr(action, "frees", 0) for action in actions)
    plan = msgspec.structs.replace(plan, actions=actions, frees=frees)
    links = [Target(folder, folder) for folder in sorted(whole_repos(plan))]
    return joined([plan, plan_removal(state, links, why=f"goes at {place.dir}")])


def _moved_repos(state: CacheState) -> dict[str, str]:
    """Return the folders of repos that `move` has brought to another place -> that place."""
    return {repo.folder: repo.moved_to for repo in state.repos if repo.moved_to is not None}


def _scan_places(state: CacheState, paths: Collection[str]) -> dict[str, CacheState]:
    """Return the other places, scanned. Their links include those of the cache that lead there."""
    found: dict[str, CacheState] = {}
    for path in sorted(paths):
        if os.path.isdir(path):
            place, real = scan(path), os.path.realpath(path)
            links = {rebased(led_to, real, path): by for led_to, by in state.outside.items()}
            found[path] = msgspec.structs.replace(place, outside=place.outside | links)
    return found


def _users_of(state: CacheState, folders: Collection[str] | None = None) -> Usage:
    """Return what `who_uses` does; of models that were moved here, their cache has the locks."""
    usage = who_uses(state, folders)
    locks = dict(usage.locks)
    moved = {
        folder: one.cache
        for folder, one in read_moves(state.dir).items()
        if folders is None or folder in folders
    }
    for cache in set(moved.values()):
        names = {folder for folder in moved if moved[folder] == cache}
        # Without that cache, nobody reaches them through it.
        with contextlib.suppress(VlmcacheError):
            home = msgspec.structs.replace(scan(cache, only=names), repos=(), strays=())
            locks |= who_uses(home, names).locks
    return Usage(usage.files, locks, usage.hidden)


def _find_use(
    state: CacheState, places: Collection[CacheState], targets: Sequence[Target]
) -> tuple[Usage, tuple[Kept, ...]]:
    """Return who uses what of the targets, here and where `move` has brought them."""
    folders = {target.folder for target in targets if target.folder is not None}
    usage = _users_of(state, folders)
    moved = _moved_repos(state)
    found = list(_targets_in_use(state, targets, usage))
    files = usage.files
    for place in places:
        there = who_uses(place, folders)
        files = files | there.files
        # The locks of what is used through a link are here.
        there = Usage(there.files, there.locks | usage.locks, there.hidden)
        named = [one for one in targets if moved.get(one.folder or "") == place.dir]
        found += _targets_in_use(place, named, there)
    return Usage(files, usage.locks, usage.hidden), tuple(found)


def carry_out(
    plan: Plan,
    cache_dir: str,
    places: Collection[str],
    *,
    in_use: Collection[tuple[int, int]] = (),
    force: bool = False,
) -> Receipt:
    """Carry a plan of removals out: first at the places that models were moved to, then here.

    A link stays as long as what it leads to, so that a second run finds what there is to finish.

    Args:
        plan: its actions lie in the cache or at the places.
        cache_dir: the cache.
        places: folders to which `move` has brought models.
        in_use: (device, inode) of files that processes use.
        force: remove in spite of locks and uses.
    """
    from vlmcache.change.copying import write_moves
    from vlmcache.change.execute import execute

    receipts: list[Receipt] = []
    left = [one for one in plan.actions if isinstance(one, Remove | RemoveTree | ReleaseShared)]
    for place in sorted(places):
        inside = place.rstrip(os.sep) + os.sep
        there = [action for action in left if action.path.startswith(inside)]
        left = [action for action in left if not action.path.startswith(inside)]
        if there:
            receipts.append(execute(Plan(tuple(there)), place, in_use=in_use, force=force))
    stay: list[Outcome] = []
    results = {
        one.path: one
        for receipt in receipts
        for one in receipt.outcomes
        if one.result not in ("done", "absent")
    }
    for action in list(left):
        parent, folder = os.path.split(action.path)
        if not isinstance(action, Remove) or action.kind != "link" or parent != cache_dir:
            continue
        held = [
            results[os.path.join(p, folder)] for p in places if os.path.join(p, folder) in results
        ]
        if held:
            record = record_path(cache_dir, folder)
            left = [one for one in left if one.path not in (action.path, record)]
            why = f"what it leads to stays: {held[0].path}"
            stay.append(Outcome("remove", action.path, held[0].result, detail=why))
    receipts.append(execute(Plan(tuple(left)), cache_dir, in_use=in_use, force=force))
    for place in places:
        noted = read_moves(place)
        kept = {
            folder: one
            for folder, one in noted.items()
            if os.path.lexists(os.path.join(place, folder))
            or one.cache != os.path.realpath(cache_dir)
            or os.path.lexists(os.path.join(cache_dir, folder))
        }
        if kept != noted:
            # A note that stays of what is gone does no harm.
            with contextlib.suppress(OSError, VlmcacheError):
                write_moves(place, kept)
    outcomes = (*(one for receipt in receipts for one in receipt.outcomes), *stay)
    return Receipt(outcomes, sum(receipt.freed for receipt in receipts))


def _evidence(
    state: CacheState, journal: Mapping[tuple[str, str, str], float], mount: Mount | None
) -> Evidence:
    """Return what shows whether revisions are needed, for the repos where that is in question."""
    every = any(not shared.users for shared in state.shared.values())
    states = {
        (repo.folder, revision.commit): judge_content(repo, revision)
        for repo in state.repos
        if every or in_question(repo)
        for revision in repo.revisions
    }
    shows_reads = mount is not None and mount.shows_reads
    return Evidence(states, own_uses(state, journal, shows_reads=shows_reads))


def pinned_models(config: Config, state: CacheState, evict: Collection[str] = ()) -> Protected:
    """Return the revisions that configured models name, which nothing evicts.

    Models of every file on the search path count, not only those of the active one. If such a
    revision is not known, every revision of its repo stays; if one of those files cannot be read,
    every repo does.

    Args:
        config: the configuration in force.
        state: the cache.
        evict: keys or repo ids that are not to be pinned.

    Raises:
        UnknownModelError: a name of `evict` is no model.
    """
    cached = [repo.id for repo in state.repos if repo.type == "model"]
    loose = {find_model(config, name, cached).repo for name in evict}
    revisions: dict[Key, str] = {}
    repos: dict[str, str] = {}
    if config.unread is not None:
        repos = dict.fromkeys((repo.folder for repo in state.repos), config.unread)
    named = [(f"configured as {model.key}", model) for model in config.models.values()]
    named += ((f"configured as {model.key} in {path}", model) for path, model in config.also)
    for why, model in named:
        for repo in state.repos_called(model.repo):
            if repo.id in loose:
                continue
            commit = resolve(repo, model.revision)
            if commit is None or repo.revision(commit) is None:
                repos.setdefault(repo.folder, why)
            else:
                revisions.setdefault((repo.folder, commit), why)
    return Protected(revisions, repos)


def _kept_models(config: Config, state: CacheState, names: Sequence[str]) -> Protected:
    if not names:
        return Protected()
    from vlmcache.change.targets import find_targets

    revisions: dict[Key, str] = {}
    repos: dict[str, str] = {}
    folders = {repo.folder for repo in state.repos}
    # A configured model that is not there needs no keeping; any other name would be a slip.
    absent = {
        name
        for model in config.models.values()
        if not state.repos_called(model.repo)
        for name in (model.key, model.repo)
        if name not in folders and not state.repos_called(name.partition("@")[0])
    }
    for target in find_targets(state, config, [name for name in names if name not in absent]):
        if target.folder is None:
            raise UsageError(f"--keep {target.name} is no model")
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

    found: dict[Key, dict[str, str]] = {}
    for repo in state.repos:
        if repo.type != "model" or repo.linked_to is not None:
            continue
        for revision in repo.revisions:
            extra = find_duplicates(revision)
            if not extra:
                continue
            rest = tuple(file for file in revision.files if file.name not in extra)
            without = msgspec.structs.replace(revision, files=rest)
            if judge_revision(repo, without).state == "cached":
                found[repo.folder, revision.commit] = extra
    return found


def _targets_in_use(state: CacheState, targets: Sequence[Target], usage: Usage) -> tuple[Kept, ...]:
    found: list[Kept] = []
    for target in targets:
        if target.stray is not None:
            inside = _inodes_below(target.stray.path)
            users = find_users(inside).files
            if users:
                everyone = tuple(process for group in users.values() for process in group)
                found.append(Kept(target.stray.path, None, "in use", everyone))
            continue
        for repo in state.repos:
            if repo.folder != target.folder or repo.linked_to is not None:
                continue
            busy = usage.of_repo(state, repo)
            if busy is not None:
                why = "in use" if busy else "in use: a lock of the hub is held"
                found.append(Kept(repo.path, repo.id, why, busy))
    return tuple(found)


def _inodes_below(path: str) -> dict[tuple[int, int], str]:
    found: dict[tuple[int, int], str] = {}
    pending = [path]
    while pending:
        here = pending.pop()
        try:
            stat = os.lstat(here)
            found[stat.st_dev, stat.st_ino] = here
            if os.path.isdir(here) and not os.path.islink(here):
                pending += (entry.path for entry in os.scandir(here))
        except OSError:
            continue
    return found


def _size_below(path: str) -> int:
    """Return the bytes on disk of an entry with all that is below it; links count as themselves."""
    size = 0
    for below in _inodes_below(path).values():
        with contextlib.suppress(OSError):
            size += allocated_bytes(os.lstat(below))
    return size


def _side_caches(environment: Environment) -> list[SideCache]:
    found = []
    for name, path in side_caches(environment).items():
        own, _ = library_entries(name, path)
        size = sum(_size_below(os.path.join(path, one)) for one in own)
        found.append(SideCache(name, path, os.path.isdir(path), size))
    return found


def _with_side_caches(
    plan: Plan,
    beside: Sequence[SideCache],
    wishes: Wishes,
    environment: Environment,
    cache_dir: str,
) -> tuple[Plan, tuple[Kept, ...]]:
    """Add what the libraries wrote into the side caches asked for, unless a process uses it."""
    actions: list[RemoveTree] = []
    kept: list[Kept] = []
    needed = (
        ("the cache", cache_dir),
        ("a cache of models", os.path.join(hub_home(environment), "hub")),
        ("your home folder", os.path.expanduser("~")),
        ("vlmcache's own folder", own_home(environment)[0]),
    )
    for cache in beside:
        if not getattr(wishes, cache.name) or not cache.exists:
            continue
        if os.path.islink(cache.path):
            kept.append(Kept(cache.path, None, "it is a link: links are never followed"))
            continue
        holds = [what for what, path in needed if _is_at_or_below(path, cache.path)]
        if holds:
            kept.append(Kept(cache.path, None, f"it holds {holds[0]}, and is not emptied"))
            continue
        own, others = library_entries(cache.name, cache.path)
        if others:
            shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if others[3:] else "")
            why = f"{LIBRARIES[cache.name]} did not write all of it: {shown}"
            if not own:
                why = (
                    f"it does not look like a cache of {LIBRARIES[cache.name]}: nothing is removed"
                )
            kept.append(Kept(cache.path, None, why))
        for path in (os.path.join(cache.path, name) for name in own):
            users = find_users(_inodes_below(path)).files
            if users:
                processes = {one.pid: one for group in users.values() for one in group}
                kept.append(Kept(path, None, "in use", tuple(processes.values())))
                continue
            stat = os.lstat(path)
            expected = Expected(stat.st_ino, stat.st_mtime_ns, None)
            reason = f"--{cache.name}"
            actions.append(
                RemoveTree(path, "side-cache", None, reason, _size_below(path), expected)
            )
    plan = msgspec.structs.replace(
        plan,
        actions=(*plan.actions, *actions),
        frees=plan.frees + sum(action.frees for action in actions),
        kept=(*plan.kept, *kept),
    )
    return plan, tuple(one for one in kept if one.processes)


def _is_at_or_below(path: str, folder: str) -> bool:
    real, root = os.path.realpath(path), os.path.realpath(folder)
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)


def _ask(removal: Removal, confirm: Confirm | None) -> None:
    if removal.plan.actions and confirm is not None and not confirm(removal):
        raise UnconfirmedError("not confirmed: nothing was removed")


def _copies_of(environment: Environment, state: CacheState, plan: Plan) -> tuple[KeptCopy, ...]:
    """Return the kept copies of the revisions that a plan removes."""
    paths = {one.path for one in plan.actions if isinstance(one, Remove | RemoveTree)}
    gone = {
        (repo.id, revision.commit)
        for repo in state.repos
        for revision in repo.revisions
        if repo.type == "model" and paths.intersection((repo.path, revision.path))
    }
    copies = list_copies(own_home(environment)[0]) if gone else []
    return tuple(copy for copy in copies if (copy.repo, copy.commit) in gone)


def _forget(environment: Environment, state: CacheState) -> None:
    """Let the journal forget what is no longer there, and remove the copies made of it."""
    home = own_home(environment)[0]
    with Memory(home) as memory:
        for repo in state.repos:
            for revision in repo.revisions:
                if not os.path.lexists(revision.path):
                    memory.forget(state.dir, repo.type, repo.id, revision.commit)
                    if repo.type == "model":
                        # A copy that stays is listed by status; it stands in nobody's way.
                        with contextlib.suppress(OSError):
                            remove_copies(home, repo.id, revision.commit)


def problem(removal: Removal) -> VlmcacheError | None:
    """Return the failure that a removal has to tell of, or `None` if all went as asked."""
    receipt = removal.receipt
    if receipt is None:
        blocked = [kept for kept in removal.in_use if kept.path not in _kept_paths(removal)]
        return _in_use_error(blocked) if blocked else _shortfall(removal)
    by_result: dict[str, list[str]] = {}
    for outcome in receipt.outcomes:
        by_result.setdefault(outcome.result, []).append(outcome.detail or outcome.path)
    done = "done" in by_result or "absent" in by_result or receipt.freed > 0
    failed = by_result.get("failed")
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        words = f"{len(failed)} of {len(receipt.outcomes)} could not be removed: {failed[0]}{more}"
        hint = "'vlmcache doctor' may tell why"
        return PartlyError(words, hint) if done else RemovalError(words, hint)
    if "stale" in by_result:
        stale = len(by_result["stale"])
        return ChangedError(
            f"the cache changed since the plan was made: {stale} left alone", "run it again"
        )
    if "busy" in by_result:
        words = f"{len(by_result['busy'])} came into use meanwhile and stay: {by_result['busy'][0]}"
        later = "'vlmcache clean' removes the rest, once that has ended"
        return PartlyError(words, later) if done else InUseError(words)
    return _shortfall(removal)


def _kept_paths(removal: Removal) -> set[str]:
    return {kept.path for kept in removal.plan.kept}


def _in_use_error(blocked: Sequence[Kept]) -> InUseError:
    words = in_use_words(blocked)
    return InUseError(f"nothing was removed: {words}", "--force removes it nevertheless")


def in_use_words(blocked: Sequence[Kept]) -> str:
    """Return who uses what, with process ids and commands."""
    return "; ".join(f"{kept.repo or kept.path} {_by_whom(kept.processes)}" for kept in blocked)


def _by_whom(processes: Sequence[Process]) -> str:
    if not processes:
        return "is being downloaded: a lock of the hub is held"
    users = ", ".join(f"PID {one.pid} ({_short(one.command)})" for one in processes[:3])
    more = f" and {len(processes) - 3} more" if len(processes) > 3 else ""
    return f"is in use by {users}{more}"


def _short(command: str) -> str:
    return command if len(command) <= 80 else command[:79] + "…"


def _shortfall(removal: Removal) -> PartlyError | None:
    if not removal.missed_by:
        return None
    stays = {kept.repo or kept.path: kept.reason for kept in removal.plan.kept}
    configured = any(reason.startswith("configured") for reason in stays.values())
    why = "nothing else can be removed"
    if stays:
        shown = [f"{name} ({reason})" for name, reason in list(stays.items())[:3]]
        more = f" and {len(stays) - 3} more" if len(stays) > 3 else ""
        why = f"{', '.join(shown)}{more} stay{'s' if len(stays) == 1 else ''}"
    return PartlyError(
        f"{size_text(removal.missed_by)} short of what was asked for: {why}",
        "name a configured model to let it be evicted, or 'vlmcache rm' it" if configured else None,
    )


_ALONG = frozenset({"ref", "tree", "no-exist", "blob", "lock", "locks", "folder"})
"""Kinds of what goes along with a repo or revision."""


def ids(removal: Removal) -> list[str]:
    """Return one line for each repo or path that goes or went, for `--quiet`.

    What goes along with something of the same repo has no line of its own.
    """
    outcomes = removal.receipt.outcomes if removal.receipt else ()
    gone = {one.path for one in outcomes if one.result in ("done", "absent")}
    actions = [
        action
        for action in removal.plan.actions
        if isinstance(action, Remove | RemoveTree)
        and (removal.receipt is None or action.path in gone)
    ]
    named = {action.repo for action in actions if action.kind not in _ALONG}
    names: dict[str, None] = {}
    for action in actions:
        if action.kind in _ALONG and action.repo in named:
            continue
        commit = action.commit if action.kind == "snapshot" else None
        repo = action.repo or action.path
        names[f"{repo}@{commit}" if commit else repo] = None
    return list(names)
