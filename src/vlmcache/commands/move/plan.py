"""The plan of a move or of its undoing, from the cache, the destination and names (pure)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.moved import MoveRecord
from vlmcache.cache.state import CacheState, Repo
from vlmcache.change.move_results import moved_words
from vlmcache.change.names import Target
from vlmcache.change.plan import (
    Action,
    Kept,
    Move,
    PlaceLink,
    Plan,
    PutBack,
    ReleaseShared,
    Remove,
    RemoveTree,
)
from vlmcache.change.removal_plan import plan_removal
from vlmcache.commands.move.values import id_of

_COPIED = "copied by an interrupted move"


class MoveChoice(NamedTuple):
    """Which repos are to be moved, by their folders.

    Args:
        folders: those that are in the cache, and not links.
        rest: those that an interrupted move has copied and not finished.
        kept: what stays on purpose.
    """

    folders: Sequence[str]
    rest: Sequence[str] = ()
    kept: Sequence[Kept] = ()


class Destination(msgspec.Struct, frozen=True):
    """What is at the destination."""

    path: str
    """Its real path."""
    state: CacheState
    """Its content, as that of a cache."""
    noted: Mapping[str, MoveRecord]
    """Repo folder -> the note that a move has left there."""
    staged: Collection[str] = ()
    """Names in the folder in which a move stages its copies."""
    copied: Mapping[str, int] = {}
    """Path below that folder, or below a repo that was placed while its source is still here ->
    length of the file."""
    aside: Mapping[str, str] = {}
    """Folder of a repo that an interrupted move has set aside here -> where, if nothing is lost."""
    same_disk: bool = False
    """Whether a file can be there and in the cache under two names, so that nothing is copied."""
    links: Collection[str] = ()
    """Folders in whose place is a link to the very repo here, which an earlier move has left."""
    seen: tuple[int, int] | None = None
    """Device and inode of the folder that was read; `None` if there was none."""

    def place(self, folder: str) -> str:
        """Return the place of a repo."""
        return os.path.join(self.path, folder)

    def holds(self, folder: str) -> bool:
        """Return whether something is in the repo's place that is not a link to the repo here."""
        return folder not in self.links and any(repo.folder == folder for repo in self.state.repos)

    def staged_at(self, name: str) -> str:
        """Return the path of something in the folder in which a move stages its copies."""
        return layout.staged_path(self.path, name)

    def begun(self, cache_dir: str, folder: str) -> bool:
        """Return whether a move of the repo out of that cache has begun and not ended."""
        return self.noted.get(folder) == MoveRecord(cache_dir, finished=False)

    def unfinished(self, cache_dir: str) -> list[str]:
        """Return the folders of the repos whose move out of that cache has begun and not ended."""
        return [folder for folder in sorted(self.noted) if self.begun(cache_dir, folder)]


def plan_move(
    state: CacheState,
    destination: Destination,
    choice: MoveChoice,
    *,
    link: bool,
) -> Plan:
    """Return the plan of a move: what is copied, then what is removed here, and linked there.

    Args:
        state: the cache; its `dir` is a real path.
        destination: the other cache.
        choice: the repos.
        link: leave a link in the place of each.
    """
    why = moved_words(destination.path)
    repos = {repo.folder: repo for repo in state.repos}
    counted: set[str] = set(destination.state.shared)
    actions: list[Action] = [
        move_of(state, destination, repos[folder], counted) for folder in choice.folders
    ]
    targets = [Target(repos[folder].id, folder) for folder in choice.folders]
    for folder in choice.rest:
        leftovers = tuple(
            left for left in state.leftovers if left.repo_folder == folder and left.whole
        )
        if folder not in repos and link:
            path, target = os.path.join(state.dir, folder), destination.place(folder)
            actions.append(PlaceLink(id_of(folder), path, target, "an interrupted move"))
        if leftovers:
            targets.append(Target(id_of(folder), folder, leftovers=leftovers, gone=True))
    # Links of other repos lead to the new place through the link that is left.
    removal = plan_removal(msgspec.structs.replace(state, outside={}), targets, why=why)
    for action in removal.actions:
        if isinstance(action, RemoveTree) and action.kind == "repo":
            name = os.path.basename(action.path)
            stays = _content(repos[name]) if destination.same_disk else 0
            action = msgspec.structs.replace(
                action,
                at_once=True,
                link=destination.place(name) if link else None,
                frees=max(0, action.frees - stays),
            )
        elif isinstance(action, ReleaseShared) and destination.same_disk:
            action = msgspec.structs.replace(action, frees=0)
        elif isinstance(action, Remove) and action.kind == "record":
            continue  # it shows that the repo can come back to the place of a link
        elif link and isinstance(action, Remove | RemoveTree) and action.kind in ("lock", "locks"):
            continue  # a repo behind a link has its locks here
        actions.append(action)
    return Plan(
        tuple(actions),
        frees=sum(getattr(action, "frees", 0) for action in actions),
        needs=sum(action.needs for action in actions if isinstance(action, Move)),
        kept=tuple(choice.kept),
    )


def move_of(state: CacheState, destination: Destination, repo: Repo, counted: set[str]) -> Move:
    """Return what it is to move one repo.

    Args:
        state: the cache.
        destination: the other cache.
        repo: one of the cache.
        counted: hashes of the shared blobs that are there by then; those of the repo are added.
    """
    size = have = 0
    needs = repo.by_class.total
    seen: set[tuple[int, int]] = set()
    for name, length, allocated, key in _files(repo):
        if key in seen:
            continue
        seen.add(key)
        size += length
        needs += max(0, length - allocated)
        if destination.copied.get(name) == length:
            have += length
            needs -= max(length, allocated)
    named = {blob.shared for blob in repo.blobs.values() if blob.shared is not None}
    shared = tuple(sorted(named & state.shared.keys()))
    for shared_hash in shared:
        blob = state.shared[shared_hash]
        size += blob.size
        copied = destination.copied.get(os.path.join(layout.SHARED_STORE, shared_hash))
        if shared_hash in counted or copied == blob.size:
            have += blob.size
        else:
            needs += max(blob.size, blob.allocated)
        counted.add(shared_hash)
    reason = "the same disk: nothing is copied" if destination.same_disk else "copied and hashed"
    if destination.begun(state.dir, repo.folder):
        reason = "begun before"
    return Move(
        repo.id,
        repo.path,
        destination.place(repo.folder),
        size,
        have,
        0 if destination.same_disk else max(0, needs),
        reason,
        shared,
    )


def _files(repo: Repo) -> list[tuple[str, int, int, tuple[int, int]]]:
    """Return path in a cache, length, occupied bytes and inode of each file with content."""
    return [
        *(
            (
                layout.blob_path(repo.folder, blob.name),
                blob.size,
                blob.allocated,
                (blob.device, blob.inode),
            )
            for blob in repo.blobs.values()
            if not blob.linked
        ),
        *(
            (
                layout.blob_path(repo.folder, part.name),
                part.size,
                part.allocated,
                (part.device, part.inode),
            )
            for part in repo.partials
        ),
        *(
            (
                layout.file_path(layout.snapshot_path(repo.folder, revision.commit), file.name),
                file.size,
                file.allocated,
                (file.device, file.inode),
            )
            for revision in repo.revisions
            for file in revision.files
            if file.kind == "copy"
        ),
    ]


def _content(repo: Repo) -> int:
    """Return what the repo's files with content occupy, each inode once."""
    return sum({key: allocated for _, _, allocated, key in _files(repo)}.values())


def plan_undo(state: CacheState, destination: Destination) -> Plan:
    """Return the plan that takes every unfinished move of this cache back.

    What was copied is removed, and what was set aside comes back. A repo that has its link already
    is moved; nothing of it is taken back.

    Args:
        state: the cache; its `dir` is a real path.
        destination: the other cache.
    """
    actions: list[Action] = []
    kept: list[Kept] = []
    gone: list[Target] = []
    repos = {repo.folder: repo for repo in state.repos}
    loose: set[str] = set()
    for folder in destination.unfinished(state.dir):
        repo, name = repos.get(folder), id_of(folder)
        aside = destination.aside.get(folder)
        path = os.path.join(state.dir, folder)
        if repo is not None and repo.linked_to is not None:
            kept.append(Kept(path, name, "moved already: only leftovers are to be removed"))
            continue
        if repo is None and aside is None:
            if destination.holds(folder):
                why = "its only copy is at the destination: 'vlmcache move' again links it"
                kept.append(Kept(destination.place(folder), name, why))
            continue
        if aside is not None:
            actions.append(PutBack(name, path, aside, "set aside by an interrupted move"))
            loose.update(*(left.shared for left in state.leftovers if left.path == aside))
        elif repo is not None:
            loose |= {blob.shared for blob in repo.blobs.values() if blob.shared is not None}
        if destination.holds(folder):
            gone.append(Target(name, folder))
        if folder in destination.staged:
            actions.append(_remove_staged(destination, folder, name))
    if layout.SHARED_STORE in destination.staged:
        actions.append(_remove_staged(destination, layout.SHARED_STORE, None))
    for action in plan_removal(destination.state, gone, why=_COPIED).actions:
        if isinstance(action, RemoveTree | Remove) and action.kind in ("lock", "locks", "record"):
            continue
        if isinstance(action, ReleaseShared):
            loose.discard(action.hash)
        actions.append(action)
    for shared_hash in sorted(loose & destination.state.shared.keys()):
        blob = destination.state.shared[shared_hash]
        if not blob.users:
            # It was published, and the repo that needs it never came.
            frees = blob.allocated + blob.manifest_allocated if blob.links == 1 else 0
            actions.append(ReleaseShared(blob.path, shared_hash, (), _COPIED, frees, last=True))
    return Plan(
        tuple(actions),
        frees=sum(getattr(action, "frees", 0) for action in actions),
        kept=tuple(kept),
    )


def _remove_staged(destination: Destination, name: str, repo: str | None) -> RemoveTree:
    sizes = [size for path, size in destination.copied.items() if path.startswith(name + os.sep)]
    frees = 0 if destination.same_disk else sum(sizes)
    return RemoveTree(destination.staged_at(name), "leftover", repo, _COPIED, frees, None)
