"""What `doctor` answers with."""

from __future__ import annotations

import msgspec

from vlmcache.cache.mounts import AccessTimes
from vlmcache.cache.state import Finding
from vlmcache.change.plan import Plan, Receipt


class PathFact(msgspec.Struct, frozen=True):
    """A folder or file that vlmcache uses, and the setting that chose it."""

    name: str
    path: str
    source: str
    exists: bool
    writable: bool


class Filesystem(msgspec.Struct, frozen=True):
    """What the cache's filesystem can do; `None` where it could not be tried. Sizes are bytes."""

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


class Device(msgspec.Struct, frozen=True):
    """An accelerator. `memory` is bytes; `torch` is how torch names it, if it sees it."""

    name: str
    memory: int | None
    driver: str | None
    torch: str | None = None


class Offline(msgspec.Struct, frozen=True):
    """Whether the configured models load without a network."""

    ready: bool
    lacking: tuple[str, ...]
    forced: bool
    """True where HF_HUB_OFFLINE is set."""


class Diagnosis(msgspec.Struct, frozen=True):
    """What `vlmcache doctor` answers.

    With `--shared` or `--fix`: plan is what has to change in the cache's permissions, receipt what
    was changed.
    """

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
    receipt: Receipt | None = None

    @property
    def has_errors(self) -> bool:
        """Whether something stops models from being pulled or loaded."""
        return any(finding.severity == "error" for finding in self.findings)


class Sharing(msgspec.Struct, frozen=True):
    """The group that is to share a cache. umask is the one of this process."""

    group: str
    gid: int
    members: tuple[str, ...]
    umask: str | None


class Access(msgspec.Struct, frozen=True):
    """What has to change in the permissions of a cache, and of a fix what was done."""

    sharing: Sharing | None
    plan: Plan
    receipt: Receipt | None
    findings: tuple[Finding, ...]
