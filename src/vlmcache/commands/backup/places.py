"""Where backups are kept: a folder of this machine; see `remote` for addresses of fsspec.

Whatever is written appears under its name when it is complete, and not before.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from vlmcache.cache import layout
from vlmcache.cache.reading import open_quietly
from vlmcache.change import place as change_place
from vlmcache.change.tree import Tree, sync_folder, write_all
from vlmcache.change.writeback import Writeback
from vlmcache.commands.backup.compression import is_stream_name
from vlmcache.commands.backup.values import BackupError
from vlmcache.errors import SpaceError, VlmcacheError, reason_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STALE = 24 * 3600
"""Seconds without a write after which a temporary file is a leftover."""
_WINDOW = 32 << 20
"""Bytes that are brought to the disk at once."""


class PlaceError(VlmcacheError):
    """The place of a backup cannot be reached, read or written."""

    code = "backup-place"


class Folder:
    """A folder of this machine. Links below it are refused, not followed.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: str) -> None:
        self.root = os.path.abspath(path)
        self.shown = path
        """The place as it is shown."""
        self.workers = min(4, os.cpu_count() or 1)
        """The best number of files to read or write at once."""

    def names(self, folder: str) -> dict[str, int]:
        """Return name -> length in bytes of all files below a folder, temporaries left out.

        Raises:
            BackupError: a link is among them.
            PlaceError: it cannot be read.
        """
        with self._failures(self.root, "read"):
            return {
                os.path.relpath(entry.path, self.root).replace(os.sep, "/"): entry.stat(
                    follow_symlinks=False
                ).st_size
                for entry in self._entries(folder)
                if not layout.is_temporary(entry.name)
            }

    def is_empty(self) -> bool:
        """Return whether the folder does not exist or holds only temporaries.

        Raises:
            PlaceError: it cannot be read.
        """
        with self._failures(self.root, "read"), contextlib.suppress(FileNotFoundError):
            return all(layout.is_temporary(name) for name in os.listdir(self.root))
        return True

    def tidy(self) -> None:
        """Remove temporaries that were not written to for a day."""
        with self._failures(self.root, "written"):
            for entry in list(self._entries("")):
                if not layout.is_temporary(entry.name):
                    continue
                # Its writer may rename or remove it at any moment.
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < time.time() - _STALE:
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
        content = None
        with (
            self._failures(path, "read"),
            contextlib.suppress(FileNotFoundError),
            open(_descriptor(path), "rb") as file,
        ):
            content = file.read(limit + 1)
        if content is not None and len(content) > limit:
            raise BackupError(f"too long to make sense: {path}")
        return content

    @contextlib.contextmanager
    def reading(self, name: str, size: int) -> Iterator[IO[bytes]]:  # noqa: ARG002
        """Open a file, which is seekable.

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
        with self._failures(target, "written"):
            _make_folders(path)
            with (
                Tree(path).replacing(target) as descriptor,
                _Written(descriptor) as stream,
            ):
                yield stream

    @contextlib.contextmanager
    def _failures(self, path: str, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename if isinstance(error.filename, str) else path
            if change_place.is_full(error):
                raise SpaceError(change_place.full_words(where, error)) from error
            raise PlaceError(f"cannot be {done}: {reason_of(error)}: {where}") from error


class _Written(io.FileIO):
    """A new file whose bytes are brought to the disk while more are written.

    They do not stay in the page cache, where they would take the place of what programs use.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._position = 0
        self._writeback = Writeback(descriptor, _WINDOW, keep=False)

    def write(self, block: ReadableBuffer, /) -> int:
        """Write all of a block.

        Raises:
            OSError: the system refuses.
        """
        data = memoryview(block).cast("B")
        length = len(data)
        write_all(self.fileno(), data)
        self._position += length
        self._writeback.reached(self._position)
        return length


def _make_folders(path: str) -> None:
    """Make a folder and those above it, each on the disk before anything is in it."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        sync_folder(os.path.dirname(folder))


def _descriptor(path: str) -> int:
    """Open a regular file, without following a link or waiting for a pipe."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise BackupError(f"not a regular file: {path}")
    return open_quietly(path, follow=False)


def _link(path: str) -> BackupError:
    return BackupError(f"a link, which a store never has: {path}")


def local_path(place: str) -> str | None:
    """Return the path of a place on this machine, `None` for any other address."""
    protocol, separator, rest = place.partition("://")
    if not separator:
        return place
    return rest if protocol in ("file", "local") else None


def is_store(place: str) -> bool:
    """Return whether a place is a store, and not a file with one tar stream.

    A folder that exists, a path that ends in a slash, and an address that does not end like a tar
    stream's are stores.
    """
    path = local_path(place)
    if path is None:
        return not is_stream_name(place)
    return path.endswith(("/", os.sep)) or os.path.isdir(path)


def split(address: str) -> tuple[str, str]:
    """Return the address of the folder that a file is in, and the file's name in it."""
    protocol, _, path = address.partition("://")
    folder, _, name = path.rpartition("/")
    return f"{protocol}://{folder}", name


def without_password(address: str) -> str:
    """Return an address without the password that may be in it."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1@", address)
