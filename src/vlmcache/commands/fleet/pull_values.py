"""What `fleet pull` is asked for, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from vlmcache import units
from vlmcache.cache.state import Finding
from vlmcache.change.plan import Failure, Plan, Receipt
from vlmcache.commands.fleet.values import FleetNode, FleetReport
from vlmcache.commands.pull.plan import FileSelection, VariantError
from vlmcache.config import Session, options_in_force

NodePullState = Literal["cached", "pulled", "planned", "failed"]


class FleetPullOptions(msgspec.Struct, frozen=True):
    """How to pull to many nodes."""

    selection: FileSelection = FileSelection()
    dry_run: bool = False
    """Only plan; write nothing."""
    limit_rate: int | None = None
    """Bytes per second that each node receives; unlimited if `None`."""
    agree: Callable[[Sequence[Any]], bool] | None = None
    """As for `PullOptions`."""
    choose: Callable[[VariantError], str] | None = None
    """As for `PullOptions`."""
    where: tuple[str, ...] = ()
    """The options that name the cluster and the nodes, as they were typed."""

    def command(self, session: Session, names: Iterable[str]) -> str:
        """Return the command line that pulls names again to the same nodes."""
        words = ["pull", *names]
        for pattern in self.selection.include:
            words += ["--include", pattern]
        for pattern in self.selection.exclude:
            words += ["--exclude", pattern]
        if self.selection.every:
            words.append("--all-files")
        return units.command(
            "fleet", *words, *self.where, *options_in_force(session.config, session.cache)
        )


class SpreadModel(msgspec.Struct, frozen=True):
    """A model that every node is to have."""

    key: str
    repo: str
    revision: str
    commit: str
    files: int
    size: int
    """Bytes of the files that are wanted."""
    variant: str | None = None
    needed_by: str | None = None
    """The repo that needs it, if nobody named it."""


class NodeModel(msgspec.Struct, frozen=True):
    """What became of a model on a node."""

    repo: str
    commit: str
    state: NodePullState
    """`cached`: complete before; `pulled`: complete now; `planned`: would be (`--dry-run`)."""
    path: str | None = None
    to_fetch: int = 0
    """Bytes that were left to fetch of it, less what unfinished downloads had."""
    error: Failure | None = None


class PulledNode(FleetNode, frozen=True, kw_only=True):
    """What became of a node. Sizes are bytes; `free` is as it was before."""

    models: tuple[NodeModel, ...] = ()
    cache: str | None = None
    shares_with: str | None = None
    """The node with which it shares its cache, and which did the work."""
    from_hub: int = 0
    from_nodes: int = 0
    sent: int = 0
    """To other nodes."""
    plan: Plan = Plan(())
    receipt: Receipt | None = None


class FleetPull(FleetReport, frozen=True):
    """What `vlmcache fleet pull` returns."""

    models: tuple[SpreadModel, ...]
    nodes: tuple[PulledNode, ...]
    from_hub: int = 0
    """Bytes that the hub sent to all nodes, and to the driver for its plan."""
    from_nodes: int = 0
    """Bytes that nodes sent to each other."""
    rounds: int = 0
    """How often a content was sent on at most, the hub's own sending included."""
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False
    to_fetch: int = 0
    """Bytes that no node had, not even in an unfinished download."""

    @property
    def rows(self) -> Sequence[FleetNode]:
        """The nodes, as far as all verbs know them."""
        return self.nodes

    @property
    def ids(self) -> list[str]:
        """The nodes that are complete, or would be."""
        return [node.node for node in self.nodes if node.error is None]
