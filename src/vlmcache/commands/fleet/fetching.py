"""Clients that ask the hub, another node or the driver, and who is to blame if that fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from vlmcache import log
from vlmcache.cache.state import TreeFile
from vlmcache.commands.fleet.parcels import Fault, Sender
from vlmcache.config import Session
from vlmcache.errors import (
    AccessError,
    CacheError,
    ChangedError,
    HubError,
    OfflineError,
    SpaceError,
    UnreachableError,
    VlmcacheError,
)
from vlmcache.hub.client import Client
from vlmcache.hub.retry import Patience
from vlmcache.hub.served import ServedContents
from vlmcache.hub.sources import Source
from vlmcache.progress import Throttle

_SILENCE = 8.0
"""Seconds without a byte after which another node is given up."""
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def client_for(
    session: Session, sender: Sender | None, rate: int | None, note: Callable[[str], None]
) -> Client:
    """Return a client that asks another node alone, or the hub if none is named.

    Args:
        session: of this node.
        sender: the other one.
        rate: bytes per second; unlimited if `None`.
        note: called with what a person would want to know of the hub.
    """
    throttle = Throttle(rate)
    if sender is None:
        return Client(session.environment, throttle=throttle, note=note)
    return client_of_sources(session, [_served(session, sender, throttle)], throttle)


def _served(session: Session, sender: Sender, throttle: Throttle) -> ServedContents:
    log.hide(sender.token)
    variables = {
        name: value
        for name, value in session.environment.variables.items()
        # They keep it from the hub, not from other nodes.
        if name not in OFFLINE_VARIABLES
    }
    environment = msgspec.structs.replace(session.environment, variables=variables)
    patience = Patience(
        attempts=1, asks=1, growth=1.0, answer_timeout=_SILENCE, data_timeout=_SILENCE
    )
    return ServedContents(environment, sender.address, sender.token, throttle, patience)


def client_of_sources(
    session: Session, sources: Sequence[Source], throttle: Throttle | None = None
) -> Client:
    """Return a client that asks nothing but sources.

    Args:
        session: of this node.
        sources: what is asked.
        throttle: what stops the transfer and its sources.
    """
    own = session.environment
    variables = own.variables | {OFFLINE_VARIABLES[0]: "1"}
    client = Client(
        msgspec.structs.replace(own, variables=variables),
        throttle=throttle,
        patience=Patience(data_timeout=_SILENCE),
    )
    client.sources.use(sources, first=True)
    return client


class Given:
    """Small contents that the driver has handed over: a `Source`."""

    kind = "given"
    streamed = False
    name = "the driver"

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    def has(self, etag: str, size: int) -> bool:
        """Return whether it has a content of a length."""
        return len(self._contents.get(etag, b"")) == size and etag in self._contents

    def order(self, etag: str) -> int:  # noqa: ARG002
        """Return 0: any content can be read at any time."""
        return 0

    @contextlib.contextmanager
    def open(self, etag: str, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Yield a content from an offset on."""
        yield iter([self._contents[etag][offset:]])

    def descriptor(self, etag: str) -> int | None:  # noqa: ARG002
        """Return `None`: it is in no file."""
        return None

    def listing(self, repo: str, revision: str) -> tuple[str, dict[str, TreeFile]] | None:  # noqa: ARG002
        """Return `None`: it lists nothing."""
        return None


def fault_of(error: VlmcacheError, client: Client, source: str | None) -> Fault:
    """Return what is to blame for a failure.

    Args:
        error: why a parcel was not fetched.
        client: the one that was to fetch it.
        source: the node that was asked; `None` for the hub.
    """
    if client.stop_token.stopped.is_set():
        return "stopped"
    if client.sources.wrong:
        return "wrong"
    if isinstance(error, SpaceError | CacheError):
        return "node"
    if source is not None:
        return "source"
    if isinstance(error, OfflineError | UnreachableError):
        return "unreachable"
    if isinstance(error, HubError | AccessError):
        return "hub"
    return "node" if isinstance(error, ChangedError) else "hub"


def without_proxy(hosts: Sequence[str]) -> None:
    """Let no proxy stand between the nodes: an inherited one is meant for the hub."""
    if not {"http_proxy", "all_proxy"} & {name.casefold() for name in os.environ}:
        return
    for name in ("NO_PROXY", "no_proxy"):
        known = [part for part in os.environ.get(name, "").split(",") if part]
        if "*" not in known:
            os.environ[name] = ",".join([*known, *(host for host in hosts if host not in known)])
