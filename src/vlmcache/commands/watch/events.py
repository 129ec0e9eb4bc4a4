"""What happened between two looks at a cache (pure), and who says that something did."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.entries import is_stale
from vlmcache.cache.moved import away_remedy, away_words
from vlmcache.cache.state import CacheState, Finding, Partial, Repo, Revision
from vlmcache.commands.watch.values import Event, EventKind

BEGUN = frozenset({"ref-to-missing-commit", "empty-snapshot", "missing-snapshots"})
"""Errors that a download shows until its first file is whole; damage only where there was more."""


class ListedFile(msgspec.Struct, frozen=True):
    """The file that a blob is the content of, and its length where the Hub's listing is there."""

    name: str
    size: int | None


def files_by_blob(repo: Repo) -> dict[str, ListedFile]:
    """Return blob name (etag) -> file, for blobs that are there and for those only listed."""
    found: dict[str, ListedFile] = {}
    for revision in repo.revisions:
        for file in revision.files:
            if file.blob is not None:
                found.setdefault(file.blob, ListedFile(file.name, file.size))
        for name, listed in (revision.tree or {}).items():
            found[listed.etag] = ListedFile(name, listed.content_size)
    return found


def changes(before: CacheState, after: CacheState) -> tuple[Event, ...]:
    """Return what happened between two states of one cache, in the order of the repos.

    A repo that is the very same value in both is not looked at.
    """
    old = {repo.folder: repo for repo in before.repos}
    new = {repo.folder: repo for repo in after.repos}
    found: list[Event] = []
    for folder in sorted(old.keys() | new.keys()):
        was, now = old.get(folder), new.get(folder)
        if was is now:
            continue
        if now is None:
            assert was is not None
            found.append(_event("removed", was, size=was.size_on_disk))
            continue
        if now.away is not None:
            # Nothing of it was removed, whatever is not seen of it now.
            if was is None or was.away is None:
                detail = f"{away_words(now.away)}; {away_remedy(now.away)}"
                found.append(_event("away", now, path=now.path, detail=detail))
            continue
        if was is not None and was.away is not None and now.linked_to is not None:
            found.append(_event("back", now, path=now.path))
            continue
        if was is not None:
            found += _removed(was, now)
        found += _new_revisions(was, now)
        found += _damaged(was, now)
        found += _partials(was, now, before.scanned_at, after.scanned_at)
        downloaded = _downloaded(was, now)
        if downloaded is not None:
            found.append(downloaded)
    return tuple(found)


def _event(
    kind: EventKind,
    repo: Repo,
    *,
    revision: Revision | None = None,
    files: tuple[str, ...] = (),
    path: str | None = None,
    size: int | None = None,
    expected_size: int | None = None,
    detail: str | None = None,
) -> Event:
    return Event(
        kind=kind,
        repo=repo.id,
        type=repo.type,
        revision=None if revision is None else revision.commit,
        refs=() if revision is None else revision.refs,
        files=files,
        path=path,
        size=size,
        expected_size=expected_size,
        detail=detail,
    )


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
    told = set() if was is None else {(f.code, f.path) for f in was.findings}
    for finding in now.findings:
        if finding.severity != "error" or (finding.code, finding.path) in told:
            continue
        if finding.code not in BEGUN or (was is not None and _was_more(was, finding)):
            yield _event("damaged", now, path=finding.path, detail=finding.detail)


def _was_more(was: Repo, finding: Finding) -> bool:
    """Whether a repo held before what an error of a mere beginning says that it lacks."""
    if finding.code == "missing-snapshots":
        return bool(was.revisions)
    if finding.code == "empty-snapshot":
        return any(one.path == finding.path and one.files for one in was.revisions)
    refs = os.path.join(was.path, layout.REFS)
    commit = was.refs.get(os.path.relpath(finding.path, refs).replace(os.sep, "/"))
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


def _downloaded(was: Repo | None, now: Repo) -> Event | None:
    old = {} if was is None else _content(was)
    names = files_by_blob(now)
    files: list[str] = []
    size = 0
    for key, length in _content(now).items():
        if length > old.get(key, -1):
            if isinstance(key, tuple):
                files.append(key[1])
            else:
                files.append(names[key].name if key in names else key)
            size += length
    return _event("downloaded", now, files=tuple(sorted(files)), size=size) if files else None


def _content(repo: Repo) -> dict[str | tuple[str, str], int]:
    """Return blob name, or commit and name of a file without a blob -> length."""
    found: dict[str | tuple[str, str], int] = {
        name: blob.size for name, blob in repo.blobs.items() if blob.present
    }
    for revision in repo.revisions:
        for file in revision.files:
            if file.kind == "copy" and file.links == 1:
                found[revision.commit, file.name] = file.size
    return found


class Notifications:
    """The filesystem's word on which entries of a cache folder changed.

    Linux, macOS and Windows tell of changes on their own disks; none tells of those that another
    machine makes on a network filesystem.

    Args:
        folder: the cache folder, which must be there.

    Raises:
        OSError: the system cannot watch it, for instance because of a limit on watches.
    """

    def __init__(self, folder: str) -> None:
        from watchfiles._rust_notify import RustNotify

        # Some systems tell real paths whatever they were asked for.
        self._folder = os.path.realpath(folder)
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

        The folder's own name is the empty text.
        """
        with self._lock:
            touched, self._touched = self._touched, set()
            try:
                while self.wake.recv(4096):
                    pass
            except BlockingIOError:
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
        # Changes are gathered for a quarter of a second, and looked for ten times a second.
        while True:
            try:
                told = self._notify.watch(250, 100, 0, self._stop)
            except Exception:
                # Whatever ended it, polling goes on where this thread is no longer alive.
                return
            if isinstance(told, str):
                return
            start = len(self._folder) + 1
            names = {path[start:].split(os.sep, 1)[0] for _, path in told}
            with self._lock:
                self._touched |= names
                try:
                    self._waker.send(b"\0")
                except BlockingIOError:
                    pass
