"""What of a cache is waste, chosen by the rules of `needed` (pure)."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Mapping

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.entries import STALE_AFTER, is_stale
from vlmcache.cache.state import CacheState, Partial, Repo, Stray
from vlmcache.cache.trash import TrashNeeds
from vlmcache.cache.usage import LastUse, Process, Usage
from vlmcache.change.needed import (
    REPLACED,
    UNUSED_AFTER,
    Evidence,
    damage,
    find_waste,
    folders_of,
    in_question,
    is_read,
    is_young,
    known_commits,
    looks_wasted,
)
from vlmcache.change.plan import Kept
from vlmcache.change.removals import Key, Protected, Removals, needed_by

_IN_TRASH = "a removal in the trash needs it: 'vlmcache trash' lists them"


class Facts(msgspec.Struct, frozen=True):
    """What a plan of `clean` is made from, in addition to the state of the cache."""

    now: float
    """Seconds since the epoch."""
    free_now: int | None = None
    """Bytes free on the disk."""
    last_used: Mapping[Key, LastUse] = {}
    """(repo folder, commit) -> last use; what is not in it was never used."""
    pinned: Protected = Protected()
    """Revisions that are not evicted, and are not waste."""
    kept: Protected = Protected()
    """Revisions of which nothing is removed, second formats included."""
    foreign: Protected = Protected()
    """Revisions that hold files of others: they are not evicted, and are not waste."""
    needed: Protected = Protected()
    """Revisions that a model needs that stays: they are not evicted, and are not waste."""
    usage: Usage = Usage()
    """Who uses what now; nothing in use is removed."""
    needs: Mapping[Key, Collection[Key]] = {}
    """What other models each needs to load: what stays keeps them, as (repo folder, commit)."""
    evidence: Evidence = Evidence()
    """What shows that a revision is not needed; without it, each is."""
    duplicates: Mapping[Key, Mapping[str, str]] = {}
    """(repo folder, commit) -> names of second weight formats and where the same weights are, for
    revisions that load without them."""
    trash: TrashNeeds = TrashNeeds()
    """What removals in the trash need to be restored as they were."""

    def why(self, folder: str, commit: str) -> str | None:
        """Return why a revision is protected, `None` if it is not."""
        groups = (self.kept, self.pinned, self.foreign, self.needed)
        return next(filter(None, (group.why(folder, commit) for group in groups)), None)

    def used_at(self, key: Key) -> float:
        """Return when a revision was last used, in seconds since the epoch."""
        return self.last_used[key].at if key in self.last_used else 0.0


def busy_repos(state: CacheState, usage: Usage) -> dict[str, tuple[Process, ...]]:
    """Return the repos that a process uses, or that a download is going into."""
    busy: dict[str, tuple[Process, ...]] = {}
    for repo in state.repos:
        users = usage.of_repo(state, repo)
        if users is not None:
            busy[repo.folder] = users
        elif any(partial.locked for partial in repo.partials):
            busy[repo.folder] = ()
    return busy


def kept_in_use(path: str, repo: Repo, users: tuple[Process, ...]) -> Kept:
    """Return that something stays because of who uses it."""
    reason = "in use" if users else "in use: a lock of the hub is held"
    return Kept(path, repo.id, reason, users)


def writers(repo: Repo, partial: Partial, usage: Usage) -> tuple[Process, ...] | None:
    """Return who writes to a partial, none if that cannot be seen; `None` if nobody does."""
    users = usage.files.get((partial.device, partial.inode), ())
    lock = f"{repo.folder}/{partial.etag}{layout.LOCK_SUFFIX}"
    if users or partial.locked or lock in usage.locks:
        return users or usage.locks.get(lock, ())
    return None


class WasteSelection(msgspec.Struct):
    """Chooses waste, and notes why the rest of what looks like it stays."""

    state: CacheState
    facts: Facts
    chosen: Removals
    """What is removed for other reasons; added to."""
    busy: Mapping[str, tuple[Process, ...]]
    """The repos in use, and who uses them."""

    def add_unfinished(self, *, asked: bool) -> None:
        """Choose the partial downloads that nobody continues.

        Args:
            asked: whether to choose those too that a pull would still continue.
        """
        for repo in self.state.repos:
            if repo.folder in self.chosen.repos or repo.linked_to is not None:
                continue
            for partial in repo.partials:
                key = repo.folder, partial.name
                users = writers(repo, partial, self.facts.usage)
                reason = None
                if users is not None:
                    reason = "being downloaded"
                elif repo.folder in self.facts.kept.repos:
                    reason = self.facts.kept.repos[repo.folder]
                elif key in self.chosen.partials:
                    continue
                elif not is_stale(partial, self.facts.now):
                    reason = "a download that was written within the last hour"
                elif asked:
                    self.chosen.partials[key] = "an unfinished download (--partials)"
                elif _is_finished(repo, partial):
                    self.chosen.partials[key] = "its download was finished in another file"
                elif self.facts.now - partial.mtime_ns / 1e9 > UNUSED_AFTER:
                    self.chosen.partials[key] = "a download that was not continued for 30 days"
                else:
                    reason = "an unfinished download: pull continues it, --partials removes it"
                if reason is not None:
                    self.chosen.kept.append(Kept(partial.path, repo.id, reason, users or ()))

    def add_waste(self) -> None:
        """Choose waste of every repo, shared blobs, locks and what is not a repo's."""
        chosen = self.chosen
        sound = True
        every = any(not shared.users for shared in self.state.shared.values())
        stay = (key for key in self.facts.needs if not chosen.holds(key))
        needed = needed_by(self.facts.needs, stay)
        facts = msgspec.structs.replace(self.facts, needed=needed)
        for repo in self.state.repos:
            folder = repo.folder
            if folder in chosen.repos:
                continue
            if repo.linked_to is not None:
                waste_there = repo.by_class.detached + repo.by_class.orphan + repo.by_class.partial
                if waste_there and repo.moved_to is None:
                    why = f"lies at {repo.linked_to}: links are never followed"
                    chosen.kept.append(Kept(repo.path, repo.id, why))
                sound = sound and self._has_all(repo)
                continue
            self._add_strays(repo.strays, repo)
            if not every and not in_question(repo):
                continue
            why_protected = functools.partial(facts.why, folder)
            gone = chosen.commits_of(folder)
            waste = find_waste(repo, self.facts.evidence, self.facts.now, chosen, why_protected)
            sound = sound and waste.damage is None and self._has_all(repo)
            if folder in self.busy:
                chosen.kept += (
                    kept_in_use(path, repo, self.busy[folder])
                    for name, path in looks_wasted(repo)
                    if name not in gone and why_protected(name) is None
                )
                continue
            chosen.kept += waste.kept
            chosen.revisions |= {
                (folder, commit): "a newer revision replaced it" for commit in waste.revisions
            }
            for key in ((folder, name) for name in waste.blobs):
                if key in chosen.blobs:
                    continue
                if key in facts.trash.blobs:
                    chosen.kept.append(Kept(repo.blob_path(key[1]), repo.id, _IN_TRASH))
                else:
                    chosen.blobs[key] = "no snapshot links to it"
            chosen.metadata |= {
                (folder, commit): "the listing of a revision that is not there"
                for commit in waste.listings
            }
            chosen.unknown += ((folder, commit) for commit in waste.unknown)
            if waste.revisions:
                chosen.listed |= {(folder, name) for name in waste.listed}
            self._add_begun(repo, waste.listed)
        self._add_strays(self.state.strays, None)
        self._add_shared(sound=sound)
        self._add_locks()

    def _has_all(self, repo: Repo) -> bool:
        """Return whether a repo has each link that it will have: sound, with nothing missing."""
        states = self.facts.evidence.states
        return not repo.partials and damage(repo, repo.revisions, states) is None

    def _add_begun(self, repo: Repo, listed: Collection[str]) -> None:
        """Choose what an interrupted removal did not come to: somebody had asked for it already."""
        begun = [left for left in self.state.leftovers if left.repo_folder == repo.folder]
        if not begun or any(not is_stale(partial, self.facts.now) for partial in repo.partials):
            return
        reason = "left by an interrupted removal"
        users = repo.blob_users()
        known = known_commits(repo)
        for leftover in begun:
            for name in leftover.blobs:
                needed = (repo.folder, name) in self.facts.trash.blobs or name in listed
                if name in users and not users[name] and not needed:
                    self.chosen.blobs.setdefault((repo.folder, name), reason)
            for commit in leftover.commits:
                if commit not in known:
                    self.chosen.metadata.setdefault((repo.folder, commit), reason)

    def _add_strays(self, strays: Iterable[Stray], repo: Repo | None) -> None:
        repo_id = None if repo is None else repo.id
        for stray in strays:
            why = "a temporary that was written within the last hour"
            if repo is not None and not stray.leftover and stray.path in folders_of(repo):
                # Such as a link to a folder on another disk, with all that the repo has.
                why = REPLACED
            elif not stray.leftover:
                why = "not the hub's"
            elif (
                not is_young(stray.mtime_ns, self.facts.now)
                or os.path.basename(stray.path) == layout.LEFTOVERS
            ):
                self.chosen.strays[stray.path] = "left behind by an interrupted run"
                continue
            self.chosen.kept.append(Kept(stray.path, repo_id, why))

    def _add_shared(self, *, sound: bool) -> None:
        """Choose shared blobs that no repo links to.

        The hub itself frees none without its manifest. The scan looks at every repo of the cache,
        so it knows; but only if no repo is damaged, and so none has lost a link.
        """
        begun = {name for leftover in self.state.leftovers for name in leftover.shared}
        seen = sound and not any(
            repo.linked_to is not None and not repo.by_class.total for repo in self.state.repos
        )
        for shared in self.state.shared.values():
            if shared.users:
                continue
            users = self.facts.usage.files.get((shared.device, shared.inode), ())
            why = None
            if users:
                why = "in use"
            elif shared.hash in self.facts.trash.shared:
                why = _IN_TRASH
            elif shared.hash in begun:
                self.chosen.shared[shared.hash] = "left by an interrupted removal"
            elif is_young(shared.mtime_ns, self.facts.now):
                why = "written within the last hour"
            elif not seen:
                why = "a repo is damaged or not complete, so it may still be needed"
            else:
                self.chosen.shared[shared.hash] = "no repo links to it"
            if why is not None:
                self.chosen.kept.append(Kept(shared.path, None, why, users))

    def _add_locks(self) -> None:
        for folder, lock_folder in self.state.locks.items():
            repo = self.state.repo_in(folder)
            needed: set[str] = set()
            if repo is not None:
                if not is_read(repo):
                    continue
                needed = {*repo.blobs, *(partial.etag for partial in repo.partials)}
            elif layout.parse_repo_folder(folder) is None or folder in self.facts.trash.folders:
                continue
            # The hub makes a repo's folder before it takes a lock of it, so where there is no such
            # folder, a young lock is no sign of a download that begins.
            free = [
                name
                for name, entry in lock_folder.files.items()
                if name.removesuffix(layout.LOCK_SUFFIX) not in needed
                and f"{folder}/{name}" not in self.facts.usage.locks
                and (repo is None or self.facts.now - entry.mtime_ns / 1e9 > STALE_AFTER)
            ]
            for name in free:
                self.chosen.locks.setdefault((folder, name), "no blob belongs to this lock")
            if repo is None and len(free) == len(lock_folder.files):
                self.chosen.locks.setdefault((folder, ""), "locks of a repo that is gone")


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
