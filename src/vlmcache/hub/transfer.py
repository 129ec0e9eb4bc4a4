"""The bytes of one blob: received, hashed on the way, kept if interrupted, published if correct."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.mounts import mount_of
from vlmcache.change import partials
from vlmcache.change.place import disk_failure, file_size, publish
from vlmcache.change.plan import is_resumable
from vlmcache.errors import AccessError, HubError, VlmcacheError, WrongBytesError
from vlmcache.hub.client import Client
from vlmcache.hub.job import BlobJob
from vlmcache.hub.ranges import Ranges, Spare
from vlmcache.hub.refusals import bad_answer
from vlmcache.hub.retry import Backoff, NoRangeError, TroubleError

_TRIES = 3
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Transfer:
    """Fetches one blob, whose lock the caller holds; use it once.

    Args:
        client: the hub.
        job: the blob.
        moved: called with the number of bytes that are there.
        spare: additional connections that it may use if its own is slow.
    """

    def __init__(
        self,
        client: Client,
        job: BlobJob,
        moved: Callable[[int], None],
        spare: Spare | None = None,
    ) -> None:
        self.client = client
        self.job = job
        self.moved = moved
        self.spare = spare or Spare()
        self.received = 0
        """Bytes that came over the network, including those that were thrown away."""

    def run(self) -> None:
        """Fetch, check and publish the blob.

        Raises:
            WrongBytesError: what arrived was corrupted three times; nothing is published.
            VlmcacheError: the hub or the disk fails; what has arrived stays for the next time.
            Stopped: the work was asked to stop; likewise.
        """
        with _disk_failures(self.job.partial):
            if self._by_xet():
                return
            self._adopt()
            wrong = 0
            while wrong < _TRIES:
                with partials.opened(self.job.partial) as descriptor:
                    begun = partials.usable(descriptor, self.job.listed.content_size)
                    digest = self._receive(descriptor, begun)
                    if digest == self.job.listed.etag:
                        os.fsync(descriptor)
                        break
                    os.ftruncate(descriptor, 0)
                self.moved(0)
                # A beginning that was corrupted before says nothing about what the hub sends.
                wrong += not begun
                again = "from the start" if wrong < _TRIES else "no more"
                self.client.note(
                    f"{self.job.file}: wrong bytes (hash {digest[:12]}…, "
                    f"not {self.job.listed.etag[:12]}…); fetched {again}"
                )
            else:
                os.unlink(self.job.partial)
                raise WrongBytesError(
                    f"{self.job.repo}: {self.job.file} arrived corrupted {_TRIES} times; "
                    "nothing of it was kept",
                    "a proxy or mirror that changes files? check HF_ENDPOINT, or try later",
                )
            publish(self.job.partial, self.job.blob)

    def _adopt(self) -> None:
        """Continue the longest download that the client has left behind.

        Nobody writes it, since we hold the lock. On network drives, where locks may have no effect,
        nothing is continued.
        """
        if file_size(self.job.partial) is not None:
            return
        candidates: list[tuple[int, str]] = []
        pattern = re.compile(re.escape(self.job.listed.etag) + r"\.[0-9a-f]{8}\.incomplete")
        with os.scandir(self.job.blobs) as entries:
            for entry in entries:
                if not pattern.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                    continue
                status = entry.stat(follow_symlinks=False)
                if is_resumable(
                    self.job.listed,
                    ours=False,
                    size=status.st_size,
                    allocated=allocated_bytes(status),
                ):
                    candidates.append((status.st_size, entry.path))
        mount = mount_of(self.job.blobs)
        if candidates and not (mount and mount.network):
            os.rename(max(candidates)[1], self.job.partial)

    def _receive(self, descriptor: int, position: int) -> str:
        """Receive the rest of the file and return the hash of the complete file."""
        client, size = self.client, self.job.listed.content_size
        file = partials.ResumableFile(descriptor, self.job.listed.etag, size, self.moved)
        file.resume(position, self._check)
        backoff = Backoff(client.patience, client.stop_token, client.note)
        refused = False
        address = client.file_address(self.job.repo, self.job.commit, self.job.file)
        ranges = Ranges(client, address, size, self._start, self.spare)
        try:
            while file.position < size:
                before = file.position
                try:
                    for data in ranges.read(file.position):
                        file.add(data)
                    if file.position < size:
                        self._stream(address, file, ranges)
                except NoRangeError as trouble:
                    # It may send the complete file; what was there is of no use then.
                    if file.position:
                        ranges.close()
                        file.restart()
                    backoff.failed(trouble)
                except TroubleError as trouble:
                    if file.position > before:
                        backoff.progressed()
                    backoff.failed(trouble)
                except AccessError as error:
                    # A guard in front of the hub may refuse a request once and allow it later.
                    if refused:
                        raise
                    refused = True
                    backoff.failed(TroubleError(error))
        finally:
            self.received += ranges.received
            ranges.close()
        return file.hash

    def _stream(self, address: str, file: partials.ResumableFile, ranges: Ranges) -> None:
        """Receive over one connection, to the end or to what has come over others.

        Raises:
            TroubleError: the connection failed; what arrived before is in the file.
        """
        client, size = self.client, self.job.listed.content_size
        stop = ranges.gap_end(file.position)
        headers = {}
        if file.position:
            headers["Range"] = f"bytes={file.position}-{stop - 1 if stop < size else ''}"
        with client.opened(address, headers=headers) as response:
            if self._start(response, file.position) != file.position:
                ranges.close()
                file.restart()
            ranges.opened(response)
            for data in client.pieces(response):
                ranges.arrived(len(data))
                client.throttle.take(len(data))
                if file.position + len(data) > size:
                    raise TroubleError(bad_answer(response))
                file.add(data)
                if ranges.reached(file.position):
                    return
        if file.position < stop:
            raise TroubleError(
                HubError(
                    f"the connection to {client.name} ended at {file.position} of {size} "
                    f"bytes of {self.job.file}",
                    "pull again to continue from there",
                )
            )

    def _start(self, response: Any, position: int) -> int:
        """Return the offset from which an answer sends the file.

        Raises:
            TroubleError: it sends something else.
        """
        size = self.job.listed.content_size
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise TroubleError(bad_answer(response))
        if response.status_code == 206:
            match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if (
                match is None
                or int(match[1]) != position
                or (match[3] != "*" and int(match[3]) != size)
            ):
                raise TroubleError(bad_answer(response))
            return position
        length = response.headers.get("Content-Length", "")
        if length.isascii() and length.isdecimal() and int(length) != size:
            raise TroubleError(bad_answer(response))
        return 0

    def _check(self) -> None:
        self.client.stop_token.check()

    def _by_xet(self) -> bool:
        """Fetch the blob through Xet, if the hub and this machine have it.

        An interrupted download starts again, except for the chunks that Xet's own cache has kept
        if it is on. If anything goes wrong, plain HTTP follows.
        """
        from vlmcache.hub import xet

        if not xet.is_usable(self.job.listed):
            return False
        temporary = f"{self.job.blob}.{uuid.uuid4().hex[:8]}{layout.PARTIAL_SUFFIX}"
        try:
            self.received += xet.fetch(self.client, self.job, temporary, self.moved)
            with open(temporary, "rb+") as file:
                size = self.job.listed.content_size
                etag = self.job.listed.etag
                digest = partials.hash_of(file.fileno(), etag, size, size, self._check)
                os.fsync(file.fileno())
            if digest.hexdigest() != etag:
                raise OSError("corrupted")
            publish(temporary, self.job.blob)
        except (OSError, RuntimeError, ValueError, VlmcacheError) as error:
            self.client.stop_token.check()
            self.client.note(f"{self.job.file}: Xet failed ({error}); plain HTTP follows")
            self.moved(0)
            return False
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        xet.share(self.job)
        return True


@contextlib.contextmanager
def _disk_failures(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_failure(error, path) from error


def without_links() -> bool:
    """Return whether the client is configured to place no links."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_DISABLE_SYMLINKS)
