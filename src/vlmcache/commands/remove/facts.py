"""What `rm` and `clean` ask of the disk and the journal before they plan."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from functools import cached_property

import msgspec

from vlmcache.cache.completeness import judge_content, needs_of
from vlmcache.cache.last_use import LastUse, last_uses
from vlmcache.cache.mounts import AccessTimes, Mount, mount_of
from vlmcache.cache.moved import read_moves
from vlmcache.cache.scan import rebased, scan
from vlmcache.cache.state import CacheState, Repo, Revision
from vlmcache.cache.usage import Usage, own_uses, who_uses
from vlmcache.change.needed import Evidence, in_question
from vlmcache.change.removals import Key
from vlmcache.config import Environment, own_home
from vlmcache.errors import VlmcacheError
from vlmcache.home.journal import Journal

_AFTER = 0.001
"""Seconds by which what a model needs counts as used later, so that the model goes first."""


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
        with Journal(own_home(self.environment)[0]) as memory:
            return memory.uses(self.state.dir)

    @cached_property
    def damaged(self) -> set[tuple[int, int, int, int]]:
        """(device, inode, size, mtime in ns) of the files that `verify` found to be damaged."""
        with Journal(own_home(self.environment)[0]) as memory:
            return memory.damaged()

    def damaged_files(self, state: CacheState, repo: Repo, revision: Revision) -> list[str]:
        """Return the files of a revision that `verify` found damaged and that did not change since.

        Args:
            state: the cache that the repo is in: this one, or a place that models were moved to.
            repo: the repo.
            revision: its revision.
        """
        found = []
        for file in revision.files if self.damaged else ():
            blob = repo.blobs.get(file.blob or "")
            shared = state.shared.get(blob.shared or "") if blob is not None else None
            content = shared or blob or file
            if (content.device, content.inode, content.size, content.mtime_ns) in self.damaged:
                found.append(file.name)
        return found

    @cached_property
    def used(self) -> dict[Key, LastUse]:
        """When each revision of the cache was last used."""
        used = last_uses(self.state, self.journal, _access_times(self.mount))
        return _with_needed(self.needs, used)

    @cached_property
    def needs(self) -> dict[Key, set[Key]]:
        """Which revisions of other models each needs."""
        return needs_of(self.state)

    @cached_property
    def evidence(self) -> Evidence:
        """What shows whether revisions of the cache are needed."""
        return _evidence(self, self.state, self.mount)

    @cached_property
    def usage(self) -> Usage:
        """What running processes use now."""
        return users_of(self.state)

    @cached_property
    def places(self) -> dict[str, CacheState]:
        """The folders to which models were moved, scanned."""
        return scan_places(self.state, set(moved_repos(self.state).values()))

    def of_place(self, place: CacheState) -> tuple[dict[Key, LastUse], Evidence]:
        """Return last uses and evidence for the models that were moved to a place."""
        if place.dir not in self._there:
            mount = mount_of(place.dir)
            used = last_uses(place, self.journal, _access_times(mount))
            self._there[place.dir] = used, _evidence(self, place, mount)
        return self._there[place.dir]

    def usage_at(self, place: CacheState) -> Usage:
        """Return what running processes use of models that were moved to a place."""
        if place.dir not in self._usage_there:
            self._usage_there[place.dir] = who_uses(place, {repo.folder for repo in place.repos})
        return self._usage_there[place.dir]


def _with_needed(
    needs: Mapping[Key, Collection[Key]], used: dict[Key, LastUse]
) -> dict[Key, LastUse]:
    """Return last uses by which what a model needs was used just after the model."""
    for model, others in needs.items():
        for other in others:
            if other in used and used[other].at <= used[model].at:
                used[other] = msgspec.structs.replace(used[model], at=used[model].at + _AFTER)
    return used


def _access_times(mount: Mount | None) -> AccessTimes:
    return mount.access_times if mount else "unknown"


def moved_repos(state: CacheState) -> dict[str, str]:
    """Return the folders of repos that `move` has brought to another place -> that place."""
    return {repo.folder: repo.moved_to for repo in state.repos if repo.moved_to is not None}


def scan_places(state: CacheState, paths: Collection[str]) -> dict[str, CacheState]:
    """Return the other places, scanned. Their links include those of the cache that lead there."""
    found: dict[str, CacheState] = {}
    for path in sorted(paths):
        if os.path.isdir(path):
            place, real = scan(path), os.path.realpath(path)
            links = {rebased(led_to, real, path): by for led_to, by in state.outside.items()}
            found[path] = msgspec.structs.replace(place, outside=place.outside | links)
    return found


def users_of(state: CacheState, folders: Collection[str] | None = None) -> Usage:
    """Return what `who_uses` does; of models that were moved here, their cache has the locks."""
    usage = who_uses(state, folders)
    locks = dict(usage.locks)
    moved = {
        folder: record.cache
        for folder, record in read_moves(state.dir).items()
        if folders is None or folder in folders
    }
    for cache in set(moved.values()):
        names = {folder for folder in moved if moved[folder] == cache}
        # Without that cache, nobody reaches them through it.
        with contextlib.suppress(VlmcacheError):
            home = msgspec.structs.replace(scan(cache, only=names), repos=(), strays=())
            locks |= who_uses(home, names).locks
    return Usage(usage.files, locks, usage.hidden)


def _evidence(known: Known, state: CacheState, mount: Mount | None) -> Evidence:
    """Return what shows whether revisions are needed, for the repos in question."""
    every = any(not shared.users for shared in state.shared.values())
    states = {
        (repo.folder, revision.commit): (
            "damaged"
            if known.damaged_files(state, repo, revision)
            else judge_content(repo, revision)
        )
        for repo in state.repos
        if every or in_question(repo)
        for revision in repo.revisions
    }
    shows_reads = mount is not None and mount.shows_reads
    return Evidence(states, own_uses(state, known.journal, shows_reads=shows_reads))


def inodes_below(path: str) -> dict[tuple[int, int], str]:
    """Return (device, inode) of a path and all below it -> one of its paths."""
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
