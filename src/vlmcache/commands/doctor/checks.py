"""What `doctor` checks, each problem as a finding."""

from __future__ import annotations

import os
import stat as modes
import sys
from collections.abc import Iterator

from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.moved import DRIVE_AWAY
from vlmcache.cache.state import Finding
from vlmcache.commands.doctor.values import Filesystem, PathFact
from vlmcache.commands.status.summary import second_caches
from vlmcache.commands.status.values import Status
from vlmcache.config import Config, Session
from vlmcache.units import size_text

INSTALL_LOAD = "pip install 'vlmcache[load]'"


def finding(code: str, severity: str, path: str, detail: str, remedy: str | None = None) -> Finding:
    """Return a finding that is about no repo."""
    return Finding(code, severity, None, path, detail, remedy)  # type: ignore[arg-type]


def check_paths(session: Session, paths: tuple[PathFact, ...]) -> Iterator[Finding]:
    """Yield what is wrong with where things are."""
    location = session.cache
    for conflict in location.conflicts:
        yield finding(
            "conflicting-settings",
            "warning",
            location.dir,
            conflict,
            "unset the one that you do not mean",
        )
    yield from second_caches(session)
    for fact in paths:
        if fact.name == "vlmcache" and not fact.writable:
            yield finding(
                "home-not-writable",
                "warning",
                fact.path,
                "vlmcache cannot remember when models were used",
                "name a writable folder with VLMCACHE_HOME",
            )


def check_filesystem(
    filesystem: Filesystem, path: str, config: Config, frees: str
) -> Iterator[Finding]:
    """Yield what the cache's filesystem cannot do."""
    if filesystem.symlinks is False:
        yield finding(
            "no-symlinks",
            "warning",
            path,
            "this filesystem has no symbolic links: each revision keeps its own copies",
            "use a filesystem with links; on Windows, turn on developer mode",
        )
    if filesystem.locks is False:
        yield finding(
            "no-locks",
            "warning",
            path,
            "this filesystem has no locks: two downloads of one file can run at once",
            "pull from one machine at a time",
        )
    if filesystem.access_times == "never":
        yield finding(
            "no-access-times",
            "info",
            path,
            "this mount keeps no access times: only vlmcache's own journal shows the last use",
        )
    free = filesystem.free
    if free is not None and free < config.limits.min_free:
        yield finding(
            "low-disk",
            "warning",
            path,
            f"{size_text(free)} free, below the minimum of {size_text(config.limits.min_free)}",
            frees,
        )


def check_permissions(path: str) -> Iterator[Finding]:
    """Yield what may not be read or written."""
    if not os.path.isdir(path):
        if not os.access(nearest_folder(path), os.W_OK):
            yield finding(
                "cache-not-writable",
                "error",
                path,
                "the cache does not exist and cannot be created here",
                "name another with --cache-dir or HF_HUB_CACHE",
            )
        return
    if not os.access(path, os.R_OK | os.X_OK):
        remedy = f"ask the owner for read access to {path}"
        yield finding("cache-not-readable", "error", path, "the cache cannot be read", remedy)
    elif not os.access(path, os.W_OK):
        yield finding(
            "cache-read-only",
            "warning",
            path,
            "the cache cannot be written: status and loading work, pull and rm do not",
            "name another with --cache-dir or HF_HUB_CACHE",
        )
    if sys.platform != "win32":
        status = os.stat(path)
        if status.st_mode & modes.S_IWOTH and not status.st_mode & modes.S_ISVTX:
            yield finding(
                "world-writable",
                "warning",
                path,
                "every user of this machine can change the cache",
                "vlmcache doctor --fix",
            )
        if status.st_uid != os.geteuid() and os.geteuid() != 0:
            yield finding("other-owner", "info", path, f"the cache belongs to user {status.st_uid}")


def check_versions(versions: dict[str, str | None]) -> Iterator[Finding]:
    """Yield what is not installed, or too old."""
    if versions["torch"] is None or versions["transformers"] is None:
        missing = " and ".join(name for name in ("torch", "transformers") if versions[name] is None)
        yield finding(
            "loading-not-installed",
            "info",
            sys.prefix,
            f"{missing} not installed: load-test cannot run; everything else works",
            INSTALL_LOAD,
        )
    elif versions["bitsandbytes"] is None:
        yield finding(
            "quantization-not-installed",
            "info",
            sys.prefix,
            "bitsandbytes is not installed: int8 and int4 cannot be loaded",
            "pip install bitsandbytes",
        )


def check_cache(status: Status) -> Iterator[Finding]:
    """Yield what is damaged in the cache."""
    yield from (finding for finding in status.findings if finding.code == DRIVE_AWAY)
    errors = [finding for finding in status.findings if finding.severity == "error"]
    if errors:
        repos = sorted({finding.repo for finding in errors if finding.repo})
        yield finding(
            "damaged-repos",
            "error",
            status.cache.dir,
            f"{len(errors)} {'error' if len(errors) == 1 else 'errors'} in the cache: "
            + (", ".join(repos) or status.cache.dir),
            "vlmcache status -v",
        )
