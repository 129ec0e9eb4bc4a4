"""The hub's locks, held while something is removed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.usage import lock_held
from vlmcache.change.place import is_full
from vlmcache.change.plan import Attempt, StaleError, TakenError
from vlmcache.change.tree import BY_DESCRIPTOR, MOST_OPEN, Tree, enter, entry_names

if TYPE_CHECKING:
    from filelock import BaseFileLock

BATCH = min(100, MOST_OPEN)
"""Locks held at once, each an open file."""
_PROBE_SECONDS = 0.2
"""Seconds to wait for a lock: whoever only checks whether it is held releases it at once."""
_LOCKS_STAY_OPEN = sys.platform == "win32"
"""Whether a lock cannot be unlinked while it is held, which keeps others from taking it."""


@contextlib.contextmanager
def hold_lock(
    path: str, mode: int, seconds: float, *, force: bool
) -> Iterator[BaseFileLock | None]:
    """Hold a lock file in the way that huggingface_hub does.

    Args:
        path: the file.
        mode: of the file, if it has to be made.
        seconds: how long to wait; without end if negative.
        force: continue without the lock if it cannot be had.

    Raises:
        TakenError: another process holds it.
        OSError: the system refuses, or it is a link.
    """
    import filelock

    if os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    lock = filelock.FileLock(path, timeout=seconds, mode=mode)
    try:
        lock.acquire()
        log.debug("locks", "holding '%s'", path)
    except filelock.Timeout:
        log.info("locks", "waited %s s for '%s', which another process holds", seconds, path)
        if not force:
            raise TakenError(f"the hub's lock is held: {path}") from None
        yield None
        return
    try:
        yield lock
    finally:
        with contextlib.suppress(OSError):
            lock.release()


class HubLocks:
    """The locks that the hub takes while it downloads, one per blob, in `.locks`."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.folder = os.path.join(tree.root, layout.LOCKS)

    def path_of(self, repo: str, blob: str) -> str:
        """Return the path of the lock of a blob, or of the partial download of one."""
        etag = layout.partial_etag(blob) or blob
        return layout.lock_path(self.tree.root, repo, etag)

    def _hold(self, path: str) -> contextlib.AbstractContextManager[object]:
        return hold_lock(path, 0o664, _PROBE_SECONDS, force=self.tree.force)

    def refuse_held(self, repo: str) -> None:
        """Make sure that no download into a repo has begun.

        Raises:
            TakenError: a lock of the repo is held, and nothing is forced.
        """
        path = os.path.join(self.folder, repo)
        if self.tree.force or not os.path.isdir(path):
            return
        for name in os.listdir(path):
            if name.endswith(layout.LOCK_SUFFIX) and lock_held(os.path.join(path, name)):
                raise TakenError(f"the hub's lock is held: {os.path.join(path, name)}")

    @contextlib.contextmanager
    def all_held(self, repo: str) -> Iterator[None]:
        """Hold the locks of a repo; of one with very many files, the rest are seen to be free."""
        folder = os.path.join(self.folder, repo)
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            names = []
        with contextlib.ExitStack() as locks:
            for count, name in enumerate(names):
                if not name.endswith(layout.LOCK_SUFFIX):
                    continue
                lock = os.path.join(folder, name)
                if count < BATCH:
                    locks.enter_context(self._hold(lock))
                elif lock_held(lock) and not self.tree.force:
                    raise TakenError(f"the hub's lock is held: {lock}")
            yield

    @contextlib.contextmanager
    def held(self, path: str) -> Iterator[None]:
        """Hold the lock of a blob, so that no download of it is in progress or begins.

        A lock file that was not there is made and removed again.
        """
        made = not os.path.lexists(path)
        try:
            if made:
                self.tree.make_folder(self.folder)
                self.tree.make_folder(os.path.dirname(path))
            with self.tree.parent(path) as (name, parent):
                if made:
                    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                    os.close(os.open(name, flags, 0o664, dir_fd=parent))
        except OSError as error:
            if not is_full(error):
                raise
            # What cannot be made on a full disk is held by nobody, and room has to be made.
            yield
            return
        with self._hold(path):
            try:
                yield
            finally:
                if made:
                    with contextlib.suppress(OSError), self.tree.parent(path) as (name, parent):
                        os.unlink(name, dir_fd=parent)

    def unlink(
        self,
        path: str,
        attempt: Attempt,
        held: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        """Unlink the lock of a blob while it is held, so that nobody takes it meanwhile."""
        with held or self.held(path):
            if not _LOCKS_STAY_OPEN:
                self.tree.unlink(path, None, attempt)
        if _LOCKS_STAY_OPEN:
            self.tree.unlink(path, None, attempt)

    def remove_folder(self, path: str, attempt: Attempt) -> None:
        """Remove a repo's lock files and their folder, if the repo is gone and no lock is held."""
        repo = os.path.join(self.tree.root, os.path.basename(path))
        if os.path.isdir(repo):
            raise StaleError("the repo is there")
        with self.tree.entry(path) as entry:
            descriptor = enter(entry.name, entry.folder, path) if BY_DESCRIPTOR else None
            try:
                for name in entry_names(descriptor, path):
                    lock = os.path.join(path, name)
                    self.unlink(lock, attempt, self._hold(lock))
            finally:
                if descriptor is not None:
                    os.close(descriptor)
            entry.remove_folder(attempt)
