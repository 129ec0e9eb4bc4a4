"""What `clean` removes, decided from the state of a cache alone: no disk, no clock."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.entries import STALE_AFTER, is_stale
from vlmcache.cache.last_use import LastUse
from vlmcache.cache.moved import away_words
from vlmcache.cache.state import CacheState, Partial, Repo, Stray
from vlmcache.cache.usage import Process, Usage
from vlmcache.change.needed import (
    FOREIGN,
    REPLACED,
    UNUSED_AFTER,
    Evidence,
    damage,
    find_waste,
    folders_of,
    foreign_files,
    in_question,
    is_read,
    is_young,
    looks_wasted,
    unsure,
)
from vlmcache.change.plan import Kept, Plan
from vlmcache.change.removal_plan import Key, Selection, build, by_folder

NO_USAGE = Usage()
NO_EVIDENCE = Evidence()


class Protected(msgspec.Struct, frozen=True):
    """What stays and why: revisions as (repo folder, commit), whole repos by their folders."""

    revisions: dict[Key, str] = {}
    repos: dict[str, str] = {}

    def why(self, folder: str, commit: str) -> str | None:
        """Return why a revision stays, `None` if it need not."""
        return self.repos.get(folder) or self.revisions.get((folder, commit))


class Cleaning(msgspec.Struct, frozen=True):
    """What `clean` was asked for, beside removing waste. Sizes are bytes.

    older_than: seconds since the last use after which a revision goes. max_size: what the cache may
    occupy. free: what the disk is to have free. duplicates: (repo folder, commit) -> names of
    second weight formats and where the same weights are, for revisions that load without them.
    everything: all that is the hub's.
    partials: unfinished downloads that nobody has written to for an hour.
    """

    older_than: float | None = None
    max_size: int | None = None
    free: int | None = None
    duplicates: dict[Key, dict[str, str]] = {}
    everything: bool = False
    partials: bool = False


def plan_cleaning(
    state: CacheState,
    wishes: Cleaning | None = None,
    *,
    now: float,
    free_now: int | None = None,
    last_used: Mapping[Key, LastUse] | None = None,
    pinned: Protected | None = None,
    kept: Protected | None = None,
    usage: Usage = NO_USAGE,
    evidence: Evidence = NO_EVIDENCE,
) -> tuple[Plan, int]:
    """Return the plan of `clean`, and by how many bytes it misses what was asked for.

    Args:
        state: the cache.
        wishes: what to remove beside waste.
        now: seconds since the epoch.
        free_now: bytes free on the disk.
        last_used: (repo folder, commit) -> last use; those not in it were never used.
        pinned: revisions that are not evicted, and are no waste.
        kept: revisions of which nothing goes, second formats included.
        usage: who uses what now; nothing in use goes.
        evidence: what shows that a revision is not needed; without it, each is.
    """
    wishes = wishes or Cleaning()
    pinned, kept = pinned or Protected(), kept or Protected()
    uses = last_used or {}
    busy = _busy_repos(state, usage)
    chosen = Selection()
    foreign = _with_foreign_files(state)
    if wishes.everything:
        every = Protected(foreign.revisions | kept.revisions, kept.repos)
        _select_everything(state, chosen, every, busy, usage)
    _select_unfinished(state, chosen, now, kept, usage, wishes.partials)
    _select_waste(state, chosen, now, (kept, pinned, foreign), busy, usage, evidence)
    _select_duplicates(state, chosen, wishes.duplicates, kept, busy)
    active = {
        repo.folder
        for repo in state.repos
        if repo.folder in busy or any(not is_stale(partial, now) for partial in repo.partials)
    }
    candidates = _candidates(state, chosen, uses, (pinned, kept, foreign), active)
    rest = _Rest(state, now, usage, wishes.older_than or 0)
    if wishes.older_than is not None:
        for key in candidates:
            age = now - _used_at(uses, key)
            if age > wishes.older_than:
                chosen.revisions[key] = f"unused for {int(age // 86400)} days{_source(uses, key)}"
        rest.add_to(chosen)
    candidates = [key for key in candidates if key not in chosen.revisions]
    goal = 0
    if wishes.max_size is not None:
        goal = max(goal, state.size_on_disk - wishes.max_size)
    if wishes.free is not None and free_now is not None:
        goal = max(goal, wishes.free - free_now)
    plan = _evict(state, chosen, candidates, goal, uses, rest)
    if goal > plan.frees:
        plan = _tell_protected(state, plan, (pinned, kept, foreign))
    elif wishes.older_than is not None:
        plan = _tell_protected(state, plan, (foreign,))
    old = [key for key in chosen.unknown if now - _used_at(uses, key) > UNUSED_AFTER]
    old = [key for key in old if key in candidates and not goal]
    if old:
        more = chosen.copy()
        more.revisions |= dict.fromkeys(old, "unused")
        unknown = build(state, more).frees - plan.frees
        plan = msgspec.structs.replace(plan, unknown_use=unknown)
    missed = max(0, goal - plan.frees)
    if wishes.max_size is not None and missed and wishes.free is None and _is_empty(state, plan):
        missed = 0  # of a cache without content, its own folders stay
    return plan, missed


def _is_empty(state: CacheState, plan: Plan) -> bool:
    """Return whether a plan leaves no repo, shared blob or file of others in a cache."""
    gone = {getattr(action, "path", "") for action in plan.actions}
    return gone.issuperset(
        (
            *(repo.path for repo in state.repos),
            *(shared.path for shared in state.shared.values()),
            *(stray.path for stray in state.strays),
        )
    )


def _with_foreign_files(state: CacheState) -> Protected:
    return Protected(
        {
            (repo.folder, revision.commit): FOREIGN
            for repo in state.repos
            for revision in repo.revisions
            if foreign_files(repo, revision)
        }
    )


class _Rest:
    """What is left of a repo once all its revisions are evicted: loose blobs, partial downloads."""

    def __init__(self, state: CacheState, now: float, usage: Usage, idle: float) -> None:
        self.state = state
        self.now = now
        self.usage = usage
        self.idle = max(idle, STALE_AFTER)
        self.users: dict[str, dict[str, set[tuple[str, str]]]] = {}

    def add_to(self, chosen: Selection) -> None:
        """Choose it for the repos of which every revision is chosen."""
        for repo in self.state.repos:
            folder = repo.folder
            reasons = [chosen.revisions.get((folder, one.commit)) for one in repo.revisions]
            if not reasons or repo.linked_to is not None or unsure(repo) is not None:
                continue
            reason = reasons[0]
            if reason is None or None in reasons:
                continue
            if folder not in self.users:
                self.users[folder] = repo.blob_users()
            for name, users in self.users[folder].items():
                young = is_young(repo.blobs[name].mtime_ns, self.now)
                if not users and layout.is_etag(name) and not young:
                    chosen.blobs.setdefault((folder, name), reason)
            for partial in repo.partials:
                old = self.now - partial.mtime_ns / 1e9 > self.idle
                if old and _writers(repo, partial, self.usage) is None:
                    chosen.partials.setdefault((folder, partial.name), reason)


def _evict(
    state: CacheState,
    chosen: Selection,
    candidates: Sequence[Key],
    goal: int,
    uses: Mapping[Key, LastUse],
    rest: _Rest,
) -> Plan:
    """Add the fewest of the least recently used candidates that reach the goal."""

    def with_first(count: int) -> Plan:
        more = chosen.copy()
        for key in candidates[:count]:
            more.revisions[key] = f"least recently used{_source(uses, key)}"
        if count:
            rest.add_to(more)
        return build(state, more)

    plan = with_first(0)
    if plan.frees >= goal or not candidates:
        return plan
    low, high = 0, len(candidates)
    best = with_first(high)
    # What the first n give back never shrinks with n, so the smallest n can be halved for.
    while high - low > 1:
        middle = (low + high) // 2
        tried = with_first(middle)
        if tried.frees >= goal:
            high, best = middle, tried
        else:
            low = middle
    return best


def _used_at(uses: Mapping[Key, LastUse], key: Key) -> float:
    return uses[key].at if key in uses else 0.0


def _source(uses: Mapping[Key, LastUse], key: Key) -> str:
    """Return what to add to a reason where no use is known and the download's time stands in."""
    return ", told by its download" if key in uses and uses[key].source == "written" else ""


def _candidates(
    state: CacheState,
    chosen: Selection,
    uses: Mapping[Key, LastUse],
    protected: Iterable[Protected],
    busy: Collection[str],
) -> list[Key]:
    """Return the revisions that may be evicted, the least recently used first."""
    found = [
        (repo.folder, revision.commit)
        for repo in state.repos
        if repo.linked_to is None and repo.folder not in busy and repo.folder not in chosen.repos
        for revision in repo.revisions
        if (repo.folder, revision.commit) not in chosen.revisions
        and not any(one.why(repo.folder, revision.commit) for one in protected)
    ]
    return sorted(found, key=lambda key: (_used_at(uses, key), key))


def _busy_repos(state: CacheState, usage: Usage) -> dict[str, tuple[Process, ...]]:
    """Return the repos that a process uses, or that a download is going into."""
    busy: dict[str, tuple[Process, ...]] = {}
    for repo in state.repos:
        users = usage.of_repo(state, repo)
        if users is not None:
            busy[repo.folder] = users
        elif any(partial.locked for partial in repo.partials):
            busy[repo.folder] = ()
    return busy


def _in_use(path: str, repo: Repo, users: tuple[Process, ...]) -> Kept:
    reason = "in use" if users else "in use: a lock of the hub is held"
    return Kept(path, repo.id, reason, users)


def _select_everything(
    state: CacheState,
    chosen: Selection,
    kept: Protected,
    busy: Mapping[str, tuple[Process, ...]],
    usage: Usage,
) -> None:
    reason = "everything goes"
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
            chosen.kept.append(_in_use(repo.path, repo, busy[repo.folder]))
        elif protected or repo.folder in kept.repos:
            why = kept.repos.get(repo.folder) or kept.revisions[repo.folder, protected[0]]
            chosen.kept.append(Kept(repo.path, repo.id, why))
            for revision in repo.revisions:
                if kept.why(repo.folder, revision.commit) is None:
                    chosen.revisions[repo.folder, revision.commit] = reason
        elif any(not stray.leftover for stray in repo.strays):
            chosen.revisions |= {
                (repo.folder, revision.commit): reason for revision in repo.revisions
            }
            chosen.partials |= {(repo.folder, part.name): reason for part in repo.partials}
            loose = (name for name, users in repo.blob_users().items() if not users)
            chosen.blobs |= {(repo.folder, name): reason for name in loose}
        else:
            chosen.repos[repo.folder] = reason
    for folder, found in state.locks.items():
        if by_folder(state, folder) is None and usage.locks_of(folder) is None:
            for name in ("", *found.files):
                chosen.locks[folder, name] = reason


def _select_waste(
    state: CacheState,
    chosen: Selection,
    now: float,
    protected: Sequence[Protected],
    busy: Mapping[str, tuple[Process, ...]],
    usage: Usage,
    evidence: Evidence,
) -> None:
    sound = True
    every = any(not shared.users for shared in state.shared.values())
    for repo in state.repos:
        folder = repo.folder
        if folder in chosen.repos:
            continue
        if repo.linked_to is not None:
            waste_there = repo.by_class.detached + repo.by_class.orphan + repo.by_class.partial
            if waste_there and repo.moved_to is None:
                why = f"lies at {repo.linked_to}: links are never followed"
                chosen.kept.append(Kept(repo.path, repo.id, why))
            sound = sound and _has_all(repo, evidence)
            continue
        _select_strays(repo.strays, repo, chosen, now)
        if not every and not in_question(repo):
            continue

        def why_protected(commit: str, folder: str = folder) -> str | None:
            return next(filter(None, (one.why(folder, commit) for one in protected)), None)

        gone = {commit for where, commit in chosen.revisions if where == folder}
        waste = find_waste(
            repo,
            evidence,
            now,
            gone=gone,
            why=why_protected,
            # What is next to a partial may be another part of the same download, so it stays for
            # this run even if the partial is removed.
            unfinished=bool(repo.partials),
        )
        sound = sound and waste.damage is None and _has_all(repo, evidence)
        if folder in busy:
            chosen.kept += (
                _in_use(path, repo, busy[folder])
                for name, path in looks_wasted(repo)
                if name not in gone and why_protected(name) is None
            )
            continue
        chosen.kept += waste.kept
        chosen.revisions |= {
            (folder, one): "a newer revision replaced it" for one in waste.revisions
        }
        chosen.blobs |= {
            (folder, name): "no snapshot links to it"
            for name in waste.blobs
            if (folder, name) not in chosen.blobs
        }
        chosen.metadata |= {
            (folder, one): "the listing of a revision that is not there" for one in waste.listings
        }
        chosen.unknown += ((folder, one) for one in waste.unknown)
        if waste.revisions:
            chosen.listed |= {(folder, name) for name in waste.listed}
        _select_begun(state, repo, chosen, waste.listed, now)
    _select_strays(state.strays, None, chosen, now)
    _select_shared(state, chosen, now, usage, sound)
    _select_locks(state, chosen, now, usage)


def _has_all(repo: Repo, evidence: Evidence) -> bool:
    """Return whether a repo has each link that it will have: it is sound and nothing is missing."""
    return not repo.partials and damage(repo, repo.revisions, evidence.states) is None


def _select_begun(
    state: CacheState, repo: Repo, chosen: Selection, listed: Collection[str], now: float
) -> None:
    """Choose what an interrupted removal did not come to: somebody had asked for it already."""
    begun = [one for one in state.leftovers if one.repo_folder == repo.folder]
    if not begun or any(not is_stale(partial, now) for partial in repo.partials):
        return
    reason = "left by an interrupted removal"
    users = repo.blob_users()
    known = {*repo.refs.values(), *(revision.commit for revision in repo.revisions)}
    for leftover in begun:
        for name in leftover.blobs:
            if name in users and not users[name] and name not in listed:
                chosen.blobs.setdefault((repo.folder, name), reason)
        for commit in leftover.commits:
            if commit not in known:
                chosen.metadata.setdefault((repo.folder, commit), reason)


def _writers(repo: Repo, partial: Partial, usage: Usage) -> tuple[Process, ...] | None:
    """Return who writes to a partial, none if that cannot be seen; `None` if nobody does."""
    users = usage.files.get((partial.device, partial.inode), ())
    lock = f"{repo.folder}/{partial.etag}{layout.LOCK_SUFFIX}"
    if users or partial.locked or lock in usage.locks:
        return users or usage.locks.get(lock, ())
    return None


def _select_unfinished(
    state: CacheState,
    chosen: Selection,
    now: float,
    kept: Protected,
    usage: Usage,
    asked: bool,
) -> None:
    """Choose the partial downloads that nobody continues.

    Args:
        state: the cache.
        chosen: where they are added.
        now: seconds since the epoch.
        kept: repos of which nothing goes.
        usage: who uses what now.
        asked: whether those are to go that a pull would still continue.
    """
    for repo in state.repos:
        if repo.folder in chosen.repos or repo.linked_to is not None:
            continue
        for partial in repo.partials:
            key = repo.folder, partial.name
            users = _writers(repo, partial, usage)
            reason = None
            if users is not None:
                reason = "being downloaded"
            elif repo.folder in kept.repos:
                reason = kept.repos[repo.folder]
            elif key in chosen.partials:
                continue
            elif not is_stale(partial, now):
                reason = "a download that was written within the last hour"
            elif asked:
                chosen.partials[key] = "an unfinished download (--partials)"
            elif _is_finished(repo, partial):
                chosen.partials[key] = "its download was finished in another file"
            elif now - partial.mtime_ns / 1e9 > UNUSED_AFTER:
                chosen.partials[key] = "a download that was not continued for 30 days"
            else:
                reason = "an unfinished download: pull continues it, --partials removes it"
            if reason is not None:
                chosen.kept.append(Kept(partial.path, repo.id, reason, users or ()))


def _is_finished(repo: Repo, partial: Partial) -> bool:
    """Whether the blob of a partial download is there, as long as every listing says.

    If no listing names it, a blob that is shorter than the partial cannot be complete.
    """
    blob = repo.blobs.get(partial.etag)
    if blob is None or not blob.present:
        return False
    sizes = {
        file.content_size
        for tree in repo.trees.values()
        for file in tree.values()
        if file.etag == partial.etag
    }
    return sizes == {blob.size} if sizes else blob.size >= partial.size


def _select_strays(
    strays: Iterable[Stray], repo: Repo | None, chosen: Selection, now: float
) -> None:
    repo_id = repo.id if repo is not None else None
    for stray in strays:
        if not stray.leftover:
            why = "not the hub's: 'vlmcache rm PATH' removes it"
            if repo is not None and stray.path in folders_of(repo):
                # Such as a link to a folder on another disk, with all that the repo has.
                why = REPLACED
            chosen.kept.append(Kept(stray.path, repo_id, why))
        elif (
            now - stray.mtime_ns / 1e9 > STALE_AFTER
            or os.path.basename(stray.path) == layout.LEFTOVERS
        ):
            chosen.strays[stray.path] = "left behind by an interrupted run"
        else:
            chosen.kept.append(
                Kept(stray.path, repo_id, "a temporary that was written within the last hour")
            )


def _select_shared(
    state: CacheState, chosen: Selection, now: float, usage: Usage, sound: bool
) -> None:
    """Choose shared blobs that no repo links to.

    The hub itself frees none without its manifest. The scan looks at every repo of the cache, so it
    can tell; but only where no repo is damaged, and so none has lost a link.
    """
    begun = {name for leftover in state.leftovers for name in leftover.shared}
    seen = sound and not any(
        repo.linked_to is not None and not repo.by_class.total for repo in state.repos
    )
    for shared in state.shared.values():
        if shared.users:
            continue
        users = usage.files.get((shared.device, shared.inode), ())
        why = None
        if users:
            why = "in use"
        elif shared.hash in begun:
            chosen.shared[shared.hash] = "left by an interrupted removal"
        elif is_young(shared.mtime_ns, now):
            why = "written within the last hour"
        elif not seen:
            why = "a repo is damaged or not complete, so it may still be needed"
        else:
            chosen.shared[shared.hash] = "no repo links to it"
        if why is not None:
            chosen.kept.append(Kept(shared.path, None, why, users))


def _select_locks(state: CacheState, chosen: Selection, now: float, usage: Usage) -> None:
    for folder, found in state.locks.items():
        repo = by_folder(state, folder)
        needed: set[str] = set()
        if repo is not None:
            if not is_read(repo):
                continue
            needed = {*repo.blobs, *(partial.etag for partial in repo.partials)}
        elif layout.parse_repo_folder(folder) is None:
            continue
        # The hub makes a repo's folder before it takes a lock of it, so where there is no such
        # folder, a young lock is no sign of a download that begins.
        free = [
            name
            for name, entry in found.files.items()
            if name.removesuffix(layout.LOCK_SUFFIX) not in needed
            and f"{folder}/{name}" not in usage.locks
            and (repo is None or now - entry.mtime_ns / 1e9 > STALE_AFTER)
        ]
        for name in free:
            chosen.locks.setdefault((folder, name), "no blob belongs to this lock")
        if repo is None and len(free) == len(found.files):
            chosen.locks.setdefault((folder, ""), "locks of a repo that is gone")


def _select_duplicates(
    state: CacheState,
    chosen: Selection,
    duplicates: Mapping[Key, Mapping[str, str]],
    kept: Protected,
    busy: Mapping[str, tuple[Process, ...]],
) -> None:
    for repo in state.repos:
        for revision in repo.revisions:
            key = repo.folder, revision.commit
            names = duplicates.get(key, {})
            if not names or key in chosen.revisions or repo.folder in chosen.repos:
                continue
            why = kept.why(*key)
            if why is not None:
                chosen.kept.append(Kept(revision.path, repo.id, why))
            elif repo.folder in busy:
                chosen.kept.append(_in_use(revision.path, repo, busy[repo.folder]))
            elif repo.linked_to is None:
                for name, place in names.items():
                    why = f"the same weights are in {place}"
                    chosen.files[repo.folder, revision.commit, name] = why


def _tell_protected(state: CacheState, plan: Plan, protected: Iterable[Protected]) -> Plan:
    """Add which revisions stay although they were asked for, and why."""
    told = {one.path for one in plan.kept}
    more = []
    for repo in state.repos:
        for revision in repo.revisions:
            reasons = [one.why(repo.folder, revision.commit) for one in protected]
            why = next(filter(None, reasons), None)
            if why is not None and revision.path not in told:
                more.append(Kept(revision.path, repo.id, why))
    return msgspec.structs.replace(plan, kept=(*plan.kept, *more))
