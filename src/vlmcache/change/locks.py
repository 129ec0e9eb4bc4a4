"""The hub's locks: taken and held as the hub's client takes them, and never through a path twice.

A lock is a file that any user may own, opened below the cache's root, locked by flock and never
written to.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.locks import check_lock, flock, is_fresh
from vlmcache.cache.tree import StaleError
from vlmcache.cache.usage import holder_of
from vlmcache.change.place import is_full
from vlmcache.change.plan import Attempt
from vlmcache.change.removal_tree import RemovalTree
from vlmcache.change.tree import MOST_OPEN, Tree
from vlmcache.errors import InUseError

BATCH = min(100, MOST_OPEN)
"""Locks held at once, each an open file."""
MODE = 0o664
"""Mode of the hub's locks, whatever the umask."""
_POLL_SECONDS = 0.1
PROBE_SECONDS = 0.2
"""Seconds to wait in any case: whoever only checks whether a lock is held releases it at once."""
_TOUCH_SECONDS = 600.0
_LOCKS_STAY_OPEN = sys.platform == "win32"
"""Whether a lock cannot be unlinked while it is held, which keeps others from taking it."""
_SOFT: set[int] = set()
"""Descriptors of the locks that are held by being there, and by being written to."""
_GUARD = threading.Lock()


def _touch_soft() -> None:
    while True:
        time.sleep(_TOUCH_SECONDS)
        with _GUARD:
            for descriptor in _SOFT:
                with contextlib.suppress(OSError):
                    os.utime(descriptor)


_TOUCHER = threading.Thread(target=_touch_soft, daemon=True)


class Lock:
    """One lock, tried and held through one descriptor.

    Args:
        tree: the cache.
        path: the lock's file.
        mode: of the file, if it has to be made.
    """

    def __init__(self, tree: Tree, path: str, mode: int = MODE) -> None:
        self.tree = tree
        self.path = path
        self.mode = mode
        self.made = False
        """Whether the file was not there before."""
        self._descriptor: int | None = None
        self.soft = False
        """Whether it is ours because its file is there, on a filesystem without locks."""

    def take(self, patient: Callable[[float], bool] | None = None) -> None:
        """Wait until the lock is ours.

        Args:
            patient: is called with the seconds waited, and returns whether to wait on. If not
                given, what is left of the tree's patience counts.

        Raises:
            InUseError: another process holds it.
            StaleError: it is not a regular file, or has a second name.
            OSError: the system refuses.
        """
        begun = time.monotonic()
        try:
            while not self._try():
                waited = time.monotonic() - begun
                limit = max(self.tree.patience, PROBE_SECONDS)
                if not (waited < limit if patient is None else patient(waited)):
                    log.info("locks", "waited %.1f s for '%s', which is held", waited, self.path)
                    raise InUseError(f"the hub's lock is held by {self.holder()}: {self.path}")
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.release()
            raise
        finally:
            if patient is None:
                self.tree.patience -= time.monotonic() - begun
        log.debug("locks", "holding '%s'", self.path)

    def holder(self) -> str:
        """Return in words who holds the lock."""
        status = None if self._descriptor is None else os.fstat(self._descriptor)
        return "another process" if status is None else holder_of(status)

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back, if it was taken.

        Args:
            remove: whether the file is removed too.
        """
        if self._descriptor is None:
            return
        remove = (remove or self.soft) and self._in_place(self._descriptor)
        if remove and not _LOCKS_STAY_OPEN:
            self.tree.discard(self.path)
        with _GUARD:
            _SOFT.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor, self.soft = None, False
        if remove and _LOCKS_STAY_OPEN:
            self.tree.discard(self.path)

    def _try(self) -> bool:
        """Return whether it is ours now; whoever else tries polls the same file."""
        if self._descriptor is None:
            self.made = False
            self._open()
        descriptor = self._descriptor
        if descriptor is None:
            return False  # somebody else was just making it
        free = flock(descriptor, self.path)
        if free is None:
            free = self._try_soft(descriptor)
        elif free and not self._in_place(descriptor):
            # Its holder has removed it, or somebody put another file in its place.
            free = False
        if not free and not self._in_place(descriptor):
            self.release()
        return free

    def _open(self) -> None:
        try:
            self._descriptor = self.tree.edit(self.path)
        except PermissionError:
            # Another user's: it can be locked all the same, except on some network drives.
            self._descriptor = self.tree.open(self.path)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                self._descriptor = self.tree.create(self.path, self.mode)
                self.made = True
                with contextlib.suppress(OSError):
                    os.fchmod(self._descriptor, self.mode)

    def _in_place(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(self.tree.stat(self.path), os.fstat(descriptor))
        except OSError:
            return False

    def _try_soft(self, descriptor: int) -> bool:
        """Take it on a filesystem without locks: by having made the file."""
        if self.made:
            self.soft = True
            with _GUARD:
                _SOFT.add(descriptor)
                if not _TOUCHER.is_alive():
                    _TOUCHER.start()
            return True
        aside = os.path.join(os.path.dirname(self.path), f"tmp_{uuid.uuid4()}")
        probe = self.tree.create(aside)
        now = os.fstat(probe).st_mtime
        os.close(probe)
        self.tree.discard(aside)
        if not is_fresh(os.fstat(descriptor), now):
            # Left behind. Of all who see that, one gets it away; the next try makes it anew.
            with contextlib.suppress(FileNotFoundError):
                self.tree.rename(self.path, aside)
                if not os.path.samestat(self.tree.stat(aside), os.fstat(descriptor)):
                    with contextlib.suppress(FileExistsError):
                        self.tree.link(aside, self.path)
                self.tree.discard(aside)
        return False


class HubLocks:
    """The locks that the hub takes while it downloads, one per blob, in `.locks`."""

    def __init__(self, tree: RemovalTree) -> None:
        self.tree = tree
        self.folder = os.path.join(tree.root, layout.LOCKS)

    def path_of(self, repo: str, blob: str) -> str:
        """Return the path of the lock of a blob, or of the partial download of one."""
        etag = layout.partial_etag(blob) or blob
        return layout.lock_path(self.tree.root, repo, etag)

    @contextlib.contextmanager
    def _hold(self, path: str, *, remove_made: bool = False) -> Iterator[None]:
        """Hold a lock; if that is forced, continue without one that others hold."""
        lock = Lock(self.tree, path)
        try:
            lock.take()
        except InUseError:
            if not self.tree.force:
                raise
        try:
            yield
        finally:
            lock.release(remove=remove_made and lock.made)

    def refuse_held(self, repo: str) -> None:
        """Make sure that no download into a repo has begun.

        Raises:
            InUseError: a lock of the repo is held, and nothing is forced.
            OSError: a lock cannot be tried.
        """
        for path in [] if self.tree.force else self._of_repo(repo):
            self._refuse_held(path)

    def _refuse_held(self, path: str) -> None:
        if check_lock(self.tree, path):
            raise InUseError(f"the hub's lock is held by {holder_of(self.tree.stat(path))}: {path}")

    def _of_repo(self, repo: str) -> list[str]:
        """Return the paths of a repo's locks."""
        folder = os.path.join(self.folder, repo)
        try:
            names = self.tree.names(folder)
        except (FileNotFoundError, StaleError):
            return []  # What is not a folder holds no locks.
        return [os.path.join(folder, name) for name in names if name.endswith(layout.LOCK_SUFFIX)]

    @contextlib.contextmanager
    def all_held(self, repo: str) -> Iterator[None]:
        """Hold the locks of a repo; of one with very many files, the rest are seen to be free."""
        with contextlib.ExitStack() as locks:
            for count, path in enumerate(self._of_repo(repo)):
                if count < BATCH:
                    locks.enter_context(self._hold(path))
                elif not self.tree.force:
                    self._refuse_held(path)
            yield

    @contextlib.contextmanager
    def held(self, path: str) -> Iterator[None]:
        """Hold the lock of a blob, so that no download of it is in progress or begins.

        A lock file that was not there is made and removed again.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.tree.make_folder(self.folder)
                self.tree.make_folder(os.path.dirname(path))
                stack.enter_context(self._hold(path, remove_made=True))
            except OSError as error:
                if not is_full(error):
                    raise
                # What cannot be made on a full disk is held by nobody, and room has to be made.
            yield

    def unlink(
        self,
        path: str,
        attempt: Attempt,
        held: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        """Unlink the lock of a blob while it is held, so that nobody takes it meanwhile."""
        with held or self.held(path):
            if not _LOCKS_STAY_OPEN:
                self.tree.remove_file(path, None, attempt)
        if _LOCKS_STAY_OPEN:
            self.tree.remove_file(path, None, attempt)

    def remove_folder(self, path: str, attempt: Attempt) -> None:
        """Remove a repo's lock files and their folder, if the repo is gone and no lock is held."""
        repo = os.path.join(self.tree.root, os.path.basename(path))
        if os.path.isdir(repo):
            raise StaleError("the repo is there")
        for name in self.tree.names(path):
            if name.endswith(layout.LOCK_SUFFIX):
                lock = os.path.join(path, name)
                self.unlink(lock, attempt, self._hold(lock))
        self.tree.remove_folder(path, attempt)
