"""The figures of the complete cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.mounts import Mount, nearest_folder
from vlmcache.cache.state import CacheState, Finding
from vlmcache.commands.status.values import CacheSummary
from vlmcache.config import Session, hub_home


def summarize_cache(session: Session, state: CacheState, mount: Mount | None) -> CacheSummary:
    """Return the facts about the cache folder."""
    limits = session.config.limits
    try:
        usage = shutil.disk_usage(nearest_folder(session.cache.dir))
    except OSError:
        usage = None
    return CacheSummary(
        dir=state.dir,
        source=session.cache.source,
        exists=state.exists,
        filesystem=mount.type if mount else None,
        access_times=mount.access_times if mount else "unknown",
        size_on_disk=state.size_on_disk,
        free=usage.free if usage else None,
        total=usage.total if usage else None,
        min_free=limits.min_free,
        comfortable_free=limits.comfortable_free,
        max_size=limits.max_size,
        by_class=state.by_class,
    )


def second_caches(session: Session, missing: Collection[str] = ()) -> Iterator[Finding]:
    """Yield that a usual place of a cache, which is not the chosen one, holds repos.

    Args:
        session: which cache is the chosen one.
        missing: models that are not complete in it; those that the other place holds are named.
    """
    home = os.path.expanduser("~")
    candidates = [
        os.path.join(home, ".cache", "huggingface", "hub"),
        os.path.join(home, ".cache", "huggingface", "transformers"),
        os.path.join(hub_home(session.environment), "hub"),
    ]
    if session.environment.get("XDG_CACHE_HOME"):
        base = os.path.expanduser(session.environment.variables["XDG_CACHE_HOME"])
        candidates.append(os.path.join(base, "huggingface", "hub"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        value = session.environment.get(name)
        if value:
            candidates.append(os.path.abspath(os.path.expanduser(value)))
    seen = {os.path.realpath(session.cache.dir)}
    for path in candidates:
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            names = os.listdir(path)
        except OSError:
            continue
        if any(map(layout.parse_repo_folder, names)):
            detail = (
                f"another cache with models is at {path}; "
                f"{session.cache.source} decides for {session.cache.dir}"
            )
            held = [repo for repo in missing if layout.repo_folder("model", repo) in names]
            if held:
                detail += f"; {', '.join(held)} may be there already"
            remedy = units.command("status", "--cache-dir", path)
            yield Finding("second-cache", "warning", None, path, detail, remedy)
