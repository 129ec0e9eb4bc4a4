"""A folder or bucket, reached through fsspec, in which backups are kept."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import IO, Any, cast

from vlmcache.cache import layout
from vlmcache.commands.backup.nearby import backups_near
from vlmcache.commands.backup.places import (
    Folder,
    PlaceError,
    local_path,
    split,
    without_password,
)
from vlmcache.commands.backup.values import STREAM, BackupError
from vlmcache.errors import UsageError, VlmcacheError, reason_of
from vlmcache.installing import install_extra

_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs"})
"""Protocols whose objects appear when they are committed, and whose clients can discard them."""
_PART = 16 << 20
_MOST_PARTS = 9000
"""S3 allows 10,000 parts of an object (Amazon S3's user guide, "Multipart upload limits")."""
_FIRST_RANGE = 256 << 10
_RANGE = 8 << 20
_AHEAD = 3
_S3_HINT = "set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"


class Remote:
    """A folder or bucket, or the folder of one file, that fsspec knows how to reach.

    Args:
        address: `s3://bucket/folder` and the like.

    Raises:
        PlaceError: the address makes no sense, or its package is not installed.
    """

    def __init__(self, address: str) -> None:
        self.shown = without_password(address)
        """The place as it is shown."""
        self._protocol = address.partition("://")[0]
        with self._failures():
            from fsspec.core import url_to_fs

            self._fs, path = url_to_fs(address)
            self._root = path.rstrip("/")
        kinds = self._fs.protocol
        self._atomic = bool(_ATOMIC.intersection([kinds] if isinstance(kinds, str) else kinds))
        self.workers = 4 if self._fs.async_impl else 1
        """The best number of files to read or write at once."""

    def names(self, folder: str) -> dict[str, int]:
        """Return name -> length in bytes of all files below a folder, temporaries left out.

        Raises:
            PlaceError: it cannot be reached.
        """
        entries = {}
        with self._failures(), contextlib.suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            entries = self._fs.find(self._path(folder), detail=True)
        root = len(self._root.lstrip("/")) + 1
        sizes = {name.lstrip("/")[root:]: entry["size"] or 0 for name, entry in entries.items()}
        return {
            name: size
            for name, size in sizes.items()
            if name and not layout.is_temporary(name.rpartition("/")[2])
        }

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def is_empty(self) -> bool:
        """Return whether the place holds nothing but temporaries.

        Raises:
            PlaceError: it cannot be reached.
        """
        paths = []
        with self._failures(), contextlib.suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            paths = self._fs.ls(self._root, detail=False)
        # Object stores may have an empty object that stands for the folder itself.
        others = {path.rstrip("/") for path in paths} - {self._root}
        return all(layout.is_temporary(path.rpartition("/")[2]) for path in others)

    def tidy(self) -> None:
        """Do nothing: whether somebody still writes a temporary is not known in every place."""

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a small file's content, `None` if there is none.

        Raises:
            BackupError: it is longer than the limit in bytes.
            PlaceError: it cannot be reached.
        """
        path = self._path(name)
        with self._failures(), contextlib.suppress(FileNotFoundError):
            if (self._fs.info(path).get("size") or 0) > limit:
                raise BackupError(f"too long to make sense: {self.shown}: {name}")
            return cast("bytes", self._fs.cat_file(path))
        return None

    @contextlib.contextmanager
    def reading(self, name: str, size: int) -> Iterator[IO[bytes]]:
        """Open a file of a known length, which is seekable.

        Reading it raises:
            BackupError: it is missing.
            PlaceError: it cannot be reached.
        """
        path = self._path(name)

        def wait_for(result: Callable[[], bytes]) -> bytes:
            with self._failures():
                try:
                    return result()
                except FileNotFoundError:
                    raise BackupError(f"missing: {self.shown}: {name}") from None

        def fetch(start: int, end: int) -> Callable[[], bytes]:
            result: Callable[[], bytes] = partial(self._fs.cat_file, path, start=start, end=end)
            if self._fs.async_impl:
                # This is how fsspec's documentation runs several requests at once.
                coroutine = self._fs._cat_file(path, start=start, end=end)  # noqa: SLF001
                result = asyncio.run_coroutine_threadsafe(coroutine, self._fs.loop).result
            return partial(wait_for, result)

        with io.BufferedReader(_Ranged(fetch, size), 1 << 20) as stream:
            yield stream

    def size(self, name: str) -> int:
        """Return a file's length in bytes.

        Raises:
            PlaceError: it is missing, or cannot be reached.
        """
        with self._failures():
            size = self._fs.info(self._path(name)).get("size")
        if size is None:
            raise PlaceError(f"its length is unknown: {self.shown}")
        return int(size)

    @contextlib.contextmanager
    def writing(self, name: str, size: int) -> Iterator[IO[bytes]]:
        """Open a new file of about a length, which appears when the block ends without an error.

        Raises:
            PlaceError: it cannot be written.
        """
        path = self._path(name)
        if self._atomic and size <= _PART:
            content = io.BytesIO()
            yield content
            with self._failures():
                self._fs.pipe_file(path, content.getvalue())
            return
        temporary = path if self._atomic else f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        with self._failures():
            if self._atomic:
                part = _PART * max(1, -(-size // (_MOST_PARTS * _PART)))
                file = self._fs.open(path, "wb", autocommit=False, block_size=part)
            else:
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                file = self._fs.open(temporary, "wb")
        writer = _Writer(file, self._failures)
        try:
            yield cast("IO[bytes]", writer)
            with self._failures():
                file.close()
                if self._atomic:
                    file.commit()
                elif self._fs.info(temporary).get("size") != writer.count:
                    raise PlaceError(f"{self.shown}: its length is not what was sent: {name}")
                else:
                    self._fs.mv(temporary, path)
        except BaseException:
            # The first failure is the one to report, whatever else fails.
            with contextlib.suppress(Exception):
                if self._atomic:
                    # An open file would be uploaded by its destructor.
                    file.closed = True
                    file.discard()
                else:
                    file.close()
                    self._fs.rm_file(temporary)
            raise

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn the exceptions of all clients into errors of one line."""
        try:
            yield
        except VlmcacheError:
            raise
        except ImportError as error:
            # For other protocols, fsspec says what to install.
            s3 = self._protocol in ("s3", "s3a")
            raise UsageError(
                f"{self._protocol}:// needs a package that is not installed",
                install_extra("s3") if s3 else _first_line(error),
            ) from error
        except FileNotFoundError as error:
            raise PlaceError(f"not found: {self.shown}: {_first_line(error)}") from error
        except PermissionError as error:
            raise PlaceError(f"not allowed: {self.shown}: {_first_line(error)}") from error
        except Exception as error:
            if isinstance(error, ValueError) and "Protocol not known" in str(error):
                raise UsageError(f"no such protocol: {self._protocol}://") from error
            words = f"{type(error).__name__}: {_first_line(error)}".rstrip(": ")
            raise PlaceError(
                f"{self.shown}: {words}", _S3_HINT if self._protocol.startswith("s3") else None
            ) from error


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return reason_of(error)
    return str(error).strip().partition("\n")[0]


class _Writer:
    """A remote file that tarfile can write to, with errors of this package."""

    def __init__(self, file: Any, failures: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._failures = failures
        self.count = 0
        """Bytes that were written."""

    def write(self, block: bytes) -> int:
        """Write all of a block."""
        with self._failures():
            self._file.write(block)
        self.count += len(block)
        return len(block)


class _Ranged(io.RawIOBase):
    """Reads by ranges: small ones at first, then longer ones, several ahead of the reader.

    Args:
        fetch: begins to fetch a range of bytes, and returns a function that waits for it.
        size: the file's length in bytes.
    """

    def __init__(self, fetch: Callable[[int, int], Callable[[], bytes]], size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._position = 0
        self._block = b""
        self._start = 0
        self._next = 0
        self._length = _FIRST_RANGE
        self._coming: deque[tuple[int, Callable[[], bytes]]] = deque()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes that have arrived; at least one, except at the end."""
        if self._position >= self._size:
            return 0
        within = self._position - self._start
        if not 0 <= within < len(self._block):
            self._advance()
            within = self._position - self._start
        count = min(len(buffer), len(self._block) - within)
        buffer[:count] = self._block[within : within + count]
        self._position += count
        return count

    def _advance(self) -> None:
        """Wait for the block that begins at the current position."""
        if self._position != self._start + len(self._block):
            self._coming.clear()
            self._next, self._length = self._position, _FIRST_RANGE
        ahead = _AHEAD if self._length == _RANGE else 0
        while self._next < self._size and len(self._coming) <= ahead:
            end = min(self._size, self._next + self._length)
            self._coming.append((end - self._next, self._fetch(self._next, end)))
            self._next = end
        length, wait = self._coming.popleft()
        self._start, self._block = self._position, wait()
        self._length = min(_RANGE, self._length * 2)
        if len(self._block) != length:
            raise BackupError("a file of the backup is shorter than its listing says")


def reading_stream(source: str) -> AbstractContextManager[IO[bytes]]:
    """Open a tar stream for reading: a file, an address, or stdin.

    Raises:
        PlaceError: the address cannot be reached.
        UsageError: the file cannot be read.
    """
    if source == STREAM:
        return contextlib.nullcontext(sys.stdin.buffer)
    path = local_path(source)
    if path is None:
        folder, name = split(source)
        place = Remote(folder)
        return place.reading(name, place.size(name))
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        near = backups_near(path) if absent else None
        raise UsageError(f"cannot be read: {source}: {reason_of(error)}", near) from error


Place = Folder | Remote
"""Where backups are kept: files by their names, which are relative and have forward slashes."""


def open_place(place: str) -> Place:
    """Return the place at a folder's path or at an address of fsspec.

    Raises:
        PlaceError: the address makes no sense, or its package is not installed.
    """
    path = local_path(place)
    return Remote(place) if path is None else Folder(path)
