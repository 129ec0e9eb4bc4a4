"""Small files of a pull, written and published together."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vlmcache.change.batch import BatchTree
from vlmcache.change.locks import Lock
from vlmcache.change.plan import Fetch, Link
from vlmcache.change.tree import MOST_OPEN, Tree, write_all
from vlmcache.errors import InUseError
from vlmcache.hub.small import receive_small
from vlmcache.hub.transfer import BlobJob, Transfer

_SECONDS = 1.0
"""Time for which a group holds its first lock while it grows: others wait for it."""
_MOST = min(64, MOST_OPEN)
"""Files of a group."""

Task = Sequence[Fetch | Link]
"""The files of the snapshot that have the content of one blob; the first one may be fetched."""


class Member(NamedTuple):
    """A blob that is written but does not have its name yet."""

    task: Task
    transfer: Transfer
    lock: Lock
    file: io.FileIO
    """Its partial."""


class GroupError(Exception):
    """A group cannot be published: `members` are those that it had, `error` is why."""

    def __init__(self, members: list[Member], error: Exception) -> None:
        super().__init__(str(error))
        self.members = members
        self.error = error


class Group:
    """Files that one thread has received and written, and whose locks it holds, until `publish`.

    A lock is never waited for while others are held: what is not free at once, or is otherwise not
    simple, is left to be fetched alone.

    Args:
        cache: the cache that the locks lie in.
        tree: the cache that the repo really lies in.
        workers: threads that have a group each.
    """

    def __init__(self, cache: Tree, tree: Tree, workers: int) -> None:
        self._cache = BatchTree(cache)
        self._tree = self._cache if tree is cache else BatchTree(tree)
        self._most = max(1, min(_MOST, MOST_OPEN // (2 * workers)))
        self._members: list[Member] = []
        self._begun = 0.0

    @property
    def is_full(self) -> bool:
        """Whether its files should be published now."""
        old = time.monotonic() - self._begun >= _SECONDS
        return old or len(self._members) >= self._most

    def add(self, task: Task, transfer: Transfer, lock_path: str) -> bool:
        """Receive a blob and write it next to its place.

        Returns:
            Whether it was added; if not, nothing of it is kept open or locked.

        Raises:
            VlmcacheError: the hub refuses the file.
            Stopped: the work was asked to stop.
            OSError: the disk refuses.
        """
        if not self._members:
            self._begun = time.monotonic()
        with contextlib.ExitStack() as undo:
            lock = Lock(self._cache, lock_path)
            try:
                self._cache.make_folders(os.path.dirname(lock_path))
                lock.take(lambda _: False)
            except (InUseError, PermissionError):
                return False
            undo.callback(lock.release)
            job = transfer.job
            if self._tree.exists(job.blob) or self._tree.exists(job.partial):
                return False
            data = receive_small(transfer)
            if data is None:
                return False
            file = io.FileIO(self._tree.create(job.partial), "w")
            undo.callback(file.close)
            write_all(file.fileno(), data)
            undo.pop_all()
        self._members.append(Member(task, transfer, lock, file))
        return True

    def publish(self, place: Callable[[Tree, Task, BlobJob], None]) -> list[Member]:
        """Give every blob its name, then link it; both are on the disk at the end.

        Args:
            place: puts a blob, which is on the disk, into the snapshot.

        Returns:
            The members that the group had. It is empty now, and holds no lock.

        Raises:
            GroupError: the disk refuses.
        """
        members = list(self._members)
        try:
            self._publish(place)
        except Exception as error:
            raise GroupError(members, error) from error
        finally:
            self.release()
        return members

    def _publish(self, place: Callable[[Tree, Task, BlobJob], None]) -> None:
        try:
            for member in self._members:
                os.fsync(member.file.fileno())
                member.file.close()
        except BaseException:
            # The system reports it once: a later sync of the same bytes would seem to succeed.
            for member in self._members:
                self._tree.discard(member.transfer.job.partial)
            raise
        for member in self._members:
            self._tree.rename(member.transfer.job.partial, member.transfer.job.blob)
        self._tree.sync()
        for member in self._members:
            place(self._tree, member.task, member.transfer.job)
        self._tree.sync()

    def release(self) -> None:
        """Close and unlock everything; what was not published stays as a partial."""
        while self._members:
            member = self._members.pop()
            member.file.close()
            member.lock.release()
        self._cache.close()
        self._tree.close()
