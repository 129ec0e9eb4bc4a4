"""Requests to a hub that end: redirects, retries and timeouts over huggingface_hub's session.

huggingface_hub waits without limit, retries little, and reports each failure differently.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec

from vlmcache import log
from vlmcache.cache.reading import JSON_ERRORS, json_value
from vlmcache.config import Environment
from vlmcache.errors import BadAnswerError, HubError, OfflineError, VlmcacheError
from vlmcache.hub.account import Account
from vlmcache.hub.retry import (
    Backoff,
    Patience,
    TroubleError,
    bad_answer,
    hint,
    refusal,
    refused_redirect,
    unreachable,
)
from vlmcache.progress import Throttle

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ETAGS = ("X-Linked-ETag", "ETag")
_ANSWER_LIMIT = 256_000_000
_HURRIED = 2.0
"""Seconds that a hub may ask to wait if not much depends on its answer."""


class Client(Account):
    """A hub, as one user sees it. Safe to use from several threads.

    Args:
        environment: as for `Account`.
        token: as for `Account`.
        throttle: limits the rate, and stops the work.
        patience: how long to try.
        note: called with what a person would want to know while waiting.

    Raises:
        UsageError, HubError: as for `Account`.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        token: str | None = None,
        throttle: Throttle | None = None,
        patience: Patience | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(environment, token)
        self.throttle = throttle or Throttle()
        self.stop_token = self.throttle.stop_token
        self.patience = patience or Patience()
        self._note = note
        self._responses: set[Any] = set()
        """Those that are being read."""

    def note(self, text: str) -> None:
        """Say something to whoever waits."""
        self._note(self.scrub(text))

    def stop(self) -> None:
        """Make everything that is running end now; partial downloads stay."""
        self.stop_token.stopped.set()
        for response in list(self._responses):
            stream = response.extensions.get("network_stream")
            live = stream.get_extra_info("socket") if stream is not None else None
            # Wakes the thread that waits for bytes.
            if isinstance(live, socket.socket):
                with contextlib.suppress(OSError):
                    live.shutdown(socket.SHUT_RDWR)

    def ask(
        self, address: str, kind: Any, *, attempts: int | None = None
    ) -> tuple[Any, str | None]:
        """Return an answer, decoded, and the address of its next page if there is one.

        Args:
            address: of the API.
            kind: the type to decode to.
            attempts: fewer than patience allows, if there is something to fall back on.

        Raises:
            VlmcacheError: there is no answer, or it is a refusal.
            Stopped: the work was asked to stop.
        """
        patience = self.patience
        if attempts is not None:
            # With something to fall back on, a long wait is not worth it.
            patience = msgspec.structs.replace(
                patience, asks=min(attempts, patience.asks), longest_asked=_HURRIED
            )
        backoff = Backoff(patience, self.stop_token, self.note, patience.asks)
        timeout = patience.answer_timeout or self.library.answer_timeout
        while True:
            try:
                with self.opened(address, timeout=timeout) as response:
                    body = self._body(response)
                    try:
                        value = json_value(body, kind)
                    except JSON_ERRORS:
                        raise TroubleError(bad_answer(response)) from None
                    return value, response.links.get("next", {}).get("url")
            except TroubleError as trouble:
                backoff.failed(trouble)

    def content(self, address: str) -> bytes | None:
        """Return a small file that only helps to plan, after one attempt; `None` without it."""
        try:
            timeout = self.patience.answer_timeout or self.library.answer_timeout
            with self.opened(address, timeout=timeout) as response:
                return self._body(response)
        except (TroubleError, VlmcacheError):
            return None

    def _body(self, response: Any) -> bytes:
        body = bytearray()
        # Some mirrors compress although they are asked not to.
        with self._network_failures():
            for piece in response.iter_bytes():
                self.stop_token.check()
                body += piece
                if len(body) > _ANSWER_LIMIT:
                    raise bad_answer(response)
        return bytes(body)

    def pieces(self, response: Any) -> Iterator[bytes]:
        """Yield an answer's body as it arrives, without decoding it.

        Raises:
            TroubleError: the connection failed.
        """
        with self._network_failures():
            yield from response.iter_raw()

    @contextlib.contextmanager
    def opened(
        self,
        address: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        signed: bool = False,
        method: str = "GET",
    ) -> Iterator[Any]:
        """Open an address once and yield its answer of status 200 or 206, redirects followed.

        The token goes to the hub's own origin and to no other.

        Args:
            address: where.
            headers: sent in addition to the session's own.
            timeout: seconds without a byte.
            signed: whether the hub has redirected to this address, which is valid for a while.
            method: GET or HEAD.

        Raises:
            ExpiredError: such an address is refused.
            TroubleError: it failed in a way that may pass.
            VlmcacheError: it failed for good.
        """
        if self.offline:
            raise OfflineError(
                f"{self.environment.offline_by} is set: {self.name} is not asked",
                "unset it to download",
            )
        home = _origin(self.endpoint)
        timeout = timeout or self.patience.data_timeout or self.library.data_timeout
        first = address
        for _ in range(10):
            own = _origin(address) == home
            sent = {"Accept-Encoding": "identity", **(headers or {})}
            if own:
                sent = self.headers | sent
            with self._network_failures():
                request = self.library.session.build_request(
                    method,
                    address,
                    headers=sent,
                    timeout=self.library.http.Timeout(timeout, connect=min(timeout, 10.0)),
                )
                response = self.library.session.send(request, stream=True, follow_redirects=False)
            log.debug("hub", "%s %s: status %s", method, address, response.status_code)
            self._responses.add(response)
            try:
                self.stop_token.check()
                # A hub says of a file, asked by HEAD, what it is before it says where it is.
                named = method == "HEAD" and any(name in response.headers for name in _ETAGS)
                redirects = response.status_code in _REDIRECTS and not named
                if redirects and "Location" in response.headers:
                    target = _followed(address, response.headers["Location"])
                    if target is None:
                        raise refused_redirect(self, response)
                    address = target
                    continue
                if named or response.status_code in (200, 206):
                    yield response
                    return
                raise refusal(self, response, signed=signed or not own or address != first)
            finally:
                self._responses.discard(response)
                with contextlib.suppress(Exception):
                    response.close()
        raise TroubleError(BadAnswerError(f"{self.name} redirects in a loop", hint(self)))

    @contextlib.contextmanager
    def _network_failures(self) -> Iterator[None]:
        """Turn the HTTP library's failures into ours."""
        http = self.library.http
        try:
            yield
        except (http.TransportError, http.DecodingError) as error:
            self.stop_token.check()
            raise unreachable(self, error) from error
        except (http.InvalidURL, ValueError) as error:
            raise HubError(
                f"not an address: {self.name}: {self.scrub(str(error))}", hint(self)
            ) from error


def _origin(address: str) -> tuple[str, str, int | None]:
    parts = urlsplit(address)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", port


def _followed(address: str, location: str) -> str | None:
    """Return where a redirect leads; `None` if that is not an address or is less safe."""
    with contextlib.suppress(ValueError):
        target = urljoin(address, location)
        scheme = _origin(target)[0]
        if scheme == "https" or scheme == urlsplit(address).scheme == "http":
            return target
    return None
