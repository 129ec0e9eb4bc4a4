"""What the environment says about the connection to a hub, and which settings cannot be used.

huggingface_hub and its HTTP library read these variables when they are imported and when their
session is built, and fail there in words of their own. Here such a failure becomes a sentence that
names the variable and its value, without a password. What they do not read is no reason to fail.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

from vlmcache import log
from vlmcache.cache.reading import read_bytes
from vlmcache.config import Environment, hub_home
from vlmcache.errors import SettingError, VlmcacheError, reason_of
from vlmcache.installing import install_package

DEFAULT_ENDPOINT = "https://huggingface.co"
ANSWER_TIMEOUT = "HF_HUB_ETAG_TIMEOUT"
DATA_TIMEOUT = "HF_HUB_DOWNLOAD_TIMEOUT"
_AGENT = "HF_HUB_USER_AGENT_ORIGIN"
_LONGEST_TIMEOUT = 10**9
"""Seconds; the system refuses a few times as many."""
_TOKEN_LIMIT = 10_000
_PROXY_KINDS = ("http", "https", "socks5", "socks5h")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_UNREAD = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""What other programs take certificates from, and the client's HTTP library does not."""


class Proxy(NamedTuple):
    """The proxy for one scheme, and the variable that names it."""

    variable: str
    value: str

    @property
    def shown(self) -> str:
        """The value without the name and password that it may carry."""
        return log.address_without_login(self.value)


class _Library(Protocol):
    @property
    def secret(self) -> str: ...


_L = TypeVar("_L", bound=_Library)


def built(environment: Environment, build: Callable[[], _L]) -> _L:
    """Return what a function builds to reach a hub.

    Raises:
        SettingError: a variable keeps it from being built, or what was found is not a token.
    """
    for problem in unusable(environment):
        raise problem
    try:
        library = build()
    except VlmcacheError:
        raise
    except Exception as error:
        known = (bad_certificates, bad_key_log, bad_token_file)
        for problem in itertools.chain.from_iterable(find(environment) for find in known):
            raise problem from error
        reason = log.scrub(reason_of(error))
        raise SettingError(
            f"the connection to a hub cannot be set up: {reason}",
            "'vlmcache doctor' lists the variables that count",
        ) from error
    for problem in bad_token(library.secret, token_source(environment)):
        raise problem
    return library


def unusable(environment: Environment) -> Iterator[SettingError]:
    """Yield what is wrong with the variables that can be judged before a client is built."""
    yield from bad_endpoint(environment)
    yield from _bad_timeouts(environment)
    yield from _bad_proxies(environment)
    agent = environment.variables.get(_AGENT, "")
    if not (agent.isascii() and agent.isprintable()):
        yield SettingError(
            f"{environment.source(_AGENT)} holds what no request can send: {agent[:40]!a}",
            "write it in plain letters, or unset it",
        )


def endpoint_of(environment: Environment) -> str:
    """Return the hub's address, without what pasting leaves around it."""
    return ((environment.get("HF_ENDPOINT") or "").strip() or DEFAULT_ENDPOINT).rstrip("/")


def bad_endpoint(environment: Environment) -> Iterator[SettingError]:
    """Yield why HF_ENDPOINT is not the address of a hub."""
    value = endpoint_of(environment)
    hint = "write it as https://host"
    bare = value.strip("'\"")
    if bare != value:
        hint = f"write it without quotes: {log.address_without_login(bare)}"
    elif "://" not in value:
        hint = f"write it as https://{log.address_without_login(value)}"
    parts = address(value)
    if parts is None or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        yield SettingError(
            f"{environment.source('HF_ENDPOINT')} is not an address: "
            f"{log.address_without_login(value)}",
            hint,
        )


def _bad_timeouts(environment: Environment) -> Iterator[SettingError]:
    for name in (ANSWER_TIMEOUT, DATA_TIMEOUT):
        value = environment.variables.get(name, "0")
        try:
            good = 0 <= int(value) <= _LONGEST_TIMEOUT
        except ValueError:
            good = False
        if not good:
            yield SettingError(
                f"{environment.source(name)} is not a number of seconds: '{value[:40]}'",
                "write a whole number such as 30, or unset it",
            )


def _proxies(environment: Environment) -> dict[str, Proxy]:
    """Return scheme -> its proxy, as `urllib.request.getproxies` reads them."""
    variables = environment.variables
    if "*" in _excepted(environment).split(","):
        return {}
    proxies: dict[str, Proxy] = {}
    for scheme in ("http", "https", "all"):
        name = f"{scheme}_proxy"
        name = name if name in variables else name.upper()
        if variables.get(name):
            proxies[scheme] = Proxy(name, variables[name])
    return proxies


def _excepted(environment: Environment) -> str:
    """Return the hosts that no proxy is used for, separated by commas."""
    variables = environment.variables
    return variables.get("no_proxy", variables.get("NO_PROXY", "")).replace(" ", "")


def proxy_in_use(environment: Environment) -> Proxy | None:
    """Return the proxy that requests to the hub go through."""
    import urllib.request

    parts = address(endpoint_of(environment))
    proxies = _proxies(environment)
    if parts is None or urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]
        parts.netloc.rpartition("@")[2], {"no": _excepted(environment)}
    ):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")


def _bad_proxies(environment: Environment) -> Iterator[SettingError]:
    """Yield which proxies the HTTP library refuses, used or not, and why the used one is useless.

    The library takes a value without a scheme for an HTTP proxy.
    """
    used = proxy_in_use(environment)
    for proxy in _proxies(environment).values():
        complete = proxy.value if "://" in proxy.value else f"http://{proxy.value}"
        scheme, _, rest = complete.partition("://")
        begin = f"{proxy.variable} names a proxy"
        port = rest.rpartition("@")[2].rpartition(":")[2]
        odd_port = ":" in rest.rpartition("@")[2] and not (
            port.strip("/").isdecimal() or "]" in port
        )
        if scheme.lower() not in _PROXY_KINDS:
            kind = "socks5" if scheme.lower().startswith("socks") else "http"
            yield SettingError(
                f"{begin} of a kind that is not supported: '{proxy.shown}'",
                f"write it as {kind}://{log.address_without_login(rest) or 'host:port'}",
            )
        elif scheme.lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
            yield SettingError(
                f"{begin} of the kind SOCKS, for which a package is missing: '{proxy.shown}'",
                install_package("socksio"),
            )
        elif odd_port or (proxy == used and address(complete) is None):
            yield SettingError(
                f"{begin} whose address cannot be used: '{proxy.shown}'",
                "write it as http://host:port",
            )


def bad_certificates(environment: Environment) -> Iterator[SettingError]:
    """Yield why certificates cannot be read from where the environment names them."""
    path = environment.get("SSL_CERT_FILE")
    if path is None:
        return
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError) as error:
        yield SettingError(
            f"SSL_CERT_FILE names {_why_no_certificates(path, error)}: '{path}'",
            "name a file of certificates in PEM form, or unset it",
        )


def _why_no_certificates(path: str, error: Exception) -> str:
    import ssl

    if os.path.isdir(path):
        return "a folder"
    if not os.path.exists(path):
        return "a file that does not exist"
    if isinstance(error, ssl.SSLError):
        return "a file without certificates" if os.path.getsize(path) else "an empty file"
    return f"a file that cannot be read ({reason_of(error)})"


def bad_key_log(environment: Environment) -> Iterator[SettingError]:
    """Yield why the file for the keys of TLS cannot be written, without which Python has no TLS."""
    path = environment.get("SSLKEYLOGFILE")
    if path is None:
        return
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = path
    except OSError as error:
        yield SettingError(
            f"SSLKEYLOGFILE names a file that cannot be written ({reason_of(error)}): '{path}'",
            "name a file in a folder that you may write to, or unset it",
        )


def odd_folder(environment: Environment) -> Iterator[SettingError]:
    """Yield why no certificate is found in the folder that the environment names for them."""
    folder = environment.get("SSL_CERT_DIR")
    if folder is not None and not environment.get("SSL_CERT_FILE"):
        from pathlib import Path

        if not any(Path(folder).glob("????????.[0-9]")):
            yield SettingError(
                f"SSL_CERT_DIR names a folder without certificates for OpenSSL: '{folder}'",
                "run 'openssl rehash' on it, or name a file with SSL_CERT_FILE",
            )


def not_read(environment: Environment) -> Iterator[SettingError]:
    """Yield what other programs read for certificates, and the hub's client does not."""
    if environment.get("SSL_CERT_FILE") or environment.get("SSL_CERT_DIR"):
        return
    for name in _UNREAD:
        value = environment.get(name)
        if value is not None:
            yield SettingError(
                f"{name} is not read by the hub's client: '{value}'",
                "if the hub's certificate needs it, name the file with SSL_CERT_FILE",
            )


def certificate_hint(environment: Environment) -> str:
    """Return what to check if a certificate cannot be verified."""
    for problem in (*odd_folder(environment), *not_read(environment)):
        return f"{problem.message}; {problem.hint}"
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        value = environment.get(name)
        if value is not None:
            return f"{name} names '{value}': does it hold the certificate of who signed this one?"
    return "a proxy that opens TLS? name its certificates in SSL_CERT_FILE"


def token_source(environment: Environment) -> str:
    """Return where the token comes from that huggingface_hub finds, for a person."""
    named = next((environment.source(name) for name in _TOKENS if environment.get(name)), None)
    return named or f"'{token_path(environment)}'"


def token_path(environment: Environment) -> str:
    """Return the file in which 'hf auth login' keeps the token."""
    path = environment.get("HF_TOKEN_PATH") or os.path.join(hub_home(environment), "token")
    return os.path.expanduser(path)


def known_token(environment: Environment) -> str | None:
    """Return the token that huggingface_hub would find first (its `utils/_auth.py`)."""
    if environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    for name in _TOKENS:
        token = environment.get(name)
        if token:
            return token.strip()
    try:
        return _file_token(environment)
    except (OSError, UnicodeDecodeError):
        return None


def _file_token(environment: Environment) -> str | None:
    return read_bytes(token_path(environment), _TOKEN_LIMIT).decode().strip() or None


def bad_token(token: str, source: str) -> Iterator[SettingError]:
    """Yield why what was found as a token cannot be one; the message does not repeat it."""
    odd = next((sign for sign in token if not "!" <= sign <= "~"), None)
    if odd is not None:
        yield SettingError(
            f"{source} holds {odd!r}, which no token has",
            "copy it again from https://huggingface.co/settings/tokens, or unset it",
        )


def bad_token_file(environment: Environment) -> Iterator[SettingError]:
    """Yield why the file of the token cannot be read."""
    path = token_path(environment)
    try:
        _file_token(environment)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        named = environment.get("HF_TOKEN_PATH") is not None
        source = environment.source("HF_TOKEN_PATH") if named else "the token"
        if os.path.isdir(path):
            problem = "names a folder" if named else "is a folder"
        else:
            why = reason_of(error) if isinstance(error, OSError) else "it is not text"
            problem = f"cannot be read: {why}"
        hint = (
            "name a file with a token, or unset it" if named else "'hf auth login' writes it anew"
        )
        yield SettingError(f"{source} {problem}: '{path}'", hint)


def address(value: str) -> SplitResult | None:
    """Return the parts of an address that names a host, `None` if it does not."""
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - raises if it is not a port
        host = parts.hostname
    except ValueError:
        return None
    if not host or any(sign.isspace() or sign in "'\"" for sign in parts.netloc):
        return None
    return parts
