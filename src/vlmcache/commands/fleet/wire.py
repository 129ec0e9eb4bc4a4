"""The lines of JSON between the command's process and the one that knows Ray."""

from __future__ import annotations

import msgspec

from vlmcache.show.text import encodable


class Join(msgspec.Struct, frozen=True, tag="join"):
    """Join a cluster; the first line."""

    address: str
    setup: str
    """What each actor is given, as JSON."""
    sees_gpus: bool = False
    """Whether actors see the GPUs, of which they reserve none."""
    verbose: bool = False
    """Whether Ray may print."""


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Start an actor on each of these nodes."""

    nodes: tuple[str, ...]


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Call a method on a node."""

    number: int
    node: str
    method: str
    request: str
    silent: float
    """Seconds without progress after which the node is given up."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Ask the work on all nodes to end soon."""


Order = Join | Start | Ask | Stop


class NodeFacts(msgspec.Struct, frozen=True):
    """What Ray says of a node."""

    id: str
    name: str
    hostname: str
    address: str
    alive: bool
    labels: dict[str, str] = {}


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """The cluster was joined."""

    nodes: tuple[NodeFacts, ...]
    python: str
    ray: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The cluster was not joined."""

    code: str
    text: str


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """The answer to a call: JSON, or why the node no longer answers."""

    number: int
    content: str = ""
    lost: str = ""


class Beats(msgspec.Struct, frozen=True, tag="beats"):
    """How far the work on a node is, as JSON."""

    node: str
    beat: str


News = Joined | Refused | Answered | Beats


def line(message: msgspec.Struct) -> bytes:
    """Return a message as a line."""
    return msgspec.json.encode(message) + b"\n"


def as_json(value: msgspec.Struct) -> bytes:
    """Return a value as JSON; in names that are not UTF-8, the bytes are written out."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(encodable(msgspec.to_builtins(value)))
