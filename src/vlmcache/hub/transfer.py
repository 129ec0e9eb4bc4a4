"""The bytes of one blob: received, hashed on the way, kept if interrupted, published if correct.

They come over plain HTTP, or as huggingface_hub gets them through Xet, the Hub's storage of chunks.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.state import TreeFile
from vlmcache.change import partials
from vlmcache.change.place import disk_failure
from vlmcache.change.tree import Tree
from vlmcache.config import own_home
from vlmcache.errors import AccessError, HubError, VlmcacheError, WrongBytesError
from vlmcache.home.journal import Journal, read_damaged
from vlmcache.hub.client import Client
from vlmcache.hub.ranges import Ranges, Spare
from vlmcache.hub.retry import Backoff, NoRangeError, TroubleError, bad_answer
from vlmcache.units import size_text

_TRIES = 3
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


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
    def partial(self) -> str:
        """Where an unfinished download of it is kept: the name that older clients use."""
        return self.blob + layout.PARTIAL_SUFFIX


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

    def arrived(self) -> int:
        """Return how many bytes of the blob are on the disk, at most its length."""
        sizes = [status.st_size for status, _ in self._downloads()]
        return min(sum(sizes), self.job.listed.content_size)

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
        environment, size = self.client.environment, job.listed.content_size
        known_bad = partial(read_damaged, environment)
        check = self.client.stop_token.check
        checkable = layout.is_etag(job.listed.etag)
        if checkable:
            partials.copy_beginning(job.tree, job.partial, size, check, known_bad)
        wrong = 0
        while True:
            with partials.opened(job.tree, job.partial) as descriptor:
                begun = partials.usable(descriptor, job.listed.content_size)
                digest = self._receive(descriptor, begun)
                # Of what has a mirror's own name, only the length can be checked.
                if digest == job.listed.etag or not checkable:
                    os.fsync(descriptor)
                    break
                os.ftruncate(descriptor, 0)
            if begun:
                # Another program's partial stays, and would be the beginning of the next pull too.
                bad = partials.bad_beginning(job.tree, job.partial, size, known_bad)
                if bad:
                    with Journal(own_home(environment)[0]) as journal:
                        journal.record_damaged(bad, time.time())
            self.moved(0)
            # A beginning that was corrupted before says nothing about what the hub sends.
            wrong += not begun
            again = "from the start" if wrong < _TRIES else "no more"
            self.client.note(
                f"{job.file}: wrong bytes (hash {digest[:12]}…, not {job.listed.etag[:12]}…); "
                f"fetched {again}"
            )
            if wrong == _TRIES:
                job.tree.discard(job.partial)
                raise WrongBytesError(
                    f"{job.repo}: {job.file} arrived corrupted {_TRIES} times; "
                    "nothing of it was kept",
                    "a proxy or mirror that changes files? check HF_ENDPOINT, or try later",
                )
        job.tree.rename(job.partial, job.blob)

    def _downloads(self) -> Iterator[tuple[os.stat_result, str]]:
        """Yield the unfinished downloads of the blob: the client's, and the one that is ours."""
        tree, blobs = self.job.tree, self.job.blobs
        with contextlib.suppress(FileNotFoundError):
            for name in tree.names(blobs):
                if layout.partial_etag(name) == self.job.listed.etag and name.endswith(
                    layout.PARTIAL_SUFFIX
                ):
                    path = os.path.join(blobs, name)
                    status = tree.stat(path)
                    if stat.S_ISREG(status.st_mode):
                        yield status, path

    def _receive(self, descriptor: int, position: int) -> str:
        """Receive the rest of the file and return the hash of the complete file."""
        client, size = self.client, self.job.listed.content_size
        file = partials.ResumableFile(descriptor, self.job.listed.etag, size, self.moved)
        file.resume(position, client.stop_token.check)
        backoff = Backoff(client.patience, client.stop_token, client.note, client.patience.attempts)
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
        size, headers = self.job.listed.content_size, response.headers
        is_part = response.status_code == 206
        wrong = headers.get("Content-Encoding", "identity") != "identity"
        if is_part:
            match = _RANGE.fullmatch(headers.get("Content-Range", ""))
            wrong = (
                wrong
                or match is None
                or int(match[1]) != position
                or (match[3] != "*" and int(match[3]) != size)
            )
        else:
            length = headers.get("Content-Length", "")
            wrong = wrong or (length.isascii() and length.isdecimal() and int(length) != size)
        if wrong:
            raise TroubleError(bad_answer(response))
        return position if is_part else 0

    def _by_xet(self) -> bool:
        """Fetch the blob through Xet, if the hub and this machine have it.

        An interrupted download starts again, except for the chunks that Xet's own cache has kept
        if it is on. If anything goes wrong, plain HTTP follows.
        """
        job, client = self.job, self.client
        # Xet's library writes by path.
        if not _has_xet(job.listed) or job.tree.is_contested(job.blobs):
            return False
        size, etag = job.listed.content_size, job.listed.etag
        temporary = f"{job.blob}.{uuid.uuid4().hex[:8]}{layout.PARTIAL_SUFFIX}"
        try:
            self.received += _xet_fetch(client, job, temporary, self.moved)
            with partials.opened(job.tree, temporary) as descriptor:
                check = client.stop_token.check
                digest = partials.hash_of(descriptor, etag, size, size, check)
                os.fsync(descriptor)
            if digest.hexdigest() != etag:
                raise OSError("corrupted")
            job.tree.rename(temporary, job.blob)
        except (OSError, RuntimeError, ValueError, VlmcacheError) as error:
            client.stop_token.check()
            client.note(f"{job.file}: Xet failed ({error}); plain HTTP follows")
            self.moved(0)
            return False
        finally:
            job.tree.discard(temporary)
        _share(job)
        return True


def without_links() -> bool:
    """Return whether the client is configured to place no links."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_DISABLE_SYMLINKS)


def _has_xet(listed: TreeFile) -> bool:
    """Return whether a file can come through Xet: the hub has it there, and so has this machine."""
    if listed.xet_hash is None:
        return False
    try:
        from huggingface_hub.utils._runtime import is_xet_available
    except ImportError:
        return False
    return bool(is_xet_available())


def _reusable() -> int:
    """Return the bytes of all files in Xet's own cache of chunks, 0 if it is off.

    Xet can reuse only chunks: it writes each file from the start. hf_xet ships with the
    cache off (its `chunk_cache.size_bytes` is 0); HF_XET_CHUNK_CACHE_SIZE_BYTES switches it on.
    """
    import hf_xet
    from huggingface_hub import constants

    try:
        if int(hf_xet.XetConfig().get("chunk_cache.size_bytes")) <= 0:
            return 0
        chunks = Path(constants.HF_XET_CACHE).glob("*/chunk[-_]cache/**/*")
        return sum(path.stat().st_size for path in chunks if path.is_file())
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return 0


def _xet_fetch(client: Client, job: BlobJob, path: str, moved: Callable[[int], None]) -> int:
    """Download a file through Xet into `path`, and note what Xet may use again.

    Returns:
        The bytes that came over the network, as Xet reports: fewer than the file's if it has
        chunks already or has compressed them. The file's size if it does not report any.

    Raises:
        Exception: huggingface_hub's, hf_xet's or the system's failures.
    """
    from huggingface_hub.file_download import xet_get
    from huggingface_hub.utils._xet import XetFileData

    cached = _reusable()
    if cached:
        client.note(
            f"{job.file}: through Xet; {size_text(cached)} in its chunk cache may be used again"
        )
    bar = _Bar(moved)
    route = client.api(job.repo, "xet-read-token", job.commit)
    xet_get(
        incomplete_path=Path(path),
        xet_file_data=XetFileData(file_hash=str(job.listed.xet_hash), refresh_route=route),
        headers=client.headers,
        expected_size=job.listed.content_size,
        displayed_filename=job.file,
        _tqdm_bar=bar,
    )
    # It can only be 0 if there were chunks to reuse.
    return bar.transferred if bar.transferred or cached else job.listed.content_size


def abort_xet() -> None:
    """End what runs through Xet now, as the client does on Ctrl-C."""
    if "hf_xet" in sys.modules:
        from huggingface_hub.utils import _xet

        stop: Any = _xet.abort_xet_session
        stop()


class _Bar:
    """What huggingface_hub takes for a tqdm bar, and reports the transfer to as well."""

    def __init__(self, moved: Callable[[int], None]) -> None:
        self._moved = moved
        self.n = 0
        self.total = 0
        self.transferred = 0

    def update(self, count: float | None = 1) -> None:
        self.n += int(count or 0)
        self._moved(self.n)

    def update_transfer(self, count: float) -> None:
        """`count` more bytes came over the network."""
        self.transferred += int(count)

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments, **_options: None


def _share(job: BlobJob) -> None:
    """Put a blob that came through Xet into the shared store, as the client does."""
    from huggingface_hub.utils import _shared_blobs

    if job.shares and _shared_blobs.shared_blobs_enabled():
        _shared_blobs.publish_blob_to_shared_store(
            blob_path=job.blob,
            xet_hash=str(job.listed.xet_hash),
            cache_dir=job.tree.root,
            expected_size=job.listed.content_size,
        )


def link_shared(job: BlobJob) -> bool:
    """Take a blob from the shared store, if another repo has put the same content there.

    Returns:
        Whether it is there now.
    """
    shared_hash = job.listed.xet_hash or ""
    if not job.shares or layout.SHARED_HASH.fullmatch(shared_hash) is None:
        return False
    if job.tree.is_contested(job.blobs):
        return False  # the client links by path
    try:
        from huggingface_hub.utils import _shared_blobs
    except ImportError:
        return False
    linked: Any = _shared_blobs.shared_blobs_enabled() and _shared_blobs.try_link_from_shared_store(
        blob_path=job.blob,
        xet_hash=shared_hash,
        cache_dir=job.tree.root,
        expected_size=job.listed.content_size,
    )
    return bool(linked)
