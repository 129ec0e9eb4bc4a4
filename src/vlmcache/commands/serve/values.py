"""What `serve` is asked for, and what it returns."""

from __future__ import annotations

import msgspec

from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.report import Report

DEFAULT_LISTEN = "127.0.0.1:9401"
CONNECTIONS = 256
"""Connections at a time by default."""


class ServeError(VlmcacheError):
    """The address cannot be listened on, or the server could not start."""

    code = "serve"


class ServeOptions(msgspec.Struct, frozen=True):
    """How to serve; fields are named like the options."""

    listen: str | None = None
    """The address, if not the default port of the loopback; then what is served has to be named."""
    all: bool = False
    token_file: str | None = None
    allow: tuple[str, ...] = ()
    """Networks from which no token is asked for."""
    include_gated: bool = False
    """Whether named models are served that the hub gives to some users only."""
    tls_cert: str | None = None
    tls_key: str | None = None
    limit_rate: int | None = None
    """Bytes per second for all clients together."""
    max_connections: int = CONNECTIONS


class ServedModel(msgspec.Struct, frozen=True):
    """A repo that is served, as it was when the server started."""

    repo: str
    """Its name: that of a dataset begins with `datasets/`."""
    commits: tuple[str, ...]
    """Its cached revisions."""
    files: int
    size: int
    """Length in bytes of its different contents."""
    token_only: bool
    """Whether other users of this machine cannot read its files, which only the token opens."""


class NotServed(msgspec.Struct, frozen=True):
    """A repo that is in the cache and not served."""

    repo: str
    reason: str


class ServeReport(Report, frozen=True):
    """The result of `vlmcache serve`. Sizes are bytes."""

    address: str
    models: tuple[ServedModel, ...]
    not_served: tuple[NotServed, ...]
    requests: int
    refused: int
    """Requests that were answered with a status of 400 or more."""
    files: int
    """Different contents that were sent, completely or a part of each."""
    bytes_sent: int
    seconds: float

    @property
    def ids(self) -> list[str]:
        """The address."""
        return [self.address]


class InterruptedServeError(VlmcacheError):
    """Ctrl-C ended the server."""

    code = "interrupted"
    exit_code = ExitCode.INTERRUPTED


class TerminatedServeError(VlmcacheError):
    """SIGTERM or SIGHUP ended the server."""

    code = "terminated"
    exit_code = ExitCode.TERMINATED
