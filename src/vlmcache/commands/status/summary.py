"""A cache as a whole in figures."""

from __future__ import annotations

import shutil

from vlmcache.cache.mounts import mount_of, nearest_folder
from vlmcache.cache.state import CacheState
from vlmcache.commands.remove.facts import Known
from vlmcache.commands.status.values import CacheSummary
from vlmcache.config import CacheLocation, Config


def summarise(
    state: CacheState, config: Config, location: CacheLocation, known: Known | None = None
) -> CacheSummary:
    """Return the facts about the folder as a whole."""
    mount = known.mount if known is not None else mount_of(location.dir)
    try:
        usage = shutil.disk_usage(nearest_folder(location.dir))
    except OSError:
        usage = None
    return CacheSummary(
        dir=state.dir,
        source=location.source,
        exists=state.exists,
        filesystem=mount.type if mount else None,
        access_times=mount.access_times if mount else "unknown",
        size_on_disk=state.size_on_disk,
        free=usage.free if usage else None,
        total=usage.total if usage else None,
        min_free=config.limits.min_free,
        comfortable_free=config.limits.comfortable_free,
        max_size=config.limits.max_size,
        by_class=state.by_class,
    )
