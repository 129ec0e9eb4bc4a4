"""The contents of another machine's cache, as its `vlmcache serve` sends them by their hashes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from vlmcache.config import Environment
from vlmcache.errors import NoSuchFileError, UnknownModelError
from vlmcache.hub.client import Client
from vlmcache.hub.retry import Patience, TroubleError
from vlmcache.progress import Throttle


class ServedContents:
    """What a server has, whichever of its models a content belongs to.

    Its client asks for listings too: `find_commit` and `list_files` of `hub.listing`.

    Args:
        environment: the variables that count, but for the hub's address.
        address: of the server, such as `http://box:9401`.
        token: the server's; the token of the hub is never sent there.
        throttle: shared with the other transfers.
        patience: how long to wait for answers.
    """

    def __init__(
        self,
        environment: Environment,
        address: str,
        token: str,
        throttle: Throttle | None = None,
        patience: Patience | None = None,
    ) -> None:
        variables = environment.variables | {"HF_ENDPOINT": address}
        own = msgspec.structs.replace(environment, variables=variables)
        self.client = Client(own, token=token, throttle=throttle, patience=patience)

    def has(self, etag: str) -> bool:
        """Return whether the server has a content.

        Raises:
            TroubleError: it did not answer.
            VlmcacheError: it refuses.
        """
        timeout = self.client.contact.answer_timeout(self.client.library.answer_timeout)
        try:
            with self.client.opened(self._address(etag), method="HEAD", timeout=timeout):
                return True
        except (NoSuchFileError, UnknownModelError):
            return False

    @contextlib.contextmanager
    def open(self, etag: str, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Yield the bytes of a content from an offset on, as they arrive; nothing checks them.

        Raises:
            TroubleError: the server did not answer, or sends another part than was asked for.
            VlmcacheError: it refuses, or does not have the content.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self.client.opened(self._address(etag), headers=headers, checked=True) as response:
            if offset and response.status_code != 206:
                error = NoSuchFileError(f"{self.client.name} does not send parts of files")
                raise TroubleError(error)
            yield self.client.pieces(response)

    def _address(self, etag: str) -> str:
        return f"{self.client.endpoint}/blobs/{etag}"
