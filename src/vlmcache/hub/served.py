"""What another machine's cache holds, as its `vlmcache serve` sends it by its hashes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from vlmcache import log
from vlmcache.config import Environment
from vlmcache.errors import NoSuchFileError, UnknownModelError
from vlmcache.hub.client import Client
from vlmcache.hub.listing import find_commit, list_files
from vlmcache.hub.retry import Patience, TroubleError
from vlmcache.hub.sources import RevisionFiles
from vlmcache.progress import Throttle

_STEP = 1.0
"""Seconds between signs of life while a server hashes a file."""


class ServedContents:
    """What a server has, whichever of its models a content belongs to: a `Source`.

    Args:
        environment: the variables that count, but for the hub's address.
        address: of the server, such as `http://box:9401`.
        token: the server's; the token that is kept for the hub is never sent there.
        throttle: shared with the other transfers.
        patience: how long to wait for answers.
    """

    kind = "serve"
    streamed = False

    def __init__(
        self,
        environment: Environment,
        address: str,
        token: str | None,
        throttle: Throttle | None = None,
        patience: Patience | None = None,
    ) -> None:
        variables = environment.variables | {"HF_ENDPOINT": address}
        own = msgspec.structs.replace(environment, variables=variables)
        patience = patience or Patience()
        self.client = Client(own, token=token, throttle=throttle, patience=patience)
        if token is None:
            self.client.token = False
        self.name = log.address_without_login(address)
        self._longest = patience.longest_asked
        self._known: dict[str, bool] = {}

    def has(self, etag: str, size: int | None = None) -> bool:
        """Return whether the server has a content, of a length if one is given.

        Raises:
            TroubleError: it did not answer.
            VlmcacheError: it refuses.
        """
        if etag not in self._known:
            timeout = self.client.contact.answer_timeout(self.client.library.answer_timeout)
            address = self._address(etag)
            try:
                with self.client.opened(address, method="HEAD", timeout=timeout) as response:
                    length = response.headers.get("Content-Length")
                    self._known[etag] = size is None or length in (None, str(size))
            except (NoSuchFileError, UnknownModelError):
                self._known[etag] = False
        return self._known[etag]

    def order(self, etag: str) -> int:  # noqa: ARG002
        """Return 0: any content can be asked for at any time."""
        return 0

    def descriptor(self, etag: str) -> int | None:  # noqa: ARG002
        """Return `None`: its files are not here."""
        return None

    @contextlib.contextmanager
    def open(self, etag: str, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Yield the bytes of a content from an offset on, as they arrive; nothing checks them.

        While the server hashes the file, the pieces are empty.

        Raises:
            TroubleError: the server did not answer, or sends another part than was asked for.
            VlmcacheError: it refuses, or does not have the content.
        """
        yield self._pieces(etag, offset)

    def _pieces(self, etag: str, offset: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        waited = 0.0
        while True:
            try:
                with self.client.opened(
                    self._address(etag), headers=headers, checked=True
                ) as response:
                    if offset and response.status_code != 206:
                        error = NoSuchFileError(f"{self.client.name} does not send parts of files")
                        raise TroubleError(error)
                    yield from self.client.pieces(response)
                    return
            except TroubleError as trouble:
                left = trouble.wait
                if left is None or waited + left > self._longest:
                    raise
            left = max(left, _STEP)
            waited += left
            while left > 0:
                yield b""
                self.client.stop_token.sleep(min(left, _STEP))
                left -= _STEP

    def listing(self, repo: str, revision: str) -> RevisionFiles | None:
        """Return the commit that a revision means there, and its files; `None` without it.

        Raises:
            VlmcacheError: it does not answer, or refuses.
        """
        try:
            commit = find_commit(self.client, repo, revision, attempts=1).commit
            return commit, list_files(self.client, repo, commit, attempts=1)
        except UnknownModelError:
            return None

    def _address(self, etag: str) -> str:
        return f"{self.client.endpoint}/blobs/{etag}"
