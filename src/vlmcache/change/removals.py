"""What is to be removed, what stays, each with its reason; and the actions that are made of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.state import (
    Blob,
    File,
    Leftover,
    Partial,
    Repo,
    Revision,
    SharedBlob,
    Stamp,
    Stray,
)
from vlmcache.change.plan import (
    Action,
    Expected,
    Kept,
    ReleaseShared,
    Remove,
    RemoveTree,
    stamp,
    sum_stamp,
)

Key: TypeAlias = tuple[str, str]
"""(repo folder, commit)."""


class Protected(msgspec.Struct, frozen=True):
    """What stays and why: revisions as (repo folder, commit), complete repos by their folders."""

    revisions: dict[Key, str] = {}
    repos: dict[str, str] = {}

    def why(self, folder: str, commit: str) -> str | None:
        """Return why a revision stays, `None` if it need not."""
        return self.repos.get(folder) or self.revisions.get((folder, commit))


def needed_by(needs: Mapping[Key, Collection[Key]], models: Iterable[Key]) -> Protected:
    """Return what models need, and by whom.

    Args:
        needs: what each model needs of other models.
        models: the models that need it.
    """
    found: dict[Key, str] = {}
    for folder, commit in models:
        name = (layout.parse_repo_folder(folder) or (None, folder))[1]
        found |= dict.fromkeys(needs.get((folder, commit), ()), f"{name} needs it")
    return Protected(found)


class Removals(msgspec.Struct):
    """What is to be removed, each with its reason. Keys are repo folders, commits, names."""

    repos: dict[str, str] = {}
    revisions: dict[Key, str] = {}
    refs: dict[tuple[str, str], str] = {}
    blobs: dict[tuple[str, str], str] = {}
    files: dict[tuple[str, str, str], str] = {}
    metadata: dict[Key, str] = {}
    partials: dict[tuple[str, str], str] = {}
    strays: dict[str, str] = {}
    shared: dict[str, str] = {}
    locks: dict[tuple[str, str], str] = {}
    leftovers: list[Leftover] = []
    listed: set[tuple[str, str]] = set()
    """Blobs that stay although the last link to them is removed: a listing names them."""
    unknown: list[Key] = []
    """Revisions that stay only because their last use is unknown."""
    kept: list[Kept] = []

    def folders(self) -> set[str]:
        """Return the repo folders of which something is removed."""
        keyed = (*self.revisions, *self.refs, *self.blobs, *self.files)
        return {*self.repos, *(key[0] for key in (*keyed, *self.metadata, *self.partials))}

    def holds(self, key: Key) -> bool:
        """Return whether a revision is removed, alone or with its repo."""
        return key in self.revisions or key[0] in self.repos

    def commits_of(self, folder: str) -> Collection[str]:
        """Return the commits of a repo's revisions that are removed."""
        return {commit for repo, commit in self.revisions if repo == folder}

    def add_parts_of(self, repo: Repo, commits: Collection[str], reason: str) -> None:
        """Add revisions of a repo, and what belongs to none: loose blobs and partial downloads."""
        folder = repo.folder
        self.revisions |= {(folder, commit): reason for commit in commits}
        self.partials |= {(folder, partial.name): reason for partial in repo.partials}
        loose = (name for name, users in repo.blob_users().items() if not users)
        self.blobs |= {(folder, name): reason for name in loose}

    def keeps_a_partial_of(self, repo: Repo) -> bool:
        """Return whether an unfinished download of a repo stays."""
        return any((repo.folder, partial.name) not in self.partials for partial in repo.partials)

    def add(self, other: Removals) -> None:
        """Add all that others hold."""
        for name in self.__struct_fields__:
            ours, theirs = getattr(self, name), getattr(other, name)
            if isinstance(ours, list):
                ours.extend(item for item in theirs if item not in ours)
            else:
                ours.update(theirs)

    def copy(self) -> Removals:
        """Return removals that can be added to without changing these."""
        return Removals(*(group.copy() for group in msgspec.structs.astuple(self)))


def expected_of(entry: Stamp | None, *, sized: bool = True) -> Expected | None:
    """Return what an action expects to find where the scan saw an entry.

    Args:
        entry: what the scan saw.
        sized: whether the size is the entry's own; that of a link is its target's.
    """
    if entry is None:
        return None
    return Expected(entry.inode, entry.mtime_ns, entry.size if sized else None)


class RemovalActions:
    """Actions for single things, collected; each inode counts once, with its last name.

    Args:
        shared: the shared blobs of the cache by their hashes.
    """

    def __init__(self, shared: Mapping[str, SharedBlob]) -> None:
        self.refs: list[Action] = []
        self.trees: list[Action] = []
        self.files: list[Action] = []
        self.blobs: list[Action] = []
        self.shared: list[Action] = []
        self.locks: list[Action] = []
        self.leftovers: list[Action] = []
        self._in_store = shared
        self._names_left: dict[tuple[int, int], int] = {}
        self._released: dict[str, dict[str, str]] = {}

    def in_order(self) -> tuple[Action, ...]:
        """Return the actions in an order that leaves waste and never a lie when it is stopped."""
        return (
            *self.refs,
            *self.trees,
            *self.files,
            *self.blobs,
            *self.shared,
            *self.locks,
            *self.leftovers,
        )

    def _unlink(self, entry: Blob | File) -> int:
        """Return the bytes that unlinking one more name of an inode gives back."""
        if entry.links <= 1:
            return entry.allocated
        key = entry.device, entry.inode
        self._names_left[key] = self._names_left.get(key, entry.links) - 1
        return 0 if self._names_left[key] else entry.allocated

    def add_repo(self, repo: Repo, reason: str) -> None:
        """Remove a repo's folder with all that is in it."""
        frees = repo.by_class.total
        seen: set[tuple[int, int]] = set()
        copies = (file for revision in repo.revisions for file in revision.files_of("copy"))
        for entry in itertools.chain[Blob | File](repo.blobs.values(), copies):
            if entry.links > 1:
                key = entry.device, entry.inode
                # by_class counts an inode with several links once; the last link alone frees it.
                frees += self._unlink(entry) - (0 if key in seen else entry.allocated)
                seen.add(key)
        for name, blob in repo.blobs.items():
            self._give_up(repo, name, blob, reason)
        self.trees.append(
            RemoveTree(
                repo.path, "repo", repo.id, reason, frees, expected_of(repo.entry), stamp(repo)
            )
        )

    def add_ref(self, repo: Repo, ref: str, commit: str | None, reason: str) -> None:
        """Remove a ref; with a commit, as a part of that revision."""
        entry = repo.ref_files[ref]
        self.refs.append(
            Remove(
                repo.ref_path(ref),
                "ref",
                repo.id,
                reason,
                entry.allocated,
                expected_of(entry),
                commit,
            )
        )

    def add_ref_folders(self, repo: Repo) -> None:
        """Remove folders with the last ref in them: an empty one looks like a broken ref."""
        gone = {action.path: action for action in self.refs if isinstance(action, Remove)}
        for folder in sorted(repo.ref_folders, reverse=True):
            paths = [repo.ref_path(ref) for ref in repo.ref_files if ref.startswith(folder + "/")]
            if not paths or any(path not in gone for path in paths):
                continue
            last, frees = gone[paths[-1]], repo.ref_folders[folder].allocated
            self.refs.append(
                Remove(
                    repo.ref_path(folder),
                    "folder",
                    repo.id,
                    last.reason,
                    frees,
                    None,
                    last.commit,
                )
            )

    def add_snapshot(self, repo: Repo, revision: Revision, reason: str) -> None:
        """Remove a revision's snapshot, and what the hub's client remembers of its commit."""
        commit = revision.commit
        frees = revision.entry.allocated if revision.entry else 0
        expected = expected_of(revision.entry)
        if revision.linked:
            self.trees.append(
                Remove(revision.path, "link", repo.id, reason, frees, expected, commit)
            )
        else:
            frees += sum(
                self._unlink(file) if file.kind == "copy" else file.allocated
                for file in revision.files
            )
            self.trees.append(
                RemoveTree(
                    revision.path,
                    "snapshot",
                    repo.id,
                    reason,
                    frees,
                    expected,
                    stamp(repo, revision),
                    commit,
                )
            )
        self.add_metadata(repo, commit, reason)

    def add_metadata(self, repo: Repo, commit: str, reason: str) -> None:
        """Remove what the client remembers of a commit: its listing, and names it does not have."""
        tree = repo.tree_files.get(commit)
        if tree is not None:
            self.files.append(
                Remove(
                    repo.tree_path(commit),
                    "tree",
                    repo.id,
                    reason,
                    tree.allocated,
                    expected_of(tree),
                    commit,
                )
            )
        absent = repo.no_exist.get(commit)
        if absent is not None:
            self.trees.append(
                RemoveTree(
                    repo.no_exist_path(commit),
                    "no-exist",
                    repo.id,
                    reason,
                    absent.allocated,
                    expected_of(absent),
                    commit=commit,
                )
            )

    def add_file(self, repo: Repo, revision: Revision, file: File, reason: str) -> None:
        """Remove a file or link of a snapshot."""
        copy = file.kind == "copy"
        frees = self._unlink(file) if copy else file.allocated
        # A link's own length is that of its target's string; the scan gives the blob's.
        expected = expected_of(file, sized=copy)
        self.files.append(
            Remove(
                revision.file_path(file.name),
                "file" if copy else "link",
                repo.id,
                reason,
                frees,
                expected,
            )
        )

    def add_blob(self, repo: Repo, name: str, reason: str) -> None:
        """Remove a blob of a repo."""
        blob = repo.blobs[name]
        expected = expected_of(blob, sized=not blob.linked)
        self.blobs.append(
            Remove(repo.blob_path(name), "blob", repo.id, reason, self._unlink(blob), expected)
        )
        self._give_up(repo, name, blob, reason)

    def add_partial(self, repo: Repo, partial: Partial, reason: str) -> None:
        """Remove an unfinished download."""
        self.blobs.append(
            Remove(
                partial.path, "partial", repo.id, reason, partial.allocated, expected_of(partial)
            )
        )

    def add_stray(self, stray: Stray, repo: str | None, reason: str) -> None:
        """Remove an entry that is not the hub's."""
        expected = expected_of(stray, sized=not stray.folder)
        if not stray.folder:
            self.files.append(Remove(stray.path, "stray", repo, reason, stray.allocated, expected))
        elif os.path.basename(stray.path) == layout.LEFTOVERS and repo is None:
            self.add_leftover(stray.path, None, reason, stray.allocated)
        else:
            mark = sum_stamp(stray.size, stray.allocated)
            self.trees.append(
                RemoveTree(stray.path, "stray", repo, reason, stray.allocated, expected, mark)
            )

    def add_leftover(self, path: str, repo: str | None, reason: str, frees: int) -> None:
        """Remove what an interrupted removal has left."""
        self.leftovers.append(RemoveTree(path, "leftover", repo, reason, frees, None))

    def _give_up(self, repo: Repo, name: str, blob: Blob, reason: str) -> None:
        if blob.shared is not None and blob.shared in self._in_store:
            reference = f"{repo.folder}/{layout.BLOBS}/{name}"
            self._released.setdefault(blob.shared, {})[reference] = reason

    def release_shared(self, alone: Mapping[str, str], needed: Collection[str]) -> list[str]:
        """Take the blobs that are removed off the manifests of the shared store.

        Args:
            alone: hash -> reason, of shared blobs to remove though no blob of a repo is removed.
            needed: paths of what stays in any case.

        Returns:
            The paths of the shared blobs that stay only for that.
        """
        staying: list[str] = []
        for shared_hash, reason in alone.items():
            self._released.setdefault(shared_hash, {}).setdefault("", reason)
        for shared_hash, references in self._released.items():
            shared = self._in_store[shared_hash]
            gone = tuple(sorted(filter(None, references)))
            last = set(shared.users) <= set(gone)
            if last and shared.path in needed:
                staying.append(shared.path)
                last = False
                if not gone:
                    continue
            content = shared.allocated if shared.links == 1 else 0
            frees = shared.manifest_allocated + content if last else 0
            reason = next(iter(references.values()))
            self.shared.append(ReleaseShared(shared.path, shared_hash, gone, reason, frees, last))
        return staying
