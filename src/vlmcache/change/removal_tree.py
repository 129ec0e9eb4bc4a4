"""Removals below a root: what is at a path is compared, unlinked and counted by its descriptor."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat as modes
from collections.abc import Iterator
from typing import NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.tree import BY_DESCRIPTOR, CacheTree, StaleError, enter, stale
from vlmcache.cache.usage import open_elsewhere
from vlmcache.change.plan import Attempt, Expected, Outcome
from vlmcache.change.tree import MOST_OPEN, Tree, entry_names, give
from vlmcache.errors import InUseError, in_words

_HOIST_AT = min(40, MOST_OPEN)
"""Folders deep at which a folder is moved up, so that no depth exhausts descriptors."""
_ROUNDS = 100
"""How often deep folders are moved up."""


class TreeEntry(NamedTuple):
    """What is at a path."""

    name: str
    """Its name in the open folder; the complete path if the system has no such calls."""
    folder: int | None
    path: str
    status: os.stat_result

    def unlink(self, attempt: Attempt) -> None:
        """Unlink it; that gives nothing back while another hard link keeps its bytes.

        Raises:
            StaleError: a folder has taken its place.
            OSError: the system refuses.
        """
        try:
            os.unlink(self.name, dir_fd=self.folder)
        except IsADirectoryError:
            raise stale(self.path) from None
        attempt.freed += allocated_bytes(self.status) if self.status.st_nlink <= 1 else 0

    def remove_folder(self, attempt: Attempt) -> None:
        """Remove an empty folder.

        Raises:
            StaleError: something else has taken its place.
            OSError: the system refuses.
        """
        try:
            os.rmdir(self.name, dir_fd=self.folder)
        except NotADirectoryError:
            raise stale(self.path) from None
        attempt.freed += allocated_bytes(self.status)


class RemovalTree(Tree):
    """A cache, or a place to which models were moved, as something is removed there.

    Args:
        root: the folder, or a tree that has it open.
        in_use: (device, inode) of files that processes use, which stay.
        force: remove in spite of locks and uses.
    """

    def __init__(
        self,
        root: str | CacheTree,
        in_use: frozenset[tuple[int, int]] = frozenset(),
        *,
        force: bool = False,
    ) -> None:
        super().__init__(root, patience=0.0 if force else None)
        self.in_use = in_use
        self.force = force
        self._made: list[str] = []

    def repo_folder(self, path: str) -> str:
        """Return the name of the repo folder that a path lies in."""
        return os.path.relpath(path, self.root).split(os.sep)[0]

    def refuse_use(self, status: os.stat_result, why: str = "a process uses it") -> None:
        """Make sure that no process uses a file.

        Raises:
            InUseError: one does, and nothing is forced.
        """
        if (status.st_dev, status.st_ino) in self.in_use and not self.force:
            raise InUseError(why)

    @contextlib.contextmanager
    def entry(self, path: str, expected: Expected | None = None) -> Iterator[TreeEntry]:
        """Yield what is at a path, entered as `parent` enters it.

        Raises:
            StaleError: it is not what was expected.
            OSError: the system refuses.
        """
        with self.parent(path) as (name, folder):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if expected is not None and (
                status.st_ino != expected.inode
                or status.st_mtime_ns != expected.mtime_ns
                or expected.size not in (None, status.st_size)
            ):
                raise StaleError("it changed since the plan was made")
            yield TreeEntry(name, folder, path, status)

    def remove_file(self, path: str, expected: Expected | None, attempt: Attempt) -> None:
        """Unlink a file or link, and count what that frees.

        Raises:
            StaleError: it is not what was expected.
            InUseError: a process uses it.
            OSError: the system refuses.
        """
        with self.entry(path, expected) as entry:
            self.refuse_use(entry.status)
            self.refuse_open(entry)
            entry.unlink(attempt)

    def refuse_open(self, entry: TreeEntry) -> None:
        """Make sure that nobody has a file open, those included who cannot be seen from here.

        Raises:
            InUseError: somebody has, and nothing is forced.
        """
        if self.force or entry.folder is None or not modes.S_ISREG(entry.status.st_mode):
            return
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(entry.name, flags, dir_fd=entry.folder)
        except BlockingIOError:
            in_use = True  # another process has a lease of it
        except OSError:
            in_use = False  # what may not be opened shows nothing
        else:
            try:
                in_use = open_elsewhere(descriptor)
            finally:
                os.close(descriptor)
        if in_use:
            raise InUseError(f"a process that cannot be seen from here has it open: {entry.path}")

    def remove_all(self, path: str, attempt: Attempt, expected: Expected | None = None) -> None:
        """Unlink an entry with all that is below it.

        Raises:
            StaleError: it is not what was expected.
            OSError: the first refusal.
        """
        with self.entry(path, expected) as entry:
            Emptying(attempt).remove(entry)

    def remove_folder(self, path: str, attempt: Attempt) -> None:
        """Remove an empty folder.

        Raises:
            StaleError: it is not empty.
            OSError: the system refuses.
        """
        with self.entry(path) as entry:
            try:
                entry.remove_folder(attempt)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise StaleError("it is not empty") from None
                raise

    def make_folder(self, path: str, mode: int = 0o777) -> None:
        """Make a folder that is gone again at the end of the run, if it is not there yet."""
        if path in self._made:
            return
        with self.parent(path) as (name, parent), contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=parent)
            self._made.append(path)
            give(self, name, parent, mode)

    def remove_made(self) -> tuple[int, list[Outcome]]:
        """Remove the folders that this run made.

        Returns:
            The bytes of those that stay, and a failure for each that the system refused to remove;
            one that others use by now is not a failure.
        """
        left, failures = 0, []
        while self._made:
            path = self._made.pop()
            try:
                with self.parent(path) as (name, parent):
                    os.rmdir(name, dir_fd=parent)
            except FileNotFoundError:
                continue
            except OSError as error:
                with contextlib.suppress(OSError):
                    left += allocated_bytes(self.stat(path))
                used = isinstance(error, StaleError)
                if not used and error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    detail = in_words(error, path)
                    failures.append(Outcome("remove-tree", path, "failed", detail=detail))
        return left, failures


class Emptying:
    """Unlinks folders with all that is below them; what cannot be removed does not stop the rest.

    Args:
        attempt: the action, to which the bytes are added that are given back.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._errors: list[OSError] = []
        self._top: int | None = None

    def remove(self, entry: TreeEntry) -> None:
        """Unlink an entry, a folder with all that is below it.

        Raises:
            OSError: the first refusal.
        """
        if not modes.S_ISDIR(entry.status.st_mode):
            entry.unlink(self._attempt)
            return
        self._empty(entry.name, entry.folder, entry.path, 0)
        try:
            entry.remove_folder(self._attempt)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._note(error, entry.path)
        if self._errors:
            raise self._errors[0]

    def _empty(self, name: str, parent: int | None, path: str, depth: int) -> None:
        descriptor = enter(name, parent, path) if BY_DESCRIPTOR else None
        if depth == 0:
            self._top = descriptor
        device = os.stat(path if descriptor is None else descriptor).st_dev
        try:
            # Once more as long as deep folders were moved up to the top meanwhile.
            for _ in range(_ROUNDS):
                # What makes a repo one is removed before what it leads to, wherever it is emptied.
                for name in sorted(entry_names(descriptor, path), key=_refs_first):
                    self._remove_below(name, descriptor, os.path.join(path, name), device, depth)
                again = depth == 0 and descriptor is not None and not self._errors
                if not again or not entry_names(descriptor, path):
                    return
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _remove_below(
        self, name: str, folder: int | None, path: str, device: int, depth: int
    ) -> None:
        name = name if folder is not None else path
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            entry = TreeEntry(name, folder, path, status)
            if not modes.S_ISDIR(status.st_mode):
                entry.unlink(self._attempt)
            elif status.st_dev != device:
                raise OSError(errno.EXDEV, "another filesystem is mounted there")
            elif depth >= _HOIST_AT and folder is not None:
                unique = f"{secrets.token_hex(8)}.deep"
                os.rename(name, unique, src_dir_fd=folder, dst_dir_fd=self._top)
            else:
                self._empty(name, folder, path, depth + 1)
                entry.remove_folder(self._attempt)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._note(error, path)

    def _note(self, error: OSError, path: str) -> None:
        if not isinstance(error, StaleError):
            # It names the entry as it is called in its open folder.
            error = OSError(error.errno, error.strerror, path)
        self._errors.append(error)


def _refs_first(name: str) -> int:
    return {layout.REFS: 0, layout.SNAPSHOTS: 1}.get(name, 2)
