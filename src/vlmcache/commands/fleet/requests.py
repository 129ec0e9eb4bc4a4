"""What nodes are asked for (pure); the options are those of the methods of `Cache`."""

from __future__ import annotations

from typing import Any

import msgspec

from vlmcache.commands.fleet.values import ModelOnNode


class StatusRequest(msgspec.Struct, frozen=True):
    """Which models to report; if none, those that the node has configured, and the cache's."""

    models: tuple[str, ...] = ()


class CacheOnNode(msgspec.Struct, frozen=True):
    """What a node has: the answer to a `StatusRequest`."""

    cache: str
    free: int | None
    total: int | None
    size_on_disk: int
    models: tuple[ModelOnNode, ...]
    """The models asked for, or those that the node has configured."""
    repos: tuple[ModelOnNode, ...]
    """What else is in the cache."""


class RemovalRequest(msgspec.Struct, frozen=True):
    """What to remove."""

    clean: bool
    """Whether `clean` decides what goes, not the names."""
    models: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    dry_run: bool = False


class Decision(msgspec.Struct, frozen=True):
    """Whether to carry out the plan that the node has made."""

    agreed: bool


class VerifyRequest(msgspec.Struct, frozen=True):
    """What to verify."""

    models: tuple[str, ...] = ()
    max_age: float | None = None
    workers: int | None = None


class LoadRequest(msgspec.Struct, frozen=True):
    """What to measure."""

    models: tuple[str, ...] = ()
    options: dict[str, Any] = {}
