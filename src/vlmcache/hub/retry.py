"""What a hub's refusals and a network's failures mean, and how long to try again."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from vlmcache import log
from vlmcache.errors import (
    AccessError,
    BadAnswerError,
    HubError,
    NoSuchFileError,
    NoSuchRepoError,
    NoSuchRevisionError,
    UnreachableError,
    VlmcacheError,
    reason_of,
)
from vlmcache.hub import settings
from vlmcache.hub.account import Account
from vlmcache.progress import StopToken
from vlmcache.units import LONGEST, duration_text

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_QUESTION = re.compile(r"/api/(?:models|datasets|spaces|kernels)/")
"""What the path of a question to the hub's API holds, to whatever host it was redirected."""
_REPO = re.compile(
    r"/(?:api/(?:models/)?)?((?:datasets/|spaces/)?[^/]+(?:/[^/]+)?)"
    r"/(?:resolve|revision|tree|auth-check|refs|xet-read-token)(?:/|$)"
)
"""What the path of a question about a repo, or of a file of it, ends in: its name on the hub."""
_AFTER_ENDPOINT = re.compile(
    r"/(?:api(?:/(?:models|datasets|spaces)(?:/.*)?)?|(?:.*/)?(?:resolve|tree|blob)/.*)?/*$"
)
"""What people leave at the end of HF_ENDPOINT although the client adds it itself."""
_NOT_HTTP = re.compile(r"content-length|transfer-encoding|receive buffer", re.IGNORECASE)
"""What the HTTP library says of an answer whose headers no client can read: unlike a lost
connection, that does not pass."""
_RATE_LIMIT = re.compile(r"r\s*=\s*0\b.*?t\s*=\s*(\d+)")


class Patience(msgspec.Struct, frozen=True):
    """How long to try. Times are seconds."""

    attempts: int = 8
    """Failures in a row of a file's transfer, without a byte between them."""
    asks: int = 3
    """Failures in a row of a question, before which nothing has been done."""
    first_wait: float = 0.5
    longest_wait: float = 20.0
    longest_asked: float = 600.0
    """The longest time that a hub may ask to wait with Retry-After, all of a question's or file's
    waits together."""
    longest_download: float | None = None
    """How long another process's download of the same file is waited for; as long as it grows if
    `None`."""
    answer_timeout: float | None = None
    """huggingface_hub's own if `None`."""
    growth: float = 3.0
    """How many times longer each retry of a question waits for its answer, unless the user has set
    how long: a mirror may have to ask another hub first."""
    data_timeout: float | None = None
    """huggingface_hub's own if `None`."""


class TroubleError(Exception):
    """A failure that may pass.

    Attributes:
        error: what to report if it does not pass.
        wait: the seconds that the hub asks to wait, if it asks for any.
        lasting: whether the same failure a second time is final; if not given, it is for an answer
            that no hub would give.
    """

    def __init__(
        self, error: VlmcacheError, wait: float | None = None, *, lasting: bool | None = None
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait = wait
        self.lasting = isinstance(error, BadAnswerError) if lasting is None else lasting


class SlowError(TroubleError):
    """There was a connection, and nothing came over it in time."""


class ExpiredError(TroubleError):
    """A signed address is no longer good; the hub gives out a new one."""


class NoRangeError(TroubleError):
    """The hub does not send a part of a file; it may send all of it."""


class Backoff:
    """Waits between attempts, longer each time, until patience ends."""

    def __init__(
        self,
        patience: Patience,
        stop_token: StopToken,
        note: Callable[[str, str], None],
        attempts: int,
    ) -> None:
        self._patience = patience
        self._attempts = attempts
        self._stop_token = stop_token
        self._note = note
        self._failures = 0
        self._asked = 0.0
        self._lasting: set[str] = set()

    def progressed(self) -> None:
        """Start counting from zero: something has arrived."""
        self._failures, self._asked = 0, 0.0
        self._lasting.clear()

    def failed(self, trouble: TroubleError) -> None:
        """Wait before the next attempt.

        Raises:
            VlmcacheError: there will be no other attempt; this is why.
            Stopped: the work was asked to stop.
        """
        patience, asked = self._patience, trouble.wait
        message = trouble.error.message
        # A wait that the hub asks for is not a failure; it is given up when it takes too long.
        self._failures += asked is None or asked < 1
        self._asked += asked or 0.0
        if asked is not None and self._asked > patience.longest_asked:
            raise _waits_too_long(trouble.error, asked, self._asked) from trouble
        left = self._attempts - self._failures
        if left <= 0 or (trouble.lasting and message in self._lasting):
            raise trouble.error from trouble
        if trouble.lasting:
            self._lasting.add(message)
        import random

        wait = min(patience.first_wait * 2 ** max(self._failures - 1, 0), patience.longest_wait)
        # Spread, so that many clients do not come back together.
        wait *= random.uniform(0.75, 1.25)  # noqa: S311
        if asked is not None:
            wait = max(asked, 0.0)
        if wait >= 2:
            more = f", {left} more at most" if left > 1 and asked is None else ""
            self._note(message, f"next try in {wait:.0f} s{more}")
        self._stop_token.sleep(wait)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait, by Retry-After or the hub's RateLimit.

    Retry-After is seconds or a date (RFC 9110), which is compared with the answer's own date: this
    machine's clock may be wrong. RateLimit is `"api";r=0;t=55`.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), LONGEST)
    until = _seconds_of(text)
    if until is not None:
        now = _seconds_of(headers.get("Date", ""))
        return max(0.0, until - (time.time() if now is None else now))
    match = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return min(float(match[1]), LONGEST) if match else None


def _seconds_of(date: str) -> float | None:
    """Return a date of HTTP as seconds since 1970, `None` if it is not one."""
    import email.utils

    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return email.utils.parsedate_to_datetime(date).timestamp()
    return None


def _waits_too_long(error: VlmcacheError, asked: float, in_all: float) -> VlmcacheError:
    """Return a failure that says how long the hub asks to wait."""
    return error.saying(
        f"{error.message}; the hub asks to wait {duration_text(asked)}",
        "run it again after that; 'vlmcache pull --max-wait "
        f"{math.ceil(in_all / 60)}m' waits for it",
    )


def bad_answer(response: Any, content: str = "something else") -> BadAnswerError:
    """Return the failure for an answer that no hub would give.

    Args:
        response: the answer.
        content: what it sends, in words, unless its header says that it is a web page.
    """
    kind = response.headers.get("Content-Type", "").partition(";")[0].lower()
    content = "a web page" if "html" in kind else content
    host = urlsplit(str(response.url)).netloc.rpartition("@")[2]
    return BadAnswerError(
        f"{host} answered with {content} where a hub's answer was expected",
        "a login page of this network, or a proxy, or an address that is not a mirror: check "
        "HF_ENDPOINT and the network",
    )


def unreachable(account: Account, error: Exception, variable: str, seconds: float) -> Exception:
    """Return what a failure of the HTTP library means.

    Args:
        account: the hub.
        error: the failure.
        variable: the environment variable that sets how long to wait.
        seconds: how long that was.
    """
    http, environment = account.library.http, account.environment
    reason = log.scrub(reason_of(error))
    proxy = settings.proxy_in_use(environment)
    if isinstance(error, http.ProxyError):
        named = (
            f"{proxy.variable} names {proxy.shown}" if proxy is not None else "check HTTPS_PROXY"
        )
        return UnreachableError(
            f"the proxy does not let requests through to {account.name}: {reason}",
            f"{named}; NO_PROXY lists what needs no proxy",
        )
    if isinstance(error, http.UnsupportedProtocol):
        return HubError(f"not an address of a hub: {account.name}", hint(account))
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return UnreachableError(
            f"the certificate of {account.name} cannot be verified: {reason}",
            settings.certificate_hint(environment),
        )
    if isinstance(error, http.ReadTimeout):
        return SlowError(
            UnreachableError(
                f"{account.name} cannot be reached: no answer within {seconds:g} s",
                f"{variable}={math.ceil(3 * seconds)} waits longer; {hint(account)}",
            )
        )
    if isinstance(error, http.RemoteProtocolError) and _NOT_HTTP.search(reason):
        problem = UnreachableError(
            f"{account.name} answers with headers that cannot be read: {reason}", hint(account)
        )
        return TroubleError(problem, lasting=True)
    if isinstance(error, http.TimeoutException):
        reason = "no connection in time"
    return TroubleError(
        UnreachableError(f"{account.name} cannot be reached: {reason}", hint(account))
    )


def refused_redirect(response: Any) -> BadAnswerError:
    """Return the failure for a redirect that is not followed."""
    address, target = str(response.url), response.headers.get("Location", "")
    plain = False
    with contextlib.suppress(ValueError):
        target = urljoin(address, target)
        plain = target.startswith("http://")
    why = "which is not encrypted" if plain else "which is not an address"
    return BadAnswerError(
        f"{log.scrub(address)} redirects to {log.scrub(target)[:200]}, {why}: not followed",
        "if that is your mirror, name the address itself in HF_ENDPOINT" if plain else None,
    )


def refusal(account: Account, response: Any, *, signed: bool) -> Exception:
    """Return what a refusal means.

    Only what a hub itself says about a repo is believed: it sends X-Error-Code or its own JSON.

    Args:
        account: the hub.
        response: the answer.
        signed: whether the address was a signed one, which is valid only for a while.
    """
    status: int = response.status_code
    code = response.headers.get("X-Error-Code", "")
    said = _hubs_words(response)
    words = f": {said}" if said else ""
    if status in _PASSING:
        problem = UnreachableError(f"{account.name} answers {status}{words}", hint(account))
        return TroubleError(problem, asked_wait(response.headers))
    address = urlsplit(str(response.url))
    question = _QUESTION.search(address.path) is not None
    if signed and not (code or question) and status in (400, 401, 403, 404, 410):
        return ExpiredError(
            HubError(
                f"{address.netloc}, where the hub keeps its files, answers {status}{words}",
                _not_forwarded(account, address),
            ),
            lasting=status != 403,
        )
    if status == 416:
        return NoRangeError(HubError(f"{account.name} has no such range of the file"))
    # The hub has an answer of its own for an address that HF_ENDPOINT makes a wrong one.
    misled = status in (401, 404) and how_written(account, address.path) is not None
    about_a_file = code == "EntryNotFound" and question
    if (not code or about_a_file) and (said is None or misled):
        return _not_the_hubs(account, response, words)
    return _refused(account, status, code, words, page=_page(account, address.path))


def _page(account: Account, path: str) -> str:
    """Return the address of the page of the repo that a path of the hub is about."""
    match = _REPO.search(path)
    return f"{account.name}/{match[1]}" if match else account.name


def _refused(account: Account, status: int, code: str, words: str, *, page: str) -> VlmcacheError:
    """Return what a hub's own refusal means."""
    secret = account.library.secret
    if code == "GatedRepo" and secret:
        return AccessError(
            f"the repo is gated and this account has no access yet{words}",
            f"ask for it on the repo's page: {page}",
        )
    if code == "GatedRepo":
        return AccessError(
            "the repo is gated and no token was sent",
            f"ask for access on its page, {page}, then {account.how_to_log_in}",
        )
    if code == "RevisionNotFound":
        return NoSuchRevisionError("no such revision" + words)
    if code == "EntryNotFound":
        return NoSuchFileError("no such file" + words)
    if status == 401 and secret and code != "RepoNotFound":
        return AccessError(f"{account.name} does not accept the token{words}", account.how_to_renew)
    if code == "RepoNotFound" or status in (401, 404):
        advice = "the token must be allowed to read it" if secret else account.how_to_log_in
        return NoSuchRepoError("no such model", f"check the name; if it is private, {advice}")
    if status == 403:
        return AccessError(
            f"{account.name} refuses access{words}",
            f"is the token allowed to read this repo? {page}",
        )
    return HubError(f"{account.name} answers {status}{words}", hint(account))


def _not_the_hubs(account: Account, response: Any, words: str) -> HubError:
    """Return the failure for a refusal that is not a hub's: of a proxy, or of a plain server."""
    status: int = response.status_code
    address = urlsplit(str(response.url))
    is_page = "html" in response.headers.get("Content-Type", "")
    cause = _not_forwarded(account, address) or how_written(account, address.path)
    if cause is None and status in (401, 403, 407) and account.named_by_folder:
        cause = account.how_to_log_in
    if cause is None and status in (401, 403, 407):
        cause = "a proxy or mirror that asks for a login of its own? open the address in a browser"
    elif cause is None and account.environment.get("HF_ENDPOINT"):
        cause = (
            f"HF_ENDPOINT names {account.name}: is part of the mirror's path missing, or does the "
            "mirror not have the hub's API, or not this repo?"
        )
    cause = cause or "a login page of this network, or a proxy? open the address in a browser"
    error = HubError(
        f"{log.scrub(str(response.url))} answers {status}"
        + (words or f"{' with a web page' if is_page else ''}, and not as a hub does"),
        cause,
    )
    error.refused_by_other = status
    return error


def _not_forwarded(account: Account, address: SplitResult) -> str | None:
    """Return that the token was not sent to another host, if that may be why it refuses."""
    hub = urlsplit(account.endpoint)
    if (address.scheme, address.netloc) == (hub.scheme, hub.netloc.rpartition("@")[2]):
        return None
    if not account.library.secret:
        return None
    return (
        f"the token was not forwarded: it is only sent to {account.name}, which redirects to "
        f"{address.scheme}://{address.netloc.rpartition('@')[2]}; if that is your mirror, name it "
        "in HF_ENDPOINT"
    )


def how_written(account: Account, asked: str = "") -> str | None:
    """Return how HF_ENDPOINT must be written, if it looks like something else than a hub's address.

    Args:
        account: the hub.
        asked: the path of what was asked for, which holds the repo's name.
    """
    given = account.environment.get("HF_ENDPOINT")
    if not given:
        return None
    scheme, separator, rest = given.strip().rpartition("://")
    host, _, path = _AFTER_ENDPOINT.sub("", rest.rpartition("@")[2]).partition("/")
    segments = [part for part in path.split("/") if part]
    below = asked[len(urlsplit(account.endpoint).path) :]
    if len(segments) >= 2 and f"/{'/'.join(segments[-2:])}/" in below:
        segments = segments[:-2]
    scheme = scheme.lower() if scheme.lower() in ("http", "https") else "https"
    better = f"{scheme}://{'/'.join([host, *segments])}"
    if better == account.name and separator:
        return None
    return f"HF_ENDPOINT must be written as {better}, and not as {log.scrub(given)}"


def hint(account: Account) -> str:
    """Return what to check if a hub cannot be reached."""
    proxy = settings.proxy_in_use(account.environment)
    if proxy is not None:
        return (
            f"requests go through the proxy {proxy.shown} of {proxy.variable}: is its address "
            "correct, and is it running?"
        )
    if account.environment.get("HF_ENDPOINT"):
        written = how_written(account)
        if written is not None:
            return written
        return f"HF_ENDPOINT names {account.name}: is the address correct, and is the hub running?"
    return "check the network; a later 'vlmcache pull' continues where it stopped"


def _hubs_words(response: Any) -> str | None:
    """Return the hub's own words, short and without secrets; `None` if they are not a hub's."""
    text = response.headers.get("X-Error-Message")
    if text is None and "json" in response.headers.get("Content-Type", ""):
        with contextlib.suppress(Exception):
            body = msgspec.json.decode(next(response.iter_bytes(10_000)))
            # Spring, in which mirrors are written, adds these to an error of its own.
            if isinstance(body["error"], str) and not body.keys() & {"timestamp", "path"}:
                text = body["error"]
    return None if text is None else log.scrub(" ".join(text.split()))[:200]
