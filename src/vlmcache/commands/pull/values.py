"""What `pull` is asked for and answers with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from vlmcache.cache.state import Finding
from vlmcache.change.plan import Failure, Plan, Receipt
from vlmcache.commands.pull.plan import Order, Selection
from vlmcache.config import ModelConfig
from vlmcache.errors import VlmcacheError

PullState = Literal["cached", "pulled", "planned", "failed"]
WORKERS = 8


class Options(msgspec.Struct, frozen=True):
    """How to pull. limit_rate is bytes a second for all files together.

    make_room: evict what was not used for long if the disk is too full; confirm is shown the
    `removal.Removal` that is proposed and says whether to go on; without it nobody is asked.
    """

    selection: Selection = Selection()
    dry_run: bool = False
    max_workers: int = WORKERS
    limit_rate: int | None = None
    token: str | None = None
    make_room: bool = False
    confirm: Callable[[Any], bool] | None = None


class PulledModel(msgspec.Struct, frozen=True):
    """What became of one model.

    state: `cached` was whole before, `pulled` is whole now, `planned` would be (`--dry-run`), and
    `failed`. size is the length in bytes of the files that were wanted, fetched what came over the
    network for them, seconds how long it took.
    """

    key: str
    repo: str
    revision: str
    state: PullState
    commit: str | None = None
    path: str | None = None
    files: int = 0
    size: int = 0
    fetched: int = 0
    seconds: float = 0.0
    error: Failure | None = None


class Pulled(msgspec.Struct, frozen=True):
    """What `vlmcache pull` answers. plan and receipt are of all models together."""

    models: tuple[PulledModel, ...]
    plan: Plan
    receipt: Receipt | None
    findings: tuple[Finding, ...]
    cache: str = ""
    """The hub cache."""


class Run(NamedTuple):
    """An answer, and the failure that it tells of, if any."""

    value: Pulled
    error: VlmcacheError | None


class Part(NamedTuple):
    """One model on its way: the plan for it, or why there is none."""

    model: ModelConfig
    order: Order | None = None
    error: VlmcacheError | None = None
    seconds: float = 0.0
