"""Manage the Hugging Face model cache, and measure how fast its models load.

All that the commands do is here as functions; the heavy libraries are imported only by those that
need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.1"

if TYPE_CHECKING:
    from vlmcache.cache.scan import scan
    from vlmcache.commands.backup.backup import backup
    from vlmcache.commands.backup.restore import restore
    from vlmcache.commands.backup.values import Backup, Restored
    from vlmcache.commands.doctor.doctor import diagnose
    from vlmcache.commands.move.move import move
    from vlmcache.commands.move.values import Moved
    from vlmcache.commands.pull.plan import Selection
    from vlmcache.commands.pull.pull import pull
    from vlmcache.commands.pull.values import Options as PullOptions
    from vlmcache.commands.pull.values import Pulled
    from vlmcache.commands.remove.clean import clean
    from vlmcache.commands.remove.remove import remove
    from vlmcache.commands.remove.values import CleanOptions as CleanWishes
    from vlmcache.commands.remove.values import Removal
    from vlmcache.commands.status.status import status
    from vlmcache.commands.status.values import Status
    from vlmcache.commands.verify.repair import repair
    from vlmcache.commands.verify.values import Verification
    from vlmcache.commands.verify.verify import verify
    from vlmcache.commands.watch.watch import watch
    from vlmcache.compat import (
        check_model_cache,
        delete_model_cache,
        get_cache_info,
        list_cached_models,
    )
    from vlmcache.config import find_model, load_config, locate_cache, read_environment
    from vlmcache.errors import ExitCode, VlmcacheError
    from vlmcache.load.bench import load_test
    from vlmcache.load.quantized import quantize
    from vlmcache.load.wishes import Wishes as LoadWishes
    from vlmcache.loading import load_model

_HOMES = {
    "Backup": "vlmcache.commands.backup.values.Backup",
    "Restored": "vlmcache.commands.backup.values.Restored",
    "backup": "vlmcache.commands.backup.backup.backup",
    "restore": "vlmcache.commands.backup.restore.restore",
    "scan": "vlmcache.cache.scan.scan",
    "find_model": "vlmcache.config.find_model",
    "load_config": "vlmcache.config.load_config",
    "locate_cache": "vlmcache.config.locate_cache",
    "read_environment": "vlmcache.config.read_environment",
    "diagnose": "vlmcache.commands.doctor.doctor.diagnose",
    "ExitCode": "vlmcache.errors.ExitCode",
    "VlmcacheError": "vlmcache.errors.VlmcacheError",
    "check_model_cache": "vlmcache.compat.check_model_cache",
    "delete_model_cache": "vlmcache.compat.delete_model_cache",
    "get_cache_info": "vlmcache.compat.get_cache_info",
    "list_cached_models": "vlmcache.compat.list_cached_models",
    "load_test": "vlmcache.load.bench.load_test",
    "load_model": "vlmcache.loading.load_model",
    "quantize": "vlmcache.load.quantized.quantize",
    "LoadWishes": "vlmcache.load.wishes.Wishes",
    "Selection": "vlmcache.commands.pull.plan.Selection",
    "Moved": "vlmcache.commands.move.values.Moved",
    "move": "vlmcache.commands.move.move.move",
    "PullOptions": "vlmcache.commands.pull.values.Options",
    "Pulled": "vlmcache.commands.pull.values.Pulled",
    "pull": "vlmcache.commands.pull.pull.pull",
    "Status": "vlmcache.commands.status.values.Status",
    "status": "vlmcache.commands.status.status.status",
    "CleanWishes": "vlmcache.commands.remove.values.CleanOptions",
    "Removal": "vlmcache.commands.remove.values.Removal",
    "clean": "vlmcache.commands.remove.clean.clean",
    "remove": "vlmcache.commands.remove.remove.remove",
    "repair": "vlmcache.commands.verify.repair.repair",
    "Verification": "vlmcache.commands.verify.values.Verification",
    "verify": "vlmcache.commands.verify.verify.verify",
    "watch": "vlmcache.commands.watch.watch.watch",
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
