"""What is saved of a repo, checked: names, hashes and links, and which of it is asked for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.completeness import commit_named
from vlmcache.cache.hashing import Opener, hash_file
from vlmcache.cache.state import Repo, TreeFile
from vlmcache.cache.tree import CacheTree, StaleError
from vlmcache.commands.backup.values import BackupError
from vlmcache.config import Config, Names
from vlmcache.errors import ChangedError, UnknownModelError
from vlmcache.progress import FileOf
from vlmcache.units import short_text

_BLOB_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")
_SHA256 = "0" * 64
"""Shows `hash_file` the kind of hash."""


class SavedBlob(msgspec.Struct, frozen=True):
    """Length in bytes, and sha256 (64 hex digits) or git blob sha1 (40), of a blob."""

    size: int
    hash: str


class SavedRepo(msgspec.Struct, frozen=True):
    """A repo in a backup."""

    type: str
    id: str
    blobs: dict[str, SavedBlob]
    """Blob name -> blob."""
    snapshots: dict[str, dict[str, str]]
    """Commit -> file name -> blob name."""
    refs: dict[str, str]
    """Ref -> commit."""
    trees: dict[str, dict[str, TreeFile]]
    """Commit -> file name -> what the Hub's listing says of it."""

    @property
    def folder(self) -> str:
        """The name of the repo's folder in a cache."""
        return layout.repo_folder(self.type, self.id)

    @property
    def name(self) -> str:
        """The name as it is typed and shown."""
        return layout.typed_name(self.type, self.id)


class Saving(NamedTuple):
    """A repo to be saved, and where its blobs are."""

    saved: SavedRepo
    sources: Mapping[str, str]
    """Blob name -> path of a file with its content."""
    opener: Opener


def source_opener(tree: CacheTree) -> Opener:
    """Return a function that opens the blobs of a cache, and refuses files outside it."""

    def opener(path: str) -> int:
        try:
            return tree.open_content(path)
        except FileNotFoundError as error:
            raise ChangedError(f"removed while it was saved: {path}", "run it again") from error
        except StaleError as error:
            raise BackupError(
                f"not saved, because it is not in the cache: {error.filename or path}",
                "the link leads out of the cache: put the file itself there, or name other models",
            ) from error

    return opener


def plan_saving(repo: Repo, commits: frozenset[str] | None, opener: Opener) -> Saving:
    """Return what is saved of a repo: its snapshots, their blobs, their refs and their listings.

    Copies in place of links become blobs. Blobs that no snapshot needs are left out.

    Args:
        repo: the repo.
        commits: the revisions; all if `None`.
        opener: opens a file of the cache.

    Raises:
        BackupError: a link leads nowhere or out of the repo, or a name could not be restored.
        OSError: a file cannot be read.
    """
    blobs: dict[str, SavedBlob] = {}
    sources: dict[str, str] = {}
    snapshots: dict[str, dict[str, str]] = {}
    for revision in repo.revisions:
        if commits is not None and revision.commit not in commits:
            continue
        files: dict[str, str] = {}
        for file in revision.files:
            path = revision.file_path(file.name)
            if file.kind not in ("link", "copy") or revision.linked:
                raise BackupError(
                    f"{layout.typed_name(repo.type, repo.id)} is damaged: {path}",
                    "'vlmcache verify --repair' repairs it",
                )
            listed = (revision.tree or {}).get(file.name)
            name = file.blob
            if name is None:
                name = listed.etag if listed is not None else hash_file(path, _SHA256, opener)
            else:
                path = repo.blob_path(name)
            files[file.name] = name
            if name not in blobs:
                content_hash = name if layout.is_etag(name) else hash_file(path, _SHA256, opener)
                blobs[name] = SavedBlob(file.size, content_hash)
                sources[name] = path
        snapshots[revision.commit] = dict(sorted(files.items()))
    saved = SavedRepo(
        repo.type,
        repo.id,
        dict(sorted(blobs.items())),
        dict(sorted(snapshots.items())),
        {ref: commit for ref, commit in sorted(repo.refs.items()) if commit in snapshots},
        {
            revision.commit: dict(sorted(revision.tree.items()))
            for revision in repo.revisions
            if revision.tree is not None and revision.commit in snapshots
        },
    )
    problem = restore_problem(saved)
    if problem is not None:
        raise BackupError(f"{saved.name} cannot be backed up: {problem}")
    return Saving(saved, sources, opener)


def restore_problem(repo: SavedRepo) -> str | None:
    """Return why a repo must not be restored, or `None` if it can be."""
    if repo.type not in layout.KINDS.values() or not layout.is_repo_id(repo.id):
        return f"{short_text(repo.id)} is not a repo id"
    for name, blob in repo.blobs.items():
        if _BLOB_NAME.fullmatch(name) is None or blob.size < 0 or not layout.is_etag(blob.hash):
            return f"{short_text(name)} is not a blob that can be checked"
        if layout.is_etag(name) and name != blob.hash:
            return f"the blob {name} is said to have another hash"
    listings: list[tuple[str, Collection[str], bool]] = [
        *((commit, files, True) for commit, files in repo.snapshots.items()),
        *((commit, files, False) for commit, files in repo.trees.items()),
    ]
    for commit, listed, written in listings:
        if layout.COMMIT.fullmatch(commit) is None:
            return f"{short_text(commit)} is not a commit"
        problem = layout.listing_problem(listed, written=written)
        if problem is not None:
            return f"the file {short_text(problem[0])}: {problem[1]}"
    for files in repo.snapshots.values():
        for file, name in files.items():
            if name not in repo.blobs:
                return f"the content of {short_text(file)} is missing"
    for ref, commit in repo.refs.items():
        if not layout.is_revision(ref) or commit not in repo.snapshots:
            return f"the ref {short_text(ref)} makes no sense"
    return None


RestoreSelection = Mapping[str, frozenset[str] | None]
"""Folder of a repo -> the revisions of it that were asked for, as typed; all if `None`."""


def select_repos(folders: Iterable[str], config: Config, names: Sequence[str]) -> RestoreSelection:
    """Return the repos and revisions that names mean in a backup (pure).

    Args:
        folders: the folders of the repos in it.
        config: the configuration whose keys count.
        names: keys, repo ids with `@revision` or without, `datasets/owner/name`; all if none.

    Raises:
        UnknownModelError: nothing of that name is in the backup.
        UsageError: a revision cannot be one.
    """
    present = set(folders)
    if not names:
        return dict.fromkeys(sorted(present))
    repos = (repo for folder in present if (repo := layout.parse_repo_folder(folder)) is not None)
    resolver = Names(config, repos)
    selection: dict[str, frozenset[str] | None] = {}
    for text in names:
        named = resolver.resolve(text)
        if named.folder not in present:
            raise resolver.unknown(text, "backup")
        asked = selection.get(named.folder, frozenset())
        if asked is not None:
            selection[named.folder] = None if named.revision is None else asked | {named.revision}
    return dict(sorted(selection.items()))


def narrowed(repo: SavedRepo, revisions: frozenset[str] | None) -> SavedRepo:
    """Return a repo with only what some revisions need (pure).

    Args:
        repo: the repo.
        revisions: refs, commits, or beginnings of commits; all if `None`.

    Raises:
        UnknownModelError: there is no such revision.
    """
    if revisions is None:
        return repo
    commits: set[str] = set()
    for text in revisions:
        commit = commit_named(text, repo.refs, repo.snapshots)
        if commit is None:
            known = sorted({*repo.refs, *(commit[:12] for commit in repo.snapshots)})
            raise UnknownModelError(
                f"{repo.name} has no revision {text} in the backup",
                "it has " + ", ".join(known[:8]),
            )
        commits.add(commit)
    snapshots = {commit: repo.snapshots[commit] for commit in repo.snapshots if commit in commits}
    needed = {name for files in snapshots.values() for name in files.values()}
    return SavedRepo(
        repo.type,
        repo.id,
        {name: blob for name, blob in repo.blobs.items() if name in needed},
        snapshots,
        {ref: commit for ref, commit in repo.refs.items() if commit in commits},
        {commit: files for commit, files in repo.trees.items() if commit in commits},
    )


def files_of(repo: SavedRepo, paths: Mapping[str, str]) -> dict[str, FileOf]:
    """Return path of each blob -> a file with its content, for the progress.

    Args:
        repo: the blobs' repo.
        paths: name of each blob -> its path.
    """
    names = {
        name: file for files in repo.snapshots.values() for file, name in reversed(files.items())
    }
    return {
        path: FileOf(repo.name, names.get(name, name), repo.blobs[name].size)
        for name, path in paths.items()
    }
