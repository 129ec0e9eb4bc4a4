"""From a selection of what is to go to a plan of removals, from the state of a cache alone.

The actions stand in an order that leaves waste and never a lie when it is cut short: refs,
snapshots and repos, single files, blobs, shared blobs, locks, leftovers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.moved import away_remedy, record_path
from vlmcache.cache.state import Blob, CacheState, File, Leftover, Repo, Revision, Stamp, Stray
from vlmcache.change.names import Target
from vlmcache.change.needed import LISTED, foreign_files, is_read
from vlmcache.change.plan import (
    Action,
    Expected,
    Kept,
    Plan,
    ReleaseShared,
    Remove,
    RemoveTree,
    joined,
    stamp,
    sum_stamp,
)

Key: TypeAlias = tuple[str, str]
"""(repo folder, commit)."""


class Selection:
    """What is to go, each thing with the reason for it. Keys are repo folders, commits, names."""

    def __init__(self) -> None:
        self.repos: dict[str, str] = {}
        self.revisions: dict[Key, str] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.blobs: dict[tuple[str, str], str] = {}
        self.files: dict[tuple[str, str, str], str] = {}
        self.metadata: dict[Key, str] = {}
        self.partials: dict[tuple[str, str], str] = {}
        self.strays: dict[str, str] = {}
        self.shared: dict[str, str] = {}
        self.locks: dict[tuple[str, str], str] = {}
        self.leftovers: list[Leftover] = []
        self.listed: set[tuple[str, str]] = set()
        """Blobs that stay although the last link to them is removed: a listing names them."""
        self.unknown: list[Key] = []
        """Revisions that stay only because their last use is unknown."""
        self.kept: list[Kept] = []

    def folders(self) -> set[str]:
        """Return the repo folders of which something goes."""
        keyed = (
            self.revisions,
            self.refs,
            self.blobs,
            self.files,
            self.metadata,
            self.partials,
        )
        return {*self.repos, *(key[0] for group in keyed for key in group)}

    def copy(self) -> Selection:
        """Return a selection that can be added to without changing this one."""
        other = Selection()
        for name, value in vars(self).items():
            setattr(other, name, value.copy())
        return other


def _expected(entry: Stamp | None) -> Expected | None:
    return None if entry is None else Expected(entry.inode, entry.mtime_ns, entry.size)


class _Builder:
    """Turns a selection into actions, and counts what each gives back, each inode once."""

    def __init__(self, state: CacheState, selection: Selection) -> None:
        self.state = state
        self.selection = selection
        self.led_to = {
            path: folder for path, folder in state.outside.items() if folder not in selection.repos
        }
        self.left: dict[tuple[int, int], int] = {}
        self.released: dict[str, dict[str, str]] = {}
        self.refs: list[Action] = []
        self.trees: list[Action] = []
        self.files: list[Action] = []
        self.blobs: list[Action] = []
        self.shared: list[Action] = []
        self.locks: list[Action] = []
        self.leftovers: list[Action] = []
        self.kept = list(selection.kept)

    def build(self) -> Plan:
        whole: set[str] = set()
        self._keep_what_others_link_to()
        chosen = self.selection.folders()
        # Links to other repos are removed first: without what they lead to, they look changed.
        linking = set(self.state.outside.values())
        for repo in sorted(self.state.repos, key=lambda one: one.folder not in linking):
            if repo.folder not in chosen and not any(
                stray.path in self.selection.strays for stray in repo.strays
            ):
                continue
            reason = self._whole_reason(repo)
            if reason is not None:
                whole.add(repo.folder)
                self._whole(repo, reason)
            else:
                self._parts(repo)
        for stray in self.state.strays:
            if stray.path in self.selection.strays:
                self._stray(stray, None, self.selection.strays[stray.path])
        for leftover in self.selection.leftovers:
            parsed = layout.parse_repo_folder(leftover.repo_folder)
            repo_id = parsed[1] if parsed else None
            reason = "left by an interrupted removal"
            self._leftover(leftover.path, repo_id, reason, leftover.entry.allocated)
        self._release()
        self._locks(whole)
        actions = (
            *self.refs,
            *self.trees,
            *self.files,
            *self.blobs,
            *self.shared,
            *self.locks,
            *self.leftovers,
        )
        gone = {getattr(action, "path", "") for action in actions}
        return Plan(
            actions,
            frees=sum(getattr(action, "frees", 0) for action in actions),
            # What was to stay by itself is removed with its repo after all.
            kept=tuple(
                one
                for one in self.kept
                if one.path not in gone
                and not one.path.startswith(
                    tuple(os.path.join(self.state.dir, folder, "") for folder in whole)
                )
            ),
        )

    def _keep_what_others_link_to(self) -> None:
        """Let a repo to which others link not be removed as a whole, but all the rest of it."""
        chosen = self.selection
        for repo in self.state.repos if self.led_to else ():
            folder = repo.folder
            for revision in repo.revisions:
                user = self._who_links_below(revision.path)
                whole = folder in chosen.repos and repo.linked_to is None
                if user is not None and (whole or (folder, revision.commit) in chosen.revisions):
                    self.kept.append(Kept(revision.path, repo.id, _links_here(user)))
                    chosen.revisions.pop((folder, revision.commit), None)
            if repo.linked_to or folder not in chosen.repos or not self._who_links_below(repo.path):
                continue
            reason = chosen.repos.pop(folder)
            stay = {one.commit for one in repo.revisions if self._who_links_below(one.path)}
            gone = {one.commit for one in repo.revisions} - stay
            chosen.revisions |= {(folder, commit): reason for commit in gone}
            chosen.refs |= {
                (folder, ref): reason for ref in repo.ref_files if repo.refs.get(ref) not in stay
            }
            chosen.metadata |= {
                (folder, commit): reason for commit in {*repo.tree_files, *repo.no_exist} - stay
            }
            loose = (name for name, users in repo.blob_users().items() if not users)
            chosen.blobs |= {(folder, name): reason for name in loose}
            chosen.partials |= {(folder, part.name): reason for part in repo.partials}
            chosen.strays |= {stray.path: reason for stray in repo.strays}

    def _who_links_below(self, path: str) -> str | None:
        """Return the folder of another repo with a link to a path, or to what is below it."""
        inside = path + os.sep
        return next(
            (
                folder
                for led_to, folder in self.led_to.items()
                if led_to == path or led_to.startswith(inside)
            ),
            None,
        )

    def _whole_reason(self, repo: Repo) -> str | None:
        """Return why the whole repo goes: asked for, or because no revision of it would be left."""
        chosen = self.selection
        if repo.folder in chosen.repos:
            return chosen.repos[repo.folder]
        reasons = [chosen.revisions.get((repo.folder, one.commit)) for one in repo.revisions]
        gone = {one.commit for one in repo.revisions}
        loose = {name for name, users in repo.blob_users().items() if not users}
        if (
            not reasons
            or None in reasons
            or repo.linked_to is not None
            or any(one.linked for one in repo.revisions)
            or any(commit not in gone for commit in repo.refs.values())
            or set(repo.ref_files) != set(repo.refs)
            or any((repo.folder, one.name) not in chosen.partials for one in repo.partials)
            or any(stray.path not in chosen.strays for stray in repo.strays)
            or any((repo.folder, name) not in chosen.blobs for name in loose)
            or not is_read(repo)
            or self._who_links_below(repo.path) is not None
        ):
            return None
        return reasons[0]

    def _whole(self, repo: Repo, reason: str) -> None:
        if repo.linked_to is not None:
            frees = repo.entry.allocated if repo.entry else 0
            self.trees.append(
                Remove(repo.path, "link", repo.id, reason, frees, _expected(repo.entry))
            )
            if repo.record is not None:
                path, expected = record_path(self.state.dir, repo.folder), _expected(repo.record)
                frees = repo.record.allocated
                self.trees.append(Remove(path, "record", repo.id, reason, frees, expected))
            why = "only the link goes: links are never followed"
            if repo.away is not None:
                why = (
                    "only the link is removed: the model stays on its drive, which is away; "
                    + away_remedy(repo.away)
                )
            elif not repo.by_class.total:
                why = "only the link goes: that place is not there now"
            if repo.moved_to is None:
                self.kept.append(Kept(repo.linked_to, repo.id, why))
            return
        frees = repo.by_class.total
        seen: set[tuple[int, int]] = set()
        entries: list[Blob | File] = [*repo.blobs.values()]
        entries += (file for one in repo.revisions for file in one.files if file.kind == "copy")
        for entry in entries:
            if entry.links > 1:
                key = entry.device, entry.inode
                # by_class counts an inode with several links once; the last link alone frees it.
                frees += self._unlink(entry) - (0 if key in seen else entry.allocated)
                seen.add(key)
        for name, blob in repo.blobs.items():
            self._give_up(repo, name, blob, reason)
        self.trees.append(
            RemoveTree(
                repo.path, "repo", repo.id, reason, frees, _expected(repo.entry), stamp(repo)
            )
        )

    def _unlink(self, entry: Blob | File) -> int:
        """Return the bytes that unlinking one more name of an inode gives back."""
        if entry.links <= 1:
            return entry.allocated
        key = entry.device, entry.inode
        self.left[key] = self.left.get(key, entry.links) - 1
        return 0 if self.left[key] else entry.allocated

    def _give_up(self, repo: Repo, name: str, blob: Blob, reason: str) -> None:
        if blob.shared is not None and blob.shared in self.state.shared:
            reference = f"{repo.folder}/{layout.BLOBS}/{name}"
            self.released.setdefault(blob.shared, {})[reference] = reason

    def _parts(self, repo: Repo) -> None:
        chosen, folder = self.selection, repo.folder
        for (where, ref), reason in chosen.refs.items():
            if where == folder and ref in repo.ref_files:
                self._ref(repo, ref, repo.refs.get(ref), reason)
        used = repo.blob_users()
        before = {name for name, users in used.items() if users}
        why: dict[str, str] = {}
        for revision in repo.revisions:
            commit = revision.commit
            gone = chosen.revisions.get((folder, commit))
            if gone is not None:
                self._revision(repo, revision, gone)
            for file in revision.files:
                because = gone or chosen.files.get((folder, commit, file.name))
                path = revision.file_path(file.name)
                if because is None or path in self.led_to:
                    continue
                if gone is None:
                    self._file(repo, revision, file, because)
                for name in [file.blob] if file.blob else list(before):
                    if (commit, file.name) in used.get(name, ()):
                        used[name].discard((commit, file.name))
                        why.setdefault(name, because)
        self._ref_folders(repo)
        for (where, commit), reason in sorted(chosen.metadata.items()):
            if where == folder and repo.revision(commit) is None:
                self._metadata(repo, commit, reason)
        for name, users in used.items():
            loose = chosen.blobs.get((folder, name))
            freed = name in before and (folder, name) not in chosen.listed
            path = repo.blob_path(name)
            if not users and (freed or loose is not None):
                if path in self.led_to:
                    self.kept.append(Kept(path, repo.id, _links_here(self.led_to[path])))
                else:
                    self._blob(repo, name, loose or why[name])
            elif not users and name in before:
                self.kept.append(Kept(path, repo.id, LISTED))
        for partial in repo.partials:
            left = chosen.partials.get((folder, partial.name))
            if left is not None:
                self.blobs.append(
                    Remove(
                        partial.path,
                        "partial",
                        repo.id,
                        left,
                        partial.allocated,
                        Expected(partial.inode, partial.mtime_ns, partial.size),
                    )
                )
                self._lock_of(repo, partial.etag)
        for stray in repo.strays:
            if stray.path in chosen.strays:
                self._stray(stray, repo.id, chosen.strays[stray.path])

    def _ref(self, repo: Repo, ref: str, commit: str | None, reason: str) -> None:
        entry = repo.ref_files[ref]
        path = repo.ref_path(ref)
        self.refs.append(
            Remove(path, "ref", repo.id, reason, entry.allocated, _expected(entry), commit)
        )

    def _ref_folders(self, repo: Repo) -> None:
        """Folders of refs go with the last ref in them: an empty one looks like a broken ref."""
        gone = {action.path: action for action in self.refs if isinstance(action, Remove)}
        for folder in sorted(repo.ref_folders, reverse=True):
            below = [ref for ref in repo.ref_files if ref.startswith(folder + "/")]
            paths = [repo.ref_path(ref) for ref in below]
            if not paths or any(path not in gone for path in paths):
                continue
            last = gone[paths[-1]]
            path = repo.ref_path(folder)
            frees = repo.ref_folders[folder].allocated
            self.refs.append(Remove(path, "folder", repo.id, last.reason, frees, None, last.commit))

    def _revision(self, repo: Repo, revision: Revision, reason: str) -> None:
        commit = revision.commit
        for ref in revision.refs:
            if (repo.folder, ref) not in self.selection.refs:
                self._ref(repo, ref, commit, reason)
        frees = revision.entry.allocated if revision.entry else 0
        expected = _expected(revision.entry)
        if revision.linked:
            self.trees.append(
                Remove(revision.path, "link", repo.id, reason, frees, expected, commit)
            )
        else:
            frees += sum(
                self._unlink(file) if file.kind == "copy" else file.allocated
                for file in revision.files
            )
            mark = stamp(repo, revision)
            self.trees.append(
                RemoveTree(
                    revision.path, "snapshot", repo.id, reason, frees, expected, mark, commit
                )
            )
        self._metadata(repo, commit, reason)

    def _metadata(self, repo: Repo, commit: str, reason: str) -> None:
        """What the hub's client remembers of a commit: its listing, and names it does not have."""
        tree = repo.tree_files.get(commit)
        if tree is not None:
            path = repo.tree_path(commit)
            self.files.append(
                Remove(path, "tree", repo.id, reason, tree.allocated, _expected(tree), commit)
            )
        absent = repo.no_exist.get(commit)
        if absent is not None:
            path = os.path.join(repo.path, layout.NO_EXIST, commit)
            expected = _expected(absent)
            self.trees.append(
                RemoveTree(
                    path, "no-exist", repo.id, reason, absent.allocated, expected, commit=commit
                )
            )

    def _file(self, repo: Repo, revision: Revision, file: File, reason: str) -> None:
        path = revision.file_path(file.name)
        copy = file.kind == "copy"
        frees = self._unlink(file) if copy else file.allocated
        # A link's own length is that of its target's text; the scan gives the blob's.
        expected = Expected(file.inode, file.mtime_ns, file.size if copy else None)
        self.files.append(
            Remove(path, "file" if copy else "link", repo.id, reason, frees, expected)
        )

    def _blob(self, repo: Repo, name: str, reason: str) -> None:
        blob = repo.blobs[name]
        path = repo.blob_path(name)
        expected = Expected(blob.inode, blob.mtime_ns, None if blob.linked else blob.size)
        self.blobs.append(Remove(path, "blob", repo.id, reason, self._unlink(blob), expected))
        self._give_up(repo, name, blob, reason)
        self._lock_of(repo, name)

    def _lock_of(self, repo: Repo, etag: str) -> None:
        name = etag + layout.LOCK_SUFFIX
        folder = self.state.locks.get(repo.folder)
        if folder is not None and name in folder.files:
            self.selection.locks.setdefault((repo.folder, name), "its blob goes")

    def _stray(self, stray: Stray, repo: str | None, reason: str) -> None:
        if not stray.folder:
            expected = Expected(stray.inode, stray.mtime_ns, stray.size)
            self.files.append(Remove(stray.path, "stray", repo, reason, stray.allocated, expected))
        elif os.path.basename(stray.path) == layout.LEFTOVERS and repo is None:
            self._leftover(stray.path, None, reason, stray.allocated)
        else:
            expected = Expected(stray.inode, stray.mtime_ns, None)
            mark = sum_stamp(stray.size, stray.allocated)
            self.trees.append(
                RemoveTree(stray.path, "stray", repo, reason, stray.allocated, expected, mark)
            )

    def _leftover(self, path: str, repo: str | None, reason: str, frees: int) -> None:
        self.leftovers.append(RemoveTree(path, "leftover", repo, reason, frees, None))

    def _release(self) -> None:
        for shared_hash, reason in self.selection.shared.items():
            self.released.setdefault(shared_hash, {}).setdefault("", reason)
        for shared_hash, references in self.released.items():
            shared = self.state.shared[shared_hash]
            gone = tuple(sorted(filter(None, references)))
            last = set(shared.users) <= set(gone)
            if last and shared.path in self.led_to:
                self.kept.append(Kept(shared.path, None, _links_here(self.led_to[shared.path])))
                last = False
                if not gone:
                    continue
            frees = shared.manifest_allocated if last else 0
            if last and shared.links == 1:
                frees += shared.allocated
            reason = next(iter(references.values()))
            self.shared.append(ReleaseShared(shared.path, shared_hash, gone, reason, frees, last))

    def _locks(self, whole: set[str]) -> None:
        for folder, found in self.state.locks.items():
            parsed = layout.parse_repo_folder(folder)
            repo = parsed[1] if parsed else None
            if folder in whole or (folder, "") in self.selection.locks:
                reason = self.selection.locks.get((folder, ""), "locks of a repo that goes")
                if not found.other:
                    frees = sum(one.allocated for one in found.files.values())
                    frees += found.entry.allocated
                    self.locks.append(RemoveTree(found.path, "locks", repo, reason, frees, None))
                    continue
                for name in found.files:
                    self.selection.locks.setdefault((folder, name), reason)
            for name, entry in found.files.items():
                if (folder, name) in self.selection.locks:
                    path = os.path.join(found.path, name)
                    reason = self.selection.locks[folder, name]
                    # Nothing is expected of it: it is empty, it goes only while it is held, and
                    # filelock before 4.2 changes its time whenever it is taken, by this run too.
                    self.locks.append(Remove(path, "lock", repo, reason, entry.allocated, None))


def _links_here(folder: str) -> str:
    parsed = layout.parse_repo_folder(folder)
    return f"{parsed[1] if parsed else folder} links to it"


def build(state: CacheState, selection: Selection) -> Plan:
    """Return the plan that removes what was selected."""
    return _Builder(state, selection.copy()).build()


def plan_moved(state: CacheState, there: CacheState, targets: Sequence[Target]) -> Plan:
    """Return the plan of `rm` for models that `move` has brought to another place, links included.

    Args:
        state: the cache that has the links.
        there: the other place, as a cache of its own.
        targets: what was named, as found in `state`.
    """
    found: list[Target] = []
    for target in targets:
        leftovers = tuple(one for one in there.leftovers if one.repo_folder == target.folder)
        gone = by_folder(there, target.folder or "") is None
        if leftovers or not gone:
            found.append(msgspec.structs.replace(target, leftovers=leftovers, gone=gone))
    plan = plan_removal(there, found, why=f"asked for; it lies at {there.dir}")
    whole = whole_repos(plan)
    links = [
        Target(target.name, target.folder)
        for target in targets
        if target.folder in whole
        or (
            target.commit is None
            and target.ref is None
            and by_folder(there, target.folder or "") is None
        )
    ]
    return joined([plan, plan_removal(state, links)])


def whole_repos(plan: Plan) -> set[str]:
    """Return the folders of the repos that a plan takes as a whole."""
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
    chosen = Selection()
    for target in targets:
        if target.stray is not None:
            chosen.strays[target.stray.path] = why
            continue
        folder = target.folder
        assert folder is not None
        repo = by_folder(state, folder)
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
    return build(state, chosen)


def _merge_last_revisions(state: CacheState, chosen: Selection, why: str) -> None:
    """Take the whole repo where every revision of it was named, its loose ends included."""
    for repo in state.repos:
        named = [(repo.folder, one.commit) in chosen.revisions for one in repo.revisions]
        foreign = any(not stray.leftover for stray in repo.strays)
        if named and all(named) and not foreign:
            chosen.repos[repo.folder] = why + _foreign_words(repo)


def _foreign_words(repo: Repo | None, commit: str | None = None) -> str:
    """Return what to add to the reason for removing a repo or revision, files of others in it."""
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


def _select_rest(state: CacheState, repo: Repo | None, target: Target, chosen: Selection) -> None:
    """Choose what an interrupted removal of the target did not come to."""
    reason = "an interrupted removal"
    folder = target.folder
    assert folder is not None
    if repo is None:
        for name in ("", *(state.locks[folder].files if folder in state.locks else ())):
            chosen.locks[folder, name] = reason
    chosen.leftovers += (one for one in target.leftovers if one not in chosen.leftovers)
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


def by_folder(state: CacheState, folder: str) -> Repo | None:
    """Return the repo with a folder's name, `None` if there is none."""
    for repo in state.repos:
        if repo.folder == folder:
            return repo
    return None
