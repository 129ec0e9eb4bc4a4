"""What is served of the cache now: complete revisions, and of these the files that have a hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat as modes
import threading
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.completeness import commit_named, judge_revision
from vlmcache.cache.hashing import Opener
from vlmcache.cache.scan import scan
from vlmcache.cache.state import File, Repo, Revision, TreeFile
from vlmcache.cache.tree import CacheTree
from vlmcache.commands.serve.values import NotServed, ServedModel
from vlmcache.config import Session
from vlmcache.errors import VlmcacheError, reason_of
from vlmcache.home.journal import read_damaged, read_restricted
from vlmcache.paths import real_path

FRESH = 2.0
"""Seconds after which a repo is read again when it is asked for."""
_ALL_FRESH = 10.0
"""Seconds, at least, between two scans of everything for a content that is not known."""


class ServedFile(NamedTuple):
    """A file that is served, and where its content is."""

    name: str
    path: str
    is_blob: bool
    """Whether the path is that of a blob, which may be a link into the shared store."""
    listed: TreeFile
    open_to_others: bool
    """Whether every user of this machine can read it."""

    @property
    def etag(self) -> str:
        """The hash of its content."""
        return self.listed.etag

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.listed.content_size


class ServedRevision(NamedTuple):
    """A complete revision."""

    commit: str
    files: dict[str, ServedFile]
    made_at: float
    """Seconds since the epoch."""

    @property
    def open_to_others(self) -> bool:
        """Whether every user of this machine can read all of it."""
        return all(file.open_to_others for file in self.files.values())


class ServedRepo(NamedTuple):
    """A repo of which something is served."""

    id: str
    kind: str
    refs: dict[str, str]
    revisions: dict[str, ServedRevision]
    restriction: str | None
    """`gated` or `private`, as the hub that it came from has it."""

    @property
    def name(self) -> str:
        """What is typed for it."""
        return layout.typed_name(self.kind, self.id)

    def revision(self, text: str) -> ServedRevision | None:
        """Return what a branch, tag, commit or beginning of a commit means."""
        return self.revisions.get(commit_named(text, self.refs, self.revisions.keys()) or "")

    @property
    def open_to_others(self) -> bool:
        """Whether every user of this machine can read all of it."""
        return all(revision.open_to_others for revision in self.revisions.values())

    @property
    def contents(self) -> dict[str, ServedFile]:
        """Hash -> a file that has the content."""
        return {
            file.etag: file
            for revision in self.revisions.values()
            for file in revision.files.values()
        }

    def summary(self) -> ServedModel:
        """Return what people want to know of it."""
        contents = self.contents.values()
        return ServedModel(
            self.name,
            tuple(self.revisions),
            sum(len(revision.files) for revision in self.revisions.values()),
            sum(file.size for file in contents),
            not self.open_to_others,
        )


class Wanted(msgspec.Struct, frozen=True):
    """What is to be served."""

    commits: Mapping[str, frozenset[str] | None] | None = None
    """Repo folder -> the only commits that are meant, `None` for all; not given for everything."""
    withholds: bool = False
    """Whether repos are left out that the hub gives to some users only."""

    def folders(self) -> Collection[str] | None:
        """Return the folders to read; `None` for all."""
        return None if self.commits is None else self.commits.keys()

    def means(self, folder: str) -> bool:
        """Return whether anything of a repo is meant."""
        return self.commits is None or folder in self.commits


class _Entry(NamedTuple):
    """What was read of a repo."""

    repo: ServedRepo | None
    at: float
    """When it was read, on a clock that is never set back."""
    descriptors: dict[str, int]
    """Commit -> a descriptor of one of its files."""


class Catalog:
    """What is served, read again as the cache changes.

    Of each revision that is served one file is kept open, so that `rm` and `clean` see that it is
    in use, as they see a loader that has it open.

    Args:
        session: what to work on.
        wanted: what is to be served.
    """

    def __init__(self, session: Session, wanted: Wanted) -> None:
        self.tree = CacheTree(session.cache.dir)
        self._session = session
        self._wanted = wanted
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._contents: dict[str, ServedFile] | None = None
        self._scanned_at = 0.0
        self._restrictions: dict[tuple[str, str], str] = {}
        """(type, repo) -> `gated` or `private`, as pulls have found by now."""
        self._skipped: dict[str, str] = {}
        """Name of a repo -> why nothing of it is served."""
        with self._lock:
            self._read(wanted.folders())

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            for folder in list(self._entries):
                self._release(folder)

    def repos(self) -> list[ServedRepo]:
        """Return what is served, as it was when it was last read."""
        with self._lock:
            repos = [entry.repo for entry in self._entries.values() if entry.repo is not None]
        return sorted(repos, key=lambda repo: repo.name)

    def not_served(self) -> tuple[NotServed, ...]:
        """Return what is in the cache and not served, and why."""
        return tuple(NotServed(name, why) for name, why in sorted(self._skipped.items()))

    def repo(self, kind: str, repo_id: str) -> ServedRepo | None:
        """Return a repo as it is now, by its id in any case; `None` if nothing of it is served."""
        exact = self._exact(kind, repo_id)
        if exact is not None:
            return exact
        wanted = repo_id.casefold()
        same = [r.id for r in self.repos() if r.kind == kind and r.id.casefold() == wanted]
        return self._exact(kind, same[0]) if len(same) == 1 else None

    def _exact(self, kind: str, repo_id: str) -> ServedRepo | None:
        folder = layout.repo_folder(kind, repo_id)
        if not layout.is_repo_id(repo_id) or not self._wanted.means(folder):
            return None
        with self._lock:
            entry = self._entries.get(folder)
            if entry is None or time.monotonic() - entry.at > FRESH:
                # What does not exist is read again each time: keeping such names would fill memory.
                self._read({folder})
            entry = self._entries.get(folder)
        repo = entry.repo if entry is not None else None
        # Some filesystems ignore case.
        return repo if repo is not None and (repo.kind, repo.id) == (kind, repo_id) else None

    def content(self, etag: str) -> ServedFile | None:
        """Return a file whose content has a hash; `None` if nothing that is served has it."""
        with self._lock:
            file = self._all_contents().get(etag)
            if file is None and time.monotonic() - self._scanned_at > _ALL_FRESH:
                self._read(self._wanted.folders())
                file = self._all_contents().get(etag)
            return file

    def _all_contents(self) -> dict[str, ServedFile]:
        if self._contents is None:
            self._contents = {}
            for entry in self._entries.values():
                if entry.repo is not None:
                    self._contents |= entry.repo.contents
        return self._contents

    def tend(self) -> None:
        """Close the files of what was removed, which frees its bytes, and of what is gated."""
        with self._lock, contextlib.suppress(OSError):
            if self._restrictions != read_restricted(self._session.environment):
                self._read(self._wanted.folders())
            for folder, entry in list(self._entries.items()):
                if any(os.fstat(opened).st_nlink == 0 for opened in entry.descriptors.values()):
                    self._read({folder})

    def distrust(self, etag: str) -> None:
        """Read repos again that have a content which was found to be damaged."""
        with self._lock:
            for folder, entry in list(self._entries.items()):
                if entry.repo is not None and etag in entry.repo.contents:
                    self._read({folder})

    def opener(self, is_blob: bool) -> Opener:
        """Return what opens blobs, or the files of snapshots that are no links."""
        return self.tree.open_content if is_blob else self.tree.open

    def _read(self, folders: Collection[str] | None) -> None:
        """Read repos again, all of them if none are named. The lock is held."""
        now = time.monotonic()
        try:
            self._restrictions = read_restricted(self._session.environment)
            state = scan(self._session.cache.dir, only=folders)
            state = state.with_damage(read_damaged(self._session.environment))
            repos = {repo.folder: repo for repo in state.repos}
        except VlmcacheError as error:
            log.info("serve", "the cache cannot be read: %s", error.message)
            repos = {}
        if folders == self._wanted.folders():
            self._scanned_at = now
        known = self._entries.keys() if folders is None else self._entries.keys() & folders
        for folder in known - repos.keys():
            self._release(folder)
        for folder, repo in repos.items():
            if self._wanted.means(folder):
                self._renew(folder, self._served(repo), now)
        self._contents = None

    def _renew(self, folder: str, repo: ServedRepo | None, now: float) -> None:
        old = self._entries.get(folder)
        opened = dict(old.descriptors) if old is not None else {}
        revisions = repo.revisions if repo is not None else {}
        unopened: dict[str, str] = {}
        for commit in list(opened):
            if commit not in revisions or os.fstat(opened[commit]).st_nlink == 0:
                os.close(opened.pop(commit))
        for commit in revisions.keys() - opened.keys():
            # The largest file is the most likely to be of this revision alone.
            files = sorted(revisions[commit].files.values(), key=lambda file: -file.size)
            for file in files[:1]:
                try:
                    opened[commit] = self.opener(file.is_blob)(file.path)
                except OSError as error:
                    # What a link out of the cache leads to: its name and size stay hidden too.
                    unopened[commit] = reason_of(error)
        if repo is not None and unopened:
            repo = self._without(repo, unopened)
        self._entries[folder] = _Entry(repo, now, opened)

    def _without(self, repo: ServedRepo, unopened: Mapping[str, str]) -> ServedRepo | None:
        """Return a repo without revisions that cannot be opened; `None` if nothing is left."""
        left = {
            commit: revision
            for commit, revision in repo.revisions.items()
            if commit not in unopened
        }
        if not left:
            why = next(iter(unopened.values()))
            self._skipped[repo.name] = f"its files cannot be opened: {why}"
            return None
        refs = {ref: commit for ref, commit in repo.refs.items() if commit in left}
        return repo._replace(revisions=left, refs=refs)

    def _release(self, folder: str) -> None:
        for descriptor in self._entries.pop(folder).descriptors.values():
            os.close(descriptor)

    def _served(self, repo: Repo) -> ServedRepo | None:
        """Return what of a repo is served; `None` if nothing is."""
        name = layout.typed_name(repo.type, repo.id)
        restriction = self._restrictions.get((repo.type, repo.id))
        if restriction is not None and self._wanted.withholds:
            self._skipped[name] = f"{restriction} on the hub: name it and add --include-gated"
            return None
        only = (self._wanted.commits or {}).get(repo.folder)
        revisions: dict[str, ServedRevision] = {}
        why = "on a drive that is not mounted" if repo.away is not None else "it has no revision"
        for revision in repo.revisions:
            if only is not None and revision.commit not in only:
                continue
            judgement = judge_revision(repo, revision)
            if judgement.state != "cached":
                why = f"it is {judgement.state}"
                continue
            files = self._files(repo, revision)
            needed = judgement.division.needed if judgement.division is not None else frozenset()
            if revision.tree is not None:
                # What somebody else has put into the folder is not part of the model.
                needed &= revision.tree.keys()
            unknown = sorted(needed - files.keys())
            if unknown:
                why = f"no hash of {unknown[0]} is known"
            elif files:
                made = revision.mtime_ns / 1e9
                revisions[revision.commit] = ServedRevision(revision.commit, files, made)
        if not revisions:
            self._skipped[name] = why
            return None
        self._skipped.pop(name, None)
        refs = {
            ref: commit
            for ref, commit in repo.refs.items()
            if commit in revisions and layout.is_revision(ref) and ref.isprintable()
        }
        return ServedRepo(repo.id, repo.type, refs, revisions, restriction)

    def _files(self, repo: Repo, revision: Revision) -> dict[str, ServedFile]:
        """Return the files of a revision that are here and whose content can be checked."""
        files: dict[str, ServedFile] = {}
        others = _Others()
        for file in revision.files:
            listed = _listed(repo, revision, file)
            if listed is None or layout.file_name_problem(file.name) is not None:
                continue
            path = revision.file_path(file.name)
            if file.blob is not None:
                path = repo.blob_path(file.blob)
            is_open = others.can_read(path)
            files[file.name] = ServedFile(file.name, path, file.blob is not None, listed, is_open)
        return files


def _listed(repo: Repo, revision: Revision, file: File) -> TreeFile | None:
    """Return what the hub lists for a file that is here; `None` if it cannot be checked.

    An older client has kept no listing: then the name of the blob says all, of LFS files the hash
    of the pointer too, which follows from content and length.
    """
    if file.kind not in ("link", "copy"):
        return None
    blob = repo.blobs.get(file.blob or "")
    size = file.size if blob is None else blob.size
    listed = (revision.tree or {}).get(file.name)
    if listed is not None:
        known = layout.is_etag(listed.etag) and listed.content_size == size
        return listed if known else None
    if blob is None or not blob.present or not layout.is_etag(blob.name):
        return None
    if len(blob.name) == 40:
        return TreeFile(size, blob.name)
    pointer = pointer_of(blob.name, size)
    oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()
    return TreeFile(size, oid, blob.name, size)


def pointer_of(sha256: str, size: int) -> bytes:
    """Return the pointer file of LFS that git holds for a content (git-lfs `docs/spec.md`)."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
        sha256.encode(),
        size,
    )


class _Others:
    """Says whether every user of this machine can read a file, by modes alone."""

    def __init__(self) -> None:
        self._folders: dict[str, bool] = {}
        self._real: dict[str, str] = {}

    def can_read(self, path: str) -> bool:
        """Return whether the modes of a file and of all folders above it let everybody read it."""
        folder, name = os.path.split(path)
        if folder not in self._real:
            self._real[folder] = real_path(folder)
        real = os.path.join(self._real[folder], name)
        try:
            status = os.lstat(real)
            if modes.S_ISLNK(status.st_mode):
                real = real_path(real)
                status = os.lstat(real)
            return bool(status.st_mode & 0o004) and self._can_pass(os.path.dirname(real))
        except OSError:
            return False

    def _can_pass(self, folder: str) -> bool:
        if folder not in self._folders:
            above = os.path.dirname(folder)
            passable = bool(os.stat(folder).st_mode & 0o001)
            self._folders[folder] = passable and (above == folder or self._can_pass(above))
        return self._folders[folder]
