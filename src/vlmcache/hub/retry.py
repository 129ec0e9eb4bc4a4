"""What a hub's refusals and a network's failures mean, and how long to try again."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from vlmcache.errors import (
    AccessError,
    BadAnswerError,
    HubError,
    NoSuchFileError,
    NoSuchRepoError,
    NoSuchRevisionError,
    UnreachableError,
    VlmcacheError,
)
from vlmcache.hub.account import Account
from vlmcache.progress import StopToken

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_QUESTION = re.compile(r"/api/(?:models|datasets|spaces|kernels)/")
"""What the path of a question to the hub's API holds, to whatever host it was redirected."""
_AFTER_ENDPOINT = re.compile(
    r"/(?:api(?:/(?:models|datasets|spaces)(?:/.*)?)?|(?:.*/)?(?:resolve|tree|blob)/.*)?/*$"
)
"""What people leave at the end of HF_ENDPOINT, and the client adds itself."""
_RATE_LIMIT = re.compile(r"r\s*=\s*0\b.*?t\s*=\s*(\d+)")


class Patience(msgspec.Struct, frozen=True):
    """How long to try. Times are seconds."""

    attempts: int = 8
    """Failures in a row of a file's transfer, without a byte between them."""
    asks: int = 3
    """Failures in a row of a question, before which nothing has been done."""
    first_wait: float = 0.5
    longest_wait: float = 20.0
    longest_asked: float = 300.0
    """The longest wait that a hub may ask for with Retry-After."""
    answer_timeout: float | None = None
    """huggingface_hub's own if `None`."""
    data_timeout: float | None = None
    """huggingface_hub's own if `None`."""


class TroubleError(Exception):
    """A failure that may pass. `error` is what to report if it does not.

    wait is the time in seconds that the hub asks for, if it asks for any.
    """

    def __init__(self, error: VlmcacheError, wait: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait = wait


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
        note: Callable[[str], None],
        attempts: int,
    ) -> None:
        self._patience = patience
        self._attempts = attempts
        self._stop_token = stop_token
        self._note = note
        self._failures = 0

    def progressed(self) -> None:
        """Start counting from zero: something has arrived."""
        self._failures = 0

    def failed(self, trouble: TroubleError) -> None:
        """Wait before the next attempt.

        Raises:
            VlmcacheError: there will be no other attempt; this is why.
            Stopped: the work was asked to stop.
        """
        self._failures += 1
        patience, asked = self._patience, trouble.wait
        too_long = asked is not None and asked > patience.longest_asked
        if self._failures >= self._attempts or too_long:
            raise trouble.error from trouble
        import random

        wait = min(patience.first_wait * 2 ** (self._failures - 1), patience.longest_wait)
        # Spread, so that many clients do not come back together.
        wait *= random.uniform(0.75, 1.25)  # noqa: S311
        if asked is not None:
            wait = max(asked, 0.0)
        if wait >= 2:
            self._note(f"{trouble.error.message}; next try in {wait:.0f} s")
        self._stop_token.sleep(wait)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait, by Retry-After or the hub's RateLimit.

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


def bad_answer(response: Any) -> BadAnswerError:
    """Return the failure for an answer that no hub would give."""
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    what = "a web page" if "html" in kind else "something else"
    host = urlsplit(str(response.url)).netloc.rpartition("@")[2]
    return BadAnswerError(
        f"{host} answered with {what} where a hub's answer was expected",
        "a login page of this network, or a proxy, or an address that is not a mirror: check "
        "HF_ENDPOINT and the network",
    )


def unreachable(account: Account, error: Exception) -> Exception:
    """Return what a failure of the HTTP library means."""
    http = account.library.http
    reason = account.scrub(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, http.ProxyError):
        return UnreachableError(
            f"the proxy does not let requests through to {account.name}: {reason}",
            "check HTTPS_PROXY and NO_PROXY",
        )
    if isinstance(error, http.UnsupportedProtocol):
        return HubError(f"not an address of a hub: {account.name}", hint(account))
    if isinstance(error, http.TimeoutException):
        reason = "no answer in time"
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return UnreachableError(
            f"the certificate of {account.name} cannot be verified: {reason}",
            "a proxy that opens TLS? name its certificates in SSL_CERT_FILE",
        )
    return TroubleError(
        UnreachableError(f"{account.name} cannot be reached: {reason}", hint(account))
    )


def refused_redirect(account: Account, response: Any) -> BadAnswerError:
    """Return the failure for a redirect that is not followed."""
    address, target = str(response.url), response.headers.get("Location", "")
    with contextlib.suppress(ValueError):
        target = urljoin(address, target)
    plain = target.startswith("http://")
    why = "which is not encrypted" if plain else "which is not an address"
    return BadAnswerError(
        f"{account.scrub(address)} redirects to {account.scrub(target)[:200]}, {why}: not followed",
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
    said = _said(account, response)
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
            )
        )
    if status == 416:
        return NoRangeError(HubError(f"{account.name} has no such range of the file"))
    # The hub has an answer of its own for an address that HF_ENDPOINT makes a wrong one.
    misled = status in (401, 404) and how_written(account, address.path) is not None
    about_a_file = code == "EntryNotFound" and question
    if (not code or about_a_file) and (said is None or misled):
        return _not_the_hubs(account, response, words)
    return _refused(account, status, code, words)


def _refused(account: Account, status: int, code: str, words: str) -> VlmcacheError:
    """Return what a hub's own refusal means."""
    secret = account.library.secret
    if code == "GatedRepo" and secret:
        return AccessError(
            f"the repo is gated and this account has no access yet{words}",
            f"ask for it on the repo's page at {account.name}",
        )
    if code == "GatedRepo":
        return AccessError(
            "the repo is gated and no token was sent",
            f"ask for access on its page at {account.name}, then {account.how_to_log_in}",
        )
    if code == "RevisionNotFound":
        return NoSuchRevisionError("no such revision" + words)
    if code == "EntryNotFound":
        return NoSuchFileError("no such file" + words)
    if status == 401 and secret and code != "RepoNotFound":
        return AccessError(
            f"{account.name} does not accept the token{words}",
            "a new one: https://huggingface.co/settings/tokens, then 'hf auth login', "
            "HF_TOKEN or --token",
        )
    if code == "RepoNotFound" or status in (401, 404):
        advice = "the token must be allowed to read it" if secret else account.how_to_log_in
        return NoSuchRepoError("no such model", f"check the name; if it is private, {advice}")
    if status == 403:
        return AccessError(
            f"{account.name} refuses access{words}", "is the token allowed to read this repo?"
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
            f"HF_ENDPOINT names {account.name}: is a part of the mirror's path missing there, or "
            "has the mirror no API like the hub's, or not this repo?"
        )
    cause = cause or "a login page of this network, or a proxy? open the address in a browser"
    error = HubError(
        f"{account.scrub(str(response.url))} answers {status}"
        + (words or f"{' with a web page' if is_page else ''}, and not as a hub does"),
        cause,
    )
    error.refused_by_other = status
    return error


def _not_forwarded(account: Account, address: SplitResult) -> str | None:
    """Return that the token was kept from another host, if that may be why it refuses."""
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
        asked: the path of what was asked, in which the repo's name shows.
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
    return f"HF_ENDPOINT must be written as {better}, and not as {account.scrub(given)}"


def hint(account: Account) -> str:
    """Return what to check if a hub cannot be reached."""
    import urllib.request

    parts = urlsplit(account.endpoint)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        shown = account.scrub(proxy)
        return f"requests go through the proxy {shown}: is its address correct, and is it running?"
    if account.environment.get("HF_ENDPOINT"):
        written = how_written(account)
        if written is not None:
            return written
        return f"HF_ENDPOINT names {account.name}: is the address correct, and is the hub running?"
    return "check the network; a later 'vlmcache pull' continues where it stopped"


def _said(account: Account, response: Any) -> str | None:
    """Return the hub's own words, short and without secrets; `None` if they are not a hub's."""
    text = response.headers.get("X-Error-Message")
    if text is None and "json" in response.headers.get("Content-Type", ""):
        with contextlib.suppress(Exception):
            body = msgspec.json.decode(next(response.iter_bytes(10_000)))
            # Spring, in which mirrors are written, adds these to an error of its own.
            if isinstance(body["error"], str) and not body.keys() & {"timestamp", "path"}:
                text = body["error"]
    return None if text is None else account.scrub(" ".join(text.split()))[:200]
