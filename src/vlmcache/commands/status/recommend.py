"""What `status` recommends to do next."""

from __future__ import annotations

import os
import shlex
import stat as modes
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from vlmcache import units
from vlmcache.cache import formats, layout
from vlmcache.cache.completeness import judge
from vlmcache.cache.entries import is_stale
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.moved import away_remedy
from vlmcache.cache.state import Away, CacheState, Finding, Repo
from vlmcache.cache.usage import lock_held
from vlmcache.change.names import Target, names_in
from vlmcache.change.plan import Fetch, Plan, ReleaseShared, Remove, RemoveTree
from vlmcache.change.removal_plan import plan_removal
from vlmcache.commands.pull.plan import plan_pull
from vlmcache.commands.pull.room import Shortage, find_shortage, same_disk
from vlmcache.commands.remove.clean import pinned_models, plan_clean
from vlmcache.commands.remove.facts import Known
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.commands.status.values import CacheSummary, ModelStatus, Recommendation, RepoStatus
from vlmcache.config import CacheLocation, Config, ModelConfig, options_in_force
from vlmcache.units import duration_text, exact_size, size_text

_RECENT = 30 * 86400.0
_MOST_MODELS = 5
_HARMLESS = frozenset({"lock", "locks", "no-exist", "leftover"})
"""Kinds of what a download does not use, though it belongs to the same repo."""
_CLASSES = {
    "partial": "unfinished downloads",
    "blob": "blobs that no snapshot links to",
    "snapshot": "revisions",
    "repo": "models",
    "file": "second weight formats",
    "stray": "leftovers",
    "leftover": "leftovers",
}


class Advice:
    """Commands for the same cache and configuration."""

    def __init__(self, config: Config, location: CacheLocation) -> None:
        self.options = options_in_force(config, location)
        self.config_path = config.path

    def recommend(self, text: str, name: str, *words: str, frees: int = 0) -> Recommendation:
        """Return a recommendation of one of our commands with its words."""
        return Recommendation(text, self.command(name, *words), frees)

    def command(self, name: str, *words: str) -> str:
        """Return one of our commands with its words and the options that it needs."""
        return units.command(name, *words, *self.options)

    def completed(self, finding: Finding) -> Finding:
        """Return a finding whose remedy, if that is a command, has the options that it needs."""
        remedy, options = finding.remedy or "", shlex.join(self.options)
        if not remedy.startswith("vlmcache ") or "--cache-dir " in remedy or options in remedy:
            return finding
        return msgspec.structs.replace(finding, remedy=f"{remedy} {options}")


class Download(msgspec.Struct, frozen=True):
    """What a pull would do for one model that is not complete.

    name: what to type for the model. known: whether the plan tells how much is fetched; otherwise
    it stands for one byte. repair: whether only `verify --repair` repairs it.
    """

    name: str
    repo: str
    plan: Plan
    known: bool = True
    damaged: bool = False
    repair: bool = False


class Evictable(msgspec.Struct, frozen=True):
    """A model that nothing protects: what to type for it, what `rm` would free, its last use.

    locked: a folder that this user would have to change and cannot.
    """

    name: str
    repo: str
    frees: int
    used: str
    recent: bool
    locked: str | None = None


class Room(msgspec.Struct, frozen=True):
    """The bytes of the cache and of its disk, and the user's own limits for them."""

    size_on_disk: int
    free: int | None
    min_free: int
    comfortable_free: int
    max_size: int | None

    @property
    def bound(self) -> int | None:
        """What should be free, `None` if it is."""
        if self.free is None or self.free >= max(self.comfortable_free, self.min_free):
            return None
        return self.min_free if self.free < self.min_free else self.comfortable_free

    @property
    def low(self) -> str:
        """How little is free, in words."""
        free = size_text(self.free or 0)
        if (self.free or 0) < self.min_free:
            return f"{free} free, below the minimum of {size_text(self.min_free)}"
        return f"{free} free, under the comfortable {size_text(self.comfortable_free)}"


class Plans(Protocol):
    """What `choose` asks for: the plans of commands, by the same functions that these call."""

    def clean(self, wishes: CleanOptions) -> tuple[Plan, int]:
        """Return the plan of `clean`, and the bytes by which it misses its goal."""

    def shortage(self, downloads: Sequence[Download]) -> Shortage | None:
        """Return the disk that downloads would leave too full."""

    def on_cache_disk(self, shortage: Shortage) -> bool:
        """Return whether removing something from the cache makes room on that disk."""

    def may_evict(self, shortage: Shortage) -> bool:
        """Return whether `--make-room` may work towards that much free space."""

    def keepable(self, repos: Iterable[str]) -> tuple[str, ...]:
        """Return what `--keep` takes for those of the repos that are in the cache."""

    def locked_folder(self, plan: Plan) -> str | None:
        """Return a folder that this user would have to change for a plan and cannot."""

    def locked_for(self, download: Download) -> str | None:
        """Return a folder that this user would have to write for a download and cannot."""

    def is_running(self, download: Download) -> bool:
        """Return whether another process downloads that model now."""

    def evictable(self, pending: Collection[str]) -> Sequence[Evictable]:
        """Return the models that nothing protects, the best to remove first."""

    def largest(self) -> str:
        """Return the largest models by size and last use, in words; empty if there is none."""


def choose(
    advised: Advice,
    plans: Plans,
    room: Room,
    downloads: Sequence[Download],
    needed: Collection[str] = (),
) -> list[Recommendation]:
    """Return what to do next.

    Args:
        advised: makes the commands.
        plans: what commands would do.
        room: the cache's bytes.
        downloads: the models that are not complete.
        needed: other repos that a pull would fetch into.
    """
    return list(_Choice(advised, plans, room, downloads, needed).steps())


class _Choice:
    def __init__(
        self,
        advised: Advice,
        plans: Plans,
        room: Room,
        downloads: Sequence[Download],
        needed: Collection[str],
    ) -> None:
        self.advised = advised
        self.plans = plans
        self.room = room
        self.pending = {*needed, *(download.repo for download in downloads)}
        self.keep = plans.keepable(self.pending)
        self.locked: str | None = None
        self.elsewhere: dict[str, list[str]] = {}
        running = [one for one in downloads if plans.is_running(one)]
        self.running = [one.name for one in running]
        self.downloads = [
            one for one in downloads if one not in running and not self._is_locked(one)
        ]

    def steps(self) -> Iterator[Recommendation]:
        """Yield what frees bytes first, then what fetches."""
        fetched, waiting = self._fitting([one for one in self.downloads if one.known])
        unsized = [one for one in self.downloads if not one.known]
        held = bool(waiting or self.elsewhere) or self.plans.shortage([*fetched, *unsized])
        evicting: list[Download] = []
        short = self.plans.shortage([*fetched, *waiting])
        if short is not None and not self.plans.may_evict(short):
            yield Recommendation(f"{_no_room(waiting)}: {_not_for(self.advised.config_path)}", None)
            short, waiting = None, []
        if short is not None:
            evicting = self._evicting(waiting, short)
            waiting = [one for one in waiting if one not in evicting]
        yield from self._freeing(short if waiting else None, waiting)
        if self.locked is not None:
            text = f"{self.locked} cannot be changed by this user: run vlmcache as its owner"
            if _is_read_only(self.locked):
                text = f"{self.locked} is on a filesystem that is mounted read-only: remount it"
            yield Recommendation(f"{text}, or name another cache with --cache-dir", None)
        for place, names in self.elsewhere.items():
            yield Recommendation(f"no room at {place} to download {', '.join(names)}", None)
        if unsized and held:
            # How much room they take is not known, so nothing is removed for them either.
            yield Recommendation(f"{_no_room(unsized)}, size unknown", None)
        if self.running:
            text = f"being downloaded by another process: {', '.join(self.running)}"
            yield self.advised.recommend(text, "watch")
        yield from self._fetching(fetched)
        yield from self._fetching([] if held else unsized)
        if evicting:
            text = f"{_to_download(evicting)}, after evicting what was not used recently"
            names = [one.name for one in evicting]
            yield self.advised.recommend(text, "pull", *names, "--make-room")

    # What fetches.

    def _is_locked(self, download: Download) -> bool:
        folder = self.plans.locked_for(download)
        self.locked = self.locked or folder
        return folder is not None

    def _fitting(self, downloads: list[Download]) -> tuple[list[Download], list[Download]]:
        """Return the downloads that there is room for, all of them together, and the rest.

        What is short of room on another disk than the cache's is put aside.
        """
        if self.plans.shortage(downloads) is None:
            return downloads, []
        fitting: list[Download] = []
        waiting: list[Download] = []
        # What needs nothing and what is small comes first, so that most of them fit.
        for one in sorted(downloads, key=lambda one: one.plan.needs):
            short = self.plans.shortage([*fitting, one])
            if short is None:
                fitting.append(one)
            elif self.plans.on_cache_disk(short):
                waiting.append(one)
            else:
                self.elsewhere.setdefault(short.place, []).append(one.name)
        return (
            [one for one in downloads if one in fitting],
            [one for one in downloads if one in waiting],
        )

    def _evicting(self, waiting: Sequence[Download], short: Shortage) -> list[Download]:
        """Return the downloads for which `pull --make-room` would make enough room."""
        pulled = [one for one in waiting if not one.repair]
        if not pulled:
            return []
        # Whatever else is fetched takes its room too, so the goal is that of all downloads.
        wishes = CleanOptions(free=short.goal, keep=self.plans.keepable(one.repo for one in pulled))
        plan, missed = self.plans.clean(wishes)
        enough = not missed and plan.frees >= short.short
        return pulled if enough and self._is_harmless(plan) else []

    def _fetching(self, downloads: Sequence[Download]) -> Iterator[Recommendation]:
        unknown = "" if all(one.known for one in downloads) else ", size unknown"
        broken = [one.name for one in downloads if one.damaged and not one.repair]
        if broken:
            text = f"damaged: {', '.join(broken)}; fetch what is bad{unknown}"
            yield self.advised.recommend(text, "pull", *broken)
        repaired = [one.name for one in downloads if one.repair]
        if repaired:
            text = f"damaged: {', '.join(repaired)}; repair what is bad{unknown}"
            yield self.advised.recommend(text, "verify", *repaired, "--repair")
        absent = [one for one in downloads if not one.damaged and not one.repair]
        if absent:
            names = [one.name for one in absent]
            yield self.advised.recommend(f"{_to_download(absent)}{unknown}", "pull", *names)

    # What frees.

    def _freeing(
        self, short: Shortage | None, waiting: Sequence[Download]
    ) -> Iterator[Recommendation]:
        """Yield what frees bytes: waste, what is over the size limit, what the disk needs.

        Args:
            short: the cache's disk without room for what waits, if no eviction makes enough.
            waiting: downloads that there is no room for.
        """
        room = self.room
        gone: set[str] = set()
        over = room.max_size is not None and room.size_on_disk > room.max_size
        cleaned = None
        words: tuple[str, ...] = ()
        if over and room.max_size is not None:
            words = ("--max-size", exact_size(room.max_size))
            cleaned = self._cleaning(words, CleanOptions(max_size=room.max_size))
        within = cleaned is not None
        if cleaned is None:
            # Plain `clean` holds the size limit too, and would miss it.
            words = ("--free", "0") if over else ()
            cleaned = self._cleaning(words, CleanOptions(free=0) if over else CleanOptions())
        limit = (
            f"the cache holds {size_text(room.size_on_disk)}, over its limit of "
            f"{size_text(room.max_size or 0)}"
        )
        freed = 0
        if cleaned is not None:
            step, plan = cleaned
            freed = plan.frees
            gone |= _repos_of(plan)
            yield msgspec.structs.replace(step, text=f"{limit}: {step.text}") if within else step
        reasons = [limit] if over and not within else []
        wanted = room.size_on_disk - (room.max_size or 0) if reasons else 0
        bound = room.bound
        if bound is not None:
            reasons.append(room.low)
        if short is not None:
            reasons.append(_no_room(waiting))
        needed = max(
            0 if bound is None else bound - (room.free or 0), 0 if short is None else short.short
        )
        emptied = None
        if needed > freed:
            emptied = self._emptying(needed, ("--free", "0") if over else (), bound, short)
        if emptied is not None:
            step, plan = emptied
            gone |= _repos_of(plan)
            freed = max(freed, plan.frees)
            yield msgspec.structs.replace(step, text=f"{'; '.join(reasons)}: {step.text}")
            needed = 0
        wanted = max(wanted, needed)
        if reasons and wanted > freed:
            yield from self._models("; ".join(reasons), wanted - freed, gone)

    def _emptying(
        self, needed: int, words: tuple[str, ...], bound: int | None, short: Shortage | None
    ) -> tuple[Recommendation, Plan] | None:
        """Return the `clean` that makes the room needed, and its plan.

        Unfinished downloads are removed before models. Evicting for downloads is left to
        `pull --make-room`, which was tried first.

        Args:
            needed: bytes to free.
            words: what keeps `clean` from working towards the size limit too.
            bound: what should be free.
            short: the disk without room for downloads.
        """
        wishes = CleanOptions(partials=True, free=0 if words else None)
        found = self._cleaning((*words, "--partials"), wishes)
        if found is not None and found[1].frees >= needed:
            return found
        if bound is None or short is not None:
            return None
        return self._cleaning(("--free", exact_size(bound)), CleanOptions(free=bound))

    def _cleaning(
        self, words: tuple[str, ...], wishes: CleanOptions
    ) -> tuple[Recommendation, Plan] | None:
        """Return `clean` with these words, and the plan of it.

        `None` if it frees nothing, misses its goal, may not be done by this user, or takes bytes
        that a pull would use, with those models and what this user cannot change kept too.
        """
        tried: list[tuple[str, ...]] = [(), self.keep]
        for number, keep in enumerate(tried):
            if keep in tried[:number]:
                continue
            plan, missed = self.plans.clean(msgspec.structs.replace(wishes, keep=keep))
            if missed or not plan.frees:
                continue
            if not self._is_harmless(plan):
                if number == 1 or not self.keep:
                    tried.append(self.plans.keepable(self.pending | self._locked_repos(plan)))
                continue
            kept = [word for name in keep for word in ("--keep", name)]
            text = f"{size_text(plan.frees)} can be freed: {_classes(plan)}"
            return self.advised.recommend(text, "clean", *words, *kept, frees=plan.frees), plan
        return None

    def _locked_repos(self, plan: Plan) -> set[str]:
        """Return the repos of which a plan removes what this user cannot change."""
        return {
            action.repo
            for action in plan.actions
            if isinstance(action, Remove | RemoveTree)
            and action.repo
            and self.plans.locked_folder(Plan((action,))) is not None
        }

    def _is_harmless(self, plan: Plan) -> bool:
        """Whether this user can carry a plan out, and it takes nothing that a pull would use."""
        for action in plan.actions:
            if isinstance(action, ReleaseShared):
                # Any repo may link to a blob of the shared store.
                if action.last and self.pending:
                    return False
            elif (
                isinstance(action, Remove | RemoveTree)
                and action.repo in self.pending
                and action.kind not in _HARMLESS
            ):
                return False
        folder = self.plans.locked_folder(plan)
        self.locked = self.locked or folder
        return folder is None

    def _models(self, why: str, wanted: int, gone: set[str]) -> Iterator[Recommendation]:
        """Yield models to remove, by size and last use, until that would be enough."""
        unused = [one for one in self.plans.evictable(self.pending) if one.repo not in gone]
        models = [one for one in unused if one.locked is None]
        self.locked = self.locked or next((one.locked for one in unused if one.locked), None)
        left = wanted
        for number, model in enumerate(models[:_MOST_MODELS]):
            if left <= 0:
                return
            left -= model.frees
            text = f"{model.name} holds {size_text(model.frees)}, {model.used}"
            text = text if number else f"{why}: {text}"
            yield self.advised.recommend(text, "rm", model.name, frees=model.frees)
        if not models:
            largest = self.plans.largest()
            whose = "needed, in use or configured"
            if self.locked is not None and not _is_read_only(self.locked):
                whose = "needed, in use, configured or belongs to another user"
            text = f"; everything here is {whose}: {largest}"
            yield Recommendation(why + (text if largest else ""), None)


def _to_download(downloads: Sequence[Download]) -> str:
    """Return what downloads take, in words."""
    noun = "model" if len(downloads) == 1 else "models"
    size = sum(one.plan.needs for one in downloads if one.known)
    words = f"{len(downloads)} {noun} to download"
    return f"{words}, {size_text(size)}" if size else words


def _no_room(downloads: Sequence[Download]) -> str:
    return f"no room to download {', '.join(one.name for one in downloads)}"


def _not_for(path: str) -> str:
    """Return why nothing is removed for a limit that a working folder's file sets."""
    return (
        f"{path} asks for more free space than your own configuration, and nothing is removed for "
        "that: lower its min_free"
    )


def _is_read_only(folder: str) -> bool:
    """Whether a folder is on a filesystem that nobody can write to."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except (AttributeError, OSError):
        return False


def _classes(plan: Plan) -> str:
    """Return what a plan frees by kind, the largest first, and the models that are evicted."""
    frees: dict[str, int] = {}
    removed = [one for one in plan.actions if isinstance(one, Remove | RemoveTree)]
    # A revision's blobs go for the same reason as the revision itself.
    revisions = {(one.repo, one.reason) for one in removed if one.kind == "snapshot"}
    for action in plan.actions:
        name = "blobs of the shared store"
        if isinstance(action, Remove | RemoveTree):
            name = _CLASSES.get(action.kind, "listings and locks")
            if (action.repo, action.reason) in revisions:
                name = "revisions"
        elif not isinstance(action, ReleaseShared):
            continue
        frees[name] = frees.get(name, 0) + action.frees
    largest = sorted(frees, key=lambda name: -frees[name])
    words = ", ".join(f"{size_text(frees[name])} of {name}" for name in largest if frees[name])
    whole = sorted({one.repo for one in removed if one.repo and one.kind in ("repo", "snapshot")})
    if not whole:
        return words
    more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
    return f"{words} ({', '.join(whole[:3])}{more})"


def _repos_of(plan: Plan) -> set[str]:
    """Return the repos of which a plan removes a revision or all."""
    return {
        action.repo
        for action in plan.actions
        if isinstance(action, RemoveTree) and action.repo and action.kind in ("repo", "snapshot")
    }


def planned_download(
    state: CacheState,
    name: str,
    repo_id: str,
    revision: str,
    *,
    commit: str | None = None,
    estimate: int | None = None,
    damaged: bool = False,
    repair: bool = False,
) -> Download:
    """Return what a pull would fetch for a model, by the plan that it makes itself.

    Args:
        state: the cache.
        name: what to type for the model.
        repo_id: its repo.
        revision: the branch, tag or commit that is asked for.
        commit: what that means here, if the cache knows it.
        estimate: bytes to fetch, for a model of which the cache holds no listing.
        damaged: whether something of it is damaged.
        repair: whether only `verify --repair` repairs it.
    """
    repo = state.repo(repo_id)
    if repo is not None and commit is None:
        begun = {*repo.trees, *(held.commit for held in repo.revisions)}
        commit = begun.pop() if len(begun) == 1 else None
    listing = repo.trees.get(commit) if repo is not None and commit is not None else None
    known = True
    if repo is not None and commit is not None and listing:
        plan = plan_pull(state, repo_id, revision, commit, listing, formats.wanted(listing))
    else:
        known = estimate is not None
        plan = fetching(repo_id, 1 if estimate is None else estimate)
    return Download(name, repo_id, plan, known, damaged, repair)


def fetching(repo_id: str, size: int) -> Plan:
    """Return a plan that stands for a download of which nothing but the size is known."""
    return Plan((Fetch(repo_id, "", "", "", size, 0, "not cached"),), needs=size)


def name_to_type(repo: Repo) -> str:
    """Return what `rm` and `--keep` take for a repo."""
    return repo.id if repo.type == "model" else f"{repo.type}s/{repo.id}"


class Planner:
    """Makes plans as the commands do, from one scan; see `Plans`."""

    def __init__(self, known: Known, config: Config, location: CacheLocation) -> None:
        self.known = known
        self.state = known.state
        self.config = config
        self.location = location

    def clean(self, wishes: CleanOptions) -> tuple[Plan, int]:
        """Return the plan of `clean`; who uses what is looked up only if it would free anything."""
        known, config = self.known, self.config
        if config.unread is not None:
            # `clean` refuses to work then.
            return Plan(()), 1
        plan, missed = plan_clean(known, config, wishes)
        if not plan.frees:
            return plan, missed
        return plan_clean(known, config, wishes, known.usage)

    def shortage(self, downloads: Sequence[Download]) -> Shortage | None:
        """Return the disk that downloads would leave too full, as a pull of them finds it."""
        plans = [one.plan for one in downloads]
        return find_shortage(self.location.dir, self.config.limits, plans)

    def on_cache_disk(self, shortage: Shortage) -> bool:
        """Return whether that disk is the cache's."""
        return same_disk(shortage.place, self.location.dir)

    def may_evict(self, shortage: Shortage) -> bool:
        """Return whether that much free space is what the user's own configuration asks for."""
        return shortage.min_free <= self.config.evict_for

    def keepable(self, repos: Iterable[str]) -> tuple[str, ...]:
        """Return what `--keep` takes for those of the repos that are in the cache."""
        there = [self.state.repo(one) for one in sorted(set(repos))]
        return tuple(name_to_type(one) for one in there if one is not None)

    def locked_folder(self, plan: Plan) -> str | None:
        """Return a folder that the removals would change and this user cannot."""
        folders = {self.state.dir: None}
        removed = [
            one for one in plan.actions if isinstance(one, Remove | RemoveTree | ReleaseShared)
        ]
        for action in removed:
            folders[os.path.dirname(action.path)] = None
            if isinstance(action, RemoveTree):
                folders[action.path] = None
                if action.kind == "repo":
                    names = (layout.BLOBS, layout.SNAPSHOTS, layout.REFS)
                    folders.update((os.path.join(action.path, name), None) for name in names)
        if not removed:
            return None
        shut = next(filter(_is_shut, folders), None)
        if shut is not None:
            return shut
        stuck = next((one.path for one in removed if not _may_unlink(one.path)), None)
        return os.path.dirname(stuck) if stuck is not None else None

    def locked_for(self, download: Download) -> str | None:
        """Return a folder that the download would write into and this user cannot."""
        name = layout.repo_folder("model", download.repo)
        folder = os.path.join(self.state.dir, name)
        inside = (layout.BLOBS, layout.SNAPSHOTS, layout.REFS, layout.TREES)
        places = [folder, *(os.path.join(folder, one) for one in inside)]
        places.append(os.path.join(self.state.dir, layout.LOCKS, name))
        return next((one for one in map(nearest_folder, places) if _is_shut(one)), None)

    def is_running(self, download: Download) -> bool:
        """Return whether a lock of the repo is held, or a process writes a partial of it."""
        folder = layout.repo_folder("model", download.repo)
        locks = self.state.locks.get(folder)
        if locks is not None and any(
            lock_held(os.path.join(locks.path, name)) for name in locks.files
        ):
            return True
        repo = self.state.repo(download.repo)
        partials = repo.partials if repo is not None else ()
        return any(one.locked for one in partials) or any(
            self.known.usage.files.get((one.device, one.inode)) for one in partials
        )

    def evictable(self, pending: Collection[str]) -> Sequence[Evictable]:
        """Return the models that nobody configured, uses or is fetching.

        Those that were not used for 30 days come first, and of these the largest.
        """
        state, usage = self.state, self.known.usage
        pinned = pinned_models(self.config, state)
        keys = {folder for folder, _ in pinned.revisions}
        found: list[Evictable] = []
        for repo in state.repos:
            if (
                repo.linked_to is not None
                or (repo.type == "model" and repo.id in pending)
                or repo.folder in pinned.repos
                or repo.folder in keys
                or not layout.is_repo_id(repo.id)
                or any(not is_stale(part, state.scanned_at) for part in repo.partials)
                or usage.of_repo(state, repo) is not None
            ):
                continue
            plan = plan_removal(state, [Target(repo.id, repo.folder)])
            if plan.frees:
                name = name_to_type(repo)
                age = self._age(repo)
                recent = age is not None and age < _RECENT
                locked = self.locked_folder(plan)
                found.append(Evictable(name, repo.id, plan.frees, _used(age), recent, locked))
        return sorted(found, key=lambda one: (one.recent, -one.frees))

    def largest(self) -> str:
        """Return the three largest models with their last use, in words."""
        repos = sorted(self.state.repos, key=lambda repo: -repo.size_on_disk)[:3]
        return ", ".join(
            f"{repo.id} ({size_text(repo.size_on_disk)}, {_used(self._age(repo))})"
            for repo in repos
            if repo.size_on_disk and repo.linked_to is None
        )

    def _age(self, repo: Repo) -> float | None:
        """Return the seconds since a repo was used, `None` where only its download is known."""
        uses = [self.known.used[repo.folder, one.commit] for one in repo.revisions]
        known = [use.at for use in uses if use.source != "written"]
        return max(0.0, self.state.scanned_at - max(known)) if known else None


def _used(age: float | None) -> str:
    if age is None:
        return "last use unknown"
    return "used just now" if age < 60 else f"last used {duration_text(age)} ago"


def _is_shut(folder: str) -> bool:
    """Whether a folder is there in which this user cannot make and remove names."""
    return os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK)


def _may_unlink(path: str) -> bool:
    """Whether a sticky folder lets this user take a name out of it."""
    try:
        folder, entry = os.stat(os.path.dirname(path)), os.lstat(path)
    except OSError:
        return True
    if not folder.st_mode & modes.S_ISVTX or not hasattr(os, "geteuid"):
        return True
    return os.geteuid() in (0, folder.st_uid, entry.st_uid)


def what_frees(steps: Iterable[Recommendation], advised: Advice) -> str:
    """Return a command that frees bytes of what nobody chose to keep, or else one that shows sizes.

    A model to remove is never named without its size and last use.
    """
    cleaning = (one.command for one in steps if one.frees and one.command)
    found = next((one for one in cleaning if one.startswith("vlmcache clean")), None)
    return found or advised.command("status", "--all", "--sort", "size")


def what_makes_room(
    known: Known, config: Config, location: CacheLocation, short: Shortage, repos: Collection[str]
) -> str:
    """Return, in words, what makes room for downloads where evicting is not enough.

    Args:
        known: the cache.
        config: the configuration.
        location: the cache's folder.
        short: the disk.
        repos: what is to be downloaded.
    """
    planner = Planner(known, config, location)
    if not planner.may_evict(short):
        return _not_for(config.path)
    unused = planner.evictable(repos) if planner.on_cache_disk(short) else ()
    models = [one for one in unused if one.locked is None][:_MOST_MODELS]
    if not models:
        return f"make room at {short.place}, or lower min_free in config.yaml"
    advised = Advice(config, location)
    return "; ".join(
        f"'{advised.command('rm', one.name)}' frees {size_text(one.frees)} ({one.used})"
        for one in models
    )


def recommend(
    advised: Advice,
    planner: Planner,
    summary: CacheSummary,
    models: Sequence[ModelStatus],
    repos: Sequence[RepoStatus],
    findings: Iterable[Finding],
) -> list[Recommendation]:
    """Return what to do next, the most useful first."""
    # What the hub does not list, no download mends.
    unlisted = {one.repo for one in findings if (one.remedy or "").endswith(" --repair")}
    found: list[Recommendation] = []
    unmounted: dict[Away, list[str]] = {}
    for repo in repos:
        if repo.away is not None:
            unmounted.setdefault(repo.away, []).append(repo.repo)
    for place, names in unmounted.items():
        text = f"away: {', '.join(names)}; {away_remedy(place)}"
        if place.found_at is None:
            found.append(Recommendation(text, None))
        else:
            text = f"away: {', '.join(names)}; the drive is mounted elsewhere now"
            found.append(advised.recommend(text, "move", "--relink", place.found_at))
    away = {
        repo.repo: repo.linked_to
        for repo in repos
        if repo.type == "model" and repo.linked_to is not None and not os.path.isdir(repo.linked_to)
    }
    for repo in repos:
        if repo.away is None and repo.repo in away:
            text = f"{repo.repo} was at {repo.linked_to}, which does not exist: remove the link"
            found.append(advised.recommend(text, "rm", repo.repo))
    incomplete = ("missing", "partial", "damaged")
    downloads = [
        download_of(planner.state, planner.config, model, repair=model.repo in unlisted)
        for model in models
        if model.state in incomplete and model.repo not in away
    ]
    named = {model.repo for model in models}
    downloads += (
        planned_download(
            planner.state,
            repo.repo,
            repo.repo,
            "main",
            commit=repo.refs.get("main"),
            damaged=True,
            repair=repo.repo in unlisted,
        )
        for repo in repos
        if repo.type == "model" and repo.state == "damaged" and layout.is_repo_id(repo.repo)
        if repo.repo not in named and repo.repo not in away
    )
    found += (
        Recommendation(
            f"damaged: {repo.type} {repo.repo}; only huggingface_hub's own client repairs it: "
            + shlex.join(
                ["hf", "download", "--repo-type", repo.type, "--force-download", repo.repo]
            ),
            None,
        )
        for repo in repos
        if repo.type != "model" and repo.state == "damaged" and layout.is_repo_id(repo.repo)
    )
    needed = {
        model.repo
        for model in planner.config.models.values()
        if model.repo not in named
        and judge(planner.state.repo(model.repo), model.revision).state in incomplete
    }
    config = planner.config
    room = Room(
        summary.size_on_disk,
        summary.free,
        config.evict_for,
        config.comfortable_for,
        summary.max_size,
    )
    asked = msgspec.structs.replace(
        room, min_free=summary.min_free, comfortable_free=summary.comfortable_free
    )
    if room.bound is None and asked.bound is not None:
        text = f"{asked.low}, which only {config.path} asks for: nothing is removed for that"
        found.append(Recommendation(text, None))
    found += choose(advised, planner, room, downloads, needed)
    offline = planner.known.environment.offline_by
    if offline is None:
        return found
    return [
        Recommendation(f"{step.text}: possible once {offline} is not set", None)
        if (step.command or "").startswith("vlmcache pull ")
        else step
        for step in found
    ]


def name_to_pull(state: CacheState, config: Config, model: ModelStatus) -> str:
    """Return what to type for a model of the status."""
    wanted = ModelConfig(model.key, model.repo, model.revision)
    return names_in(state, config).name_of(wanted)


def download_of(
    state: CacheState, config: Config, model: ModelStatus, *, repair: bool = False
) -> Download:
    """Return what a pull would fetch for a model that is not complete.

    Args:
        state: the cache.
        config: the configuration.
        model: the model.
        repair: whether no pull repairs damage of it.
    """
    estimate = model.expected_size
    return planned_download(
        state,
        name_to_pull(state, config, model),
        model.repo,
        model.revision,
        commit=model.commit,
        estimate=None if estimate is None else max(0, estimate - model.size),
        damaged=model.state == "damaged",
        repair=model.state == "damaged" and repair,
    )
