"""From what is to be removed to a plan, from the state of a cache alone.

The actions stand in an order that leaves waste and never a lie when it is interrupted: refs,
snapshots and repos, single files, blobs, shared blobs, locks, leftovers.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.base_record import base_record_path
from vlmcache.cache.moved import away_remedy, move_record_path, note_path
from vlmcache.cache.state import CacheState, Repo, Stamp
from vlmcache.change.names import Target
from vlmcache.change.needed import LISTED, foreign_files, is_read
from vlmcache.change.plan import Kept, Plan, Remove, RemoveTree, freed_by, joined
from vlmcache.change.removals import RemovalActions, Removals, expected_of


class _Builder:
    """Turns removals into actions."""

    def __init__(self, state: CacheState, removals: Removals) -> None:
        self.state = state
        self.removals = removals
        self.linked_by = {
            path: folder for path, folder in state.outside.items() if folder not in removals.repos
        }
        """Path -> the repo that links to it, and stays."""
        self.actions = RemovalActions(state.shared)
        self.kept = list(removals.kept)

    def build(self) -> Plan:
        complete: set[str] = set()
        self._keep_what_others_link_to()
        chosen = self.removals.folders()
        strays = self.removals.strays
        # Links to other repos are removed first: without what they lead to, they look changed.
        linking = set(self.state.outside.values())
        for repo in sorted(self.state.repos, key=lambda repo: repo.folder not in linking):
            if repo.folder not in chosen and not any(stray.path in strays for stray in repo.strays):
                continue
            reason = self._reason_for_all(repo)
            if reason is None:
                self._add_parts(repo)
                continue
            complete.add(repo.folder)
            if repo.linked_to is None:
                self.actions.add_repo(repo, reason)
                note = note_path(self.state.dir, repo.folder)
                bases = base_record_path(self.state.dir, repo.folder)
                self._add_record(repo, note, repo.record, reason)
                self._add_record(repo, bases, repo.base_record, reason)
            else:
                self._add_link(repo, reason)
        for stray in self.state.strays:
            if stray.path in strays:
                self.actions.add_stray(stray, None, strays[stray.path])
        for leftover in self.removals.leftovers:
            self.actions.add_leftover(
                leftover.path,
                _repo_id(leftover.repo_folder),
                "left by an interrupted removal",
                leftover.entry.allocated,
            )
        self.kept += (
            Kept(path, None, _links_here(self.linked_by[path]))
            for path in self.actions.release_shared(self.removals.shared, self.linked_by)
        )
        self._add_locks(complete)
        actions = self.actions.in_order()
        gone = {action.path for action in actions}
        inside = tuple(os.path.join(self.state.dir, folder, "") for folder in complete)
        return Plan(
            actions,
            frees=freed_by(actions),
            # What was to stay on its own is removed with its repo after all.
            kept=tuple(
                kept
                for kept in self.kept
                if kept.path not in gone and not kept.path.startswith(inside)
            ),
        )

    def _keep_what_others_link_to(self) -> None:
        """Let a repo to which others link not be removed completely, but all the rest of it."""
        chosen = self.removals
        for repo in self.state.repos if self.linked_by else ():
            folder = repo.folder
            for revision in repo.revisions:
                user = self._who_links_below(revision.path)
                everything = folder in chosen.repos and repo.linked_to is None
                if user and (everything or (folder, revision.commit) in chosen.revisions):
                    self.kept.append(Kept(revision.path, repo.id, _links_here(user)))
                    chosen.revisions.pop((folder, revision.commit), None)
            if repo.linked_to or folder not in chosen.repos or not self._who_links_below(repo.path):
                continue
            reason = chosen.repos.pop(folder)
            commits = {revision.commit for revision in repo.revisions}
            stay = {
                revision.commit
                for revision in repo.revisions
                if self._who_links_below(revision.path)
            }
            chosen.add_parts_of(repo, commits - stay, reason)
            chosen.refs |= {
                (folder, ref): reason for ref in repo.ref_files if repo.refs.get(ref) not in stay
            }
            chosen.metadata |= {
                (folder, commit): reason for commit in {*repo.tree_files, *repo.no_exist} - stay
            }
            chosen.strays |= {stray.path: reason for stray in repo.strays}

    def _who_links_below(self, path: str) -> str | None:
        """Return the folder of another repo with a link to a path, or to what is below it."""
        inside = path + os.sep
        return next(
            (
                folder
                for linked, folder in self.linked_by.items()
                if linked == path or linked.startswith(inside)
            ),
            None,
        )

    def _reason_for_all(self, repo: Repo) -> str | None:
        """Return why a complete repo is removed: asked for, or no revision would be left."""
        chosen = self.removals
        if repo.folder in chosen.repos:
            return chosen.repos[repo.folder]
        commits = {revision.commit for revision in repo.revisions}
        reasons = [chosen.revisions.get((repo.folder, commit)) for commit in commits]
        loose = {name for name, users in repo.blob_users().items() if not users}
        if (
            not reasons
            or None in reasons
            or repo.linked_to is not None
            or any(revision.linked for revision in repo.revisions)
            or any(commit not in commits for commit in repo.refs.values())
            or set(repo.ref_files) != set(repo.refs)
            or chosen.keeps_a_partial_of(repo)
            or any(stray.path not in chosen.strays for stray in repo.strays)
            or any((repo.folder, name) not in chosen.blobs for name in loose)
            or not is_read(repo)
            or self._who_links_below(repo.path) is not None
        ):
            return None
        return chosen.revisions[repo.folder, repo.revisions[0].commit]

    def _add_link(self, repo: Repo, reason: str) -> None:
        """Remove the link in the place of a repo that lies elsewhere, and nothing there."""
        assert repo.linked_to is not None
        frees, expected = repo.entry.allocated if repo.entry else 0, expected_of(repo.entry)
        self.actions.trees.append(Remove(repo.path, "link", repo.id, reason, frees, expected))
        record = move_record_path(self.state.dir, repo.folder)
        self._add_record(repo, record, repo.record, reason)
        why = "only the link is removed: links are never followed"
        if repo.away is not None:
            why = (
                "only the link is removed: the model stays on its drive, which is away; "
                + away_remedy(repo.away)
            )
        elif not repo.by_class.total:
            why = "only the link is removed: that place does not exist now"
        if repo.moved_to is None:
            self.kept.append(Kept(repo.linked_to, repo.id, why))

    def _add_record(self, repo: Repo, path: str, entry: Stamp | None, reason: str) -> None:
        """Remove what is noted of a repo: where it was moved to or came from, or its bases."""
        if entry is not None:
            frees, expected = entry.allocated, expected_of(entry)
            self.actions.trees.append(Remove(path, "record", repo.id, reason, frees, expected))

    def _add_parts(self, repo: Repo) -> None:
        chosen, folder = self.removals, repo.folder
        for (ref_folder, ref), reason in chosen.refs.items():
            if ref_folder == folder and ref in repo.ref_files:
                self.actions.add_ref(repo, ref, repo.refs.get(ref), reason)
        self._add_unlinked(repo)
        self.actions.add_ref_folders(repo)
        for (listing_folder, commit), reason in sorted(chosen.metadata.items()):
            if listing_folder == folder and repo.revision(commit) is None:
                self.actions.add_metadata(repo, commit, reason)
        for partial in repo.partials:
            unfinished = chosen.partials.get((folder, partial.name))
            if unfinished is not None:
                self.actions.add_partial(repo, partial, unfinished)
                self._choose_lock(repo, partial.etag)
        for stray in repo.strays:
            if stray.path in chosen.strays:
                self.actions.add_stray(stray, repo.id, chosen.strays[stray.path])

    def _add_unlinked(self, repo: Repo) -> None:
        """Remove what was chosen of snapshots, and the blobs to which nothing links then."""
        chosen, folder = self.removals, repo.folder
        used = repo.blob_users()
        before = {name for name, users in used.items() if users}
        why: dict[str, str] = {}
        for revision in repo.revisions:
            commit = revision.commit
            gone = chosen.revisions.get((folder, commit))
            if gone is not None:
                for ref in revision.refs:
                    if (folder, ref) not in chosen.refs:
                        self.actions.add_ref(repo, ref, commit, gone)
                self.actions.add_snapshot(repo, revision, gone)
            for file in revision.files:
                because = gone or chosen.files.get((folder, commit, file.name))
                if because is None or revision.file_path(file.name) in self.linked_by:
                    continue
                if gone is None:
                    self.actions.add_file(repo, revision, file, because)
                for name in [file.blob] if file.blob else list(before):
                    if (commit, file.name) in used.get(name, ()):
                        used[name].discard((commit, file.name))
                        why.setdefault(name, because)
        for name, users in used.items():
            loose = chosen.blobs.get((folder, name))
            freed = name in before and (folder, name) not in chosen.listed
            path = repo.blob_path(name)
            if not users and (freed or loose is not None):
                if path in self.linked_by:
                    self.kept.append(Kept(path, repo.id, _links_here(self.linked_by[path])))
                    continue
                self.actions.add_blob(repo, name, loose or why[name])
                self._choose_lock(repo, name)
            elif not users and name in before:
                self.kept.append(Kept(path, repo.id, LISTED))

    def _choose_lock(self, repo: Repo, etag: str) -> None:
        name = etag + layout.LOCK_SUFFIX
        folder = self.state.locks.get(repo.folder)
        if folder is not None and name in folder.files:
            self.removals.locks.setdefault((repo.folder, name), "its blob is removed")

    def _add_locks(self, complete: set[str]) -> None:
        locks = self.actions.locks
        for folder, lock_folder in self.state.locks.items():
            repo = _repo_id(folder)
            if folder in complete or (folder, "") in self.removals.locks:
                reason = self.removals.locks.get((folder, ""), "locks of a repo that is removed")
                if not lock_folder.other:
                    frees = sum(lock.allocated for lock in lock_folder.files.values())
                    frees += lock_folder.entry.allocated
                    locks.append(RemoveTree(lock_folder.path, "locks", repo, reason, frees, None))
                    continue
                for name in lock_folder.files:
                    self.removals.locks.setdefault((folder, name), reason)
            for name, entry in lock_folder.files.items():
                if (folder, name) in self.removals.locks:
                    path = os.path.join(lock_folder.path, name)
                    reason = self.removals.locks[folder, name]
                    # Nothing is expected of it: it is empty, it is removed only while it is held,
                    # and filelock before 4.2 changes its time when it is taken, by this run too.
                    locks.append(Remove(path, "lock", repo, reason, entry.allocated, None))


def _repo_id(folder: str) -> str | None:
    parsed = layout.parse_repo_folder(folder)
    return parsed[1] if parsed else None


def _links_here(folder: str) -> str:
    return f"{_repo_id(folder) or folder} links to it"


def plan_of(state: CacheState, removals: Removals) -> Plan:
    """Return the plan of removals."""
    return _Builder(state, removals.copy()).build()


def plan_moved(state: CacheState, place: CacheState, targets: Sequence[Target]) -> Plan:
    """Return the plan of `rm` for models that `move` has brought to another place, links included.

    Args:
        state: the cache that has the links.
        place: the other place, as a cache of its own.
        targets: what was named, as found in `state`.
    """
    at_place = [
        msgspec.structs.replace(
            target,
            leftovers=tuple(left for left in place.leftovers if left.repo_folder == target.folder),
            gone=place.repo_in(target.folder) is None,
        )
        for target in targets
    ]
    moved = [target for target in at_place if target.leftovers or not target.gone]
    plan = plan_removal(place, moved, why=f"asked for; it lies at {place.dir}")
    complete = whole_repos(plan)
    links = [
        Target(target.name, target.folder)
        for target in targets
        if target.folder in complete
        or (target.commit is None and target.ref is None and place.repo_in(target.folder) is None)
    ]
    return joined([plan, plan_removal(state, links)])


def whole_repos(plan: Plan) -> set[str]:
    """Return the folders of the repos that a plan removes completely."""
    return {
        os.path.basename(action.path)
        for action in plan.actions
        if isinstance(action, RemoveTree) and action.kind == "repo"
    }


def plan_removal(state: CacheState, targets: Sequence[Target], *, why: str = "asked for") -> Plan:
    """Return the plan of `rm`: the named repos, revisions and strays, and nothing else.

    Args:
        state: the cache.
        targets: what was named, as found in this very state.
        why: the reason that the actions give.
    """
    chosen = Removals()
    for target in targets:
        if target.stray is not None:
            chosen.strays[target.stray.path] = why
            continue
        folder = target.folder
        assert folder is not None
        repo = state.repo_in(folder)
        if target.files is not None:
            if repo is not None:
                _select_files(repo, target.files, chosen, why)
            continue
        if target.leftovers:
            _select_rest(state, repo, target, chosen)
        if target.gone:
            continue
        if target.ref is not None:
            chosen.refs[folder, target.ref] = why
        elif target.commit is not None:
            chosen.revisions[folder, target.commit] = why + _foreign_words(repo, target.commit)
        else:
            chosen.repos[folder] = why + _foreign_words(repo)
    _merge_last_revisions(state, chosen, why)
    return plan_of(state, chosen)


def _select_files(
    repo: Repo, files: Mapping[str, Collection[str]], chosen: Removals, why: str
) -> None:
    """Choose files of snapshots, and what is left of them without a link; of all, the revision."""
    folder = repo.folder
    named_etags: set[str] = set()
    needed: set[str] = set()
    for revision in repo.revisions:
        named = files.get(revision.commit, ())
        here = {file.name for file in revision.files}
        if here and here <= set(named):
            chosen.revisions[folder, revision.commit] = why
        else:
            chosen.files |= {
                (folder, revision.commit, name): why for name in here.intersection(named)
            }
        for name, listed in (revision.tree or {}).items():
            (named_etags if name in named else needed).add(listed.etag)
    gone = named_etags - needed
    chosen.partials |= {
        (folder, partial.name): why for partial in repo.partials if partial.etag in gone
    }
    chosen.blobs |= {
        (folder, name): why
        for name, users in repo.blob_users().items()
        if not users and name in gone
    }


def _merge_last_revisions(state: CacheState, chosen: Removals, why: str) -> None:
    """Remove the complete repo if every revision of it was named, its loose ends included."""
    for repo in state.repos:
        named = [(repo.folder, revision.commit) in chosen.revisions for revision in repo.revisions]
        foreign = any(not stray.leftover for stray in repo.strays)
        if named and all(named) and not foreign:
            chosen.repos[repo.folder] = why + _foreign_words(repo)


def _foreign_words(repo: Repo | None, commit: str | None = None) -> str:
    """Return what to add to the reason for removing a repo or revision with files of others."""
    if repo is None or repo.linked_to is not None:
        return ""
    count = sum(
        len(foreign_files(repo, revision))
        for revision in repo.revisions
        if commit in (None, revision.commit)
    )
    if commit is None:
        count += sum(not stray.leftover for stray in repo.strays)
    if not count:
        return ""
    return f", with {count} {'file that is' if count == 1 else 'files that are'} not the hub's"


def _select_rest(state: CacheState, repo: Repo | None, target: Target, chosen: Removals) -> None:
    """Choose what an interrupted removal of the target did not come to."""
    reason = "an interrupted removal"
    folder = target.folder
    assert folder is not None
    if repo is None:
        for name in ("", *(state.locks[folder].files if folder in state.locks else ())):
            chosen.locks[folder, name] = reason
    chosen.leftovers += (left for left in target.leftovers if left not in chosen.leftovers)
    for leftover in target.leftovers:
        for shared_hash in leftover.shared:
            if shared_hash in state.shared:
                chosen.shared[shared_hash] = reason
        if repo is None or repo.linked_to is not None:
            continue
        users = repo.blob_users()
        for name in leftover.blobs:
            if name in users and not users[name]:
                chosen.blobs[folder, name] = reason
        for commit in (*leftover.commits, *leftover.refs.values()):
            revision = repo.revision(commit)
            if revision is None:
                chosen.metadata[folder, commit] = reason
            elif not revision.refs and target.commit == commit:
                # Its ref was gone before the snapshot was reached.
                chosen.revisions[folder, commit] = reason
