"""What `doctor` finds fault with, each as findings."""

from __future__ import annotations

import os
import stat as modes
import sys
from collections.abc import Iterator

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.moved import DRIVE_AWAY
from vlmcache.cache.state import Finding
from vlmcache.commands.doctor.values import Filesystem, PathFact
from vlmcache.commands.status.values import Status
from vlmcache.config import CacheLocation, Config, Environment, hub_home
from vlmcache.units import size_text

INSTALL_LOAD = "pip install 'vlmcache[load]'"


def finding(code: str, severity: str, path: str, detail: str, remedy: str | None = None) -> Finding:
    """Return a finding that is about no repo."""
    return Finding(code, severity, None, path, detail, remedy)  # type: ignore[arg-type]


def check_paths(
    paths: tuple[PathFact, ...], location: CacheLocation, environment: Environment
) -> Iterator[Finding]:
    """Yield what is wrong with where things lie."""
    for conflict in location.conflicts:
        yield finding(
            "conflicting-settings",
            "warning",
            location.dir,
            conflict,
            "unset the one that is not meant",
        )
    for path in _other_caches(location, environment):
        yield finding(
            "second-cache",
            "warning",
            path,
            f"another cache with models lies at {path}; {location.source} decides for "
            f"{location.dir}",
            units.command("status", "--cache-dir", path),
        )
    for fact in paths:
        if fact.name == "vlmcache" and not fact.writable:
            yield finding(
                "home-not-writable",
                "warning",
                fact.path,
                "vlmcache cannot remember when models were used",
                "name a writable folder with VLMCACHE_HOME",
            )


def _other_caches(location: CacheLocation, environment: Environment) -> Iterator[str]:
    """Yield the usual places of a cache that hold repos and are not the chosen one."""
    home = os.path.expanduser("~")
    candidates = [
        os.path.join(home, ".cache", "huggingface", "hub"),
        os.path.join(home, ".cache", "huggingface", "transformers"),
        os.path.join(hub_home(environment), "hub"),
    ]
    if environment.get("XDG_CACHE_HOME"):
        base = os.path.expanduser(environment.variables["XDG_CACHE_HOME"])
        candidates.append(os.path.join(base, "huggingface", "hub"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        value = environment.get(name)
        if value:
            candidates.append(os.path.abspath(os.path.expanduser(value)))
    seen = {os.path.realpath(location.dir)}
    for path in candidates:
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            populated = any(map(layout.parse_repo_folder, os.listdir(path)))
        except OSError:
            continue
        if populated:
            yield path


def check_filesystem(
    filesystem: Filesystem, path: str, config: Config, frees: str
) -> Iterator[Finding]:
    """Yield what the cache's filesystem cannot do."""
    if filesystem.symlinks is False:
        yield finding(
            "no-symlinks",
            "warning",
            path,
            "this filesystem has no symbolic links: each revision keeps copies of its own",
            "use a filesystem with links; on Windows turn on developer mode",
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
            "this mount keeps no access times: only vlmcache's own journal tells the last use",
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
                "the cache is not there and cannot be made here",
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
            f"{missing} not installed: load-test cannot run; everything else does",
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


def check_cache(found: Status) -> Iterator[Finding]:
    """Yield what is damaged in the cache."""
    yield from (finding for finding in found.findings if finding.code == DRIVE_AWAY)
    errors = [finding for finding in found.findings if finding.severity == "error"]
    if errors:
        repos = sorted({finding.repo for finding in errors if finding.repo})
        yield finding(
            "damaged-repos",
            "error",
            found.cache.dir,
            f"{len(errors)} {'error' if len(errors) == 1 else 'errors'} in the cache: "
            + (", ".join(repos) or found.cache.dir),
            "vlmcache status -v",
        )
