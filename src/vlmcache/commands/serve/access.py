"""Who is answered: the token, the networks that need none, and the names of this server."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vlmcache import log, units
from vlmcache.addresses import Network, is_loopback, is_own_host, parse_host, parse_networks
from vlmcache.cache.reading import open_quietly, read_bytes
from vlmcache.commands.serve.values import ServeOptions
from vlmcache.config import Environment
from vlmcache.errors import UsageError, reason_of

VARIABLE = "VLMCACHE_SERVE_TOKEN"
_SHORTEST = 16
_MAKE_ONE = "make one: (umask 077; openssl rand -hex 32 > serve-token)"
_LONGEST = 4096
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.%]{2,64}\]|[0-9A-Za-z._-]{1,253})(?::[0-9]{1,5})?")


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: int
    code: str | None
    """The hub's code for it, which its clients understand."""
    message: str


class Access:
    """Decides what a request may see.

    Args:
        token: what opens everything that is served; `None` if there is none.
        networks: from which no token is asked for.
        listened_on: the address or name that is listened on.
        on_network: whether other machines reach it.
    """

    def __init__(
        self, token: str | None, networks: Sequence[Network], listened_on: str, *, on_network: bool
    ) -> None:
        self._token = token.encode() if token is not None else None
        self._networks = networks
        self._listened_on = listened_on
        self._on_network = on_network

    @property
    def has_token(self) -> bool:
        """Whether there is a token."""
        return self._token is not None

    def judge(
        self, headers: Iterable[tuple[bytes, bytes]], client: str, reached_at: str
    ) -> bool | Refusal:
        """Return whether a request may see all that is served, or why it is not answered.

        Args:
            headers: of the request, their names in lower case.
            client: the address that it comes from.
            reached_at: the address that it came to.
        """
        values: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            values.setdefault(name, []).append(value)
        hosts = values.get(b"host", [])
        if len(hosts) != 1 or _HOST.fullmatch(hosts[0]) is None:
            return Refusal(400, None, "one Host header is expected")
        tokens = values.get(b"authorization", [])
        address = parse_host(client)
        is_allowed = address is not None and any(address in network for network in self._networks)
        if self._token is not None and tokens:
            # A browser that a foreign page has led here does not have the token.
            if len(tokens) == 1 and self._is_token(tokens[0]):
                return True
            # From an allowed network any token is accepted: clients send the one of their hub.
            if not is_allowed:
                return Refusal(
                    401, None, "Invalid credentials in Authorization header: set HF_TOKEN to this "
                    "server's token"
                )  # fmt: skip
        if not is_own_host(hosts[0].decode("ascii"), self._listened_on, reached_at):
            return Refusal(421, None, "no address or name that this server has")
        if is_allowed:
            return True
        if self._on_network or not is_loopback(client):
            if self._token is None:
                return Refusal(403, None, f"this server answers other addresses than {client}")
            return Refusal(401, None, "set HF_TOKEN to this server's token")
        return False

    def _is_token(self, header: bytes) -> bool:
        scheme, _, given = header.partition(b" ")
        same = hmac.compare_digest(given.strip(), self._token or b"")
        return same and scheme.lower() == b"bearer"


def read_access(
    options: ServeOptions, environment: Environment, host: str, listened_on: str
) -> Access:
    """Return who may ask.

    Args:
        options: what the user wants.
        environment: which may hold the token.
        host: the address or name to listen on, as it was typed.
        listened_on: the address that it means.

    Raises:
        UsageError: the token cannot be read or is not one; or other machines reach the address,
            and nothing says which of them may.
    """
    token = environment.own(VARIABLE)
    source = VARIABLE
    if options.token_file is not None:
        source = f"--token-file {options.token_file}"
        token = _read_token(options.token_file, environment.absolute(options.token_file))
    if token is not None:
        token = token.strip()
        log.hide(token)
        if not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError(f"{source}: it holds characters that no token has", _MAKE_ONE)
        if len(token) < _SHORTEST:
            raise UsageError(f"{source}: it has fewer than {_SHORTEST} characters", _MAKE_ONE)
    networks = parse_networks(options.allow)
    on_network = not is_loopback(listened_on)
    if on_network and token is None and not networks:
        raise UsageError(
            f"other machines reach {host}: a token is needed, or the networks that need none",
            f"--token-file FILE or {VARIABLE}, or --allow CIDR",
        )
    return Access(token, networks, host, on_network=on_network)


def _read_token(shown: str, path: str) -> str:
    """Return what a token file holds.

    Raises:
        UsageError: it cannot be read, or others can read it too.
    """
    try:
        descriptor = open_quietly(path)
        mode = os.fstat(descriptor).st_mode
        content = read_bytes(descriptor, _LONGEST)
    except OSError as error:
        raise UsageError(f"--token-file {shown}: {reason_of(error)}", _MAKE_ONE) from None
    if os.name == "posix" and mode & 0o077:
        raise UsageError(
            f"--token-file {shown}: other users can read it",
            units.shell_words("chmod", "600", shown),
        )
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        raise UsageError(
            f"--token-file {shown}: it holds characters that no token has", _MAKE_ONE
        ) from None
