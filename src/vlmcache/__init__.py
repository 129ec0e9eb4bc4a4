"""Manage the Hugging Face model cache, and measure how fast its models load.

`Cache` has every command as a method; `load_model` is what applications call; the functions of the
guide's helper scripts are here too. What a name needs is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from vlmcache.api import Cache
    from vlmcache.cache.hashing import ContentChangedError
    from vlmcache.codes import Explanation
    from vlmcache.commands.attach.values import AttachReport, NotAttachedError
    from vlmcache.commands.backup.places import PlaceError
    from vlmcache.commands.backup.values import Backup, BackupError, Restored
    from vlmcache.commands.doctor.values import Diagnosis
    from vlmcache.commands.fleet.fleet import FleetCache
    from vlmcache.commands.fleet.joining import ClusterError
    from vlmcache.commands.fleet.pull_values import FleetPull
    from vlmcache.commands.fleet.values import (
        FleetCheckError,
        FleetLoads,
        FleetRemoval,
        FleetReport,
        FleetStatus,
        FleetVerification,
        NodeLostError,
        VersionsError,
    )
    from vlmcache.commands.init.values import ConfigExistsError, ConfigWriteError, InitReport
    from vlmcache.commands.move.values import (
        BusyError,
        MoveReport,
        NotMovedError,
        RecallReport,
        SourceDamagedError,
    )
    from vlmcache.commands.pull.plan import VariantError
    from vlmcache.commands.pull.values import PullReport
    from vlmcache.commands.remove.values import Removal, RemovalError
    from vlmcache.commands.schedule.values import NoSchedulerError, ScheduleError, ScheduleReport
    from vlmcache.commands.serve.serve import Server
    from vlmcache.commands.serve.values import (
        InterruptedServeError,
        ServeError,
        ServeReport,
        TerminatedServeError,
    )
    from vlmcache.commands.status.values import NotCachedError, Status
    from vlmcache.commands.trash.values import (
        NameTakenError,
        NothingToUndoError,
        TrashReport,
        UndoReport,
    )
    from vlmcache.commands.verify.values import (
        DamageError,
        RepairError,
        RepairReport,
        Verification,
    )
    from vlmcache.commands.watch.metrics import MetricsError
    from vlmcache.commands.watch.values import Event, LowSpaceError, Observation, Snapshot
    from vlmcache.compat import (
        check_model_cache,
        delete_model_cache,
        get_cache_info,
        list_cached_models,
    )
    from vlmcache.errors import (
        AccessError,
        AwayError,
        BadAnswerError,
        CacheError,
        ChangedError,
        ConfigError,
        CrashedError,
        DamagedWeightsError,
        ExitCode,
        GgufError,
        HostileListingError,
        HubError,
        InUseError,
        MissingPackageError,
        NoDeviceError,
        NoSuchFileError,
        NoSuchRepoError,
        NoSuchRevisionError,
        NotDownloadedError,
        NotEnoughMemoryError,
        OfflineError,
        OtherFormatError,
        PartlyError,
        SettingError,
        SpaceError,
        UnconfirmedError,
        UnknownArchitectureError,
        UnknownModelError,
        UnloadableError,
        UnreachableError,
        UnsupportedPrecisionError,
        UntrustedCodeError,
        UsageError,
        VlmcacheError,
        WrongBytesError,
    )
    from vlmcache.load.quantized import Quantization
    from vlmcache.load.report import InterruptedLoadError, LoadReport, TerminatedLoadError
    from vlmcache.load.warm import WarmReport
    from vlmcache.loading import load_model
    from vlmcache.report import Report

_HOMES = {
    "Cache": "vlmcache.api",
    "ContentChangedError": "vlmcache.cache.hashing",
    "Explanation": "vlmcache.codes",
    "AttachReport": "vlmcache.commands.attach.values",
    "NotAttachedError": "vlmcache.commands.attach.values",
    "PlaceError": "vlmcache.commands.backup.places",
    "Backup": "vlmcache.commands.backup.values",
    "BackupError": "vlmcache.commands.backup.values",
    "Restored": "vlmcache.commands.backup.values",
    "Diagnosis": "vlmcache.commands.doctor.values",
    "FleetCache": "vlmcache.commands.fleet.fleet",
    "ClusterError": "vlmcache.commands.fleet.joining",
    "FleetCheckError": "vlmcache.commands.fleet.values",
    "FleetLoads": "vlmcache.commands.fleet.values",
    "FleetPull": "vlmcache.commands.fleet.pull_values",
    "FleetRemoval": "vlmcache.commands.fleet.values",
    "FleetReport": "vlmcache.commands.fleet.values",
    "FleetStatus": "vlmcache.commands.fleet.values",
    "FleetVerification": "vlmcache.commands.fleet.values",
    "NodeLostError": "vlmcache.commands.fleet.values",
    "VersionsError": "vlmcache.commands.fleet.values",
    "ConfigExistsError": "vlmcache.commands.init.values",
    "ConfigWriteError": "vlmcache.commands.init.values",
    "InitReport": "vlmcache.commands.init.values",
    "BusyError": "vlmcache.commands.move.values",
    "MoveReport": "vlmcache.commands.move.values",
    "NotMovedError": "vlmcache.commands.move.values",
    "RecallReport": "vlmcache.commands.move.values",
    "SourceDamagedError": "vlmcache.commands.move.values",
    "VariantError": "vlmcache.commands.pull.plan",
    "PullReport": "vlmcache.commands.pull.values",
    "Removal": "vlmcache.commands.remove.values",
    "RemovalError": "vlmcache.commands.remove.values",
    "NoSchedulerError": "vlmcache.commands.schedule.values",
    "ScheduleError": "vlmcache.commands.schedule.values",
    "ScheduleReport": "vlmcache.commands.schedule.values",
    "Server": "vlmcache.commands.serve.serve",
    "InterruptedServeError": "vlmcache.commands.serve.values",
    "ServeError": "vlmcache.commands.serve.values",
    "ServeReport": "vlmcache.commands.serve.values",
    "TerminatedServeError": "vlmcache.commands.serve.values",
    "NotCachedError": "vlmcache.commands.status.values",
    "Status": "vlmcache.commands.status.values",
    "NameTakenError": "vlmcache.commands.trash.values",
    "NothingToUndoError": "vlmcache.commands.trash.values",
    "TrashReport": "vlmcache.commands.trash.values",
    "UndoReport": "vlmcache.commands.trash.values",
    "RepairError": "vlmcache.commands.verify.values",
    "RepairReport": "vlmcache.commands.verify.values",
    "DamageError": "vlmcache.commands.verify.values",
    "Verification": "vlmcache.commands.verify.values",
    "MetricsError": "vlmcache.commands.watch.metrics",
    "Event": "vlmcache.commands.watch.values",
    "Observation": "vlmcache.commands.watch.values",
    "LowSpaceError": "vlmcache.commands.watch.values",
    "Snapshot": "vlmcache.commands.watch.values",
    "check_model_cache": "vlmcache.compat",
    "delete_model_cache": "vlmcache.compat",
    "get_cache_info": "vlmcache.compat",
    "list_cached_models": "vlmcache.compat",
    "AccessError": "vlmcache.errors",
    "AwayError": "vlmcache.errors",
    "BadAnswerError": "vlmcache.errors",
    "CacheError": "vlmcache.errors",
    "ChangedError": "vlmcache.errors",
    "ConfigError": "vlmcache.errors",
    "CrashedError": "vlmcache.errors",
    "DamagedWeightsError": "vlmcache.errors",
    "GgufError": "vlmcache.errors",
    "ExitCode": "vlmcache.errors",
    "HostileListingError": "vlmcache.errors",
    "HubError": "vlmcache.errors",
    "InUseError": "vlmcache.errors",
    "MissingPackageError": "vlmcache.errors",
    "NoDeviceError": "vlmcache.errors",
    "NoSuchFileError": "vlmcache.errors",
    "NoSuchRepoError": "vlmcache.errors",
    "NoSuchRevisionError": "vlmcache.errors",
    "NotDownloadedError": "vlmcache.errors",
    "NotEnoughMemoryError": "vlmcache.errors",
    "OfflineError": "vlmcache.errors",
    "OtherFormatError": "vlmcache.errors",
    "PartlyError": "vlmcache.errors",
    "SettingError": "vlmcache.errors",
    "SpaceError": "vlmcache.errors",
    "UnknownArchitectureError": "vlmcache.errors",
    "UnconfirmedError": "vlmcache.errors",
    "UnknownModelError": "vlmcache.errors",
    "UnloadableError": "vlmcache.errors",
    "UnreachableError": "vlmcache.errors",
    "UnsupportedPrecisionError": "vlmcache.errors",
    "UntrustedCodeError": "vlmcache.errors",
    "UsageError": "vlmcache.errors",
    "VlmcacheError": "vlmcache.errors",
    "WrongBytesError": "vlmcache.errors",
    "Quantization": "vlmcache.load.quantized",
    "InterruptedLoadError": "vlmcache.load.report",
    "LoadReport": "vlmcache.load.report",
    "TerminatedLoadError": "vlmcache.load.report",
    "WarmReport": "vlmcache.load.warm",
    "load_model": "vlmcache.loading",
    "Report": "vlmcache.report",
}

__all__ = [
    "AccessError",
    "AttachReport",
    "AwayError",
    "Backup",
    "BackupError",
    "BadAnswerError",
    "BusyError",
    "Cache",
    "CacheError",
    "ChangedError",
    "ClusterError",
    "ConfigError",
    "ConfigExistsError",
    "ConfigWriteError",
    "ContentChangedError",
    "CrashedError",
    "DamageError",
    "DamagedWeightsError",
    "Diagnosis",
    "Event",
    "ExitCode",
    "Explanation",
    "FleetCache",
    "FleetCheckError",
    "FleetLoads",
    "FleetPull",
    "FleetRemoval",
    "FleetReport",
    "FleetStatus",
    "FleetVerification",
    "GgufError",
    "HostileListingError",
    "HubError",
    "InUseError",
    "InitReport",
    "InterruptedLoadError",
    "InterruptedServeError",
    "LoadReport",
    "LowSpaceError",
    "MetricsError",
    "MissingPackageError",
    "MoveReport",
    "NameTakenError",
    "NoDeviceError",
    "NoSchedulerError",
    "NoSuchFileError",
    "NoSuchRepoError",
    "NoSuchRevisionError",
    "NodeLostError",
    "NotAttachedError",
    "NotCachedError",
    "NotDownloadedError",
    "NotEnoughMemoryError",
    "NotMovedError",
    "NothingToUndoError",
    "Observation",
    "OfflineError",
    "OtherFormatError",
    "PartlyError",
    "PlaceError",
    "PullReport",
    "Quantization",
    "RecallReport",
    "Removal",
    "RemovalError",
    "RepairError",
    "RepairReport",
    "Report",
    "Restored",
    "ScheduleError",
    "ScheduleReport",
    "ServeError",
    "ServeReport",
    "Server",
    "SettingError",
    "Snapshot",
    "SourceDamagedError",
    "SpaceError",
    "Status",
    "TerminatedLoadError",
    "TerminatedServeError",
    "TrashReport",
    "UnconfirmedError",
    "UndoReport",
    "UnknownArchitectureError",
    "UnknownModelError",
    "UnloadableError",
    "UnreachableError",
    "UnsupportedPrecisionError",
    "UntrustedCodeError",
    "UsageError",
    "VariantError",
    "Verification",
    "VersionsError",
    "VlmcacheError",
    "WarmReport",
    "WrongBytesError",
    "__version__",
    "check_model_cache",
    "delete_model_cache",
    "get_cache_info",
    "list_cached_models",
    "load_model",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
