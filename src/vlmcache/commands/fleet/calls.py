"""Calls to nodes: what the verbs of `fleet` need from a cluster, whatever it runs on (pure).

How a verb works with a cluster:

- `with cluster.starting(address, setup) as starting:` lets Ray join a running cluster, and
  `fleet = starting.join(wanted)` chooses nodes and starts an actor on each. `fleet.nodes` are those
  that were chosen. The end of the block ends the actors.
- `fleet.call(node, "status", request)` lets a node do something, and returns a `Call` at once.
  The request is a Struct of ours; it crosses as JSON, never pickled, and so does the answer.
- `fleet.arrived(timeout)` returns the answers that came since: at least one `Reply` if one comes
  within that time. A node that dies, hangs or cannot be reached answers too, with an error of code
  `node-lost`: each call is answered once, and nobody waits forever. `fleet.lost` holds the ids of
  such nodes; calls to them are answered with the same error at once.
- `fleet.beats[node.id]` is how far the node last said its work is. Nodes with open calls are asked
  every two seconds.
- A method is a function of `actor.METHODS`: `(worker, request) -> Struct`. Several may run at a
  time on one node, in threads of their own. `worker.cache` is the node's `Cache`,
  `worker.progress` counts its work for beats, and `worker.stop_token` is stopped if the driver
  wants the node's work to end (`fleet.stop()`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from vlmcache.change.plan import Failure

LOST = "node-lost"
"""The code of the failure of a node that died, hangs or cannot be reached."""
SILENT = 300.0
"""Seconds without progress after which a call is given up, unless it says otherwise."""

_T = TypeVar("_T")


class Node(msgspec.Struct, frozen=True):
    """A node of a cluster."""

    id: str
    """Ray's."""
    name: str
    """What people call it, and type for `--nodes`: no other node has it."""
    address: str
    """The address by which other nodes reach it."""
    labels: dict[str, str] = {}


class Beat(msgspec.Struct, frozen=True):
    """How far the work on a node is."""

    count: int = 0
    """Grows whenever the work makes progress."""
    done: int = 0
    """Bytes."""
    total: int = 0
    text: str = ""
    """What it does now, in words."""


class Call(NamedTuple):
    """Something that a node was asked to do."""

    number: int
    node: Node
    method: str


class Reply(NamedTuple):
    """The answer to a call: JSON, or why there is none."""

    call: Call
    content: bytes = b""
    failure: Failure | None = None

    def value(self, kind: type[_T]) -> _T:
        """Return the answer, which must not be a failure, as a value of its type."""
        return msgspec.json.decode(self.content, type=kind)

    @property
    def lost(self) -> bool:
        """Whether the node died, hangs or cannot be reached."""
        return self.failure is not None and self.failure.code == LOST


class Fleet(Protocol):
    """Nodes of a cluster that was joined, an actor on each."""

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes that were chosen, by name."""

    @property
    def lost(self) -> Mapping[str, str]:
        """Id -> why a node no longer answers, in words."""

    @property
    def beats(self) -> Mapping[str, Beat]:
        """Id -> how far the work on a node is."""

    def call(
        self, node: Node, method: str, request: msgspec.Struct | None = None, *, silent: float = ...
    ) -> Call:
        """Let a node do something.

        Args:
            node: one of `nodes`.
            method: a key of `actor.METHODS`.
            request: what it needs to know.
            silent: seconds without progress after which it is given up.
        """

    def arrived(self, timeout: float) -> list[Reply]:
        """Return the answers that came since, waiting for one if there is none.

        Args:
            timeout: seconds to wait at most; 0 does not wait.
        """

    def stop(self) -> None:
        """Ask the work on all nodes to end soon; what was called is answered as far as it got."""
