"""What `rm` without MODEL and `clean -i` offer, each with what would be removed for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from vlmcache.cache.entries import is_stale
from vlmcache.cache.layout import typed_name
from vlmcache.cache.moved import away_words
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.usage import LastUse
from vlmcache.change.names import Target
from vlmcache.change.needed import FOREIGN, foreign_files
from vlmcache.change.plan import Kept, Plan, joined, used_by_words
from vlmcache.change.removal_plan import plan_of
from vlmcache.change.removals import Key, Protected, Removals, needed_by
from vlmcache.change.waste import Facts, WasteSelection, busy_repos
from vlmcache.commands.remove.offered import Choose, IsKept, Offer, Offered
from vlmcache.commands.remove.plan import (
    Remainder,
    eviction_candidates,
    plan_targets,
    select_duplicates,
    with_foreign_files,
)
from vlmcache.errors import UnconfirmedError

_YOUNG = "a download into it was written within the last hour"


def _name_of(repo: Repo) -> str:
    """Return what to type for a repo."""
    return typed_name(repo.type, repo.id)


def _repo_size(state: CacheState, repo: Repo) -> int:
    """Return the bytes that a repo occupies, those of shared blobs included."""
    hashes = {blob.shared for blob in repo.blobs.values() if blob.shared is not None}
    shared = (state.shared[name] for name in hashes if name in state.shared)
    elsewhere = sum(blob.allocated_there for blob in repo.blobs.values()) if repo.linked_to else 0
    return repo.size_on_disk + elsewhere + sum(blob.allocated for blob in shared)


def _used_at(use: LastUse | None) -> float | None:
    """Return when something was used; `None` if only its download is known."""
    return use.at if use is not None and use.source != "written" else None


def _last_use(used: Mapping[Key, LastUse], repo: Repo) -> float | None:
    """Return when one of the revisions was last used; `None` if only downloads are known."""
    uses = (_used_at(used.get((repo.folder, revision.commit))) for revision in repo.revisions)
    return max((at for at in uses if at is not None), default=None)


class ModelFacts(NamedTuple):
    """What has to be known about models before one is chosen."""

    used: Mapping[Key, LastUse]
    needs: Mapping[Key, Collection[Key]]
    pinned: Protected
    """Revisions that config.yaml names."""
    in_use: Sequence[Kept]
    """What processes use."""
    force: bool = False
    """Whether what is in use can be removed too."""


def offered_models(
    state: CacheState,
    places: Mapping[str, CacheState],
    facts: ModelFacts,
    is_kept: IsKept = lambda _plan: False,
) -> tuple[Offer, list[Target]]:
    """Return each repo of a cache as something to remove, and as what `rm` is asked for then.

    Args:
        state: the cache.
        places: where models were moved to, scanned.
        facts: what else is known.
        is_kept: returns whether what a plan removes is kept in the trash at first.
    """
    in_use = {os.path.basename(kept.path): kept for kept in facts.in_use}
    needed = needed_by(facts.needs, facts.needs)
    repos = sorted(state.repos, key=lambda repo: (-_repo_size(state, repo), _name_of(repo)))
    things, targets = [], []
    for repo in repos:
        what, guard = _guard(repo, facts.pinned, needed, state.scanned_at)
        barred = False
        if repo.folder in in_use:
            what, guard = "in use", used_by_words(in_use[repo.folder].processes)
            barred = not facts.force
        things.append(
            Offered(
                _name_of(repo),
                what or ("moved" if repo.moved_to else repo.type),
                _repo_size(state, repo),
                _last_use(facts.used, repo),
                guard,
                barred,
            )
        )
        rest = tuple(left for left in state.leftovers if left.repo_folder == repo.folder)
        targets.append(Target(_name_of(repo), repo.folder, leftovers=rest))

    def plan(numbers: Sequence[int]) -> Plan:
        return plan_targets(state, places, [targets[number] for number in numbers])

    return Offer(state.dir, things, plan, is_kept), targets


def _guard(repo: Repo, pinned: Protected, needed: Protected, now: float) -> tuple[str, str]:
    """Return in a word, and in a sentence, why a repo is not removed by accident."""
    if repo.away is not None:
        return "away", away_words(repo.away)
    commits = [revision.commit for revision in repo.revisions] or [""]
    for word, group in (("configured", pinned), ("needed", needed)):
        why = next(filter(None, (group.why(repo.folder, commit) for commit in commits)), None)
        if why is not None:
            return word, why
    if any(not is_stale(partial, now) for partial in repo.partials):
        return "downloading", _YOUNG
    foreign = any(foreign_files(repo, revision) for revision in repo.revisions)
    if foreign or any(not stray.leftover for stray in repo.strays):
        return "other files", FOREIGN
    return "", ""


def numbers_of(offer: Offer, choose: Choose) -> Sequence[int]:
    """Return the numbers of what is chosen; nobody is asked if there is nothing to choose from.

    Raises:
        UnconfirmedError: nothing is chosen.
    """
    if not offer.things:
        return ()
    numbers = choose(offer)
    if not numbers:
        raise UnconfirmedError("nothing was chosen: nothing was removed")
    return numbers


class _Part(msgspec.Struct, frozen=True):
    """Something that `clean` may remove if it is asked to, and how."""

    what: str
    name: str
    removals: Removals
    repo: Repo | None = None
    last_used: float | None = None
    guard: str = ""
    barred: bool = False
    complete: bool = False
    """Whether it is all of a repo."""


class Site(NamedTuple):
    """The cache, or a place to which models were moved."""

    state: CacheState
    facts: Facts
    finish: Callable[[Plan], Plan]
    """Adds to a plan what belongs to it elsewhere."""


def offered_waste(
    sites: Sequence[Site],
    unused_for: float,
    idle: float,
    is_kept: IsKept = lambda _plan: False,
) -> Offer:
    """Return what `clean` may remove: old revisions, unfinished downloads, second formats, models.

    Args:
        sites: the cache first.
        unused_for: seconds without a use after which a model is offered.
        idle: seconds without a write after which a download is removed along with its model.
        is_kept: returns whether what a plan removes is kept in the trash at first.
    """
    sites = [
        site._replace(
            facts=msgspec.structs.replace(site.facts, foreign=with_foreign_files(site.state))
        )
        for site in sites
    ]
    sized = [
        (_part_size(site.state, part), site, part)
        for site in sites
        for part in _Parts(site, unused_for).find()
    ]
    sized.sort(key=lambda item: (-item[0], item[2].name, item[2].what))
    things = [
        Offered(part.name, part.what, size, part.last_used, part.guard, part.barred)
        for size, _, part in sized
    ]

    def plan(numbers: Sequence[int]) -> Plan:
        plans = []
        for site in reversed(sites):
            chosen = Removals()
            for number in numbers:
                if sized[number][1] is site:
                    chosen.add(sized[number][2].removals)
            Remainder(site.state, site.facts, idle).add_to(chosen)
            plans.append(site.finish(plan_of(site.state, chosen)))
        return joined(plans)

    return Offer(sites[0].state.dir, things, plan, is_kept)


def _part_size(state: CacheState, part: _Part) -> int:
    """Return the bytes that a part occupies: those that removing it alone frees, if it is small."""
    repo = part.repo
    if repo is not None and (part.complete or part.barred):
        return _repo_size(state, repo) if part.complete else 0
    if repo is not None:
        # What the rest of the cache holds counts for nothing here, and takes its time.
        state = msgspec.structs.replace(state, repos=(repo,), strays=(), locks={})
    return plan_of(state, part.removals).frees


class _Parts:
    """Finds what of one site can be offered."""

    def __init__(self, site: Site, unused_for: float) -> None:
        self.state, self.facts = site.state, site.facts
        self.unused_for = unused_for
        self.busy = busy_repos(self.state, self.facts.usage)
        self.waste = Removals()
        selection = WasteSelection(self.state, self.facts, self.waste, self.busy)
        selection.add_unfinished(asked=True)
        selection.add_waste()
        select_duplicates(self.state, self.waste, self.facts, self.busy)
        self.rest: dict[str, Removals] = {}
        """Repo folder -> what is waste of it next to revisions, downloads and second formats."""
        for group in ("blobs", "metadata", "locks"):
            for key, why in getattr(self.waste, group).items():
                getattr(self._rest_of(key[0]), group)[key] = why
        for repo in self.state.repos:
            for stray in repo.strays:
                if stray.path in self.waste.strays:
                    self._rest_of(repo.folder).strays[stray.path] = self.waste.strays[stray.path]
        self.kept = {kept.path: kept for kept in self.waste.kept}
        writing = {
            repo.folder
            for repo in self.state.repos
            if any(not is_stale(partial, self.facts.now) for partial in repo.partials)
        }
        self.active = self.busy.keys() | writing
        evictable = eviction_candidates(self.state, Removals(), self.facts, self.active)
        stay = needed_by(self.facts.needs, self.facts.needs.keys() - set(evictable))
        self.needed = needed_by(self.facts.needs, self.facts.needs)
        self.evictable = {key for key in evictable if stay.why(*key) is None}

    def find(self) -> Iterator[_Part]:
        """Yield the parts of each repo, then what belongs to none."""
        for repo in self.state.repos:
            if repo.linked_to is None:
                yield from self._of_revisions(repo)
                yield from self._of_partials(repo)
                yield from self._of_files(repo)
                if repo.folder in self.rest:
                    yield _Part("leftovers", _name_of(repo), self.rest[repo.folder], repo)
        rest = Removals(shared=self.waste.shared, leftovers=self.waste.leftovers)
        for folder in self.rest.keys() - {repo.folder for repo in self.state.repos}:
            rest.add(self.rest[folder])
        for stray in self.state.strays:
            if stray.path in self.waste.strays:
                rest.strays[stray.path] = self.waste.strays[stray.path]
        if any(msgspec.structs.astuple(rest)):
            yield _Part("leftovers", "of no model", rest)

    def _rest_of(self, folder: str) -> Removals:
        return self.rest.setdefault(folder, Removals())

    def _of_revisions(self, repo: Repo) -> Iterator[_Part]:
        keys = [(repo.folder, revision.commit) for revision in repo.revisions]
        free = [key for key in keys if key in self.evictable]
        used = _last_use(self.facts.last_used, repo)
        unused = bool(keys) and all(map(self._is_unused, keys))
        for revision in repo.revisions if len(keys) > 1 else ():
            yield from self._of_revision(repo, revision.commit, old=not revision.refs)
        if not unused:
            return
        if len(free) == len(keys):
            removals = Removals(revisions={key: self._reason(key) for key in free})
            guard = next(filter(None, (self.needed.why(*key) for key in keys)), "") or ""
            what = "needed" if guard else repo.type
            yield _Part(what, _name_of(repo), removals, repo, used, guard, complete=True)
        elif not free:
            what, why = self._why_stays(repo, keys[0][1])
            yield _Part(
                what, _name_of(repo), Removals(), repo, used, why, barred=True, complete=True
            )

    def _of_revision(self, repo: Repo, commit: str, *, old: bool) -> Iterator[_Part]:
        key = repo.folder, commit
        name = f"{_name_of(repo)}@{commit[:12]}"
        what = "old revision" if old else "revision"
        used = _used_at(self.facts.last_used.get(key))
        if key in self.waste.revisions:
            listed = {pair for pair in self.waste.listed if pair[0] == repo.folder}
            removals = Removals(revisions={key: self.waste.revisions[key]}, listed=listed)
            yield _Part(what, name, removals, repo, used)
        elif key in self.evictable and (old or self._is_unused(key)):
            revision = repo.revision(commit)
            stays = self.kept.get(revision.path) if revision is not None else None
            guard = stays.reason if stays is not None and old else self.needed.why(*key) or ""
            removals = Removals(revisions={key: self._reason(key)})
            yield _Part(what, name, removals, repo, used, guard)
        elif old:
            what, why = self._why_stays(repo, commit)
            yield _Part(what, name, Removals(), repo, used, why, barred=True)

    def _of_partials(self, repo: Repo) -> Iterator[_Part]:
        chosen = {
            (repo.folder, partial.name): "an unfinished download"
            for partial in repo.partials
            if (repo.folder, partial.name) in self.waste.partials
        }
        written = max((partial.mtime_ns / 1e9 for partial in repo.partials), default=None)
        if chosen:
            yield _Part("unfinished", _name_of(repo), Removals(partials=chosen), repo, written)
        kept = next(filter(None, (self.kept.get(partial.path) for partial in repo.partials)), None)
        if kept is not None:
            yield _Part(
                "downloading", _name_of(repo), Removals(), repo, written, kept.reason, barred=True
            )

    def _of_files(self, repo: Repo) -> Iterator[_Part]:
        for revision in repo.revisions:
            key = repo.folder, revision.commit
            files = {
                (repo.folder, revision.commit, name): why
                for name, why in self.facts.duplicates.get(key, {}).items()
                if (repo.folder, revision.commit, name) in self.waste.files
            }
            if files:
                name = _name_of(repo)
                name += f"@{revision.commit[:12]}" if len(repo.revisions) > 1 else ""
                used = _used_at(self.facts.last_used.get(key))
                yield _Part("second format", name, Removals(files=files), repo, used)

    def _is_unused(self, key: Key) -> bool:
        return self.facts.now - self.facts.used_at(key) > self.unused_for

    def _reason(self, key: Key) -> str:
        days = int((self.facts.now - self.facts.used_at(key)) // 86400)
        return f"unused for {days} days" if days else "chosen"

    def _why_stays(self, repo: Repo, commit: str) -> tuple[str, str]:
        """Return in a word, and in a sentence, why a revision cannot be removed."""
        if repo.folder in self.busy:
            return "in use", used_by_words(self.busy[repo.folder])
        why = self.facts.why(repo.folder, commit)
        if why is None and repo.folder in self.active:
            return "downloading", _YOUNG
        for word, group in (("configured", self.facts.pinned), ("kept", self.facts.kept)):
            if group.why(repo.folder, commit) == why:
                return word, why or ""
        if why is None:
            return "needed", self.needed.why(repo.folder, commit) or "another model needs it"
        return "other files", why
