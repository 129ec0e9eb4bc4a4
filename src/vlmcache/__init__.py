"""Manage the Hugging Face model cache, and measure how fast its models load.

All that the commands do is here as functions; the heavy libraries are imported only by those that
need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.1"

if TYPE_CHECKING:
    from vlmcache.backups import Backup, Restored, backup, restore
    from vlmcache.cache.scan import scan
    from vlmcache.change.pulling import Selection
    from vlmcache.config import find_model, load_config, locate_cache, read_environment
    from vlmcache.diagnosis import diagnose
    from vlmcache.errors import ExitCode, VlmcacheError
    from vlmcache.helpers import (
        check_model_cache,
        delete_model_cache,
        get_cache_info,
        list_cached_models,
    )
    from vlmcache.load.bench import load_test
    from vlmcache.load.quantized import quantize
    from vlmcache.load.wishes import Wishes as LoadWishes
    from vlmcache.loading import load_model
    from vlmcache.moving import Moved, move
    from vlmcache.overview import Status, status
    from vlmcache.pulling import Options as PullOptions
    from vlmcache.pulling import Pulled, pull
    from vlmcache.removal import Removal, clean, remove
    from vlmcache.removal import Wishes as CleanWishes
    from vlmcache.repairing import repair
    from vlmcache.verifying import Verification, verify
    from vlmcache.watching import watch

_HOMES = {
    "Backup": "vlmcache.backups.Backup",
    "Restored": "vlmcache.backups.Restored",
    "backup": "vlmcache.backups.backup",
    "restore": "vlmcache.backups.restore",
    "scan": "vlmcache.cache.scan.scan",
    "find_model": "vlmcache.config.find_model",
    "load_config": "vlmcache.config.load_config",
    "locate_cache": "vlmcache.config.locate_cache",
    "read_environment": "vlmcache.config.read_environment",
    "diagnose": "vlmcache.diagnosis.diagnose",
    "ExitCode": "vlmcache.errors.ExitCode",
    "VlmcacheError": "vlmcache.errors.VlmcacheError",
    "check_model_cache": "vlmcache.helpers.check_model_cache",
    "delete_model_cache": "vlmcache.helpers.delete_model_cache",
    "get_cache_info": "vlmcache.helpers.get_cache_info",
    "list_cached_models": "vlmcache.helpers.list_cached_models",
    "load_test": "vlmcache.load.bench.load_test",
    "load_model": "vlmcache.loading.load_model",
    "quantize": "vlmcache.load.quantized.quantize",
    "LoadWishes": "vlmcache.load.wishes.Wishes",
    "Selection": "vlmcache.change.pulling.Selection",
    "Moved": "vlmcache.moving.Moved",
    "move": "vlmcache.moving.move",
    "PullOptions": "vlmcache.pulling.Options",
    "Pulled": "vlmcache.pulling.Pulled",
    "pull": "vlmcache.pulling.pull",
    "Status": "vlmcache.overview.Status",
    "status": "vlmcache.overview.status",
    "CleanWishes": "vlmcache.removal.Wishes",
    "Removal": "vlmcache.removal.Removal",
    "clean": "vlmcache.removal.clean",
    "remove": "vlmcache.removal.remove",
    "repair": "vlmcache.repairing.repair",
    "Verification": "vlmcache.verifying.Verification",
    "verify": "vlmcache.verifying.verify",
    "watch": "vlmcache.watching.watch",
}

__all__ = [
    "Backup",
    "CleanWishes",
    "ExitCode",
    "LoadWishes",
    "Moved",
    "PullOptions",
    "Pulled",
    "Removal",
    "Restored",
    "Selection",
    "Status",
    "Verification",
    "VlmcacheError",
    "__version__",
    "backup",
    "check_model_cache",
    "clean",
    "delete_model_cache",
    "diagnose",
    "find_model",
    "get_cache_info",
    "list_cached_models",
    "load_config",
    "load_model",
    "load_test",
    "locate_cache",
    "move",
    "pull",
    "quantize",
    "read_environment",
    "remove",
    "repair",
    "restore",
    "scan",
    "status",
    "verify",
    "watch",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
