"""A file's content on its way to a client: opened once, read in blocks, never a changed byte."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import BinaryIO, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vlmcache import log
from vlmcache.cache.hashing import BLOCK, Identity, Opener, identify_open
from vlmcache.commands.serve.answers import AnswerError, Span
from vlmcache.commands.serve.catalog import ServedFile
from vlmcache.errors import reason_of
from vlmcache.progress import Throttle

_SMALLEST_BLOCK = 16_384


class OpenContent(NamedTuple):
    """An open file that is sent."""

    file: BinaryIO
    identity: Identity

    @property
    def open_to_others(self) -> bool:
        """Whether its mode lets every user of this machine read it."""
        return bool(os.fstat(self.file.fileno()).st_mode & 0o004)

    def close(self) -> None:
        """Close it; again does no harm."""
        self.file.close()

    def read(self, position: int, count: int) -> bytes:
        """Return bytes from a position.

        Raises:
            OSError: it cannot be read, or was changed since it was found good. Its inode's time of
                change counts too, since whoever writes to it can put the time of writing back.
        """
        block = _read_at(self.file.fileno(), position, count)
        if len(block) != count or identify_open(self.file.fileno()) != self.identity:
            raise OSError("the file was changed while it was sent")
        return block


def _read_at(descriptor: int, position: int, count: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, position)
    os.lseek(descriptor, position, os.SEEK_SET)
    return os.read(descriptor, count)


def open_to_send(opener: Opener, file: ServedFile) -> OpenContent:
    """Open a file that is served.

    Raises:
        AnswerError: it is gone, or is another file by now.
    """
    try:
        descriptor = opener(file.path)
    except OSError as error:
        log.info("serve", "cannot be opened: %s: %s", file.path, reason_of(error))
        raise AnswerError(404, "EntryNotFound", "Entry not found") from None
    content = OpenContent(os.fdopen(descriptor, "rb", buffering=0), identify_open(descriptor))
    if content.identity.size != file.size:
        content.close()
        raise AnswerError(404, "EntryNotFound", "Entry not found")
    return content


def block_at(rate: int | None) -> int:
    """Return how many bytes to read at a time, so that at a low rate no client waits long.

    The hub's clients give up after ten seconds without a byte, and all of them share the rate.

    Args:
        rate: bytes per second of all clients together; `None` if it is not limited.
    """
    return BLOCK if rate is None else min(BLOCK, max(_SMALLEST_BLOCK, rate // 64))


class ContentResponse(StreamingResponse):
    """A file's content, read in blocks from its descriptor, which is closed at the end."""

    def __init__(
        self, content: OpenContent, span: Span, throttle: Throttle, headers: dict[str, str]
    ) -> None:
        self._content = content
        kind = "application/octet-stream"
        super().__init__(self._blocks(span, throttle), span.status, headers, kind)

    async def _blocks(self, span: Span, throttle: Throttle) -> AsyncIterator[bytes]:
        position, block = span.start, block_at(throttle.rate)
        while position < span.stop:
            count = min(block, span.stop - position)
            wait = throttle.wait_for(count)
            if wait > 0:
                await asyncio.sleep(wait)
            yield await run_in_threadpool(self._content.read, position, count)
            position += count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the content, and close it whatever happens."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._content.close()
