"""What a hub's refusals and a network's failures mean, and how long to try again."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

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

    wait is the time in seconds that the hub asks for, if it asks for any. lasting says that the
    same failure a second time would be the last: an answer that no hub would give, unless given.
    """

    def __init__(
        self, error: VlmcacheError, wait: float | None = None, *, lasting: bool | None = None
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait = wait
        self.lasting = isinstance(error, BadAnswerError) if lasting is None else lasting


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
        self._lasting: set[str] = set()

    def progressed(self) -> None:
        """Start counting from zero: something has arrived."""
        self._failures = 0
        self._lasting.clear()

    def failed(self, trouble: TroubleError) -> None:
        """Wait before the next attempt.

        Raises:
            VlmcacheError: there will be no other attempt; this is why.
            Stopped: the work was asked to stop.
        """
        self._failures += 1
        patience, asked = self._patience, trouble.wait
        too_long = asked is not None and asked > patience.longest_asked
        what = trouble.error.message
        left = self._attempts - self._failures
        if left <= 0 or too_long or (trouble.lasting and what in self._lasting):
            raise trouble.error from trouble
        if trouble.lasting:
            self._lasting.add(what)
        import random

        wait = min(patience.first_wait * 2 ** (self._failures - 1), patience.longest_wait)
        # Spread, so that many clients do not come back together.
        wait *= random.uniform(0.75, 1.25)  # noqa: S311
        if asked is not None:
            wait = max(asked, 0.0)
        if wait >= 2:
            more = f", {left} more at most" if left > 1 else ""
            self._note(what, f"next try in {wait:.0f} s{more}")
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


def bad_answer(response: Any, what: str = "something else") -> BadAnswerError:
    """Return the failure for an answer that no hub would give.

    Args:
        response: the answer.
        what: what it is, if it does not say that it is a web page.
    """
    kind = response.headers.get("Content-Type", "").partition(";")[0].lower()
    what = "a web page" if "html" in kind else what
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


def refusal(account: Account, response: Any, *, signed: bool) -> Exception:
    """Return what a refusal means.

    Args:
        account: the hub.
        response: the answer.
        signed: whether the address was a signed one, which is valid only for a while.
    """
    status: int = response.status_code
    code = response.headers.get("X-Error-Code", "")
    words = _said(account, response)
    if status in _PASSING:
        problem = UnreachableError(f"{account.name} answers {status}{words}", hint(account))
        return TroubleError(problem, asked_wait(response.headers))
    if signed and not code and status in (400, 401, 403, 404, 410):
        host = urlsplit(str(response.url)).netloc
        return ExpiredError(
            HubError(f"{host}, where the hub keeps its files, answers {status}{words}"),
            lasting=status != 403,
        )
    if code == "GatedRepo" and account.library.secret:
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
    if status == 401 and account.library.secret and code != "RepoNotFound":
        return AccessError(
            f"{account.name} does not accept the token{words}",
            "a new one: https://huggingface.co/settings/tokens, then 'hf auth login', "
            "HF_TOKEN or --token",
        )
    if code == "RepoNotFound" or status in (401, 404):
        advice = (
            "the token must be allowed to read it"
            if account.library.secret
            else account.how_to_log_in
        )
        return NoSuchRepoError("no such model", f"check the name; if it is private, {advice}")
    if status == 403:
        return AccessError(
            f"{account.name} refuses access{words}", "is the token allowed to read this repo?"
        )
    if status == 416:
        return NoRangeError(HubError(f"{account.name} has no such range of the file"))
    return HubError(f"{account.name} answers {status}{words}", hint(account))


def hint(account: Account) -> str:
    """Return what to check if a hub cannot be reached."""
    import urllib.request

    parts = urlsplit(account.endpoint)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        shown = account.scrub(proxy)
        return f"requests go through the proxy {shown}: is its address correct, and is it running?"
    if account.environment.get("HF_ENDPOINT"):
        return f"HF_ENDPOINT names {account.name}: is the address correct, and is the hub running?"
    return "check the network; a later 'vlmcache pull' continues where it stopped"


def _said(account: Account, response: Any) -> str:
    """Return the hub's own words after a colon, short and without secrets; empty without any."""
    text = response.headers.get("X-Error-Message", "")
    if not text and "json" in response.headers.get("Content-Type", ""):
        with contextlib.suppress(Exception):
            text = str(msgspec.json.decode(next(response.iter_bytes(10_000))).get("error", ""))
    said = account.scrub(" ".join(text.split()))[:200]
    return f": {said}" if said else ""
