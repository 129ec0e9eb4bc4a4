"""What `doctor` checks, each problem as a finding."""

from __future__ import annotations

import os
import stat as modes
import sys
from collections.abc import Iterator

from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.moved import DRIVE_AWAY
from vlmcache.cache.owners import is_member, join_group, owner_name, sharing_group
from vlmcache.cache.state import Finding, Severity
from vlmcache.commands.doctor.values import Filesystem, PathFact
from vlmcache.commands.status.values import Status, second_caches
from vlmcache.config import Config, Session
from vlmcache.installing import install_extra, install_package
from vlmcache.units import counted, size_text


def finding(
    code: str, severity: Severity, path: str, detail: str, remedy: str | None = None
) -> Finding:
    """Return a finding that is about no repo."""
    return Finding(code, severity, None, path, detail, remedy)


def those_that_hold(*rows: tuple[bool, Finding]) -> list[Finding]:
    """Return the findings whose condition, which precedes each, holds."""
    return [finding for holds, finding in rows if holds]


def check_paths(session: Session, paths: tuple[PathFact, ...]) -> Iterator[Finding]:
    """Yield what is wrong with the paths that vlmcache uses."""
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


def filesystem_findings(
    filesystem: Filesystem, path: str, config: Config, frees: str
) -> list[Finding]:
    """Return what the cache's filesystem cannot do, and whether its disk is too full."""
    minimum = config.limits.min_free
    free = minimum if filesystem.free is None else filesystem.free
    return those_that_hold(
        (
            filesystem.symlinks is False,
            finding(
                "no-symlinks",
                "warning",
                path,
                "this filesystem has no symbolic links: each revision keeps its own copies",
                "use a filesystem with links; on Windows, turn on developer mode",
            ),
        ),
        (
            filesystem.locks is False,
            finding(
                "no-locks",
                "warning",
                path,
                "this filesystem has no locks: two downloads of one file can run at once",
                "pull from one machine at a time",
            ),
        ),
        (
            filesystem.access_times == "never",
            finding(
                "no-access-times",
                "info",
                path,
                "this mount keeps no access times: only vlmcache's own journal shows the last use",
            ),
        ),
        (
            free < minimum,
            finding(
                "low-disk",
                "warning",
                path,
                f"{size_text(free)} free, below the minimum of {size_text(minimum)}",
                frees,
            ),
        ),
    )


def check_permissions(path: str) -> Iterator[Finding]:
    """Yield what of the cache this user cannot read or write, and others can write."""
    exists = os.path.isdir(path)
    readable, writable = os.access(path, os.R_OK | os.X_OK), os.access(path, os.W_OK)
    yield from those_that_hold(
        (
            not exists and not os.access(nearest_folder(path), os.W_OK),
            finding(
                "cache-not-writable",
                "error",
                path,
                "the cache does not exist and cannot be created here",
                "name another with --cache-dir or HF_HUB_CACHE",
            ),
        ),
        (
            exists and not readable,
            finding(
                "cache-not-readable",
                "error",
                path,
                "the cache cannot be read",
                f"ask the owner for read access to {path}",
            ),
        ),
        (
            exists and readable and not writable,
            finding(
                "cache-read-only",
                "warning",
                path,
                "the cache cannot be written: status and loading work, pull and rm do not",
                _way_in(path) or "name another with --cache-dir or HF_HUB_CACHE",
            ),
        ),
    )
    if exists and sys.platform != "win32":
        status = os.stat(path)
        yield from those_that_hold(
            (
                status.st_mode & (modes.S_IWOTH | modes.S_ISVTX) == modes.S_IWOTH,
                finding(
                    "world-writable",
                    "warning",
                    path,
                    "every user of this machine can change the cache",
                    "vlmcache doctor --fix",
                ),
            ),
            (
                os.geteuid() not in (0, status.st_uid),
                finding(
                    "other-owner",
                    "info",
                    path,
                    f"the cache belongs to {owner_name(status.st_uid)}, and you are "
                    f"{owner_name(os.geteuid())}",
                ),
            ),
        )


def _way_in(path: str) -> str | None:
    """Return the command that makes this user a member of the group that shares a cache."""
    group = sharing_group(path)
    return join_group(group) if group and not is_member(os.stat(path).st_gid) else None


def missing_packages(versions: dict[str, str | None]) -> list[Finding]:
    """Return which packages for loading and quantizing are not installed."""
    missing = [name for name in ("torch", "transformers") if versions[name] is None]
    names = " and ".join(missing)
    return those_that_hold(
        (
            bool(missing),
            finding(
                "loading-not-installed",
                "info",
                sys.prefix,
                f"{names} not installed: load-test cannot run; everything else works",
                install_extra("load"),
            ),
        ),
        (
            not missing and versions["bitsandbytes"] is None,
            finding(
                "quantization-not-installed",
                "info",
                sys.prefix,
                "bitsandbytes is not installed: int8 and int4 cannot be loaded",
                install_package("bitsandbytes"),
            ),
        ),
    )


def check_cache(status: Status) -> Iterator[Finding]:
    """Yield what is damaged or away in the cache, and what stands where a lock belongs."""
    yield from (known for known in status.findings if known.code in (DRIVE_AWAY, "wrong-lock"))
    errors = [known for known in status.findings if known.severity == "error"]
    if errors:
        repos = sorted({known.repo for known in errors if known.repo})
        yield finding(
            "damaged-repos",
            "error",
            status.cache.dir,
            f"{counted(len(errors), 'error')} in the cache: "
            + (", ".join(repos) or status.cache.dir),
            "vlmcache status -v",
        )
