"""What recommendations are made of: commands, their plans, downloads, and words.

Plans are made as the commands make them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat as modes
from collections.abc import Collection, Iterable, Sequence

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.completeness import reader
from vlmcache.cache.entries import is_stale
from vlmcache.cache.locks import lock_held
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.state import CacheState, Finding, Repo, Revision
from vlmcache.cache.usage import Usage
from vlmcache.change.known import Known
from vlmcache.change.names import Target
from vlmcache.change.needed import foreign_files
from vlmcache.change.plan import Fetch, Plan, ReleaseShared, Remove, RemoveTree
from vlmcache.change.removal_plan import plan_removal
from vlmcache.change.removals import needed_by
from vlmcache.commands.pull.room import Shortage, find_shortage, same_disk
from vlmcache.commands.remove.clean import plan_clean
from vlmcache.commands.remove.facts import pinned_models
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.commands.status.values import Recommendation
from vlmcache.config import ModelConfig, Session, options_in_force
from vlmcache.errors import UsageError
from vlmcache.units import duration_text, first_of, size_text

MOST_MODELS = 5
"""The most models that are named to make room."""
_RECENT = 30 * 86400.0
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

    def __init__(self, session: Session) -> None:
        self.options = options_in_force(session.config, session.cache)
        self.config_path = session.config.path

    def recommend(self, text: str, name: str, *words: str, frees: int = 0) -> Recommendation:
        """Return a recommendation of one of our commands with its words."""
        return Recommendation(text, self.command(name, *words), frees)

    def command(self, name: str, *words: str) -> str:
        """Return one of our commands with its words and the options that it needs."""
        return units.command(name, *words, *self.options)

    def completed(self, finding: Finding) -> Finding:
        """Return a finding whose remedy, if that is a command, has the options that it needs."""
        remedy, options = finding.remedy or "", units.shell_words(*self.options)
        if not remedy.startswith("vlmcache ") or "--cache-dir " in remedy or options in remedy:
            return finding
        return msgspec.structs.replace(finding, remedy=f"{remedy} {options}")


class PendingDownload(msgspec.Struct, frozen=True):
    """What a pull would do for one model that is not complete."""

    name: str
    """What to type for the model."""
    repo: str
    plan: Plan
    known: bool = True
    """Whether the plan shows how much is fetched; otherwise it stands for one byte."""
    damaged: bool = False
    repair: bool = False
    """Whether only `verify --repair` repairs it."""


class Evictable(msgspec.Struct, frozen=True):
    """A model that nothing protects."""

    name: str
    """What to type for it."""
    repo: str
    frees: int
    """Bytes that `rm` would free."""
    used: str
    """Its last use, in words."""
    recent: bool
    """Whether that was less than 30 days ago."""
    locked: str | None = None
    """A folder that this user would have to change and cannot."""


def to_download(downloads: Sequence[PendingDownload]) -> str:
    """Return what downloads take, in words."""
    noun = "model" if len(downloads) == 1 else "models"
    return f"{len(downloads)} {noun} to download{fetch_size(downloads)}"


def fetch_size(downloads: Sequence[PendingDownload]) -> str:
    """Return how much downloads fetch, to follow words: `, 4 GB`; empty if that is not known."""
    size = sum(download.plan.to_fetch for download in downloads if download.known)
    return f", {size_text(size)}" if size else ""


def no_room(downloads: Sequence[PendingDownload]) -> str:
    """Return that downloads have no room, in words."""
    return f"no room to download {', '.join(download.name for download in downloads)}"


def not_for(path: str) -> str:
    """Return why nothing is removed for a limit that a file of the working folder sets."""
    return (
        f"{path} asks for more free space than your own configuration, and nothing is removed for "
        "that: lower its min_free"
    )


def freed_by_kind(plan: Plan) -> str:
    """Return what a plan frees by kind, the largest first, and the models that are evicted."""
    frees: dict[str, int] = {}
    removed = [action for action in plan.actions if isinstance(action, Remove | RemoveTree)]
    # A revision's blobs are removed for the same reason as the revision itself.
    revisions = {(action.repo, action.reason) for action in removed if action.kind == "snapshot"}
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
    evicted = sorted(
        {action.repo for action in removed if action.repo and action.kind in ("repo", "snapshot")}
    )
    if not evicted:
        return words
    return f"{words} ({first_of(evicted, 3)})"


def last_used_at(known: Known, repo: Repo, revisions: Sequence[Revision]) -> float | None:
    """Return when one of some revisions was last used, in seconds since the epoch.

    `None` if only their downloads are known.
    """
    uses = [known.used[repo.folder, revision.commit] for revision in revisions]
    return max((use.at for use in uses if use.source != "written"), default=None)


def last_use(age: float | None) -> str:
    """Return when something was last used, from the seconds since then."""
    if age is None:
        return "last use unknown"
    return "used just now" if age < 60 else f"last used {duration_text(age)} ago"


def plan_download(
    state: CacheState, model: ModelConfig, commit: str | None, estimate: int | None
) -> tuple[Plan, bool]:
    """Return what a pull would fetch for a model, and whether it is known how much that is.

    Args:
        state: the cache.
        model: the repo, its revision and its variant.
        commit: what the revision means here, if the cache knows it.
        estimate: bytes to fetch, for a model of which the cache has no listing.
    """
    repo = state.repo(model.repo)
    if repo is not None and commit is None:
        begun = {*repo.trees, *(revision.commit for revision in repo.revisions)}
        commit = begun.pop() if len(begun) == 1 else None
    listing = repo.trees.get(commit) if repo is not None and commit is not None else None
    if commit is not None and listing:
        from vlmcache.commands.pull import plan  # only if something is missing

        here = repo.revision(commit) if repo is not None else None
        read = reader(here) if here is not None else lambda _: None
        selection = plan.FileSelection(variant=model.variant)
        with contextlib.suppress(UsageError):
            wanted = selection.choose(model.repo, listing, here, read).wanted
            listed = plan.Listing(commit, listing)
            return plan.plan_pull(state, model.repo, model.revision, listed, wanted), True
    return fetching(model.repo, 1 if estimate is None else estimate), estimate is not None


def fetching(repo_id: str, size: int) -> Plan:
    """Return a plan that stands for a download of which nothing but the size is known."""
    return Plan((Fetch(repo_id, "", "", "", size, 0, "not cached"),), needs=size)


class CommandPlans:
    """The plans that commands would make, from one scan."""

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
        return tuple(layout.typed_name(repo.type, repo.id) for repo in cached)

    def locked_folder(self, plan: Plan) -> str | None:
        """Return a folder that the removals would change and this user cannot."""
        removed = [
            action
            for action in plan.actions
            if isinstance(action, Remove | RemoveTree | ReleaseShared)
        ]
        folders = [self.state.dir] if removed else []
        for action in removed:
            folders.append(os.path.dirname(action.path))
            if isinstance(action, RemoveTree):
                folders.append(action.path)
                folders += _parts(action.path) if action.kind == "repo" else ()
        stuck = (os.path.dirname(action.path) for action in removed if not _may_unlink(action.path))
        return next(itertools.chain(filter(_is_shut, dict.fromkeys(folders)), stuck), None)

    def locked_for(self, download: PendingDownload) -> str | None:
        """Return a folder that the download would write into and this user cannot."""
        name = layout.folder_of(download.repo)
        folder = os.path.join(self.state.dir, name)
        places = [folder, *_parts(folder), layout.lock_path(self.state.dir, name, "")]
        return next(filter(_is_shut, map(nearest_folder, places)), None)

    def is_read_only(self, folder: str) -> bool:
        """Return whether a folder is on a filesystem that nobody can write to."""
        try:
            return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        except (AttributeError, OSError):
            return False

    def is_running(self, download: PendingDownload) -> bool:
        """Return whether a lock of the repo is held, or a process writes a partial of it."""
        folder = layout.folder_of(download.repo)
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
        """Return the models that nobody configured, uses, needs or fetches, and that the hub has.

        Those that were not used for 30 days come first, and of these the largest. Those that this
        user cannot change say so.
        """
        state, usage = self.state, self.known.usage
        pinned, needs = pinned_models(self.config, state), self.known.needs
        needed = needed_by(needs, needs)
        keys = {folder for folder, _ in (*pinned.revisions, *needed.revisions)}
        evictable: list[Evictable] = []
        for repo in state.repos:
            if (
                repo.linked_to is not None
                or layout.typed_name(repo.type, repo.id) in pending
                or repo.folder in pinned.repos
                or repo.folder in keys
                or not layout.is_repo_id(repo.id)
                or any(not is_stale(part, state.scanned_at) for part in repo.partials)
                or usage.of_repo(state, repo) is not None
                or any(foreign_files(repo, revision) for revision in repo.revisions)
                or any(not stray.leftover for stray in repo.strays)
            ):
                continue
            plan = plan_removal(state, [Target(repo.id, repo.folder)])
            if plan.frees:
                age = self._age(repo)
                evictable.append(
                    Evictable(
                        layout.typed_name(repo.type, repo.id),
                        repo.id,
                        plan.frees,
                        last_use(age),
                        age is not None and age < _RECENT,
                        self.locked_folder(plan),
                    )
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
        at = last_used_at(self.known, repo, repo.revisions)
        return None if at is None else max(0.0, self.state.scanned_at - at)


def _parts(folder: str) -> tuple[str, ...]:
    """Return the folders in a repo's folder that its files lie in."""
    names = (layout.BLOBS, layout.SNAPSHOTS, layout.REFS, layout.TREES)
    return tuple(os.path.join(folder, name) for name in names)


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
