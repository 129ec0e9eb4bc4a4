"""The bytes of one blob: received, hashed on the way, kept if interrupted, published if correct.

They come over plain HTTP, or through Xet, the Hub's storage of chunks.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.state import TreeFile
from vlmcache.change import partials
from vlmcache.change.arriving import ArrivingBlob, discard_partials
from vlmcache.change.place import disk_failure
from vlmcache.change.tree import Tree
from vlmcache.config import own_home
from vlmcache.errors import (
    AccessError,
    BadAnswerError,
    HubError,
    WrongBytesError,
    reason_of,
)
from vlmcache.home.journal import Journal, read_damaged
from vlmcache.hub import library
from vlmcache.hub.answers import FileAnswer
from vlmcache.hub.client import Client
from vlmcache.hub.ranges import Ranges, Spare
from vlmcache.hub.retry import Backoff, NoRangeError, SlowError, TroubleError
from vlmcache.hub.sources import wrong_bytes
from vlmcache.hub.xet import XetError
from vlmcache.units import size_text

_TRIES = 3


class BlobJob(msgspec.Struct, frozen=True):
    """One blob to fetch."""

    repo: str
    commit: str
    file: str
    listed: TreeFile
    tree: Tree
    """The cache that `blobs` lies in: another one if `move` has put the repo there."""
    blobs: str
    """The folder of the repo's blobs."""
    shares: bool = True
    """Whether that cache's store of shared blobs may be used: not through a user's own link."""

    @property
    def blob(self) -> str:
        """The blob's place."""
        return os.path.join(self.blobs, self.listed.etag)

    @property
    def is_checked(self) -> bool:
        """Whether a hash decides what is published: not if a mirror has its own name for it."""
        return layout.is_etag(self.listed.etag)

    @property
    def partial(self) -> str:
        """Where an unfinished download of it is kept: the name that older clients use."""
        return self.blob + layout.PARTIAL_SUFFIX

    def publish(self, received: str) -> None:
        """Give the blob its name, and remove what else has arrived of it.

        Args:
            received: the path of its complete content.
        """
        self.tree.rename(received, self.blob)
        discard_partials(self.tree, self.partial, self.listed.etag)


class Transfer:
    """Fetches one blob, whose lock the caller holds. Used once.

    Args:
        client: the hub.
        job: the blob.
        moved: called with the number of bytes that have arrived.
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
        try:
            if not self._by_xet():
                self._by_http()
        except OSError as error:
            raise disk_failure(error, self.job.partial) from error

    def _by_http(self) -> None:
        job = self.job
        size = job.listed.content_size
        known_bad = partial(read_damaged, self.client.environment)
        check = self.client.stop_token.check
        if job.is_checked:
            partials.copy_beginning(job.tree, job.partial, size, check, known_bad)
        wrong = 0
        while True:
            file = ArrivingBlob(job.tree, job.partial, job.listed.etag, size, self.moved)
            with file.opened(check) as begun:
                self._receive(file)
                # If a mirror gives the file a name of its own, only the length can be checked.
                if file.is_complete or not job.is_checked:
                    file.sync()
                    break
                digest = file.hash
                file.restart()
            if begun:
                # Another program's partial stays, and the next pull would begin with it again.
                remember_bad_beginning(self)
            # A beginning that was corrupted before says nothing about what the hub sends.
            wrong += not begun
            self.client.note(
                f"{job.file}: {wrong_bytes(digest, job.listed.etag)}; "
                f"{'fetched from the start' if wrong < _TRIES else 'not fetched again'}"
            )
            if wrong == _TRIES:
                discard_partials(job.tree, job.partial, job.listed.etag)
                raise WrongBytesError(
                    f"{job.repo}: {job.file} arrived corrupted {_TRIES} times; "
                    "nothing of it was kept",
                    "a proxy or mirror that changes files? check HF_ENDPOINT, or try later",
                )
        job.publish(job.partial)

    def downloads(self) -> Iterator[os.stat_result]:
        """Yield the status of each unfinished download of the blob: the client's, and our own."""
        tree, blobs = self.job.tree, self.job.blobs
        with contextlib.suppress(FileNotFoundError):
            for name in tree.names(blobs):
                if layout.partial_etag(name) == self.job.listed.etag and name.endswith(
                    layout.PARTIAL_SUFFIX
                ):
                    status = tree.stat(os.path.join(blobs, name))
                    if stat.S_ISREG(status.st_mode):
                        yield status

    def _receive(self, file: ArrivingBlob) -> None:
        """Receive the rest of the file."""
        client, size = self.client, self.job.listed.content_size
        attempts = client.patience.attempts
        backoff = Backoff(client.patience, client.stop_token, client.note_failure, attempts)
        forbidden = no_parts = whole = False
        slow = client.contact.slow_files
        address = client.file_address(self.job.repo, self.job.commit, self.job.file)
        ranges = Ranges(
            client, address, size, self._part_start, self.spare, checked=self.job.is_checked
        )
        try:
            while file.position < size:
                before, trouble = file.position, None
                try:
                    file.follow(before)
                    for data in ranges.read(before):
                        file.add(data)
                    if file.position < size:
                        self._stream(address, file, ranges, 0 if whole else file.position, slow)
                    whole = False
                except TroubleError as error:
                    trouble = error
                except AccessError as error:
                    # A guard in front of the hub may refuse a request once and allow it later.
                    if forbidden:
                        raise
                    forbidden, trouble = True, TroubleError(error)
                if trouble is None:
                    continue
                file.fall_back()
                if file.position > before:
                    backoff.progressed()
                    slow = client.contact.slow_files
                elif isinstance(trouble, SlowError):
                    slow += 1
                    _wait_longer(client, trouble, slow)
                if isinstance(trouble, NoRangeError):
                    trouble.lasting = whole or not before
                    # One refusal of a part may be a mistake, and all of it is much more to send.
                    whole = no_parts or isinstance(trouble.error, BadAnswerError)
                    no_parts = True
                else:
                    # A lost connection says nothing about parts that were refused before it.
                    whole = whole and file.position == before
                backoff.failed(trouble)
        finally:
            self.received += ranges.received
            ranges.close()

    def _stream(
        self, address: str, file: ArrivingBlob, ranges: Ranges, asked: int, slow: int
    ) -> None:
        """Receive over one connection, to the end or to what has come over others.

        Args:
            address: where.
            file: what is received.
            ranges: the other connections.
            asked: the offset from which a part is asked for, 0 to ask for all.
            slow: as for `Client.opened`.

        Raises:
            TroubleError: the connection failed; what arrived before is in the file.
        """
        client, listed = self.client, self.job.listed
        size, before = listed.content_size, file.position
        stop = ranges.gap_end(before)
        headers = {"Range": f"bytes={asked}-{stop - 1 if stop < size else ''}"} if asked else {}
        checked = self.job.is_checked
        with client.opened(address, headers=headers, checked=checked, slow=slow) as response:
            client.contact.slow_files = max(client.contact.slow_files, slow)
            answer = FileAnswer(client, response, self.job.file, size, asked)
            if answer.start < before:
                client.note_failure(
                    f"{self.job.file}: {client.name} sends bytes that are already here",
                    f"{size_text(before - answer.start)} are compared and kept",
                )
            file.follow(answer.start)
            ranges.opened(response)
            for data in answer.content(self._arriving(response, ranges)):
                if file.sent + len(data) > size:
                    raise answer.problem(f"more than the {size:,} bytes that are listed")
                file.add(data)
                if file.position < before:
                    ranges.close()
                if ranges.reached(file.position) or (answer.is_coded and file.sent == size):
                    return
        if file.sent < stop:
            problem = HubError(
                f"the connection to {client.name} ended at {file.sent} of {size} "
                f"bytes of {self.job.file}",
                "pull again to continue from there",
            )
            if answer.is_all:
                sent = f"{file.sent:,} bytes of {self.job.file}"
                raise answer.problem(f"{sent} instead of the {size:,} that are listed")
            raise TroubleError(problem)

    def _arriving(self, response: Any, ranges: Ranges) -> Iterator[bytes]:
        for data in self.client.pieces(response):
            ranges.arrived(len(data))
            self.client.throttle.take(len(data))
            yield data

    def _part_start(self, response: Any, asked: int) -> int:
        """Return the offset from which an answer sends the file.

        Raises:
            TroubleError: it sends something else.
        """
        size = self.job.listed.content_size
        return FileAnswer(self.client, response, self.job.file, size, asked).start

    def _by_xet(self) -> bool:
        """Fetch the blob through Xet, if the hub and this machine have it.

        An interrupted download starts again, except for the chunks that Xet's own cache has kept
        if it is on. If anything goes wrong, plain HTTP follows.
        """
        job, client = self.job, self.client
        size, etag, xet_hash = job.listed.content_size, job.listed.etag, job.listed.xet_hash
        # Xet's library writes by path, and as fast as it can.
        if xet_hash is None or job.tree.is_contested(job.blobs) or client.throttle.rate:
            return False
        if client.offline or not client.xet.available():
            return False
        temporary = f"{job.blob}.{uuid.uuid4().hex[:8]}{layout.PARTIAL_SUFFIX}"
        route = client.api(job.repo, "xet-read-token", job.commit)
        file = library.XetFile(temporary, xet_hash, size, route, client.headers)
        try:
            self.received += client.xet.fetch(file, self.moved, client.data_timeout(0))
            with partials.opened(job.tree, temporary) as descriptor:
                check = client.stop_token.check
                digest = partials.hash_of(descriptor, etag, size, size, check)
                os.fsync(descriptor)
            if digest.hexdigest() != etag:
                raise XetError(f"{job.file} came with wrong bytes")
            job.publish(temporary)
        except Exception as error:
            client.stop_token.check()
            client.xet.failed(reason_of(error))
            self.moved(0)
            return False
        finally:
            job.tree.discard(temporary)
        if job.shares:
            library.publish_to_shared_store(job.tree.root, job.blob, xet_hash, size)
        return True


def remember_bad_beginning(transfer: Transfer) -> None:
    """Note which partial of another program had wrong bytes, so that no download begins with it."""
    job, environment = transfer.job, transfer.client.environment
    known_bad = partial(read_damaged, environment)
    bad = partials.bad_beginning(job.tree, job.partial, job.listed.content_size, known_bad)
    if bad:
        with Journal(own_home(environment)[0]) as journal:
            journal.record_damaged(bad, time.time())


def _wait_longer(client: Client, trouble: SlowError, slow: int) -> None:
    """Say how long the next attempt waits; the longest time is given only once.

    Raises:
        VlmcacheError: that time was given already.
    """
    longer = client.contact.waits_longer(slow)
    if longer is False:
        raise trouble.error from trouble
    if longer:
        then = f"asking again, for up to {client.data_timeout(slow):g} s"
        client.note_failure(trouble.error.message, then)


def link_shared(job: BlobJob) -> bool:
    """Link a blob to the shared store, if another repo has put the same content there.

    Returns:
        Whether the blob is in its place now.
    """
    shared_hash = job.listed.xet_hash or ""
    if not job.shares or layout.SHARED_HASH.fullmatch(shared_hash) is None:
        return False
    if job.tree.is_contested(job.blobs):
        return False  # the client links by path
    size = job.listed.content_size
    return library.link_from_shared_store(job.tree.root, job.blob, shared_hash, size)
