"""Requests to a hub that end: redirects, retries, timeouts and tokens, over the client's session.

The session, its proxies and its headers are huggingface_hub's own. What it leaves to chance is done
here: it waits without limit, retries little, and reports each failure in another way.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from vlmcache.cache.reading import JSON_ERRORS
from vlmcache.config import Environment, side_caches
from vlmcache.errors import UsageError, VlmcacheError
from vlmcache.hub.errors import (
    AccessError,
    BadAnswerError,
    HubError,
    NoSuchFileError,
    NoSuchRepoError,
    NoSuchRevisionError,
    OfflineError,
    UnreachableError,
)
from vlmcache.progress import Pace

DEFAULT_ENDPOINT = "https://huggingface.co"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_RATE_LIMIT = re.compile(r"r\s*=\s*0\b.*?t\s*=\s*(\d+)")
_ANSWER_LIMIT = 256_000_000
_HURRIED = 2.0
"""Seconds that a hub may ask to wait where nothing much hangs on its answer."""


class Patience(msgspec.Struct, frozen=True):
    """How long to try. Times are seconds; `None` for a timeout means huggingface_hub's own.

    attempts counts failures in a row of a file's transfer, without a byte between them; asks those
    of a question, before which nothing has been done. longest_asked is the longest wait that a hub
    may ask for by Retry-After.
    """

    attempts: int = 8
    asks: int = 3
    first_wait: float = 0.5
    longest_wait: float = 20.0
    longest_asked: float = 300.0
    answer_timeout: float | None = None
    data_timeout: float | None = None


class TroubleError(Exception):
    """A failure that may pass. `error` is what to tell if it does not.

    wait is the time in seconds that the hub asks for, if it does.
    """

    def __init__(self, error: VlmcacheError, wait: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait = wait


class ExpiredError(TroubleError):
    """A signed address is no longer good; the hub gives a new one."""


class NoRangeError(TroubleError):
    """The hub does not send a part of a file; it may send the whole."""


class _Library(NamedTuple):
    """huggingface_hub's session, and the library it is of: httpx2, before that httpx."""

    session: Any
    http: Any
    headers: dict[str, str]
    answer_timeout: float
    data_timeout: float


class Backoff:
    """Waits between attempts, longer each time, until patience ends."""

    def __init__(
        self,
        patience: Patience,
        pace: Pace,
        note: Callable[[str], None],
        attempts: int | None = None,
    ) -> None:
        self._patience = patience
        self._attempts = patience.attempts if attempts is None else attempts
        self._pace = pace
        self._note = note
        self._failures = 0

    def progressed(self) -> None:
        """Begin to count anew: something has arrived."""
        self._failures = 0

    def failed(self, trouble: TroubleError) -> None:
        """Wait before the next attempt.

        Raises:
            VlmcacheError: there will be none; this is why.
            Stopped: the work was asked to stop.
        """
        self._failures += 1
        asked = trouble.wait
        too_long = asked is not None and asked > self._patience.longest_asked
        if self._failures >= self._attempts or too_long:
            raise trouble.error from trouble
        wait = min(
            self._patience.first_wait * 2 ** (self._failures - 1), self._patience.longest_wait
        )
        import random

        # Spread, so that many clients do not come back together.
        wait *= random.uniform(0.75, 1.25)  # noqa: S311
        if asked is not None:
            wait = max(asked, 0.0)
        if wait >= 2:
            self._note(f"{trouble.error.message}; next try in {wait:.0f} s")
        self._pace.sleep(wait)


class Client:
    """A hub, as one user sees it. Safe to use from several threads.

    Args:
        environment: the variables in force; those of a `.env` are handed on to huggingface_hub,
            which reads its variables when it is imported.
        token: in place of the one that huggingface_hub finds. A hub that a `.env` names gets that
            of the same `.env` only.
        pace: bounds the rate, and stops the work.
        patience: how long to try.
        note: is told what a person would want to know while waiting.

    Raises:
        UsageError: what was given as a token cannot be one.
        HubError: HF_ENDPOINT is no address.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        token: str | None = None,
        pace: Pace | None = None,
        patience: Patience | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.environment = environment
        self.endpoint = (environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self.pace = pace or Pace()
        self.patience = patience or Patience()
        self.token: str | Literal[False] | None = None if token is None else _checked(token)
        if token is None and self.named_by_folder:
            # The working folder may be anybody's: the host that it names gets no token of the user.
            theirs = environment.get("HF_TOKEN") if "HF_TOKEN" in environment.from_file else None
            self.token = _checked(theirs) if theirs else False
        try:
            urlsplit(self.endpoint).port  # noqa: B018 - raises where there is none that could be
        except ValueError as error:
            raise HubError(
                f"HF_ENDPOINT is no address: {_without_login(self.endpoint)}",
                "write it as https://host",
            ) from error
        self._note = note
        self._live: set[socket.socket] = set()

    @property
    def named_by_folder(self) -> bool:
        """Whether a `.env` chose the hub, and chose another than the usual one."""
        chosen = "HF_ENDPOINT" in self.environment.from_file
        return chosen and self.endpoint != DEFAULT_ENDPOINT

    @property
    def offline(self) -> bool:
        """Whether the network is switched off."""
        return self.environment.offline_by is not None

    @cached_property
    def _library(self) -> _Library:
        """What is taken from huggingface_hub, imported when the first request is made."""
        if "HF_HOME" in self.environment.from_file:
            # It chooses the cache of models, and these stay where the process's variables say.
            for variable, name in (("HF_XET_CACHE", "xet"), ("HF_MODULES_CACHE", "modules")):
                os.environ.setdefault(variable, side_caches(self.environment)[name])
        for variable in self.environment.from_file:
            os.environ[variable] = self.environment.variables[variable]
        from huggingface_hub import constants
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import get_session

        session = get_session()
        return _Library(
            session,
            sys.modules[type(session).__module__.partition(".")[0]],
            build_hf_headers(token=self.token, library_name="vlmcache"),
            self.patience.answer_timeout or float(constants.HF_HUB_ETAG_TIMEOUT),
            self.patience.data_timeout or float(constants.HF_HUB_DOWNLOAD_TIMEOUT),
        )

    @property
    def headers(self) -> dict[str, str]:
        """What the hub itself is sent with every request: the token among it."""
        return self._library.headers

    @property
    def _secret(self) -> str:
        """The token, or nothing."""
        for name, value in self.headers.items():
            if name.lower() == "authorization":
                return value.partition(" ")[2]
        return ""

    @property
    def _how_to_log_in(self) -> str:
        if self.named_by_folder:
            return "give --token: a .env named this hub, so that yours is not sent to it"
        return "log in: 'hf auth login', HF_TOKEN or --token"

    @property
    def name(self) -> str:
        """The hub's address for people, without a password that it may carry."""
        parts = urlsplit(self.endpoint)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def note(self, text: str) -> None:
        """Tell whoever waits."""
        self._note(self.scrub(text))

    def scrub(self, text: str) -> str:
        """Return the text without the token and without signed or secret parts of addresses."""
        if self._secret:
            for secret in (self._secret, repr(self._secret)[1:-1]):
                text = text.replace(secret, "***")
        text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
        return _without_login(text)

    def stop(self) -> None:
        """Let all that is running end now; partial downloads stay."""
        self.pace.stopped.set()
        for live in list(self._live):
            # Wakes the thread that waits for bytes.
            with contextlib.suppress(OSError):
                live.shutdown(socket.SHUT_RDWR)

    def within(self, address: str) -> str:
        """Return the address of a next page, at the hub's own origin whatever it says.

        A mirror can hand on the links of the hub behind it.
        """
        own, parts = urlsplit(self.endpoint), urlsplit(urljoin(self.endpoint + "/", address))
        path = parts.path if parts.path.startswith(own.path + "/") else own.path + parts.path
        return parts._replace(scheme=own.scheme, netloc=own.netloc, path=path).geturl()

    def api(self, repo: str, *parts: str, query: str = "") -> str:
        """Return the address of a question about a model."""
        path = "/".join(quote(part, safe="") for part in parts)
        return f"{self.endpoint}/api/models/{quote(repo)}/{path}" + (f"?{query}" if query else "")

    def file_address(self, repo: str, commit: str, file: str) -> str:
        """Return the address of a file."""
        return f"{self.endpoint}/{quote(repo)}/resolve/{commit}/{quote(file)}"

    def ask(
        self, address: str, kind: Any, *, attempts: int | None = None
    ) -> tuple[Any, str | None]:
        """Return an answer, decoded, and the address of its next page if there is one.

        Args:
            address: of the API.
            kind: the type to decode to.
            attempts: fewer than patience allows, where there is something to fall back on.

        Raises:
            VlmcacheError: there is no answer, or it says no.
            Stopped: the work was asked to stop.
        """
        asks = self.patience.asks if attempts is None else min(attempts, self.patience.asks)
        patience = self.patience
        if attempts is not None:
            # Whoever has something to fall back on does not wait for long.
            patience = msgspec.structs.replace(patience, longest_asked=_HURRIED)
        backoff = Backoff(patience, self.pace, self.note, asks)
        while True:
            try:
                with self.opened(address, timeout=self._library.answer_timeout) as response:
                    body = self._body(response)
                    try:
                        value = msgspec.json.decode(body, type=kind)
                    except JSON_ERRORS:
                        raise TroubleError(self.bad_answer(response)) from None
                    return value, response.links.get("next", {}).get("url")
            except TroubleError as trouble:
                backoff.failed(trouble)

    def _body(self, response: Any) -> bytes:
        body = bytearray()
        # Some mirrors compress although they are asked not to.
        with self._network_failures():
            for piece in response.iter_bytes():
                self.pace.sleep(0)
                body += piece
                if len(body) > _ANSWER_LIMIT:
                    raise self.bad_answer(response)
        return bytes(body)

    def pieces(self, response: Any) -> Iterator[bytes]:
        """Yield an answer's body as it comes, as it was sent.

        Raises:
            TroubleError: the connection failed.
        """
        with self._network_failures():
            yield from response.iter_raw()

    def bad_answer(self, response: Any) -> BadAnswerError:
        """Return the failure that an answer is, which no hub would give."""
        kind = response.headers.get("Content-Type", "").partition(";")[0]
        what = "a web page" if "html" in kind else "something else"
        host = urlsplit(str(response.url)).netloc.rpartition("@")[2]
        return BadAnswerError(
            f"{host} answered with {what} where a hub's answer was expected",
            "a login page of this network, or a proxy, or a mirror that is none: check "
            "HF_ENDPOINT and the network",
        )

    @contextlib.contextmanager
    def opened(
        self,
        address: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        signed: bool = False,
    ) -> Iterator[Any]:
        """Open an address once and yield its answer of status 200 or 206, redirects followed.

        The token goes to the hub's own origin and to no other.

        Args:
            address: where.
            headers: sent beside the session's own.
            timeout: seconds without a byte.
            signed: whether the address is one that the hub has redirected to, good for a while.

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
        timeout = self._library.data_timeout if timeout is None else timeout
        first = address
        for _ in range(10):
            own = _origin(address) == home
            sent = {"Accept-Encoding": "identity", **(headers or {})}
            if own:
                sent = self.headers | sent
            with self._network_failures():
                request = self._library.session.build_request(
                    "GET",
                    address,
                    headers=sent,
                    timeout=self._library.http.Timeout(timeout, connect=min(timeout, 10.0)),
                )
                response = self._library.session.send(request, stream=True, follow_redirects=False)
            live = _socket_of(response)
            if live is not None:
                self._live.add(live)
            try:
                self.pace.sleep(0)
                if response.status_code in _REDIRECTS and "Location" in response.headers:
                    target = _followed(address, response.headers["Location"])
                    if target is None:
                        raise self.bad_answer(response)
                    address = target
                    continue
                if response.status_code in (200, 206):
                    yield response
                    return
                raise self._refusal(response, signed=signed or not own or address != first)
            finally:
                if live is not None:
                    self._live.discard(live)
                with contextlib.suppress(Exception):
                    response.close()
        raise TroubleError(BadAnswerError(f"{self.name} redirects in a circle", self._hint()))

    @contextlib.contextmanager
    def _network_failures(self) -> Iterator[None]:
        """Turn the HTTP library's failures into ours."""
        http = self._library.http
        try:
            yield
        except (http.TransportError, http.DecodingError) as error:
            self.pace.sleep(0)
            raise self._unreachable(error) from error
        except (http.InvalidURL, ValueError) as error:
            raise HubError(
                f"not an address: {self.name}: {self.scrub(str(error))}", self._hint()
            ) from error

    def _unreachable(self, error: Exception) -> Exception:
        http = self._library.http
        reason = self.scrub(" ".join(str(error).split())) or type(error).__name__
        if isinstance(error, http.ProxyError):
            return UnreachableError(
                f"the proxy does not let us through to {self.name}: {reason}",
                "check HTTPS_PROXY and NO_PROXY",
            )
        if isinstance(error, http.UnsupportedProtocol):
            return HubError(f"not an address of a hub: {self.name}", self._hint())
        if isinstance(error, http.TimeoutException):
            reason = "no answer in time"
        problem = UnreachableError(f"{self.name} cannot be reached: {reason}", self._hint())
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return UnreachableError(
                f"the certificate of {self.name} cannot be verified: {reason}",
                "a proxy that opens TLS? name its certificates in SSL_CERT_FILE",
            )
        return TroubleError(problem)

    def _hint(self) -> str:
        proxy = self._proxy()
        if proxy:
            return f"the way there leads through the proxy {proxy}: is it right, and is it up?"
        if self.environment.get("HF_ENDPOINT"):
            return f"HF_ENDPOINT names {self.name}: is it right, and is it up?"
        return "check the network; 'vlmcache pull' later goes on where it stopped"

    def _proxy(self) -> str | None:
        """Return the proxy that the environment names for the hub, without its password."""
        import urllib.request

        parts = urlsplit(self.endpoint)
        proxy = urllib.request.getproxies().get(parts.scheme)
        if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
            return None
        return self.scrub(proxy)

    def _refusal(self, response: Any, *, signed: bool) -> Exception:
        """Return what an answer that is none means.

        Args:
            response: the answer.
            signed: whether the address was a signed one, which is only good for a while.
        """
        status: int = response.status_code
        code = response.headers.get("X-Error-Code", "")
        said = self._said(response)
        words = f": {said}" if said else ""
        if status in _PASSING:
            problem = UnreachableError(f"{self.name} answers {status}{words}", self._hint())
            return TroubleError(problem, _asked_wait(response.headers))
        if signed and not code and status in (400, 401, 403, 404, 410):
            host = urlsplit(str(response.url)).netloc
            return ExpiredError(
                HubError(f"{host}, where the hub keeps its files, answers {status}{words}")
            )
        if code == "GatedRepo":
            return self._gated(said)
        if code == "RevisionNotFound":
            return NoSuchRevisionError("no such revision" + words)
        if code == "EntryNotFound":
            return NoSuchFileError("no such file" + words)
        if status == 401 and self._secret and code != "RepoNotFound":
            return AccessError(
                f"{self.name} does not accept the token{words}",
                "a new one: https://huggingface.co/settings/tokens, then 'hf auth login', "
                "HF_TOKEN or --token",
            )
        if code == "RepoNotFound" or status in (401, 404):
            hint = "check the name"
            if not self._secret:
                hint += f"; if it is private, {self._how_to_log_in}"
            else:
                hint += "; if it is private, the token must be allowed to read it"
            return NoSuchRepoError("no such model", hint)
        if status == 403:
            return AccessError(
                f"{self.name} refuses access{words}", "is the token allowed to read this repo?"
            )
        if status == 416:
            return NoRangeError(HubError(f"{self.name} has no such range of the file"))
        return HubError(f"{self.name} answers {status}{words}", self._hint())

    def _gated(self, said: str) -> AccessError:
        if not self._secret:
            return AccessError(
                "the repo is gated and no token was sent",
                f"ask for access on its page at {self.name}, then {self._how_to_log_in}",
            )
        words = f": {said}" if said else ""
        return AccessError(
            f"the repo is gated and this account has no access yet{words}",
            f"ask for it on the repo's page at {self.name}",
        )

    def _said(self, response: Any) -> str:
        """Return the hub's own words, short and without secrets."""
        text = response.headers.get("X-Error-Message", "")
        if not text and "json" in response.headers.get("Content-Type", ""):
            with contextlib.suppress(Exception):
                text = str(msgspec.json.decode(response.read()[:10_000]).get("error", ""))
        return self.scrub(" ".join(text.split()))[:200]


def _without_login(text: str) -> str:
    """Return a text without the names and passwords that addresses in it carry."""
    return re.sub(r"(https?://)[^\s/@]+@", r"\1", text)


def _origin(address: str) -> tuple[str, str, int | None]:
    parts = urlsplit(address)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", port


def _followed(address: str, location: str) -> str | None:
    """Return where a redirect leads; `None` if that is no address or a less safe place."""
    try:
        target = urljoin(address, location)
        _origin(target)
    except ValueError:
        return None
    scheme = urlsplit(target).scheme
    safe = scheme == "https" or (scheme == "http" and urlsplit(address).scheme == "http")
    return target if safe else None


def _checked(token: str) -> str:
    """Return a token without the white space around it, as files and pastes leave it.

    Raises:
        UsageError: it cannot be one; what it is is not told.
    """
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise UsageError(
            "the token is empty or holds characters that no token has",
            "give it as https://huggingface.co/settings/tokens shows it",
        )
    return token


def _socket_of(response: Any) -> socket.socket | None:
    stream = response.extensions.get("network_stream")
    found = stream.get_extra_info("socket") if stream is not None else None
    return found if isinstance(found, socket.socket) else None


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait: Retry-After, or RateLimit as the hub's.

    Retry-After is seconds or a date (RFC 9110); RateLimit is `"api";r=0;t=55`.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    if text:
        import email.utils

        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    match = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(match[1]) if match else None
