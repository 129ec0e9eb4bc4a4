"""What to remove, decided from the state of a cache alone: no disk, no clock, no processes here.

A selection says what is to go and why; `_build` turns it into actions in an order that leaves waste
and never a lie when it is cut short: refs, snapshots and repos, single files, blobs, shared blobs,
locks, leftovers.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.moves import away_remedy, away_words, record_path
from vlmcache.cache.scan import STALE_AFTER, is_stale
from vlmcache.cache.state import (
    Blob,
    CacheState,
    Entry,
    File,
    Leftover,
    Partial,
    Repo,
    Revision,
    Stray,
)
from vlmcache.cache.usage import LastUse, Process, Usage
from vlmcache.change.needed import (
    FOREIGN,
    LISTED,
    REPLACED,
    UNUSED_AFTER,
    Evidence,
    damage,
    find_waste,
    folders_of,
    foreign_files,
    in_question,
    is_read,
    is_young,
    looks_wasted,
    unsure,
)
from vlmcache.change.plan import (
    Action,
    Expected,
    Kept,
    Plan,
    ReleaseShared,
    Remove,
    RemoveTree,
)

Key: TypeAlias = tuple[str, str]
"""(repo folder, commit)."""

NO_USAGE = Usage()
NO_EVIDENCE = Evidence()


class Target(msgspec.Struct, frozen=True):
    """One thing that `rm` was asked to remove.

    With a commit it is that revision, else the whole repo, or the stray entry. ref is the ref that
    was named where it leads to no snapshot. leftovers: what interrupted removals left of the repo.
    gone: nothing else of the target is there.
    """

    name: str
    folder: str | None = None
    commit: str | None = None
    ref: str | None = None
    stray: Stray | None = None
    leftovers: tuple[Leftover, ...] = ()
    gone: bool = False


class Protected(msgspec.Struct, frozen=True):
    """What stays and why: revisions as (repo folder, commit), whole repos by their folders."""

    revisions: dict[Key, str] = {}
    repos: dict[str, str] = {}

    def why(self, folder: str, commit: str) -> str | None:
        """Return why a revision stays, `None` if it need not."""
        return self.repos.get(folder) or self.revisions.get((folder, commit))


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


def stamp(repo: Repo, revision: Revision | None = None) -> str:
    """Return a digest of what the scan saw of a repo, or of one snapshot; access times left out.

    If it is the same later, nothing was added, taken or written since.
    """
    import hashlib  # not needed to plan a cache of which no whole folder goes

    digest = hashlib.sha256()

    def add(*facts: object) -> None:
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))

    revisions = repo.revisions if revision is None else (revision,)
    for held in sorted(revisions, key=lambda one: one.commit):
        add(held.commit, held.entry, held.linked)
        for file in sorted(held.files, key=lambda one: one.name):
            add(file.name, file.kind, file.blob, file.inode, file.mtime_ns, file.size)
    if revision is None:
        for name in sorted(repo.blobs):
            blob = repo.blobs[name]
            add(name, blob.inode, blob.mtime_ns, blob.size, blob.shared)
        for part in sorted(repo.partials, key=lambda one: one.name):
            add(part.name, part.inode, part.mtime_ns, part.size)
        for stray in sorted(repo.strays, key=lambda one: one.path):
            add(stray.path, stray.inode, stray.mtime_ns, stray.size)
        add(sorted(repo.refs.items()), sorted(repo.ref_files.items()))
    return digest.hexdigest()


def sum_stamp(size: int, allocated: int) -> str:
    """Return the stamp of a folder of which only the sums are known."""
    return f"{size}:{allocated}"


def _expected(entry: Entry | None) -> Expected | None:
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
                path = os.path.join(revision.path, *file.name.split("/"))
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
            path = os.path.join(repo.path, layout.BLOBS, name)
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
        path = os.path.join(repo.path, layout.REFS, *ref.split("/"))
        self.refs.append(
            Remove(path, "ref", repo.id, reason, entry.allocated, _expected(entry), commit)
        )

    def _ref_folders(self, repo: Repo) -> None:
        """Folders of refs go with the last ref in them: an empty one looks like a broken ref."""
        gone = {action.path: action for action in self.refs if isinstance(action, Remove)}
        base = os.path.join(repo.path, layout.REFS)
        for folder in sorted(repo.ref_folders, reverse=True):
            below = [ref for ref in repo.ref_files if ref.startswith(folder + "/")]
            paths = [os.path.join(base, *ref.split("/")) for ref in below]
            if not paths or any(path not in gone for path in paths):
                continue
            last = gone[paths[-1]]
            path = os.path.join(base, *folder.split("/"))
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
            path = os.path.join(repo.path, layout.TREES, f"{commit}.json")
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
        path = os.path.join(revision.path, *file.name.split("/"))
        copy = file.kind == "copy"
        frees = self._unlink(file) if copy else file.allocated
        # A link's own length is that of its target's text; the scan gives the blob's.
        expected = Expected(file.inode, file.mtime_ns, file.size if copy else None)
        self.files.append(
            Remove(path, "file" if copy else "link", repo.id, reason, frees, expected)
        )

    def _blob(self, repo: Repo, name: str, reason: str) -> None:
        blob = repo.blobs[name]
        path = os.path.join(repo.path, layout.BLOBS, name)
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


def _build(state: CacheState, selection: Selection) -> Plan:
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
        gone = _by_folder(there, target.folder or "") is None
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
            and _by_folder(there, target.folder or "") is None
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


def joined(plans: Sequence[Plan]) -> Plan:
    """Return one plan of several, in their order."""
    return Plan(
        tuple(action for plan in plans for action in plan.actions),
        frees=sum(plan.frees for plan in plans),
        needs=sum(plan.needs for plan in plans),
        kept=tuple(kept for plan in plans for kept in plan.kept),
        unknown_use=sum(plan.unknown_use for plan in plans),
    )


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
        repo = _by_folder(state, folder)
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
    return _build(state, chosen)


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


def _by_folder(state: CacheState, folder: str) -> Repo | None:
    for repo in state.repos:
        if repo.folder == folder:
            return repo
    return None


class Cleaning(msgspec.Struct, frozen=True):
    """What `clean` was asked for, beside removing waste. Sizes are bytes.

    older_than: seconds since the last use after which a revision goes. max_size: what the cache may
    occupy. free: what the disk is to have free. duplicates: (repo folder, commit) -> names of
    second weight formats and where the same weights are, for revisions that load without them.
    everything: all that is the hub's.
    partials: unfinished downloads that nobody has written to for an hour.
    """

    older_than: float | None = None
    max_size: int | None = None
    free: int | None = None
    duplicates: dict[Key, dict[str, str]] = {}
    everything: bool = False
    partials: bool = False


def plan_cleaning(
    state: CacheState,
    wishes: Cleaning | None = None,
    *,
    now: float,
    free_now: int | None = None,
    last_used: Mapping[Key, LastUse] | None = None,
    pinned: Protected | None = None,
    kept: Protected | None = None,
    usage: Usage = NO_USAGE,
    evidence: Evidence = NO_EVIDENCE,
) -> tuple[Plan, int]:
    """Return the plan of `clean`, and by how many bytes it misses what was asked for.

    Args:
        state: the cache.
        wishes: what to remove beside waste.
        now: seconds since the epoch.
        free_now: bytes free on the disk.
        last_used: (repo folder, commit) -> last use; those not in it were never used.
        pinned: revisions that are not evicted, and are no waste.
        kept: revisions of which nothing goes, second formats included.
        usage: who uses what now; nothing in use goes.
        evidence: what shows that a revision is not needed; without it, each is.
    """
    wishes = wishes or Cleaning()
    pinned, kept = pinned or Protected(), kept or Protected()
    uses = last_used or {}
    busy = _busy_repos(state, usage)
    chosen = Selection()
    foreign = _with_foreign_files(state)
    if wishes.everything:
        every = Protected(foreign.revisions | kept.revisions, kept.repos)
        _select_everything(state, chosen, every, busy, usage)
    _select_unfinished(state, chosen, now, kept, usage, wishes.partials)
    _select_waste(state, chosen, now, (kept, pinned, foreign), busy, usage, evidence)
    _select_duplicates(state, chosen, wishes.duplicates, kept, busy)
    active = {
        repo.folder
        for repo in state.repos
        if repo.folder in busy or any(not is_stale(partial, now) for partial in repo.partials)
    }
    candidates = _candidates(state, chosen, uses, (pinned, kept, foreign), active)
    rest = _Rest(state, now, usage, wishes.older_than or 0)
    if wishes.older_than is not None:
        for key in candidates:
            age = now - _used_at(uses, key)
            if age > wishes.older_than:
                chosen.revisions[key] = f"unused for {int(age // 86400)} days{_source(uses, key)}"
        rest.add_to(chosen)
    candidates = [key for key in candidates if key not in chosen.revisions]
    goal = 0
    if wishes.max_size is not None:
        goal = max(goal, state.size_on_disk - wishes.max_size)
    if wishes.free is not None and free_now is not None:
        goal = max(goal, wishes.free - free_now)
    plan = _evict(state, chosen, candidates, goal, uses, rest)
    if goal > plan.frees:
        plan = _tell_protected(state, plan, (pinned, kept, foreign))
    elif wishes.older_than is not None:
        plan = _tell_protected(state, plan, (foreign,))
    old = [key for key in chosen.unknown if now - _used_at(uses, key) > UNUSED_AFTER]
    old = [key for key in old if key in candidates and not goal]
    if old:
        more = chosen.copy()
        more.revisions |= dict.fromkeys(old, "unused")
        unknown = _build(state, more).frees - plan.frees
        plan = msgspec.structs.replace(plan, unknown_use=unknown)
    missed = max(0, goal - plan.frees)
    if wishes.max_size is not None and missed and wishes.free is None and _is_empty(state, plan):
        missed = 0  # of a cache without content, its own folders stay
    return plan, missed


def _is_empty(state: CacheState, plan: Plan) -> bool:
    """Return whether a plan leaves no repo, shared blob or file of others in a cache."""
    gone = {getattr(action, "path", "") for action in plan.actions}
    return gone.issuperset(
        (
            *(repo.path for repo in state.repos),
            *(shared.path for shared in state.shared.values()),
            *(stray.path for stray in state.strays),
        )
    )


def _with_foreign_files(state: CacheState) -> Protected:
    return Protected(
        {
            (repo.folder, revision.commit): FOREIGN
            for repo in state.repos
            for revision in repo.revisions
            if foreign_files(repo, revision)
        }
    )


class _Rest:
    """What is left of a repo once all its revisions are evicted: loose blobs, partial downloads."""

    def __init__(self, state: CacheState, now: float, usage: Usage, idle: float) -> None:
        self.state = state
        self.now = now
        self.usage = usage
        self.idle = max(idle, STALE_AFTER)
        self.users: dict[str, dict[str, set[tuple[str, str]]]] = {}

    def add_to(self, chosen: Selection) -> None:
        """Choose it for the repos of which every revision is chosen."""
        for repo in self.state.repos:
            folder = repo.folder
            reasons = [chosen.revisions.get((folder, one.commit)) for one in repo.revisions]
            if not reasons or repo.linked_to is not None or unsure(repo) is not None:
                continue
            reason = reasons[0]
            if reason is None or None in reasons:
                continue
            if folder not in self.users:
                self.users[folder] = repo.blob_users()
            for name, users in self.users[folder].items():
                young = is_young(repo.blobs[name].mtime_ns, self.now)
                if not users and layout.is_etag(name) and not young:
                    chosen.blobs.setdefault((folder, name), reason)
            for partial in repo.partials:
                old = self.now - partial.mtime_ns / 1e9 > self.idle
                if old and _writers(repo, partial, self.usage) is None:
                    chosen.partials.setdefault((folder, partial.name), reason)


def _evict(
    state: CacheState,
    chosen: Selection,
    candidates: Sequence[Key],
    goal: int,
    uses: Mapping[Key, LastUse],
    rest: _Rest,
) -> Plan:
    """Add the fewest of the least recently used candidates that reach the goal."""

    def with_first(count: int) -> Plan:
        more = chosen.copy()
        for key in candidates[:count]:
            more.revisions[key] = f"least recently used{_source(uses, key)}"
        if count:
            rest.add_to(more)
        return _build(state, more)

    plan = with_first(0)
    if plan.frees >= goal or not candidates:
        return plan
    low, high = 0, len(candidates)
    best = with_first(high)
    # What the first n give back never shrinks with n, so the smallest n can be halved for.
    while high - low > 1:
        middle = (low + high) // 2
        tried = with_first(middle)
        if tried.frees >= goal:
            high, best = middle, tried
        else:
            low = middle
    return best


def _used_at(uses: Mapping[Key, LastUse], key: Key) -> float:
    return uses[key].at if key in uses else 0.0


def _source(uses: Mapping[Key, LastUse], key: Key) -> str:
    """Return what to add to a reason where no use is known and the download's time stands in."""
    return ", told by its download" if key in uses and uses[key].source == "written" else ""


def _candidates(
    state: CacheState,
    chosen: Selection,
    uses: Mapping[Key, LastUse],
    protected: Iterable[Protected],
    busy: Collection[str],
) -> list[Key]:
    """Return the revisions that may be evicted, the least recently used first."""
    found = [
        (repo.folder, revision.commit)
        for repo in state.repos
        if repo.linked_to is None and repo.folder not in busy and repo.folder not in chosen.repos
        for revision in repo.revisions
        if (repo.folder, revision.commit) not in chosen.revisions
        and not any(one.why(repo.folder, revision.commit) for one in protected)
    ]
    return sorted(found, key=lambda key: (_used_at(uses, key), key))


def _busy_repos(state: CacheState, usage: Usage) -> dict[str, tuple[Process, ...]]:
    """Return the repos that a process uses, or that a download is going into."""
    busy: dict[str, tuple[Process, ...]] = {}
    for repo in state.repos:
        users = usage.of_repo(state, repo)
        if users is not None:
            busy[repo.folder] = users
        elif any(partial.locked for partial in repo.partials):
            busy[repo.folder] = ()
    return busy


def _in_use(path: str, repo: Repo, users: tuple[Process, ...]) -> Kept:
    reason = "in use" if users else "in use: a lock of the hub is held"
    return Kept(path, repo.id, reason, users)


def _select_everything(
    state: CacheState,
    chosen: Selection,
    kept: Protected,
    busy: Mapping[str, tuple[Process, ...]],
    usage: Usage,
) -> None:
    reason = "everything goes"
    for repo in state.repos:
        if repo.moved_to is not None:
            continue
        if repo.away is not None:
            chosen.kept.append(Kept(repo.path, repo.id, away_words(repo.away)))
            continue
        protected = [
            revision.commit
            for revision in repo.revisions
            if kept.why(repo.folder, revision.commit) is not None
        ]
        if repo.folder in busy:
            chosen.kept.append(_in_use(repo.path, repo, busy[repo.folder]))
        elif protected or repo.folder in kept.repos:
            why = kept.repos.get(repo.folder) or kept.revisions[repo.folder, protected[0]]
            chosen.kept.append(Kept(repo.path, repo.id, why))
            for revision in repo.revisions:
                if kept.why(repo.folder, revision.commit) is None:
                    chosen.revisions[repo.folder, revision.commit] = reason
        elif any(not stray.leftover for stray in repo.strays):
            chosen.revisions |= {
                (repo.folder, revision.commit): reason for revision in repo.revisions
            }
            chosen.partials |= {(repo.folder, part.name): reason for part in repo.partials}
            loose = (name for name, users in repo.blob_users().items() if not users)
            chosen.blobs |= {(repo.folder, name): reason for name in loose}
        else:
            chosen.repos[repo.folder] = reason
    for folder, found in state.locks.items():
        if _by_folder(state, folder) is None and usage.locks_of(folder) is None:
            for name in ("", *found.files):
                chosen.locks[folder, name] = reason


def _select_waste(
    state: CacheState,
    chosen: Selection,
    now: float,
    protected: Sequence[Protected],
    busy: Mapping[str, tuple[Process, ...]],
    usage: Usage,
    evidence: Evidence,
) -> None:
    sound = True
    every = any(not shared.users for shared in state.shared.values())
    for repo in state.repos:
        folder = repo.folder
        if folder in chosen.repos:
            continue
        if repo.linked_to is not None:
            waste_there = repo.by_class.detached + repo.by_class.orphan + repo.by_class.partial
            if waste_there and repo.moved_to is None:
                why = f"lies at {repo.linked_to}: links are never followed"
                chosen.kept.append(Kept(repo.path, repo.id, why))
            sound = sound and _has_all(repo, evidence)
            continue
        _select_strays(repo.strays, repo, chosen, now)
        if not every and not in_question(repo):
            continue

        def why_protected(commit: str, folder: str = folder) -> str | None:
            return next(filter(None, (one.why(folder, commit) for one in protected)), None)

        gone = {commit for where, commit in chosen.revisions if where == folder}
        waste = find_waste(
            repo,
            evidence,
            now,
            gone=gone,
            why=why_protected,
            # What is next to a partial may be another part of the same download, so it stays for
            # this run even if the partial is removed.
            unfinished=bool(repo.partials),
        )
        sound = sound and waste.damage is None and _has_all(repo, evidence)
        if folder in busy:
            chosen.kept += (
                _in_use(path, repo, busy[folder])
                for name, path in looks_wasted(repo)
                if name not in gone and why_protected(name) is None
            )
            continue
        chosen.kept += waste.kept
        chosen.revisions |= {
            (folder, one): "a newer revision replaced it" for one in waste.revisions
        }
        chosen.blobs |= {
            (folder, name): "no snapshot links to it"
            for name in waste.blobs
            if (folder, name) not in chosen.blobs
        }
        chosen.metadata |= {
            (folder, one): "the listing of a revision that is not there" for one in waste.listings
        }
        chosen.unknown += ((folder, one) for one in waste.unknown)
        if waste.revisions:
            chosen.listed |= {(folder, name) for name in waste.listed}
        _select_begun(state, repo, chosen, waste.listed, now)
    _select_strays(state.strays, None, chosen, now)
    _select_shared(state, chosen, now, usage, sound)
    _select_locks(state, chosen, now, usage)


def _has_all(repo: Repo, evidence: Evidence) -> bool:
    """Return whether a repo has each link that it will have: it is sound and nothing is missing."""
    return not repo.partials and damage(repo, repo.revisions, evidence.states) is None


def _select_begun(
    state: CacheState, repo: Repo, chosen: Selection, listed: Collection[str], now: float
) -> None:
    """Choose what an interrupted removal did not come to: somebody had asked for it already."""
    begun = [one for one in state.leftovers if one.repo_folder == repo.folder]
    if not begun or any(not is_stale(partial, now) for partial in repo.partials):
        return
    reason = "left by an interrupted removal"
    users = repo.blob_users()
    known = {*repo.refs.values(), *(revision.commit for revision in repo.revisions)}
    for leftover in begun:
        for name in leftover.blobs:
            if name in users and not users[name] and name not in listed:
                chosen.blobs.setdefault((repo.folder, name), reason)
        for commit in leftover.commits:
            if commit not in known:
                chosen.metadata.setdefault((repo.folder, commit), reason)


def _writers(repo: Repo, partial: Partial, usage: Usage) -> tuple[Process, ...] | None:
    """Return who writes to a partial, none if that cannot be seen; `None` if nobody does."""
    users = usage.files.get((partial.device, partial.inode), ())
    lock = f"{repo.folder}/{partial.etag}{layout.LOCK_SUFFIX}"
    if users or partial.locked or lock in usage.locks:
        return users or usage.locks.get(lock, ())
    return None


def _select_unfinished(
    state: CacheState,
    chosen: Selection,
    now: float,
    kept: Protected,
    usage: Usage,
    asked: bool,
) -> None:
    """Choose the partial downloads that nobody continues.

    Args:
        state: the cache.
        chosen: where they are added.
        now: seconds since the epoch.
        kept: repos of which nothing goes.
        usage: who uses what now.
        asked: whether those are to go that a pull would still continue.
    """
    for repo in state.repos:
        if repo.folder in chosen.repos or repo.linked_to is not None:
            continue
        for partial in repo.partials:
            key = repo.folder, partial.name
            users = _writers(repo, partial, usage)
            reason = None
            if users is not None:
                reason = "being downloaded"
            elif repo.folder in kept.repos:
                reason = kept.repos[repo.folder]
            elif key in chosen.partials:
                continue
            elif not is_stale(partial, now):
                reason = "a download that was written within the last hour"
            elif asked:
                chosen.partials[key] = "an unfinished download (--partials)"
            elif _is_finished(repo, partial):
                chosen.partials[key] = "its download was finished in another file"
            elif now - partial.mtime_ns / 1e9 > UNUSED_AFTER:
                chosen.partials[key] = "a download that was not continued for 30 days"
            else:
                reason = "an unfinished download: pull continues it, --partials removes it"
            if reason is not None:
                chosen.kept.append(Kept(partial.path, repo.id, reason, users or ()))


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


def _select_strays(
    strays: Iterable[Stray], repo: Repo | None, chosen: Selection, now: float
) -> None:
    repo_id = repo.id if repo is not None else None
    for stray in strays:
        if not stray.leftover:
            why = "not the hub's: 'vlmcache rm PATH' removes it"
            if repo is not None and stray.path in folders_of(repo):
                # Such as a link to a folder on another disk, with all that the repo has.
                why = REPLACED
            chosen.kept.append(Kept(stray.path, repo_id, why))
        elif (
            now - stray.mtime_ns / 1e9 > STALE_AFTER
            or os.path.basename(stray.path) == layout.LEFTOVERS
        ):
            chosen.strays[stray.path] = "left behind by an interrupted run"
        else:
            chosen.kept.append(
                Kept(stray.path, repo_id, "a temporary that was written within the last hour")
            )


def _select_shared(
    state: CacheState, chosen: Selection, now: float, usage: Usage, sound: bool
) -> None:
    """Choose shared blobs that no repo links to.

    The hub itself frees none without its manifest. The scan looks at every repo of the cache, so it
    can tell; but only where no repo is damaged, and so none has lost a link.
    """
    begun = {name for leftover in state.leftovers for name in leftover.shared}
    seen = sound and not any(
        repo.linked_to is not None and not repo.by_class.total for repo in state.repos
    )
    for shared in state.shared.values():
        if shared.users:
            continue
        users = usage.files.get((shared.device, shared.inode), ())
        why = None
        if users:
            why = "in use"
        elif shared.hash in begun:
            chosen.shared[shared.hash] = "left by an interrupted removal"
        elif is_young(shared.mtime_ns, now):
            why = "written within the last hour"
        elif not seen:
            why = "a repo is damaged or not complete, so it may still be needed"
        else:
            chosen.shared[shared.hash] = "no repo links to it"
        if why is not None:
            chosen.kept.append(Kept(shared.path, None, why, users))


def _select_locks(state: CacheState, chosen: Selection, now: float, usage: Usage) -> None:
    for folder, found in state.locks.items():
        repo = _by_folder(state, folder)
        needed: set[str] = set()
        if repo is not None:
            if not is_read(repo):
                continue
            needed = {*repo.blobs, *(partial.etag for partial in repo.partials)}
        elif layout.parse_repo_folder(folder) is None:
            continue
        # The hub makes a repo's folder before it takes a lock of it, so where there is no such
        # folder, a young lock is no sign of a download that begins.
        free = [
            name
            for name, entry in found.files.items()
            if name.removesuffix(layout.LOCK_SUFFIX) not in needed
            and f"{folder}/{name}" not in usage.locks
            and (repo is None or now - entry.mtime_ns / 1e9 > STALE_AFTER)
        ]
        for name in free:
            chosen.locks.setdefault((folder, name), "no blob belongs to this lock")
        if repo is None and len(free) == len(found.files):
            chosen.locks.setdefault((folder, ""), "locks of a repo that is gone")


def _select_duplicates(
    state: CacheState,
    chosen: Selection,
    duplicates: Mapping[Key, Mapping[str, str]],
    kept: Protected,
    busy: Mapping[str, tuple[Process, ...]],
) -> None:
    for repo in state.repos:
        for revision in repo.revisions:
            key = repo.folder, revision.commit
            names = duplicates.get(key, {})
            if not names or key in chosen.revisions or repo.folder in chosen.repos:
                continue
            why = kept.why(*key)
            if why is not None:
                chosen.kept.append(Kept(revision.path, repo.id, why))
            elif repo.folder in busy:
                chosen.kept.append(_in_use(revision.path, repo, busy[repo.folder]))
            elif repo.linked_to is None:
                for name, place in names.items():
                    why = f"the same weights are in {place}"
                    chosen.files[repo.folder, revision.commit, name] = why


def _tell_protected(state: CacheState, plan: Plan, protected: Iterable[Protected]) -> Plan:
    """Add which revisions stay although they were asked for, and why."""
    told = {one.path for one in plan.kept}
    more = []
    for repo in state.repos:
        for revision in repo.revisions:
            reasons = [one.why(repo.folder, revision.commit) for one in protected]
            why = next(filter(None, reasons), None)
            if why is not None and revision.path not in told:
                more.append(Kept(revision.path, repo.id, why))
    return msgspec.structs.replace(plan, kept=(*plan.kept, *more))
