"""What plans need to know of a cache next to its scan, and what is forgotten with a revision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.completeness import judge_content, needs_of
from vlmcache.cache.mounts import Mount, mount_of
from vlmcache.cache.moved import read_moves
from vlmcache.cache.scan import rebased, scan
from vlmcache.cache.state import CacheState, RevisionKey
from vlmcache.cache.usage import LastUse, Usage, last_uses, own_uses, who_uses
from vlmcache.change.needed import Evidence, in_question
from vlmcache.change.removals import Key
from vlmcache.config import Environment, own_home
from vlmcache.errors import VlmcacheError
from vlmcache.home.copies import remove_copies
from vlmcache.home.journal import Journal
from vlmcache.paths import real_path

_AFTER = 0.001
"""Seconds by which what a model needs counts as used later, so that the model goes first."""


class JournalFacts(NamedTuple):
    """What our journal says of a cache."""

    uses: Mapping[RevisionKey, float]
    """Revision -> seconds since the epoch of the last use."""
    damaged: set[tuple[int, int, int, int]]
    """(device, inode, size, mtime in ns) of the files that `verify` found to be damaged."""


class Known:
    """What plans need to know next to a scan. Each fact is read once, and only if it is asked for.

    Args:
        environment: the variables that say where our journal is.
        state: the cache as it was scanned.
        cache: of a place to which `move` has brought models, what is known of their cache.
    """

    def __init__(
        self, environment: Environment, state: CacheState, cache: Known | None = None
    ) -> None:
        self.environment = environment
        self.cache = cache
        self.state = state
        self.state = state.with_damage(self.remembered.damaged)

    @cached_property
    def mount(self) -> Mount | None:
        """The filesystem of the cache."""
        return mount_of(self.state.dir)

    @cached_property
    def remembered(self) -> JournalFacts:
        """What our journal says of the cache."""
        if self.cache is not None:
            return self.cache.remembered
        with Journal(own_home(self.environment)[0]) as journal:
            return JournalFacts(journal.uses(self.state.dir), journal.damaged())

    @cached_property
    def used(self) -> dict[Key, LastUse]:
        """When each revision of the cache was last used."""
        access_times = self.mount.access_times if self.mount else "unknown"
        used = last_uses(self.state, self.remembered.uses, access_times)
        elsewhere = self.cache.used if self.cache is not None else {}
        return _with_needed(self.needs, used, elsewhere)

    @cached_property
    def needs(self) -> dict[Key, set[Key]]:
        """Which revisions of other models each needs, wherever `move` has brought them."""
        return self.cache.needs if self.cache is not None else needs_of(self.state)

    @cached_property
    def evidence(self) -> Evidence:
        """What shows whether revisions are needed, for the repos in question."""
        every = any(not shared.users for shared in self.state.shared.values())
        states = {
            (repo.folder, revision.commit): judge_content(repo, revision)
            for repo in self.state.repos
            if every or in_question(repo)
            for revision in repo.revisions
        }
        shows_reads = self.mount is not None and self.mount.shows_reads
        uses = own_uses(self.state, self.remembered.uses, shows_reads=shows_reads)
        return Evidence(states, uses)

    @cached_property
    def usage(self) -> Usage:
        """What running processes use now."""
        if self.cache is not None:
            return who_uses(self.state, {repo.folder for repo in self.state.repos})
        return users_of(self.state)

    @cached_property
    def places(self) -> list[Known]:
        """What is known of each place to which models were moved; what else is there is not ours.

        The locks of what is used through a link are in the cache.
        """
        moved = moved_repos(self.state)
        places = scan_places(self.state, set(moved.values())).values()
        locks = {folder: locks for folder, locks in self.state.locks.items() if folder in moved}
        ours = (
            msgspec.structs.replace(
                place,
                repos=tuple(repo for repo in place.repos if moved.get(repo.folder) == place.dir),
                shared={name: shared for name, shared in place.shared.items() if shared.users},
                strays=(),
                leftovers=(),
                locks=locks,
            )
            for place in places
        )
        return [Known(self.environment, place, self) for place in ours]


def _with_needed(
    needs: Mapping[Key, Collection[Key]],
    used: dict[Key, LastUse],
    elsewhere: Mapping[Key, LastUse],
) -> dict[Key, LastUse]:
    """Return last uses by which what a model needs was used just after the model."""
    # What needs most comes first, since what it needs may need others itself.
    for model in sorted(needs, key=lambda model: -len(needs[model])):
        use = used.get(model) or elsewhere.get(model)
        for other in needs[model] if use is not None else ():
            if use is not None and other in used and used[other].at <= use.at:
                used[other] = msgspec.structs.replace(use, at=use.at + _AFTER)
    return used


def moved_repos(state: CacheState) -> dict[str, str]:
    """Return the folders of repos that `move` has brought to another place -> that place."""
    return {repo.folder: repo.moved_to for repo in state.repos if repo.moved_to is not None}


def scan_places(state: CacheState, paths: Collection[str]) -> dict[str, CacheState]:
    """Return the other places, scanned. Their links include those of the cache that lead there."""
    places: dict[str, CacheState] = {}
    for path in filter(os.path.isdir, sorted(paths)):
        place, real = scan(path), real_path(path)
        links = {rebased(led_to, real, path): by for led_to, by in state.outside.items()}
        places[path] = msgspec.structs.replace(place, outside=place.outside | links)
    return places


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


def forget_missing(environment: Environment, state: CacheState) -> None:
    """Forget the revisions of a scanned cache that are no longer there."""
    forget_revisions(
        environment,
        state.dir,
        (
            (repo.type, repo.id, revision.commit)
            for repo in state.repos
            for revision in repo.revisions
        ),
    )


def forget_revisions(
    environment: Environment, cache_dir: str, revisions: Iterable[RevisionKey]
) -> None:
    """Let the journal forget revisions that are not in a cache, and remove the copies of them.

    Args:
        environment: the variables that say where the journal and the copies are.
        cache_dir: the cache.
        revisions: which; one that is in the cache is not forgotten.
    """
    home = own_home(environment)[0]
    with Journal(home) as journal:
        for kind, repo, commit in revisions:
            folder = os.path.join(cache_dir, layout.repo_folder(kind, repo))
            if os.path.lexists(layout.snapshot_path(folder, commit)):
                continue
            journal.forget(cache_dir, (kind, repo, commit))
            if kind == "model":
                # A copy that stays is listed by status, and does no harm.
                with contextlib.suppress(OSError):
                    remove_copies(home, repo, commit)
