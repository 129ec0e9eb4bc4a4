"""What `pull` is asked for and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from vlmcache import log, units
from vlmcache.cache.state import Finding
from vlmcache.change.plan import Failure, Plan, Receipt
from vlmcache.commands.pull.plan import DownloadOrder, FileSelection, VariantError
from vlmcache.config import ModelConfig, Session, options_in_force
from vlmcache.errors import VlmcacheError
from vlmcache.hub.sources import SourceUse
from vlmcache.report import Report

PullState = Literal["cached", "pulled", "planned", "failed"]
WORKERS = 8


class PullOptions(msgspec.Struct, frozen=True):
    """How to pull."""

    selection: FileSelection = FileSelection()
    dry_run: bool = False
    """Only plan; write nothing."""
    max_workers: int = WORKERS
    """Files that are fetched at the same time."""
    limit_rate: int | None = None
    """Bytes per second for all files together; unlimited if `None`."""
    token: str | None = None
    """Used instead of HF_TOKEN and the token of 'hf auth login'."""
    make_room: bool = False
    """If the disk is too full, evict what was not used for a long time."""
    confirm: Callable[[Any], bool] | None = None
    """Called with the proposed `Removal`; says whether to continue. Nobody is asked if `None`."""
    agree: Callable[[Sequence[PlannedModel]], bool] | None = None
    """Called with the other repos that the models need; says whether to fetch these too. Nobody is
    asked if `None`."""
    choose: Callable[[VariantError], str] | None = None
    """Called if a model has several variants and none is named; returns one. It is an error if
    `None`."""
    max_wait: float | None = None
    """Seconds that a busy hub may ask to wait in all, and that another process's download of a file
    is waited for; ten minutes, and as long as that grows, if `None`."""
    add: bool = False
    """Whether the models are added to the user's config.yaml afterwards."""

    sources: tuple[str, ...] = ()
    """What is asked for contents before the hub, in this order: folders, files and addresses."""

    @property
    def patience(self) -> dict[str, float]:
        """The fields of `Patience` that differ from the defaults."""
        if self.max_wait is None:
            return {}
        return {"longest_asked": self.max_wait, "longest_download": self.max_wait}

    def command(self, session: Session, names: Iterable[str]) -> str:
        """Return the command line that pulls names again with the same options, but no token."""
        words = list(names)
        for pattern in self.selection.include:
            words += ["--include", pattern]
        for pattern in self.selection.exclude:
            words += ["--exclude", pattern]
        if self.selection.every:
            words.append("--all-files")
        if self.add:
            words.append("--add")
        for source in self.sources:
            shown = log.address_without_login(source) if "://" in source else source
            words += ["--from", shown]
        return units.command("pull", *words, *options_in_force(session.config, session.cache))

    def __repr__(self) -> str:
        """Leave out the token: a repr ends up in logs."""
        return f"{type(self).__name__}(selection={self.selection!r}, dry_run={self.dry_run!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return for rich what `__repr__` shows."""
        return [("selection", self.selection), ("dry_run", self.dry_run)]


class FileOrigin(msgspec.Struct, frozen=True):
    """Where a file that a pull fetches comes from."""

    path: str
    source: str
    """A source as it was named, or `hub`."""
    size: int


class LeftOut(msgspec.Struct, frozen=True):
    """A file of a model that was not fetched."""

    path: str
    size: int
    reason: str


class PulledModel(msgspec.Struct, frozen=True):
    """What became of one model."""

    key: str
    repo: str
    revision: str
    state: PullState
    """`cached`: complete before; `pulled`: complete now; `planned`: would be (`--dry-run`)."""
    commit: str | None = None
    path: str | None = None
    files: int = 0
    size: int = 0
    """Bytes of the files that were wanted."""
    fetched: int = 0
    """Bytes that came over the network for them."""
    seconds: float = 0.0
    error: Failure | None = None
    left_out: tuple[LeftOut, ...] = ()
    """Files that are not fetched unless they are asked for, the largest first."""
    needed_by: str | None = None
    """The model that needs this one, if nobody named it."""
    to_fetch: int = 0
    """Bytes that were left to fetch for them, partial downloads taken into account."""
    variant: str | None = None
    """The GGUF variant that was asked for, or chosen."""
    origins: tuple[FileOrigin, ...] = msgspec.field(default=(), name="from")
    """Where each file comes from that is fetched, if there are sources."""


class AddedModel(msgspec.Struct, frozen=True):
    """A model in the user's config.yaml, as `--add` left it."""

    key: str
    repo: str
    path: str
    """The config.yaml."""
    new: bool
    """False if the file named the model before."""
    active: str | None = None
    """Another config.yaml that is read in the working folder instead of that file."""


class PullReport(Report, frozen=True):
    """What `vlmcache pull` returns. Its plan and receipt are of all models together."""

    models: tuple[PulledModel, ...]
    plan: Plan
    receipt: Receipt | None
    findings: tuple[Finding, ...]
    cache: str = ""
    """The hub cache."""
    added: tuple[AddedModel, ...] = ()
    """What `--add` has added to the user's config.yaml, or would add."""
    sources: tuple[SourceUse, ...] = ()
    """What became of each source."""

    @property
    def complete(self) -> dict[tuple[str, str], str | None]:
        """(repo, revision) -> variant of the models that were named and are complete now."""
        return {
            (model.repo, model.revision): model.variant
            for model in self.models
            if model.state != "failed" and model.needed_by is None
        }

    def with_added(self, added: Iterable[tuple[str, str, str, bool, str | None]]) -> PullReport:
        """Return the report with models of the user's config.yaml, as `AddedModel` has them."""
        models = tuple(AddedModel(*model) for model in added)
        return msgspec.structs.replace(self, added=models).with_problem(self.problem)

    @property
    def ids(self) -> list[str]:
        """The repos that are complete, or would be."""
        return [
            f"{model.repo}:{model.variant}" if model.variant else model.repo
            for model in self.models
            if model.state != "failed"
        ]


class PlannedModel(NamedTuple):
    """One model before its download: the order for it, or why there is none."""

    model: ModelConfig
    order: DownloadOrder | None
    error: VlmcacheError | None
    seconds: float
    findings: tuple[Finding, ...]
    needed_by: ModelConfig | None = None
    """The model that needs it, if nobody named it."""


def needs_text(others: Sequence[PlannedModel]) -> str:
    """Return in words which models need which other repos, and how much of these is fetched."""
    sizes = [
        f"{part.model.repo} ({units.size_text(part.order.plan.to_fetch)})"
        for part in others
        if part.order is not None
    ]
    models = dict.fromkeys(part.needed_by.key for part in others if part.needed_by is not None)
    verb = "needs" if len(models) == 1 else "need"
    return f"{', '.join(models)} {verb} {', '.join(sizes)}"
