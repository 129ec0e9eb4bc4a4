"""The figures of the complete cache."""

from __future__ import annotations

import shutil

from vlmcache.cache.mounts import Mount, nearest_folder
from vlmcache.cache.state import CacheState
from vlmcache.commands.status.values import CacheSummary
from vlmcache.config import Session


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
