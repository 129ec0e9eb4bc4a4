"""What a hub's refusals and a network's failures mean, as errors."""

from __future__ import annotations

import contextlib
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
)
from vlmcache.hub.account import Account
from vlmcache.hub.retry import ExpiredError, NoRangeError, TroubleError, asked_wait

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


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
    problem = UnreachableError(f"{account.name} cannot be reached: {reason}", hint(account))
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return UnreachableError(
            f"the certificate of {account.name} cannot be verified: {reason}",
            "a proxy that opens TLS? name its certificates in SSL_CERT_FILE",
        )
    return TroubleError(problem)


def refusal(account: Account, response: Any, *, signed: bool) -> Exception:
    """Return what a refusal means.

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
    if signed and not code and status in (400, 401, 403, 404, 410):
        host = urlsplit(str(response.url)).netloc
        return ExpiredError(
            HubError(f"{host}, where the hub keeps its files, answers {status}{words}")
        )
    if code == "GatedRepo":
        return _gated(account, said)
    if code == "RevisionNotFound":
        return NoSuchRevisionError("no such revision" + words)
    if code == "EntryNotFound":
        return NoSuchFileError("no such file" + words)
    if status == 401 and account.secret and code != "RepoNotFound":
        return AccessError(
            f"{account.name} does not accept the token{words}",
            "a new one: https://huggingface.co/settings/tokens, then 'hf auth login', "
            "HF_TOKEN or --token",
        )
    if code == "RepoNotFound" or status in (401, 404):
        advice = "check the name"
        if not account.secret:
            advice += f"; if it is private, {account.how_to_log_in}"
        else:
            advice += "; if it is private, the token must be allowed to read it"
        return NoSuchRepoError("no such model", advice)
    if status == 403:
        return AccessError(
            f"{account.name} refuses access{words}", "is the token allowed to read this repo?"
        )
    if status == 416:
        return NoRangeError(HubError(f"{account.name} has no such range of the file"))
    return HubError(f"{account.name} answers {status}{words}", hint(account))


def hint(account: Account) -> str:
    """Return what to check if a hub cannot be reached."""
    proxy = _proxy(account)
    if proxy:
        return f"requests go through the proxy {proxy}: is its address correct, and is it running?"
    if account.environment.get("HF_ENDPOINT"):
        return f"HF_ENDPOINT names {account.name}: is the address correct, and is the hub running?"
    return "check the network; a later 'vlmcache pull' continues where it stopped"


def _proxy(account: Account) -> str | None:
    """Return the proxy that the environment names for the hub, without its password."""
    import urllib.request

    parts = urlsplit(account.endpoint)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return account.scrub(proxy)


def _gated(account: Account, said: str) -> AccessError:
    if not account.secret:
        return AccessError(
            "the repo is gated and no token was sent",
            f"ask for access on its page at {account.name}, then {account.how_to_log_in}",
        )
    words = f": {said}" if said else ""
    return AccessError(
        f"the repo is gated and this account has no access yet{words}",
        f"ask for it on the repo's page at {account.name}",
    )


def _said(account: Account, response: Any) -> str:
    """Return the hub's own words, short and without secrets."""
    text = response.headers.get("X-Error-Message", "")
    if not text and "json" in response.headers.get("Content-Type", ""):
        with contextlib.suppress(Exception):
            text = str(msgspec.json.decode(response.read()[:10_000]).get("error", ""))
    return account.scrub(" ".join(text.split()))[:200]
