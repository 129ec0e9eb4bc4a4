"""Where backups are kept: a folder, or what an address of fsspec leads to.

Whatever is written appears under its name when it is whole, and not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import stat
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import IO, Any, Protocol, cast

from vlmcache.cache import layout
from vlmcache.change import place as change_place
from vlmcache.commands.backup.values import BackupError
from vlmcache.errors import SpaceError, UsageError, VlmcacheError

_WHOLE = frozenset({"s3", "s3a", "gs", "gcs"})
"""Protocols whose objects appear when they are committed; their client can also discard them."""
_PART = 16 << 20
_MOST_PARTS = 9000
"""S3 allows 10,000 parts of an object (Amazon S3's user guide, "Multipart upload limits")."""
_FIRST_RANGE = 256 << 10
_RANGE = 8 << 20
_AHEAD = 3
_STALE = 24 * 3600
"""Seconds after which a temporary that nobody wrote to belongs to nobody."""
_S3_HINT = "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, say where"


class PlaceError(VlmcacheError):
    """The place of a backup cannot be reached, read or written."""

    code = "backup-place"


class Place(Protocol):
    """Files by their names, which are relative and have forward slashes."""

    shown: str
    """The place in words, without passwords."""
    workers: int
    """How many files are best read or written at once."""

    def names(self, folder: str) -> dict[str, int]:
        """Return name -> length in bytes of all files below a folder; of temporaries none."""

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a small file's content, `None` if there is none.

        Raises:
            BackupError: it is longer than the limit in bytes.
        """

    def reading(self, name: str, size: int) -> AbstractContextManager[IO[bytes]]:
        """Open a file of a known length; it can be sought in."""

    def writing(self, name: str, size: int) -> AbstractContextManager[IO[bytes]]:
        """Open a new file of about a length, which is there once the block ends well."""

    def is_empty(self) -> bool:
        """Return whether nothing is there but temporaries."""

    def tidy(self) -> None:
        """Remove what writers that were killed long ago have left."""


def local_path(place: str) -> str | None:
    """Return the path that a place is on this machine, `None` for any other address."""
    protocol, separator, rest = place.partition("://")
    if not separator:
        return place
    return rest if protocol in ("file", "local") else None


def is_store(place: str) -> bool:
    """Return whether a place is a store, and not a file with one tar stream.

    A folder that is there, a path that ends as folders do, and an address that does not end in
    `.tar` are.
    """
    path = local_path(place)
    if path is None:
        return not place.endswith(".tar")
    return path.endswith(("/", os.sep)) or os.path.isdir(path)


def write(place: Place, name: str, content: bytes) -> None:
    """Let a small file be there.

    Raises:
        PlaceError: the place cannot be written.
        SpaceError: its disk is full.
    """
    with place.writing(name, len(content)) as stream:
        stream.write(content)


def open_place(place: str) -> Place:
    """Return the place that a path of a folder or an address of fsspec means.

    Raises:
        PlaceError: the address makes no sense, or its package is not installed.
    """
    path = local_path(place)
    return Remote(place) if path is None else Folder(path)


def split(address: str) -> tuple[str, str]:
    """Return the folder that a file's address begins with, and the file's name in it."""
    protocol, _, path = address.partition("://")
    folder, _, name = path.rpartition("/")
    return f"{protocol}://{folder}", name


def without_password(address: str) -> str:
    """Return an address without the password that may be in it."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1@", address)


class Folder:
    """A folder of this machine. Links below it are refused, not followed.

    Args:
        path: it need not be there.
    """

    def __init__(self, path: str) -> None:
        self.root = os.path.abspath(path)
        self.shown = path
        self.workers = min(4, os.cpu_count() or 1)

    def names(self, folder: str) -> dict[str, int]:
        """Return name -> length in bytes of all files below a folder; of temporaries none.

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
        """Open a file; it can be sought in.

        Raises:
            BackupError: it is not there, or a link.
            PlaceError: it cannot be read.
        """
        path = self._path(name)
        with self._failures(path, "read"):
            try:
                descriptor = _descriptor(path)
            except FileNotFoundError:
                raise BackupError(f"lacks: {path}") from None
        with open(descriptor, "rb", buffering=0) as file:
            yield file

    @contextlib.contextmanager
    def writing(self, name: str, size: int) -> Iterator[IO[bytes]]:  # noqa: ARG002
        """Open a new file, which is there, its bytes on the disk, once the block ends well.

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
    return BackupError(f"a link, which no store has: {path}")


class Remote:
    """A folder or bucket, or the folder of one file, that fsspec knows how to reach.

    Args:
        address: `s3://bucket/folder` and the like.

    Raises:
        PlaceError: the address makes no sense, or its package is not installed.
    """

    def __init__(self, address: str) -> None:
        self.shown = without_password(address)
        self._protocol = address.partition("://")[0]
        with self._failures():
            from fsspec.core import url_to_fs

            self._fs, path = url_to_fs(address)
            self._root = path.rstrip("/")
        kinds = self._fs.protocol
        self._whole = bool(_WHOLE.intersection([kinds] if isinstance(kinds, str) else kinds))
        self.workers = 4 if self._fs.async_impl else 1

    def names(self, folder: str) -> dict[str, int]:
        """Return name -> length in bytes of all files below a folder; of temporaries none.

        Raises:
            PlaceError: it cannot be reached.
        """
        with self._failures():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._path(folder), detail=True)
            except FileNotFoundError:
                return {}
        begin = len(self._root.lstrip("/")) + 1
        sizes = {name.lstrip("/")[begin:]: entry["size"] or 0 for name, entry in found.items()}
        return {
            name: size
            for name, size in sizes.items()
            if name and not layout.is_temporary(name.rpartition("/")[2])
        }

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def is_empty(self) -> bool:
        """Return whether nothing is there but temporaries.

        Raises:
            PlaceError: it cannot be reached.
        """
        with self._failures():
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return True
        # Object stores may have an empty object that stands for the folder itself.
        others = {path.rstrip("/") for path in found} - {self._root}
        return all(layout.is_temporary(path.rpartition("/")[2]) for path in others)

    def tidy(self) -> None:
        """Do nothing: who else writes there, and since when, cannot be told everywhere."""

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a small file's content, `None` if there is none.

        Raises:
            BackupError: it is longer than the limit in bytes.
            PlaceError: it cannot be reached.
        """
        path = self._path(name)
        with self._failures():
            try:
                if (self._fs.info(path).get("size") or 0) > limit:
                    raise BackupError(f"too long to make sense: {self.shown}: {name}")
                return cast("bytes", self._fs.cat_file(path))
            except FileNotFoundError:
                return None

    @contextlib.contextmanager
    def reading(self, name: str, size: int) -> Iterator[IO[bytes]]:
        """Open a file of a known length; it can be sought in. Reading it raises `PlaceError`.

        Raises:
            BackupError: it turns out not to be there.
        """
        path = self._path(name)

        def fetch(start: int, end: int) -> Callable[[], bytes]:
            if self._fs.async_impl:
                # fsspec's documented way to ask for several things at once.
                coroutine = self._fs._cat_file(path, start=start, end=end)  # noqa: SLF001
                future: Future[bytes] = asyncio.run_coroutine_threadsafe(coroutine, self._fs.loop)
                return future.result
            return lambda: cast("bytes", self._fs.cat_file(path, start=start, end=end))

        def result(wait: Callable[[], bytes]) -> bytes:
            with self._failures():
                try:
                    return wait()
                except FileNotFoundError:
                    raise BackupError(f"lacks: {self.shown}: {name}") from None

        with io.BufferedReader(_Ranged(fetch, result, size), 1 << 20) as stream:
            yield stream

    def size(self, name: str) -> int:
        """Return a file's length in bytes.

        Raises:
            PlaceError: it is not there, or cannot be reached.
        """
        with self._failures():
            size = self._fs.info(self._path(name)).get("size")
        if size is None:
            raise PlaceError(f"does not tell its length: {self.shown}")
        return int(size)

    @contextlib.contextmanager
    def writing(self, name: str, size: int) -> Iterator[IO[bytes]]:
        """Open a new file of about a length, which is there once the block ends well.

        Raises:
            PlaceError: it cannot be written.
        """
        path = self._path(name)
        if self._whole and size <= _PART:
            content = io.BytesIO()
            yield content
            with self._failures():
                self._fs.pipe_file(path, content.getvalue())
            return
        temporary = path if self._whole else f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        with self._failures():
            if self._whole:
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
                if self._whole:
                    file.commit()
                elif self._fs.info(temporary).get("size") != writer.count:
                    raise PlaceError(f"{self.shown}: it kept another length than was sent: {name}")
                else:
                    self._fs.mv(temporary, path)
        except BaseException:
            # Whatever this comes to, the first failure is what there is to tell.
            with contextlib.suppress(Exception):
                if self._whole:
                    # Unless it is closed, its end would upload it.
                    file.closed = True
                    file.discard()
                else:
                    file.close()
                    self._fs.rm_file(temporary)
            raise

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Let what any client raises be told as one line."""
        try:
            yield
        except VlmcacheError:
            raise
        except ImportError as error:
            raise UsageError(
                f"{self._protocol}:// needs a package that is not installed", self._package(error)
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

    def _package(self, error: ImportError) -> str:
        if self._protocol in ("s3", "s3a"):
            return "pip install 'vlmcache[s3]'"
        # fsspec's own words.
        return _first_line(error)


def _first_line(error: Exception) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return words.strip().partition("\n")[0]


class _Writer:
    """A remote file as tarfile wants it; what fails is told as ours."""

    def __init__(self, file: Any, failures: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._failures = failures
        self.count = 0
        """Bytes that were written."""

    def write(self, block: bytes) -> int:
        """Write all of it."""
        with self._failures():
            self._file.write(block)
        self.count += len(block)
        return len(block)


class _Ranged(io.RawIOBase):
    """Reads by ranges: small ones at first, then longer ones, several ahead of the reader.

    Args:
        fetch: begins to fetch a range of bytes, and returns how to wait for it.
        result: waits, and raises what failed as ours.
        size: the file's length in bytes.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], Callable[[], bytes]],
        result: Callable[[Callable[[], bytes]], bytes],
        size: int,
    ) -> None:
        self._fetch = fetch
        self._result = result
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

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read what is there of the next bytes, at least one but at the end."""
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
        """Let the block be the one that begins at the position."""
        if self._position != self._start + len(self._block):
            self._coming.clear()
            self._next, self._length = self._position, _FIRST_RANGE
        ahead = _AHEAD if self._length == _RANGE else 0
        while self._next < self._size and len(self._coming) <= ahead:
            end = min(self._size, self._next + self._length)
            self._coming.append((end - self._next, self._fetch(self._next, end)))
            self._next = end
        length, wait = self._coming.popleft()
        self._start, self._block = self._position, self._result(wait)
        self._length = min(_RANGE, self._length * 2)
        if len(self._block) != length:
            raise BackupError("shorter than it was said to be")
