"""A folder of this machine in which backups are kept."""

from __future__ import annotations

import contextlib
import os
import stat
import time
import uuid
from collections.abc import Iterator
from typing import IO

from vlmcache.cache import layout
from vlmcache.change import place as change_place
from vlmcache.commands.backup.places import PlaceError
from vlmcache.commands.backup.values import BackupError
from vlmcache.errors import SpaceError

_STALE = 24 * 3600
"""Seconds after which a temporary that nobody wrote to belongs to nobody."""


class Folder:
    """A folder of this machine. Links below it are refused, not followed.

    Args:
        path: it need not exist.
    """

    def __init__(self, path: str) -> None:
        self.root = os.path.abspath(path)
        self.shown = path
        self.workers = min(4, os.cpu_count() or 1)

    def names(self, folder: str) -> dict[str, int]:
        """Return name -> length in bytes of all files below a folder, temporaries left out.

        Raises:
            BackupError: a link is among them.
            PlaceError: it cannot be read.
        """
        found: dict[str, int] = {}
        with self._failures(self.root, "read"):
            for entry in self._entries(folder):
                if not layout.is_temporary(entry.name):
                    found[self._name(entry.path)] = entry.stat(follow_symlinks=False).st_size
        return found

    def is_empty(self) -> bool:
        """Return whether nothing is there but temporaries, or no folder.

        Raises:
            PlaceError: it cannot be read.
        """
        with self._failures(self.root, "read"):
            try:
                return all(layout.is_temporary(name) for name in os.listdir(self.root))
            except FileNotFoundError:
                return True

    def tidy(self) -> None:
        """Remove temporaries that were not written to for a day."""
        with self._failures(self.root, "written"):
            for entry in list(self._entries("")):
                if not layout.is_temporary(entry.name):
                    continue
                # Another writer may give it its name, or remove it, at any moment.
                with contextlib.suppress(FileNotFoundError):
                    modified = entry.stat(follow_symlinks=False).st_mtime
                    if modified < time.time() - _STALE:
                        os.unlink(entry.path)

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        pending = [self._path(folder) if folder else self.root]
        while pending:
            try:
                entries = sorted(os.scandir(pending.pop()), key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                if entry.is_symlink():
                    raise _link(entry.path)
                if entry.is_dir():
                    pending.append(entry.path)
                elif entry.is_file():
                    yield entry

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    def _path(self, name: str) -> str:
        path = self.root
        for part in name.split("/"):
            path = os.path.join(path, part)
            if os.path.islink(path):
                raise _link(path)
        return path

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a small file's content, `None` if there is none.

        Raises:
            BackupError: it is longer than the limit in bytes, or a link.
            PlaceError: it cannot be read.
        """
        path = self._path(name)
        with self._failures(path, "read"):
            try:
                with open(_descriptor(path), "rb") as file:
                    content = file.read(limit + 1)
            except FileNotFoundError:
                return None
        if len(content) > limit:
            raise BackupError(f"too long to make sense: {path}")
        return content

    @contextlib.contextmanager
    def reading(self, name: str, size: int) -> Iterator[IO[bytes]]:  # noqa: ARG002
        """Open a file, in which one can seek.

        Raises:
            BackupError: it is missing, or a link.
            PlaceError: it cannot be read.
        """
        path = self._path(name)
        with self._failures(path, "read"):
            try:
                descriptor = _descriptor(path)
            except FileNotFoundError:
                raise BackupError(f"missing: {path}") from None
        with open(descriptor, "rb", buffering=0) as file:
            yield file

    @contextlib.contextmanager
    def writing(self, name: str, size: int) -> Iterator[IO[bytes]]:  # noqa: ARG002
        """Open a new file, which appears with its bytes on the disk when the block ends well.

        Raises:
            PlaceError: the system refuses.
            SpaceError: the disk is full.
        """
        path = self._path(os.path.dirname(name)) if "/" in name else self.root
        target = os.path.join(path, name.rpartition("/")[2])
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        with self._failures(target, "written"):
            try:
                _make_folders(path)
                with open(temporary, "xb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, target)
                change_place.sync_folder(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    @contextlib.contextmanager
    def _failures(self, path: str, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename if isinstance(error.filename, str) else path
            if change_place.is_full(error):
                raise SpaceError(f"the disk is full: {where}") from error
            raise PlaceError(f"cannot be {done}: {error.strerror or error}: {where}") from error


def _make_folders(path: str) -> None:
    """Make a folder and those above it, each on the disk before anything is in it."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        change_place.sync_folder(os.path.dirname(folder))


def _descriptor(path: str) -> int:
    """Open a regular file, no link, without ever waiting for a pipe."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BackupError(f"not a regular file: {path}")
    return descriptor


def _link(path: str) -> BackupError:
    return BackupError(f"a link, which a store never has: {path}")
