"""Which value each command answers with."""

from __future__ import annotations

import importlib

import msgspec

from vlmcache.errors import UsageError

_TYPES = {
    "status": ("vlmcache.commands.status.values", "Status"),
    "load-test": ("vlmcache.load.report", "LoadReport"),
    "quantize": ("vlmcache.load.quantized", "Quantization"),
    "rm": ("vlmcache.commands.remove.values", "Removal"),
    "clean": ("vlmcache.commands.remove.values", "Removal"),
    "pull": ("vlmcache.commands.pull.values", "Pulled"),
    "verify": ("vlmcache.commands.verify.values", "Verification"),
    "move": ("vlmcache.commands.move.values", "Moved"),
    "backup": ("vlmcache.commands.backup.values", "Backup"),
    "restore": ("vlmcache.commands.backup.values", "Restored"),
    "doctor": ("vlmcache.commands.doctor.values", "Diagnosis"),
}

_STREAMS = {
    "watch": (
        ("vlmcache.commands.watch.values", "Snapshot"),
        ("vlmcache.commands.watch.values", "Event"),
    ),
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
