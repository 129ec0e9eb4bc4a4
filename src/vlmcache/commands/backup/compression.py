"""Compressed tar streams: gzip by the standard library, Zstandard if it is installed.

A stream is recognized by its first bytes, whatever its name is. It is read one block at a time,
however much a few compressed bytes expand to, and must end as its form requires.
"""

from __future__ import annotations

import gzip
import importlib
import os
import zlib
from typing import IO, Any, Literal

from vlmcache.commands.backup.values import BackupError
from vlmcache.errors import MissingPackageError, UsageError, reason_of
from vlmcache.installing import install_package

Compression = Literal["gzip", "zstd"]
SUFFIXES: dict[str, Compression | None] = {
    ".tar": None,
    ".gz": "gzip",
    ".tgz": "gzip",
    ".zst": "zstd",
    ".tzst": "zstd",
}
"""Ending of the name or address of one tar stream -> how that is compressed."""
_OTHERS = (
    ".7z",
    ".br",
    ".bz2",
    ".lz4",
    ".lz",
    ".lzma",
    ".rar",
    ".tbz",
    ".tbz2",
    ".txz",
    ".xz",
    ".z",
    ".zip",
)
"""Endings of forms that are not written."""
_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_LONGEST_MAGIC = 4
_LEVELS = {"gzip": 1, "zstd": 3}
"""Weights are close to noise: a higher level takes much longer and saves little."""
_MOST_AFTER = 1 << 20
"""The most bytes of padding after the last member: the largest record that tar is used with."""
_END = bytes(1024)
"""The end of a tar stream: two blocks of zeros."""


def compression_of(name: str) -> Compression | None:
    """Return how a file with a name has to be compressed, `None` if it is not.

    Raises:
        UsageError: the name is that of a form that is not written.
    """
    ending = os.path.splitext(name)[1].lower()
    if ending in _OTHERS:
        raise UsageError(
            f"a backup is not written as {ending}: '{name}'", "name it .tar, .tar.gz or .tar.zst"
        )
    return SUFFIXES.get(ending)


def is_stream_name(name: str) -> bool:
    """Return whether a name ends like that of a tar stream, compressed or not."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _zstd_module() -> Any:
    """Return the module for Zstandard: Python 3.14's own, or the package `zstandard`.

    Raises:
        MissingPackageError: neither is installed.
    """
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingPackageError(
        "Zstandard (.zst) needs Python 3.14 or the package zstandard", install_package("zstandard")
    )


def require(compression: Compression) -> None:
    """Make sure that a stream can be compressed.

    Raises:
        MissingPackageError: the package that compresses is not installed.
    """
    if compression == "zstd":
        _zstd_module()


class Compressed:
    """A stream that compresses what is written to it into another stream.

    Args:
        stream: the other stream.
        compression: how to compress.

    Raises:
        MissingPackageError: the package that compresses is not installed.
    """

    def __init__(self, stream: IO[bytes], compression: Compression) -> None:
        self._stream = stream
        level = _LEVELS[compression]
        self._compressor: Any
        if compression == "gzip":
            self._compressor = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS | 16)
            return
        module = _zstd_module()
        threads = min(4, os.cpu_count() or 1)
        if hasattr(module, "CompressionParameter"):
            options = module.CompressionParameter
            self._compressor = module.ZstdCompressor(
                options={options.compression_level: level, options.nb_workers: threads}
            )
        else:
            self._compressor = module.ZstdCompressor(level=level, threads=threads).compressobj()

    def write(self, block: bytes) -> int:
        """Write all of a block."""
        self._stream.write(self._compressor.compress(block))
        return len(block)

    def finish(self) -> None:
        """Write the end of the stream."""
        self._stream.write(self._compressor.flush())


class Decompressed:
    """The content of a compressed stream, read once from its beginning to its end.

    Args:
        stream: the compressed stream; it need not be seekable.
        compression: how it is compressed.

    Raises:
        MissingPackageError: the package that decompresses is not installed.
    """

    def __init__(self, stream: IO[bytes], compression: Compression) -> None:
        self.compression = compression
        self._tail = b""
        self._damage: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
        self._file: Any
        if compression == "gzip":
            self._file = gzip.GzipFile(fileobj=stream, mode="rb")
            return
        module = _zstd_module()
        self._damage = EOFError, module.ZstdError
        if hasattr(module, "ZstdFile"):
            self._file = module.ZstdFile(stream, "rb")
        else:
            self._file = module.ZstdDecompressor().stream_reader(stream, read_across_frames=True)

    def seekable(self) -> bool:
        """Return False: going back would mean beginning again."""
        return False

    def read(self, count: int) -> bytes:
        """Return at most so many of the next bytes; none at the end.

        Raises:
            BackupError: the stream is damaged.
            OSError: it cannot be read.
        """
        try:
            block: bytes = self._file.read(count)
        except self._damage as error:
            raise BackupError(f"the backup is damaged: {reason_of(error)}") from error
        self._tail = (self._tail + block)[-len(_END) :]
        return block

    def finish(self) -> None:
        """Read the padding after the last member.

        Raises:
            BackupError: more than padding is there, or the stream ends too early.
        """
        left = 0
        while block := self.read(_MOST_AFTER):
            left += len(block)
            if left > _MOST_AFTER:
                raise BackupError("the backup holds more than its manifest names")
        if self._tail != _END:
            raise BackupError("the backup is damaged: it ends too early")


class _Rejoined:
    """A stream that is not seekable, of which the first bytes were read already."""

    def __init__(self, begin: bytes, stream: IO[bytes]) -> None:
        self._begin = begin
        self._stream = stream

    def seekable(self) -> bool:
        """Return False."""
        return False

    def read(self, count: int) -> bytes:
        """Return at most so many of the next bytes, first those that were read already."""
        if not self._begin:
            return self._stream.read(count)
        block, self._begin = self._begin[:count], self._begin[count:]
        return block


def compression_in(begin: bytes) -> Compression | None:
    """Return how a stream with these first bytes is compressed, `None` if it is not."""
    return next((form for magic, form in _MAGIC.items() if begin.startswith(magic)), None)


def decompressed(stream: IO[bytes]) -> tuple[Any, Compression | None]:
    """Return the content of a tar stream, and how the stream is compressed.

    Raises:
        MissingPackageError: the package that decompresses is not installed.
        OSError: it cannot be read.
    """
    begin = b""
    while len(begin) < _LONGEST_MAGIC and (more := stream.read(_LONGEST_MAGIC - len(begin))):
        begin += more
    rejoined: Any = stream
    if stream.seekable():
        stream.seek(-len(begin), os.SEEK_CUR)
    else:
        rejoined = _Rejoined(begin, stream)
    compression = compression_in(begin)
    if compression is None:
        return rejoined, None
    return Decompressed(rejoined, compression), compression
