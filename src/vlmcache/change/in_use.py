"""The sentence for what processes use."""

from __future__ import annotations

from collections.abc import Sequence

from vlmcache.cache.usage import Process
from vlmcache.change.plan import Kept


def in_use_words(blocked: Sequence[Kept]) -> str:
    """Return who uses what, with process ids and commands."""
    return "; ".join(f"{kept.repo or kept.path} {_by_whom(kept.processes)}" for kept in blocked)


def _by_whom(processes: Sequence[Process]) -> str:
    if not processes:
        return "is being downloaded: a lock of the hub is held"
    users = ", ".join(f"PID {process.pid} ({_short(process.command)})" for process in processes[:3])
    more = f" and {len(processes) - 3} more" if len(processes) > 3 else ""
    return f"is in use by {users}{more}"


def _short(command: str) -> str:
    return command if len(command) <= 80 else command[:79] + "…"
