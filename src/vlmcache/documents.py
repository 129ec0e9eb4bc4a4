"""Which value each command answers with."""

from __future__ import annotations

import importlib

import msgspec

from vlmcache.errors import UsageError

_TYPES = {
    "status": ("vlmcache.overview", "Status"),
    "load-test": ("vlmcache.load.report", "LoadReport"),
    "quantize": ("vlmcache.load.quantized", "Quantization"),
    "rm": ("vlmcache.removal", "Removal"),
    "clean": ("vlmcache.removal", "Removal"),
    "pull": ("vlmcache.pulling", "Pulled"),
    "verify": ("vlmcache.verifying", "Verification"),
    "move": ("vlmcache.moving", "Moved"),
    "backup": ("vlmcache.backups", "Backup"),
    "restore": ("vlmcache.backups", "Restored"),
    "doctor": ("vlmcache.diagnosis", "Diagnosis"),
}

_STREAMS = {
    "watch": (("vlmcache.watching", "Snapshot"), ("vlmcache.cache.events", "Event")),
}


def stream_types(command: str) -> tuple[type[msgspec.Struct], ...]:
    """Return the types of the lines of a command's answer; none where it is one document."""
    return tuple(_load(*home) for home in _STREAMS.get(command, ()))


def document_type(command: str) -> type[msgspec.Struct]:
    """Return the type of a command's answer.

    Raises:
        UsageError: the command is not known, or has no `--json`.
    """
    if command not in _TYPES:
        raise UsageError(f"no schema for {command!r}", "known: " + ", ".join([*_TYPES, *_STREAMS]))
    return _load(*_TYPES[command])


def _load(module: str, name: str) -> type[msgspec.Struct]:
    found: type[msgspec.Struct] = getattr(importlib.import_module(module), name)
    return found
