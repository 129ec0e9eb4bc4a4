"""What the driver and the nodes of a `fleet pull` send each other (pure)."""

from __future__ import annotations

from typing import Literal

import msgspec

from vlmcache.cache.state import Finding, TreeFile
from vlmcache.change.plan import Failure, Plan, Receipt


class WantedModel(msgspec.Struct, frozen=True):
    """One model at one commit: what every node is to have."""

    key: str
    """What was typed for it."""
    repo: str
    revision: str
    commit: str
    files: dict[str, TreeFile]
    """The hub's listing."""
    wanted: frozenset[str]
    restriction: str | None
    """As in `DownloadOrder`."""
    variant: str | None = None
    plain: bool = True
    """Whether the files that loading needs are wanted, not a selection of them."""
    needed_by: str | None = None
    """The repo that needs it, if nobody named it."""

    @property
    def id(self) -> str:
        """What tells it apart from the other models of a pull, also from those of the same repo."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return self.repo + revision + (f":{self.variant}" if self.variant else "")

    @property
    def contents(self) -> dict[str, TreeFile]:
        """Etag -> a wanted file with that content."""
        return {self.files[name].etag: self.files[name] for name in sorted(self.wanted)}


def content_key(repo: str, etag: str) -> str:
    """Return the name of a content of a repo."""
    return f"{repo}/{etag}"


class NodeStock(msgspec.Struct, frozen=True):
    """What a node has of the models before anything begins. Contents are named by `content_key`."""

    place: str
    """What identifies the cache: nodes with the same place share it."""
    cache: str
    free: int
    contents: frozenset[str]
    """Those that are complete here."""
    begun: dict[str, int]
    """Content -> bytes of it that are here."""
    to_fetch: dict[str, int]
    """Id of a model -> bytes."""
    complete: frozenset[str] = frozenset()
    """Ids of models for which there is nothing to do, not even a link."""
    reaches_hub: bool = True
    error: Failure | None = None
    """Why nothing can be pulled here."""
    findings: tuple[Finding, ...] = ()
    plan: Plan = Plan(())


class Parcel(msgspec.Struct, frozen=True):
    """Contents of one repo that are fetched together: a large one, or several small ones."""

    key: str
    repo: str
    etags: tuple[str, ...]
    size: int


class Sender(msgspec.Struct, frozen=True):
    """A node that serves what it has."""

    node: str
    address: str
    token: str

    def __repr__(self) -> str:
        """Leave out the token: a repr ends up in logs."""
        return f"{type(self).__name__}({self.node!r}, {self.address!r})"


Fault = Literal["source", "wrong", "hub", "unreachable", "node", "stopped"]
"""What is to blame: the sender, the bytes that came, the hub for this parcel or for all of them,
this node, or nobody."""


class Landing(msgspec.Struct, frozen=True):
    """What became of a parcel that a node was to fetch."""

    parcel: str
    source: str | None
    """The node that sent it; `None` for the hub."""
    received: int
    """Bytes that came over the network."""
    have: int = 0
    """Bytes of it that are here now."""
    fault: Fault | None = None
    error: Failure | None = None


class News(msgspec.Struct, frozen=True):
    """What has happened on a node since it was last asked."""

    landings: tuple[Landing, ...]
    positions: dict[str, int]
    """Parcel that is being fetched -> bytes of it that are here."""
    notes: tuple[str, ...]


EndState = Literal["cached", "pulled", "failed"]


class Finished(msgspec.Struct, frozen=True):
    """How a pull ended on a node."""

    states: dict[str, EndState]
    """Id of a model -> what became of it."""
    errors: dict[str, Failure]
    """Id of a model -> why it failed."""
    receipt: Receipt
    paths: dict[str, str]
    """Id of a model -> its snapshot."""


class Survey(msgspec.Struct, frozen=True):
    """The first question to a node: what it has, and whether the rest can be put there."""

    name: str
    """Of the node."""
    models: tuple[WantedModel, ...]
    limit_rate: int | None = None


class Opening(msgspec.Struct, frozen=True):
    """What a node needs to begin; see `Holdings.open`."""

    host: str
    parcels: tuple[Parcel, ...]
    given: dict[str, bytes]
    peers: tuple[str, ...]


class Errand(msgspec.Struct, frozen=True):
    """A parcel that a node is to fetch, to stop fetching, or to read."""

    parcel: str
    sender: Sender | None = None


class Checked(msgspec.Struct, frozen=True):
    """Whether a parcel that a node has is good."""

    parcel: str
    good: bool


class NewsWanted(msgspec.Struct, frozen=True):
    """How long to wait for news, in seconds."""

    wait: float = 0.0


class Nothing(msgspec.Struct, frozen=True):
    """An empty answer."""
