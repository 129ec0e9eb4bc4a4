"""A server of a cache in this process, and plain requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import vlmcache

TOKEN = "serve-token-0123456789"
OWN = "the token of the one who asks"


@dataclass(frozen=True)
class Answered:
    """An answer, its headers by their names in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What the body says."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Asking:
    """Asks a server, with its token or with another one."""

    address: str
    token: str | None = TOKEN

    def __call__(
        self,
        path: str,
        method: str = "GET",
        *,
        token: str | None = OWN,
        body: bytes | None = None,
        **headers: str,
    ) -> Answered:
        token = self.token if token == OWN else token
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        parts = urlsplit(self.address)
        with contextlib.closing(
            http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        ) as connection:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return Answered(answer.status, named, content)

    def raw(self, sent: bytes) -> bytes:
        """Send bytes, and return all that comes back until the server ends it."""
        with self.connection() as connection:
            with contextlib.suppress(OSError):
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def connection(self) -> socket.socket:
        """Return a connection on which nothing was sent yet."""
        parts = urlsplit(self.address)
        return socket.create_connection((parts.hostname, parts.port or 80), timeout=60)


@contextlib.contextmanager
def serving(cache: Path, *names: str, **options: Any) -> Iterator[Asking]:
    """Serve a cache on a free port of the loopback: what is named, else everything."""
    given: dict[str, Any] = {"listen": "127.0.0.1:0", "all": not names} | options
    with vlmcache.Cache(cache).serve(list(names) or None, **given) as server:
        yield Asking(server.address)


def environment(asking: Asking, cache: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a client that knows this server and no other hub."""
    return {
        **base,
        "HF_ENDPOINT": asking.address,
        "HF_TOKEN": TOKEN,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
