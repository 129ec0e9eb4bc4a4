"""What `clean` removes, decided from the state of a cache alone: no disk, no clock."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.entries import STALE_AFTER, is_stale
from vlmcache.cache.moved import away_words
from vlmcache.cache.state import Blob, CacheState, File, Repo, Revision
from vlmcache.cache.usage import LastUse, Process
from vlmcache.change.names import Target
from vlmcache.change.needed import (
    FOREIGN,
    UNUSED_AFTER,
    foreign_files,
    is_young,
    only_in_base,
    unsure,
)
from vlmcache.change.plan import Action, Kept, Plan, ReleaseShared, joined
from vlmcache.change.removal_plan import plan_moved, plan_of, plan_removal
from vlmcache.change.removals import Key, Protected, Removals, needed_by
from vlmcache.change.waste import Facts, WasteSelection, busy_repos, kept_in_use, writers
from vlmcache.commands.remove.values import CleanOptions

_EVICTED = "least recently used"
LINKED_OUTSIDE = "hard links outside the cache keep its bytes: removing it would free nothing"


def plan_cleaning(state: CacheState, options: CleanOptions, facts: Facts) -> tuple[Plan, int]:
    """Return the plan of `clean`, and by how many bytes it misses what was asked for.

    Args:
        state: the cache.
        options: what to remove in addition to waste. What is to stay, and the duplicates, are
            among the facts.
        facts: what else is known.
    """
    now, foreign = facts.now, with_foreign_files(state)
    facts = msgspec.structs.replace(facts, foreign=foreign)
    busy = busy_repos(state, facts.usage)
    chosen = Removals()
    if options.everything:
        _select_everything(state, chosen, facts, busy)
    waste = WasteSelection(state, facts, chosen, busy)
    waste.add_unfinished(asked=options.partials)
    waste.add_waste()
    select_duplicates(state, chosen, facts, busy)
    active = {
        repo.folder
        for repo in state.repos
        if repo.folder in busy or any(not is_stale(partial, now) for partial in repo.partials)
    }
    hard_linked = Protected() if options.free is None else with_links_outside(state)
    candidates = eviction_candidates(state, chosen, facts, active)
    evictable = {key for key in candidates if hard_linked.why(*key) is None}
    stay = (key for key in facts.needs if key not in evictable and not chosen.holds(key))
    needed = needed_by(facts.needs, stay)
    candidates = [key for key in candidates if needed.why(*key) is None]
    rest = Remainder(state, facts, max(options.older_than or 0, STALE_AFTER))
    if options.older_than is not None:
        for key in candidates:
            age = now - facts.used_at(key)
            if age > options.older_than:
                chosen.revisions[key] = f"unused for {int(age // 86400)} days{_source(facts, key)}"
        rest.add_to(chosen)
    candidates = [key for key in candidates if key not in chosen.revisions and key in evictable]
    goal = 0
    if options.max_size is not None:
        goal = max(goal, state.size_on_disk - options.max_size)
    if options.free is not None and facts.free_now is not None:
        goal = max(goal, options.free - facts.free_now)
    plan = _evict(chosen, candidates, goal, rest)
    if goal > plan.frees:
        plan = _with_protected(
            state, plan, (facts.pinned, facts.kept, foreign, hard_linked, needed)
        )
    elif options.older_than is not None:
        plan = _with_protected(state, plan, (foreign, needed))
    old = [
        key
        for key in chosen.unknown
        if key in candidates and now - facts.used_at(key) > UNUSED_AFTER
    ]
    if old and not goal:
        more = chosen.copy()
        more.revisions |= dict.fromkeys(old, "unused")
        unknown = plan_of(state, more).frees - plan.frees
        plan = msgspec.structs.replace(plan, unknown_use=unknown)
    missed = max(0, goal - plan.frees)
    if options.max_size is not None and missed and options.free is None and _is_empty(state, plan):
        missed = 0  # of a cache without content, its own folders stay
    return plan, missed


def _is_empty(state: CacheState, plan: Plan) -> bool:
    """Return whether a plan leaves no repo, shared blob or file of others in a cache."""
    gone = {action.path for action in plan.actions}
    return gone.issuperset(
        (
            *(repo.path for repo in state.repos),
            *(shared.path for shared in state.shared.values()),
            *(stray.path for stray in state.strays),
        )
    )


def plan_targets(
    state: CacheState, places: Mapping[str, CacheState], targets: Sequence[Target]
) -> Plan:
    """Return the plan of `rm`, for what is in the cache and what was moved from it.

    Args:
        state: the cache.
        places: where models were moved to, scanned.
        targets: what was named, as found in `state`.
    """
    moved = {repo.folder: repo.moved_to for repo in state.repos}
    plans = [
        plan_moved(state, place, targets_at(targets, moved, path)) for path, place in places.items()
    ]
    return joined([*plans, plan_removal(state, targets_at(targets, moved, None))])


def targets_at(
    targets: Sequence[Target], moved: Mapping[str, str | None], place: str | None
) -> list[Target]:
    """Return the targets that are at one place.

    Args:
        targets: what was named.
        moved: repo folder -> the place to which the repo was moved, if it was.
        place: a place, or `None` for the cache itself.
    """
    return [target for target in targets if moved.get(target.folder or "") == place]


def with_foreign_files(state: CacheState) -> Protected:
    """Return the revisions that hold files of others."""
    return Protected(
        {
            (repo.folder, revision.commit): FOREIGN
            for repo in state.repos
            for revision in repo.revisions
            if foreign_files(repo, revision)
        }
    )


def with_links_outside(state: CacheState) -> Protected:
    """Return the revisions of which most bytes stay on the disk after a removal."""
    names = Counter(
        (entry.device, entry.inode) for repo in state.repos for entry in _contents(repo)
    )
    kept: dict[Key, str] = {}
    for repo in state.repos:
        for revision in repo.revisions:
            contents = _contents(repo, revision)
            stays = sum(
                entry.allocated
                for entry in contents
                if entry.links > names[entry.device, entry.inode]
            )
            if 2 * stays > sum(entry.allocated for entry in contents):
                kept[repo.folder, revision.commit] = LINKED_OUTSIDE
    return Protected(kept)


def _contents(repo: Repo, revision: Revision | None = None) -> list[Blob | File]:
    """Return the files that hold the content of a repo, or of one revision."""
    revisions = repo.revisions if revision is None else (revision,)
    used = {file.blob for described in revisions for file in described.files}
    blobs = [
        blob
        for name, blob in repo.blobs.items()
        if not blob.linked and (revision is None or name in used)
    ]
    return [*blobs, *(file for described in revisions for file in described.files_of("copy"))]


def in_steps(plan: Plan, cache_dir: str, last_used: Mapping[Key, LastUse]) -> list[Plan]:
    """Return the parts of a plan to carry out one after the other.

    First is all that is removed in any case, then each evicted model, the least recently used
    first. A shared blob's references are released with the models that they are of.
    """
    evicted = {
        _repo_folder(action.path, cache_dir)
        for action in plan.actions
        if action.reason.startswith(_EVICTED) and not isinstance(action, ReleaseShared)
    }
    uses: dict[str, float] = {}
    for (folder, _), use in last_used.items():
        uses[folder] = min(use.at, uses.get(folder, use.at))
    order = sorted(evicted, key=lambda folder: (uses.get(folder, 0.0), folder))
    steps: dict[str, list[Action]] = {folder: [] for folder in ("", *order)}
    for action in plan.actions:
        if not isinstance(action, ReleaseShared):
            folder = _repo_folder(action.path, cache_dir)
            steps[folder if folder in evicted else ""].append(action)
            continue
        of = {reference.partition("/")[0] for reference in action.references}
        *before, final = [folder for folder in steps if folder in of] or [""]
        for folder in {*before, *([] if of <= evicted else [""])} - {final}:
            steps[folder].append(msgspec.structs.replace(action, frees=0, last=False))
        steps[final].append(action)
    return [Plan(tuple(actions)) for actions in steps.values()]


def _repo_folder(path: str, cache_dir: str) -> str:
    """Return the name of the repo folder that a path, or that of a lock, belongs to."""
    parts = os.path.relpath(path, cache_dir).split(os.sep)
    return parts[1] if parts[0] == layout.LOCKS and len(parts) > 1 else parts[0]


class Remainder(msgspec.Struct):
    """What is left of a repo once all its revisions are evicted: loose blobs, partial downloads."""

    state: CacheState
    facts: Facts
    idle: float
    """Seconds without a write after which a partial download is removed too."""
    users: dict[str, dict[str, set[tuple[str, str]]]] = {}
    """Repo folder -> what links to each of its blobs."""

    def add_to(self, chosen: Removals) -> None:
        """Choose it for the repos of which every revision is chosen."""
        for repo in self.state.repos:
            folder = repo.folder
            reasons = [
                chosen.revisions.get((folder, revision.commit)) for revision in repo.revisions
            ]
            reason = reasons[0] if reasons and None not in reasons else None
            if reason is None or repo.linked_to is not None or unsure(repo) is not None:
                continue
            if folder not in self.users:
                self.users[folder] = repo.blob_users()
            for name, users in self.users[folder].items():
                young = is_young(repo.blobs[name].mtime_ns, self.facts.now)
                if not users and layout.is_etag(name) and not young:
                    chosen.blobs.setdefault((folder, name), reason)
            for partial in repo.partials:
                old = self.facts.now - partial.mtime_ns / 1e9 > self.idle
                if old and writers(repo, partial, self.facts.usage) is None:
                    chosen.partials.setdefault((folder, partial.name), reason)


def _evict(chosen: Removals, candidates: Sequence[Key], goal: int, rest: Remainder) -> Plan:
    """Add the fewest of the least recently used candidates that reach the goal."""

    def with_first(count: int) -> Plan:
        more = chosen.copy()
        for key in candidates[:count]:
            more.revisions[key] = f"{_EVICTED}{_source(rest.facts, key)}"
        if count:
            rest.add_to(more)
        return plan_of(rest.state, more)

    plan = with_first(0)
    if plan.frees >= goal or not candidates:
        return plan
    # What the first n give back never shrinks with n, so the smallest n can be halved for.
    counts = range(len(candidates))
    return with_first(bisect_left(counts, goal, lo=1, key=lambda n: with_first(n).frees))


def _source(facts: Facts, key: Key) -> str:
    """Return what to add to a reason if no use is known and the download's time stands in."""
    use = facts.last_used.get(key)
    return ", by the time of its download" if use is not None and use.source == "written" else ""


def eviction_candidates(
    state: CacheState, chosen: Removals, facts: Facts, busy: Collection[str]
) -> list[Key]:
    """Return the revisions that may be evicted, the least recently used first."""
    candidates = [
        (repo.folder, revision.commit)
        for repo in state.repos
        if repo.linked_to is None and repo.folder not in busy and repo.folder not in chosen.repos
        for revision in repo.revisions
        if (repo.folder, revision.commit) not in chosen.revisions
        and not only_in_base(repo, revision)
        and facts.why(repo.folder, revision.commit) is None
    ]
    return sorted(candidates, key=lambda key: (facts.used_at(key), key))


def _select_everything(
    state: CacheState,
    chosen: Removals,
    facts: Facts,
    busy: Mapping[str, tuple[Process, ...]],
) -> None:
    reason = "everything is removed"
    kept = Protected(facts.foreign.revisions | facts.kept.revisions, facts.kept.repos)
    stay = (key for key in facts.needs if key[0] in busy or kept.why(*key) is not None)
    needed = needed_by(facts.needs, stay)
    kept = Protected(needed.revisions | kept.revisions, kept.repos)
    for repo in state.repos:
        if repo.moved_to is not None:
            continue
        if repo.away is not None:
            chosen.kept.append(Kept(repo.path, repo.id, away_words(repo.away)))
            continue
        protected = [
            revision.commit
            for revision in repo.revisions
            if kept.why(repo.folder, revision.commit) is not None
        ]
        if repo.folder in busy:
            chosen.kept.append(kept_in_use(repo.path, repo, busy[repo.folder]))
        elif protected or repo.folder in kept.repos:
            why = kept.repos.get(repo.folder) or kept.revisions[repo.folder, protected[0]]
            chosen.kept.append(Kept(repo.path, repo.id, why))
            for revision in repo.revisions:
                if kept.why(repo.folder, revision.commit) is None:
                    chosen.revisions[repo.folder, revision.commit] = reason
        elif any(not stray.leftover for stray in repo.strays):
            commits = {revision.commit for revision in repo.revisions}
            chosen.add_parts_of(repo, commits, reason)
        else:
            chosen.repos[repo.folder] = reason
    for folder, lock_folder in state.locks.items():
        if state.repo_in(folder) is None and facts.usage.locks_of(folder) is None:
            for name in ("", *lock_folder.files):
                chosen.locks[folder, name] = reason


def select_duplicates(
    state: CacheState,
    chosen: Removals,
    facts: Facts,
    busy: Mapping[str, tuple[Process, ...]],
) -> None:
    """Choose the second weight formats of what stays, and note why some of them stay."""
    for repo in state.repos:
        for revision in repo.revisions:
            key = repo.folder, revision.commit
            names = facts.duplicates.get(key, {})
            if not names or key in chosen.revisions or repo.folder in chosen.repos:
                continue
            why = facts.kept.why(*key)
            if why is not None:
                chosen.kept.append(Kept(revision.path, repo.id, why))
            elif repo.folder in busy:
                chosen.kept.append(kept_in_use(revision.path, repo, busy[repo.folder]))
            elif repo.linked_to is None:
                for name, place in names.items():
                    why = f"the same weights are in {place}"
                    chosen.files[repo.folder, revision.commit, name] = why


def _with_protected(state: CacheState, plan: Plan, protected: Iterable[Protected]) -> Plan:
    """Add which revisions stay although they were asked for, and why."""
    shown = {kept.path for kept in plan.kept}
    more = []
    for repo in state.repos:
        for revision in repo.revisions:
            key = repo.folder, revision.commit
            why = next(filter(None, (group.why(*key) for group in protected)), None)
            if why is not None and revision.path not in shown:
                more.append(Kept(revision.path, repo.id, why))
    return msgspec.structs.replace(plan, kept=(*plan.kept, *more))
