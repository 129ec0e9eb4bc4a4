"""The contents of a tar by their hashes: of a backup, or of a hub cache packed by tar itself.

In a tar that is not compressed, each content is read where it is. A compressed one is read once if
its contents are asked for in their order.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import IO

from vlmcache.cache.hashing import BLOCK
from vlmcache.commands.backup.contents import SavedRepo
from vlmcache.commands.backup.plain import PlainIndex, PlainReader, Where
from vlmcache.commands.backup.remote import reading_stream
from vlmcache.commands.backup.tar import Reader
from vlmcache.commands.backup.values import BackupError, Form


class TarContents:
    """A tar file, or the address of one. Safe to use from several threads.

    Args:
        source: the file or address.

    Raises:
        BackupError: it is neither a backup nor a tar of a hub cache, or must not be restored.
        PlaceError: it cannot be reached.
        UsageError: it cannot be read.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._walk: Iterator[tuple[int, Iterator[bytes]]] | None = None
        self._at = -1
        self.form: Form
        self.repos: tuple[SavedRepo, ...]
        self.where: dict[str, Where] = {}
        """Hash -> where the content with it is."""
        try:
            with reading_stream(source) as stream:
                self._ours = True
                self._index_ours(stream)
        except BackupError as error:
            if not error.foreign:
                raise
            self._ours = False
            with (
                reading_stream(source) as stream,
                contextlib.closing(PlainReader(stream)) as reader,
            ):
                self.form = reader.form
                index = PlainIndex(reader)
                self.repos, self.where = index.repos, index.where

    @property
    def streamed(self) -> bool:
        """Whether it is compressed, so that it can be read only from its beginning."""
        return self.form != "tar"

    def _index_ours(self, stream: IO[bytes]) -> None:
        with contextlib.closing(Reader(stream)) as reader:
            self.form = reader.form
            self.repos = reader.manifest.repos
            if self.streamed:
                for number, blob in reader.numbers():
                    self.where.setdefault(blob.hash, Where(number, 0, blob.size))
                return
            for number, (blob_hash, info) in enumerate(reader.contents()):
                if blob_hash is not None:
                    self.where.setdefault(blob_hash, Where(number, info.offset_data, info.size))

    @contextlib.contextmanager
    def open(self, blob_hash: str, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Yield a content from an offset on, without comparing it with its hash.

        Raises:
            BackupError: it is not in the tar, or the tar is damaged.
            OSError: it cannot be read.
        """
        where = self.where.get(blob_hash)
        if where is None:
            raise BackupError(f"not in the tar: {blob_hash}")
        if not self.streamed:
            with reading_stream(self._source) as stream:
                stream.seek(where.offset + offset)
                yield _upto(stream, where.size - offset)
            return
        with self._lock:
            yield _without(self._streamed(where), offset)

    def _streamed(self, where: Where) -> Iterator[bytes]:
        """Yield a content, and an empty piece for each piece before it."""
        if self._walk is None or self._at >= where.number:
            self._walk, self._at = self._members(), -1
        for number, blocks in self._walk:
            self._at = number
            for block in blocks:
                yield block if number == where.number else b""
            if number == where.number:
                return
        raise BackupError("the tar has changed since it was opened")

    def _members(self) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Yield the number and content of each member, from the beginning."""
        with reading_stream(self._source) as stream:
            if self._ours:
                with contextlib.closing(Reader(stream)) as ours:
                    for number, (blob_hash, info) in enumerate(ours.contents()):
                        yield number, iter(()) if blob_hash is None else ours.blocks(info)
                return
            with contextlib.closing(PlainReader(stream)) as plain:
                for number, info in enumerate(plain.members()):
                    yield number, plain.blocks(info) if info.isreg() else iter(())

    def close(self) -> None:
        """Leave the tar alone from here on."""
        self._walk = None


def _upto(stream: IO[bytes], count: int) -> Iterator[bytes]:
    while count > 0 and (block := stream.read(min(BLOCK, count))):
        count -= len(block)
        yield block


def _without(blocks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Yield what follows the first bytes, and an empty piece for each that is skipped."""
    for block in blocks:
        skipped, count = min(count, len(block)), max(0, count - len(block))
        yield block[skipped:]
