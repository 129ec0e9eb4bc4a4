"""Which commands `status` recommends, and in which order (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import msgspec

from vlmcache.change.plan import Plan, ReleaseShared, Remove, RemoveTree
from vlmcache.commands.pull.room import Shortage
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.commands.status.steps import (
    MOST_MODELS,
    Advice,
    CommandPlans,
    PendingDownload,
    fetch_size,
    freed_by_kind,
    no_room,
    not_for,
    to_download,
)
from vlmcache.commands.status.values import CacheSummary, Recommendation
from vlmcache.units import exact_size, first_of, size_text

_HARMLESS = frozenset({"lock", "locks", "no-exist", "leftover"})
"""Kinds of what a download does not use, though it belongs to the same repo."""


def choose(
    advised: Advice,
    plans: CommandPlans,
    room: CacheSummary,
    downloads: Sequence[PendingDownload],
    needed: Collection[str] = (),
) -> list[Recommendation]:
    """Return what to do next.

    Args:
        advised: makes the commands.
        plans: what commands would do.
        room: the cache's bytes, and the user's own limits for them.
        downloads: the models that are not complete.
        needed: other repos that a pull would fetch into.
    """
    return list(_Choice(advised, plans, room, downloads, needed).steps())


class _Choice:
    """What to do next, for one status."""

    def __init__(
        self,
        advised: Advice,
        plans: CommandPlans,
        room: CacheSummary,
        downloads: Sequence[PendingDownload],
        needed: Collection[str],
    ) -> None:
        self.advised = advised
        self.plans = plans
        pending = {*needed, *(download.repo for download in downloads)}
        self.freeing = _Freeing(advised, plans, room, pending)
        self.elsewhere: dict[str, list[str]] = {}
        running = [download for download in downloads if plans.is_running(download)]
        self.running = [download.name for download in running]
        self.downloads = [
            download
            for download in downloads
            if download not in running and not self._is_locked(download)
        ]

    def steps(self) -> Iterator[Recommendation]:
        """Yield what frees bytes first, then what fetches."""
        unsized = [download for download in self.downloads if not download.known]
        fetched, waiting = self._fitting(
            [download for download in self.downloads if download.known]
        )
        blocked = bool(waiting or self.elsewhere) or self.plans.shortage([*fetched, *unsized])
        evicting: list[PendingDownload] = []
        short = self.plans.shortage([*fetched, *waiting])
        if short is not None and not self.plans.may_evict(short):
            text = f"{no_room(waiting)}: {not_for(self.advised.config_path)}"
            yield Recommendation(text, None)
            short, waiting = None, []
        if short is not None:
            evicting = self._evicting(waiting, short)
            waiting = [download for download in waiting if download not in evicting]
        yield from self.freeing.steps(short if waiting else None, waiting)
        locked = self.freeing.locked
        if locked is not None:
            text = f"{locked} cannot be changed by this user: run vlmcache as its owner"
            if self.plans.is_read_only(locked):
                text = f"{locked} is on a filesystem that is mounted read-only: remount it"
            yield Recommendation(f"{text}, or name another cache with --cache-dir", None)
        for place, names in self.elsewhere.items():
            yield Recommendation(f"no room at {place} to download {', '.join(names)}", None)
        if unsized and blocked:
            # How much room they take is not known, so nothing is removed for them either.
            yield Recommendation(f"{no_room(unsized)}, size unknown", None)
        if self.running:
            text = f"being downloaded by another process: {', '.join(self.running)}"
            yield self.advised.recommend(text, "watch")
        yield from self._fetching(fetched)
        yield from self._fetching([] if blocked else unsized)
        if evicting:
            text = f"{to_download(evicting)}, after evicting what was not used recently"
            names = [download.name for download in evicting]
            yield self.advised.recommend(text, "pull", *names, "--make-room")

    def _is_locked(self, download: PendingDownload) -> bool:
        folder = self.plans.locked_for(download)
        self.freeing.locked = self.freeing.locked or folder
        return folder is not None

    def _fitting(
        self, downloads: list[PendingDownload]
    ) -> tuple[list[PendingDownload], list[PendingDownload]]:
        """Return the downloads that there is room for, all of them together, and the rest.

        Downloads that another disk than the cache's has no room for are left out.
        """
        if self.plans.shortage(downloads) is None:
            return downloads, []
        fitting: list[PendingDownload] = []
        waiting: list[PendingDownload] = []
        # Those that need nothing and small ones come first, so that most of them fit.
        for download in sorted(downloads, key=lambda download: download.plan.needs):
            short = self.plans.shortage([*fitting, download])
            if short is None:
                fitting.append(download)
            elif self.plans.on_cache_disk(short):
                waiting.append(download)
            else:
                self.elsewhere.setdefault(short.place, []).append(download.name)
        return (
            [download for download in downloads if download in fitting],
            [download for download in downloads if download in waiting],
        )

    def _evicting(
        self, waiting: Sequence[PendingDownload], short: Shortage
    ) -> list[PendingDownload]:
        """Return the downloads for which `pull --make-room` would make enough room."""
        pulled = [download for download in waiting if not download.repair]
        if not pulled:
            return []
        # Everything else that is fetched needs room too, so the goal is that of all downloads.
        keep = self.plans.keepable(download.repo for download in pulled)
        plan, missed = self.plans.clean(CleanOptions(free=short.goal, keep=keep))
        enough = not missed and plan.frees >= short.short
        return pulled if enough and self.freeing.is_harmless(plan) else []

    def _fetching(self, downloads: Sequence[PendingDownload]) -> Iterator[Recommendation]:
        unknown = "" if all(download.known for download in downloads) else ", size unknown"
        broken = [download for download in downloads if download.damaged and not download.repair]
        if broken:
            names = [download.name for download in broken]
            text = f"damaged: {first_of(names, 2)}; fetch the bad files again"
            text += f"{fetch_size(broken)}{unknown}"
            yield self.advised.recommend(text, "pull", *names)
        repaired = [download.name for download in downloads if download.repair]
        if repaired:
            text = f"damaged: {first_of(repaired, 2)}; repair the bad files{unknown}"
            yield self.advised.recommend(text, "verify", *repaired, "--repair")
        absent = [
            download for download in downloads if not download.damaged and not download.repair
        ]
        if absent:
            names = [download.name for download in absent]
            yield self.advised.recommend(f"{to_download(absent)}{unknown}", "pull", *names)


class _Freeing:
    """What frees bytes.

    locked: a folder in the way of a step, which this user cannot change.
    """

    def __init__(
        self, advised: Advice, plans: CommandPlans, room: CacheSummary, pending: set[str]
    ) -> None:
        self.advised = advised
        self.plans = plans
        self.room = room
        self.pending = pending
        self.keep = plans.keepable(pending)
        self.locked: str | None = None

    def steps(
        self, short: Shortage | None, waiting: Sequence[PendingDownload]
    ) -> Iterator[Recommendation]:
        """Yield what frees bytes: waste, what is over the size limit, what the disk needs.

        Args:
            short: the cache's disk without room for what waits, if no eviction makes enough.
            waiting: downloads that do not fit.
        """
        room = self.room
        removed: set[str] = set()
        over = room.max_size is not None and room.size_on_disk > room.max_size
        # Plain `clean` works towards the size limit too, and would miss it.
        without_limit = ("--free", "0") if over else ()
        cleaned = None
        if over and room.max_size is not None:
            words = ("--max-size", exact_size(room.max_size))
            cleaned = self._cleaning(words, CleanOptions(max_size=room.max_size))
        within = cleaned is not None
        if cleaned is None:
            cleaned = self._cleaning(without_limit, CleanOptions(free=0 if over else None))
        limit = (
            f"the cache holds {size_text(room.size_on_disk)}, over its limit of "
            f"{size_text(room.max_size or 0)}"
        )
        freed = 0
        if cleaned is not None:
            step, plan = cleaned
            freed = plan.frees
            removed |= _repos_of(plan)
            yield msgspec.structs.replace(step, text=f"{limit}: {step.text}") if within else step
        reasons = [limit] if over and not within else []
        wanted = room.size_on_disk - (room.max_size or 0) if reasons else 0
        bound = room.bound
        if bound is not None:
            reasons.append(room.low)
        if short is not None:
            reasons.append(no_room(waiting))
        needed = max(
            0 if bound is None else bound - (room.free or 0), 0 if short is None else short.short
        )
        emptied = None
        if needed > freed:
            emptied = self._emptying(needed, without_limit, bound, short)
        if emptied is not None:
            step, plan = emptied
            removed |= _repos_of(plan)
            freed = max(freed, plan.frees)
            yield msgspec.structs.replace(step, text=f"{'; '.join(reasons)}: {step.text}")
            needed = 0
        wanted = max(wanted, needed)
        if reasons and wanted > freed:
            yield from self._models("; ".join(reasons), wanted - freed, removed)

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
        options = CleanOptions(partials=True, free=0 if words else None)
        cleaned = self._cleaning((*words, "--partials"), options)
        if cleaned is not None and cleaned[1].frees >= needed:
            return cleaned
        if bound is None or short is not None:
            return None
        return self._cleaning(("--free", exact_size(bound)), CleanOptions(free=bound))

    def _cleaning(
        self, words: tuple[str, ...], options: CleanOptions
    ) -> tuple[Recommendation, Plan] | None:
        """Return `clean` with these words, and the plan of it.

        `None` if it frees nothing, misses its goal, may not be done by this user, or removes bytes
        that a pull would use, even if those models and what this user cannot change are kept.
        """
        tried: list[tuple[str, ...]] = [(), self.keep]
        for number, keep in enumerate(tried):
            if keep in tried[:number]:
                continue
            plan, missed = self.plans.clean(msgspec.structs.replace(options, keep=keep))
            if missed or not plan.frees:
                continue
            if not self.is_harmless(plan):
                if number == 1 or not self.keep:
                    tried.append(self.plans.keepable(self.pending | self._locked_repos(plan)))
                continue
            kept = [word for name in keep for word in ("--keep", name)]
            text = f"{size_text(plan.frees)} can be freed: {freed_by_kind(plan)}"
            if self.room.archive is not None and options.evicts:
                text += f"; models are moved to {self.room.archive}, not deleted"
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

    def is_harmless(self, plan: Plan) -> bool:
        """Return whether this user can carry out a plan that removes nothing that a pull uses."""
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

    def _models(self, why: str, wanted: int, removed: set[str]) -> Iterator[Recommendation]:
        """Yield models to remove, by size and last use, until that would be enough."""
        unused = [
            model for model in self.plans.evictable(self.pending) if model.repo not in removed
        ]
        models = [model for model in unused if model.locked is None]
        self.locked = self.locked or next((model.locked for model in unused if model.locked), None)
        left = wanted
        for number, model in enumerate(models[:MOST_MODELS]):
            if left <= 0:
                return
            left -= model.frees
            text = f"{model.name} holds {size_text(model.frees)}, {model.used}"
            text = text if number else f"{why}: {text}"
            yield self.advised.recommend(text, "rm", model.name, frees=model.frees)
        if not models:
            largest = self.plans.largest()
            whose = "needed, in use or configured"
            if self.locked is not None and not self.plans.is_read_only(self.locked):
                whose = "needed, in use, configured or belongs to another user"
            text = f"; everything here is {whose}: {largest}"
            yield Recommendation(why + (text if largest else ""), None)


def _repos_of(plan: Plan) -> set[str]:
    """Return the repos of which a plan removes a revision or all."""
    return {
        action.repo
        for action in plan.actions
        if isinstance(action, RemoveTree) and action.repo and action.kind in ("repo", "snapshot")
    }
