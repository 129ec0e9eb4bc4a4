"""What happened between two scans of a cache (pure), and the system's reports of changes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.entries import is_stale
from vlmcache.cache.moved import away_remedy, away_words
from vlmcache.cache.state import CacheState, Finding, Partial, Repo, Revision
from vlmcache.commands.watch.values import Event, EventKind
from vlmcache.paths import real_path

BEGUN = frozenset({"ref-to-missing-commit", "empty-snapshot", "missing-snapshots"})
"""Findings of a download until its first file is complete; damage if there was more before."""


class ListedFile(msgspec.Struct, frozen=True):
    """The file that a blob is the content of, and its length if the cache has the Hub's listing."""

    name: str
    size: int | None


def files_by_blob(repo: Repo) -> dict[str, ListedFile]:
    """Return blob name (etag) -> file, for blobs that exist and for those only listed."""
    files: dict[str, ListedFile] = {}
    for revision in repo.revisions:
        for file in revision.files:
            if file.blob is not None:
                files.setdefault(file.blob, ListedFile(file.name, file.size))
        for name, listed in (revision.tree or {}).items():
            files[listed.etag] = ListedFile(name, listed.content_size)
    return files


def changes(before: CacheState, after: CacheState) -> tuple[Event, ...]:
    """Return what happened between two states of one cache, in the order of the repos.

    A repo that is the very same value in both is not compared.
    """
    old = {repo.folder: repo for repo in before.repos}
    new = {repo.folder: repo for repo in after.repos}
    return tuple(
        event
        for folder in sorted(old.keys() | new.keys())
        if old.get(folder) is not new.get(folder)
        for event in _changes_of(
            old.get(folder), new.get(folder), before.scanned_at, after.scanned_at
        )
    )


def _changes_of(was: Repo | None, now: Repo | None, before: float, after: float) -> Iterator[Event]:
    if now is None:
        assert was is not None
        yield _event("removed", was, size=was.size_on_disk)
    elif now.away is not None:
        # Nothing of it was removed, whatever is not seen of it now.
        if was is None or was.away is None:
            detail = f"{away_words(now.away)}; {away_remedy(now.away)}"
            yield _event("away", now, path=now.path, detail=detail)
    elif was is not None and was.away is not None and (now.linked_to or now.bases):
        yield _event("back", now, path=now.path)
    else:
        if was is not None:
            yield from _removed(was, now)
        yield from _new_revisions(was, now)
        yield from _damaged(was, now)
        yield from _partials(was, now, before, after)
        yield from _downloaded(was, now)


def _event(kind: EventKind, repo: Repo, revision: Revision | None = None, **facts: Any) -> Event:
    commit, refs = (None, ()) if revision is None else (revision.commit, revision.refs)
    return Event(kind=kind, repo=repo.id, type=repo.type, revision=commit, refs=refs, **facts)


def _removed(was: Repo, now: Repo) -> Iterator[Event]:
    gone = {name: blob for name, blob in was.blobs.items() if name not in now.blobs}
    for revision in was.revisions:
        if now.revision(revision.commit) is None:
            blobs = {file.blob for file in revision.files}
            size = sum(gone.pop(name).allocated for name in list(gone) if name in blobs)
            files = tuple(file.name for file in revision.files)
            yield _event("removed", was, revision=revision, files=files, size=size)
    names = files_by_blob(was)
    if gone:
        files = tuple(sorted(names[name].name if name in names else name for name in gone))
        yield _event("removed", was, files=files, size=sum(b.allocated for b in gone.values()))
    left = {partial.path for partial in now.partials}
    for partial in was.partials:
        blob = now.blobs.get(partial.etag)
        if partial.path not in left and not (blob is not None and blob.present):
            yield _of_partial("removed", was, partial, partial.allocated)


def _new_revisions(was: Repo | None, now: Repo) -> Iterator[Event]:
    known = {} if was is None else {revision.commit: revision for revision in was.revisions}
    for revision in now.revisions:
        before = known.get(revision.commit)
        if before is None or set(revision.refs) - set(before.refs):
            yield _event("new-revision", now, revision=revision)


def _damaged(was: Repo | None, now: Repo) -> Iterator[Event]:
    known = set() if was is None else {(f.code, f.path) for f in was.findings}
    for finding in now.findings:
        if finding.severity != "error" or (finding.code, finding.path) in known:
            continue
        if finding.code not in BEGUN or (was is not None and _was_more(was, finding)):
            yield _event("damaged", now, path=finding.path, detail=finding.detail)


def _was_more(was: Repo, finding: Finding) -> bool:
    """Return whether a repo had what is missing now, as before a first download it had not."""
    if finding.code == "missing-snapshots":
        return bool(was.revisions)
    if finding.code == "empty-snapshot":
        return any(revision.path == finding.path and revision.files for revision in was.revisions)
    name = os.path.relpath(finding.path, os.path.join(was.path, layout.REFS))
    commit = was.refs.get(name.replace(os.sep, "/"))
    return commit is not None and was.revision(commit) is not None


def _partials(was: Repo | None, now: Repo, before: float, after: float) -> Iterator[Event]:
    known = {} if was is None else {partial.path: partial for partial in was.partials}
    for partial in now.partials:
        earlier = known.get(partial.path)
        if earlier is None or earlier.inode != partial.inode:
            yield _of_partial("download-started", now, partial, partial.size)
            continue
        if partial.size > earlier.size:
            yield _of_partial("download-advanced", now, partial, partial.size)
        released = earlier.locked and not partial.locked
        aged = is_stale(partial, after) and not is_stale(earlier, before)
        if released or (aged and not earlier.locked):
            yield _of_partial("download-left-behind", now, partial, partial.size)


def _of_partial(kind: EventKind, repo: Repo, partial: Partial, size: int) -> Event:
    file = files_by_blob(repo).get(partial.etag)
    return _event(
        kind,
        repo,
        files=() if file is None else (file.name,),
        path=partial.path,
        size=size,
        expected_size=None if file is None else file.size,
    )


def _downloaded(was: Repo | None, now: Repo) -> Iterator[Event]:
    old = {} if was is None else _content(was)
    longer = [
        (name, length)
        for key, (name, length) in _content(now).items()
        if key not in old or length > old[key][1]
    ]
    if longer:
        files = tuple(sorted(name for name, _ in longer))
        yield _event("downloaded", now, files=files, size=sum(length for _, length in longer))


def _content(repo: Repo) -> dict[str | tuple[str, str], tuple[str, int]]:
    """Return blob name, or commit and name of a file without a blob -> file's name and length."""
    names = files_by_blob(repo)
    content: dict[str | tuple[str, str], tuple[str, int]] = {
        name: (names[name].name if name in names else name, blob.size)
        for name, blob in repo.blobs.items()
        if blob.present
    }
    return content | {
        (revision.commit, file.name): (file.name, file.size)
        for revision in repo.revisions
        for file in revision.files
        if file.kind == "copy" and file.links == 1
    }


class Notifications:
    """The filesystem's reports of which entries of a cache folder changed.

    Linux, macOS and Windows report changes on their own disks; none reports those that another
    machine makes on a network filesystem.

    Args:
        folder: the cache folder, which must exist.

    Raises:
        OSError: the system cannot watch it, for instance because of a limit on watches.
    """

    def __init__(self, folder: str) -> None:
        from watchfiles._rust_notify import RustNotify

        # Some systems report real paths, whatever they were asked for.
        self._folder = real_path(folder)
        self._notify = RustNotify([self._folder], False, False, 0, True, True)
        self._touched: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.wake, self._waker = socket.socketpair()
        """`wake` is readable while there is something to take."""
        self.wake.setblocking(False)
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="notifications", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether more can be expected."""
        return self._thread.is_alive()

    def take(self) -> set[str]:
        """Return the names in the folder below which something changed since the last call.

        The folder's own name is the empty string.
        """
        with self._lock:
            touched, self._touched = self._touched, set()
            with contextlib.suppress(BlockingIOError):
                while self.wake.recv(4096):
                    pass
        return touched

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join(timeout=5)
        self._notify.close()
        self.wake.close()
        self._waker.close()

    def _listen(self) -> None:
        # Changes are gathered for a quarter of a second; the system is asked ten times a second.
        while True:
            try:
                reported = self._notify.watch(250, 100, 0, self._stop)
            except Exception:
                # Whatever ended it, polling continues once this thread has ended.
                return
            if isinstance(reported, str):
                return
            start = len(self._folder) + 1
            names = {path[start:].split(os.sep, 1)[0] for _, path in reported}
            with self._lock:
                self._touched |= names
                with contextlib.suppress(BlockingIOError):
                    self._waker.send(b"\0")
