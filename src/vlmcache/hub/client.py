"""Requests to a hub that end: redirects, retries and timeouts over huggingface_hub's session.

huggingface_hub waits without limit, retries little, and reports each failure differently.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec

from vlmcache import log
from vlmcache.cache.reading import JSON_ERRORS, json_value
from vlmcache.config import Environment
from vlmcache.errors import BadAnswerError, HubError, VlmcacheError, reason_of
from vlmcache.hub import settings
from vlmcache.hub.account import Account
from vlmcache.hub.contact import Contact
from vlmcache.hub.retry import (
    Backoff,
    Patience,
    SlowError,
    TroubleError,
    bad_answer,
    hint,
    refusal,
    refused_redirect,
    unreachable,
)
from vlmcache.hub.sources import SILENCE, Sources
from vlmcache.hub.xet import Xet
from vlmcache.progress import Throttle

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ETAGS = ("X-Linked-ETag", "ETag")
_ANSWER_LIMIT = 256_000_000
_CONNECT_TIMEOUT = 10.0
_MOST_REDIRECTS = 20
_LINK = re.compile(r'<([^<>]*)>((?:\s*;[^=;,<>]+(?:=\s*(?:"[^"]*"|[^";,]*))?)*)')
_NEXT = re.compile(r';\s*rel\s*=\s*"?(?:[^";]*\s)?next(?=[\s";]|$)', re.IGNORECASE)
_HURRIED = 2.0
"""The longest wait in seconds that a hub may ask for if not much depends on its answer."""


class Client(Account):
    """A hub, as one user sees it. Safe to use from several threads.

    Args:
        environment: as for `Account`.
        token: as for `Account`.
        throttle: limits the rate, and stops the work.
        patience: how long to try.
        note: called with what a person would want to know while waiting.

    Raises:
        UsageError: as for `Account`.
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
        self.contact = Contact(self.patience, environment)
        self._failures: set[str] = set()
        """Those that were noted."""
        self.xet = Xet(self.note)
        silence = self.patience.data_timeout or SILENCE
        self.sources = Sources(self.throttle, self.note, silence)
        """What is asked for contents before the hub."""

    def note(self, text: str) -> None:
        """Say something to whoever is waiting."""
        self._note(log.scrub(text))

    def note_failure(self, failure: str, then: str) -> None:
        """Say what failed and what follows, unless that failure was noted before."""
        if failure not in self._failures:
            self._failures.add(failure)
            self.note(f"{failure}; {then}")

    def stop(self) -> None:
        """Make everything that is running end now; partial downloads stay."""
        self.stop_token.stopped.set()
        self.xet.stop()
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
        self.check_online()
        with self.contact.tried(patience.asks):
            return self._asked(address, kind, patience)

    def _asked(self, address: str, kind: Any, patience: Patience) -> tuple[Any, str | None]:
        backoff = Backoff(patience, self.stop_token, self.note_failure, patience.asks)
        slow = self.contact.slow
        while True:
            timeout = self.contact.answer_timeout(self.library.answer_timeout, slow)
            try:
                with self.opened(address, timeout=timeout) as response:
                    body = self._body(response, timeout)
                    try:
                        value = json_value(body, kind)
                    except JSON_ERRORS:
                        raise TroubleError(bad_answer(response)) from None
                    self.contact.slow = max(self.contact.slow, slow)
                    return value, _next_page(response)
            except TroubleError as trouble:
                backoff.failed(trouble)
                if isinstance(trouble, SlowError):
                    slow += 1
                    longer = self.contact.answer_timeout(self.library.answer_timeout, slow)
                    then = f"asking again, for up to {longer:g} s"
                    self.note_failure(trouble.error.message, then)

    def data_timeout(self, slow: int | None = None) -> float:
        """Return how long to wait for bytes of a file, as `Contact.data_timeout` does."""
        return self.contact.data_timeout(self.library.data_timeout, slow)

    def content(self, address: str) -> bytes | None:
        """Return a small file that only helps to plan, after one attempt; `None` without it."""
        try:
            self.check_online()
            timeout = self.contact.answer_timeout(self.library.answer_timeout)
            with self.contact.tried(1), self.opened(address, timeout=timeout) as response:
                return self._body(response, timeout)
        except (TroubleError, VlmcacheError):
            return None

    def _body(self, response: Any, timeout: float) -> bytes:
        body = bytearray()
        # Some mirrors compress although they are asked not to.
        with self._network_failures(settings.ANSWER_TIMEOUT, timeout):
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
        checked: bool = False,
        slow: int | None = None,
        method: str = "GET",
    ) -> Iterator[Any]:
        """Open an address once and yield its answer with content, redirects followed.

        The token goes to the hub's own origin and to no other, and nowhere after a redirect from
        https to http.

        Args:
            address: where.
            headers: sent in addition to the session's own.
            timeout: seconds to wait for a byte of the answer to a question; not given for a file,
                for which `data_timeout` counts.
            signed: whether the hub has redirected to this address, which is valid for a while.
            checked: whether a hash decides what is made of the answer: it may come over http.
            slow: how often a file's bytes have taken longer; what other files found if not given.
            method: GET or HEAD.

        Raises:
            ExpiredError: such an address is refused.
            TroubleError: it failed in a way that may pass.
            VlmcacheError: it failed for good.
        """
        self.check_online()
        variable = settings.ANSWER_TIMEOUT if timeout else settings.DATA_TIMEOUT
        timeout = timeout or self.data_timeout(slow)
        library = self.library
        home: tuple[str, str, int | None] | None = _origin(self.endpoint)
        first = address
        for _ in range(_MOST_REDIRECTS):
            own = _origin(address) == home
            sent = {"Accept-Encoding": "identity", **(headers or {})}
            if own:
                sent = self.headers | sent
            with self._network_failures(variable, timeout):
                request = library.session.build_request(
                    method,
                    address,
                    headers=sent,
                    timeout=library.http.Timeout(timeout, connect=min(timeout, _CONNECT_TIMEOUT)),
                )
                response = library.session.send(request, stream=True, follow_redirects=False)
            self.contact.heard()
            log.debug("hub", "%s %s: status %s", method, address, response.status_code)
            self._responses.add(response)
            try:
                self.stop_token.check()
                # To HEAD, a hub says what a file is in the same answer that redirects to it.
                named = method == "HEAD" and any(name in response.headers for name in _ETAGS)
                redirects = response.status_code in _REDIRECTS and not named
                if redirects and "Location" in response.headers:
                    target = _followed(address, response.headers["Location"], checked=checked)
                    if target is None:
                        raise refused_redirect(response)
                    if _is_less_safe(address, target):
                        home = None
                        self.note_failure(
                            f"{_host(address)} redirects to {_host(target)} over http",
                            "the content is checked by its hash",
                        )
                    address = target
                    _drain(response)
                    continue
                if named or response.status_code in (200, 203, 206):
                    yield response
                    return
                raise refusal(self, response, signed=signed or not own or address != first)
            finally:
                self._responses.discard(response)
                with contextlib.suppress(Exception):
                    response.close()
        raise TroubleError(BadAnswerError(f"{self.name} redirects in a loop", hint(self)))

    @contextlib.contextmanager
    def _network_failures(
        self, variable: str = settings.DATA_TIMEOUT, seconds: float | None = None
    ) -> Iterator[None]:
        """Turn the HTTP library's failures into ours, as `unreachable` does."""
        http = self.library.http
        seconds = self.data_timeout() if seconds is None else seconds
        try:
            yield
        except (http.TransportError, http.DecodingError) as error:
            self.stop_token.check()
            raise unreachable(self, error, variable, seconds) from error
        except (http.InvalidURL, ValueError) as error:
            raise HubError(
                f"not an address: {self.name}: {log.scrub(reason_of(error))}", hint(self)
            ) from error


def _next_page(response: Any) -> str | None:
    """Return the address of the page that an answer's Link header names as the next one.

    Its words can be upper or lower case, and `rel` can hold several (RFC 8288): a page that is
    overlooked is a part of the repo that would not be fetched.

    Raises:
        TroubleError: it is not an address.
    """
    links: list[tuple[str, str]] = _LINK.findall(response.headers.get("Link", ""))
    for target, parameters in links:
        if _NEXT.search(parameters):
            try:
                return urljoin(str(response.url), target.strip())
            except ValueError:
                raise TroubleError(bad_answer(response, "a next page without address")) from None
    return None


def _origin(address: str) -> tuple[str, str, int | None]:
    parts = urlsplit(address)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", port


def _host(address: str) -> str:
    return urlsplit(address).netloc.rpartition("@")[2]


def _followed(address: str, location: str, *, checked: bool) -> str | None:
    """Return where a redirect leads; `None` if that is not an address or is less safe.

    Args:
        address: what redirects.
        location: what it says.
        checked: whether a hash decides what is made of the answer: http does for that.
    """
    with contextlib.suppress(ValueError):
        target = urljoin(address, location)
        known = _origin(target)[0] in ("http", "https")
        if known and (checked or not _is_less_safe(address, target)):
            return target
    return None


def _is_less_safe(address: str, target: str) -> bool:
    return urlsplit(address).scheme == "https" != urlsplit(target).scheme


def _drain(response: Any) -> None:
    """Read what is left of a short answer, so that its connection can be used again."""
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdecimal() and int(length) < 1 << 16:
        # The answer is known: a failure only costs the connection.
        with contextlib.suppress(Exception):
            response.read()
