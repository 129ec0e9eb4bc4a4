"""Manage the Hugging Face model cache, and measure how fast its models load.

All that the commands do is here as functions; the heavy libraries are imported only by those that
need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vlmcache.backups import Backup, Restored, backup, restore
    from vlmcache.cache.scan import scan
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
    from vlmcache.load.wishes import Wishes
    from vlmcache.loading import load_model
    from vlmcache.moving import Moved, move
    from vlmcache.overview import Status, status
    from vlmcache.pulling import Options as PullOptions
    from vlmcache.pulling import Pulled, pull
    from vlmcache.removal import Removal, clean, remove
    from vlmcache.repairing import repair
    from vlmcache.verifying import Verification, verify
    from vlmcache.watching import watch

_HOMES = {
    "Backup": "vlmcache.backups",
    "Restored": "vlmcache.backups",
    "backup": "vlmcache.backups",
    "restore": "vlmcache.backups",
    "scan": "vlmcache.cache.scan",
    "find_model": "vlmcache.config",
    "load_config": "vlmcache.config",
    "locate_cache": "vlmcache.config",
    "read_environment": "vlmcache.config",
    "diagnose": "vlmcache.diagnosis",
    "ExitCode": "vlmcache.errors",
    "VlmcacheError": "vlmcache.errors",
    "check_model_cache": "vlmcache.helpers",
    "delete_model_cache": "vlmcache.helpers",
    "get_cache_info": "vlmcache.helpers",
    "list_cached_models": "vlmcache.helpers",
    "load_test": "vlmcache.load.bench",
    "load_model": "vlmcache.loading",
    "quantize": "vlmcache.load.quantized",
    "Wishes": "vlmcache.load.wishes",
    "Moved": "vlmcache.moving",
    "move": "vlmcache.moving",
    "PullOptions": "vlmcache.pulling",
    "Pulled": "vlmcache.pulling",
    "pull": "vlmcache.pulling",
    "Status": "vlmcache.overview",
    "status": "vlmcache.overview",
    "Removal": "vlmcache.removal",
    "clean": "vlmcache.removal",
    "remove": "vlmcache.removal",
    "repair": "vlmcache.repairing",
    "Verification": "vlmcache.verifying",
    "verify": "vlmcache.verifying",
    "watch": "vlmcache.watching",
}

__all__ = [
    "Backup",
    "ExitCode",
    "Moved",
    "PullOptions",
    "Pulled",
    "Removal",
    "Restored",
    "Status",
    "Verification",
    "VlmcacheError",
    "Wishes",
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
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
