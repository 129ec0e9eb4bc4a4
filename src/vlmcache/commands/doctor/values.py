"""What `doctor` returns."""

from __future__ import annotations

import msgspec

from vlmcache.cache.mounts import AccessTimes
from vlmcache.cache.owners import cache_of, fix_access
from vlmcache.cache.state import Finding
from vlmcache.cache.tree import is_root
from vlmcache.change.plan import Plan, Receipt
from vlmcache.errors import CacheError, PartlyError, VlmcacheError
from vlmcache.report import Report
from vlmcache.units import and_more


class PathFact(msgspec.Struct, frozen=True):
    """A folder or file that vlmcache uses."""

    name: str
    path: str
    source: str
    """The setting that chose it."""
    exists: bool
    writable: bool
    """Whether it, or the folder that would hold it, can be written."""
    owner: str | None = None
    """The names of its user and group; of the cache alone."""


class Filesystem(msgspec.Struct, frozen=True):
    """What the cache's filesystem can do; `None` if it could not be tried. Sizes are bytes."""

    type: str | None
    mount_point: str | None
    network: bool
    free: int | None
    total: int | None
    symlinks: bool | None
    hard_links: bool | None
    locks: bool | None
    case_sensitive: bool | None
    access_times: AccessTimes
    modes: bool | None = None
    """Whether a file keeps the mode that it is given."""
    large_files: bool | None = None
    """Whether a file can have 4 GiB and more, as far as that is known without writing one."""


class Device(msgspec.Struct, frozen=True):
    """An accelerator."""

    name: str
    memory: int | None
    """Bytes."""
    driver: str | None
    torch: str | None = None
    """What torch calls it, if torch sees it."""


class Offline(msgspec.Struct, frozen=True):
    """Whether the configured models load without a network."""

    ready: bool
    lacking: tuple[str, ...]
    """The keys of the models that are not cached."""
    forced: bool
    """Whether HF_HUB_OFFLINE is set."""


class Diagnosis(Report, frozen=True):
    """What `vlmcache doctor` returns."""

    paths: tuple[PathFact, ...]
    variables: dict[str, str]
    filesystem: Filesystem
    python: str
    platform: str
    versions: dict[str, str | None]
    devices: tuple[Device, ...]
    quantization: str | None
    offline: Offline
    findings: tuple[Finding, ...]
    shared: Sharing | None = None
    plan: Plan | None = None
    """With `--shared` or `--fix`: what has to change in the cache's permissions."""
    receipt: Receipt | None = None
    """With `--fix`: what was changed."""

    def with_findings(self, findings: tuple[Finding, ...]) -> Diagnosis:
        """Return the same with more findings."""
        more = msgspec.structs.replace(self, findings=self.findings + findings)
        return more.with_problem(self.problem)

    @property
    def has_errors(self) -> bool:
        """Whether something stops models from being pulled or loaded."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def ids(self) -> list[str]:
        """The codes of the findings."""
        return [finding.code for finding in self.findings]


class Sharing(msgspec.Struct, frozen=True):
    """The group that shares a cache."""

    group: str
    gid: int
    members: tuple[str, ...]
    umask: str | None
    """Of this process, in octal; `None` if the system does not show it."""


class AccessReport(msgspec.Struct, frozen=True):
    """What has to change in the permissions of a cache, and what a fix has changed."""

    sharing: Sharing | None
    plan: Plan
    receipt: Receipt | None
    findings: tuple[Finding, ...]

    @property
    def problem(self) -> VlmcacheError | None:
        """What a fix could not change, `None` if it changed everything or there was no fix."""
        if self.receipt is None or self.receipt.whole:
            return None
        failed, total = self.receipt.undone, len(self.receipt.outcomes)
        first, group = failed[0].path, self.sharing.group if self.sharing is not None else None
        kind = PartlyError if len(failed) < total else CacheError
        return kind(
            f"{len(failed)} of {total} could not be changed: "
            f"{failed[0].detail or failed[0].path}{and_more(len(failed) - 1)}",
            None if is_root() else fix_access(cache_of(first) or first, group),
        )
