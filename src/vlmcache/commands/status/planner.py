"""The plans of commands that `status` may recommend, made as these commands make them."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Collection, Iterable, Sequence

from vlmcache.cache import formats, layout
from vlmcache.cache.entries import is_stale
from vlmcache.cache.locks import lock_held
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.usage import Usage
from vlmcache.change.names import Target
from vlmcache.change.plan import Fetch, Plan, ReleaseShared, Remove, RemoveTree
from vlmcache.change.removal_plan import plan_removal
from vlmcache.commands.pull.room import Shortage, find_shortage, same_disk
from vlmcache.commands.remove.clean import pinned_models, plan_clean
from vlmcache.commands.remove.facts import Known
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.commands.status.steps import Evictable, PendingDownload, last_use
from vlmcache.config import Session
from vlmcache.names import typed_name
from vlmcache.units import size_text

_RECENT = 30 * 86400.0


def plan_download(
    state: CacheState, repo_id: str, revision: str, commit: str | None, estimate: int | None
) -> tuple[Plan, bool]:
    """Return what a pull would fetch for a model, and whether it is known how much that is.

    Args:
        state: the cache.
        repo_id: the model's repo.
        revision: the branch, tag or commit that is asked for.
        commit: what that means here, if the cache knows it.
        estimate: bytes to fetch, for a model of which the cache has no listing.
    """
    repo = state.repo(repo_id)
    if repo is not None and commit is None:
        begun = {*repo.trees, *(revision.commit for revision in repo.revisions)}
        commit = begun.pop() if len(begun) == 1 else None
    listing = repo.trees.get(commit) if repo is not None and commit is not None else None
    if commit is not None and listing:
        wanted = formats.wanted(listing)
        from vlmcache.commands.pull.plan import Listing, plan_pull  # only if something is missing

        return plan_pull(state, repo_id, revision, Listing(commit, listing), wanted), True
    return fetching(repo_id, 1 if estimate is None else estimate), estimate is not None


def fetching(repo_id: str, size: int) -> Plan:
    """Return a plan that stands for a download of which nothing but the size is known."""
    return Plan((Fetch(repo_id, "", "", "", size, 0, "not cached"),), needs=size)


class Planner:
    """Makes plans as the commands do, from one scan; see `Plans`."""

    def __init__(self, known: Known, session: Session) -> None:
        self.known = known
        self.state = known.state
        _, self.config, self.location = session

    def clean(self, options: CleanOptions) -> tuple[Plan, int]:
        """Return the plan of `clean`; who uses what is looked up only if it would free anything."""
        known, config = self.known, self.config
        if config.unread is not None:
            # `clean` refuses to work then.
            return Plan(()), 1
        if "usage" not in vars(known):
            planned = plan_clean(known, config, options, Usage())
            if not planned[0].frees or not (known.usage.files or known.usage.locks):
                return planned
        return plan_clean(known, config, options, known.usage)

    def shortage(self, downloads: Sequence[PendingDownload]) -> Shortage | None:
        """Return the disk that downloads would leave too full, as a pull of them finds it."""
        plans = [download.plan for download in downloads]
        return find_shortage(self.location.dir, self.config.limits, plans)

    def on_cache_disk(self, shortage: Shortage) -> bool:
        """Return whether that disk is the cache's."""
        return same_disk(shortage.place, self.location.dir)

    def may_evict(self, shortage: Shortage) -> bool:
        """Return whether that much free space is what the user's own configuration asks for."""
        return shortage.min_free <= self.config.evict_for

    def keepable(self, repos: Iterable[str]) -> tuple[str, ...]:
        """Return what `--keep` takes for those of the repos that are in the cache."""
        cached = filter(None, map(self.state.repo, sorted(set(repos))))
        return tuple(typed_name(repo.type, repo.id) for repo in cached)

    def locked_folder(self, plan: Plan) -> str | None:
        """Return a folder that the removals would change and this user cannot."""
        folders = {self.state.dir: None}
        removed = [
            action
            for action in plan.actions
            if isinstance(action, Remove | RemoveTree | ReleaseShared)
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
        stuck = next((action.path for action in removed if not _may_unlink(action.path)), None)
        return os.path.dirname(stuck) if stuck is not None else None

    def locked_for(self, download: PendingDownload) -> str | None:
        """Return a folder that the download would write into and this user cannot."""
        name = layout.repo_folder("model", download.repo)
        folder = os.path.join(self.state.dir, name)
        inside = (layout.BLOBS, layout.SNAPSHOTS, layout.REFS, layout.TREES)
        places = [folder, *(os.path.join(folder, name_inside) for name_inside in inside)]
        places.append(os.path.join(self.state.dir, layout.LOCKS, name))
        return next((place for place in map(nearest_folder, places) if _is_shut(place)), None)

    def is_read_only(self, folder: str) -> bool:
        """Return whether a folder is on a filesystem that nobody can write to."""
        try:
            return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        except (AttributeError, OSError):
            return False

    def is_running(self, download: PendingDownload) -> bool:
        """Return whether a lock of the repo is held, or a process writes a partial of it."""
        folder = layout.repo_folder("model", download.repo)
        locks = self.state.locks.get(folder)
        if locks is not None and any(
            lock_held(os.path.join(locks.path, name)) for name in locks.files
        ):
            return True
        repo = self.state.repo(download.repo)
        partials = repo.partials if repo is not None else ()
        return any(partial.locked for partial in partials) or any(
            self.known.usage.files.get((partial.device, partial.inode)) for partial in partials
        )

    def evictable(self, pending: Collection[str]) -> Sequence[Evictable]:
        """Return the models that nobody configured, uses or is fetching.

        Those that were not used for 30 days come first, and of these the largest. Those that this
        user cannot change say so.
        """
        state, usage = self.state, self.known.usage
        pinned = pinned_models(self.config, state)
        keys = {folder for folder, _ in pinned.revisions}
        evictable: list[Evictable] = []
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
                name = typed_name(repo.type, repo.id)
                age = self._age(repo)
                recent = age is not None and age < _RECENT
                locked = self.locked_folder(plan)
                evictable.append(
                    Evictable(name, repo.id, plan.frees, last_use(age), recent, locked)
                )
        return sorted(evictable, key=lambda model: (model.recent, -model.frees))

    def largest(self) -> str:
        """Return the three largest models with their last use, in words."""
        repos = sorted(self.state.repos, key=lambda repo: -repo.size_on_disk)[:3]
        return ", ".join(
            f"{repo.id} ({size_text(repo.size_on_disk)}, {last_use(self._age(repo))})"
            for repo in repos
            if repo.size_on_disk and repo.linked_to is None
        )

    def _age(self, repo: Repo) -> float | None:
        """Return the seconds since a repo was used, `None` if only its download is known."""
        uses = [self.known.used[repo.folder, revision.commit] for revision in repo.revisions]
        known = [use.at for use in uses if use.source != "written"]
        return max(0.0, self.state.scanned_at - max(known)) if known else None


def _is_shut(folder: str) -> bool:
    """Return whether a folder exists in which this user cannot make and remove names."""
    return os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK)


def _may_unlink(path: str) -> bool:
    """Return whether a sticky folder lets this user remove a name from it."""
    try:
        folder, entry = os.stat(os.path.dirname(path)), os.lstat(path)
    except OSError:
        return True
    if not folder.st_mode & modes.S_ISVTX or not hasattr(os, "geteuid"):
        return True
    return os.geteuid() in (0, folder.st_uid, entry.st_uid)
