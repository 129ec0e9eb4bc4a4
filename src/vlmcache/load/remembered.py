"""What earlier load tests measured, as the journal remembers it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vlmcache.cache.reading import JSON_ERRORS
from vlmcache.config import Session, find_model, own_home
from vlmcache.errors import UnloadableError
from vlmcache.home.journal import Journal
from vlmcache.load import streams
from vlmcache.load.report import (
    Loader,
    LoadReport,
    Machine,
    Remembered,
    Spread,
    faster_or_slower,
)
from vlmcache.load.source import ModelFiles


def history(session: Session, names: Sequence[str]) -> LoadReport:
    """Return the results of earlier runs, the latest first, of all models or of those named.

    Raises:
        UnknownModelError: a name is neither a key, nor a repo id, nor one that is remembered.
    """
    home, _ = own_home(session.environment)
    results = remembered(home)
    known = {earlier.result.model for earlier in results}
    repos = {earlier.result.repo for earlier in results if earlier.result.repo is not None}
    wanted = {*names}
    wanted |= {find_model(session.config, name, repos).repo for name in names if name not in known}
    chosen = (
        earlier
        for earlier in results
        if not wanted or earlier.result.model in wanted or earlier.result.repo in wanted
    )
    return LoadReport(None, (), history=tuple(chosen))


def remembered(home: str) -> list[Remembered]:
    """Return the results of earlier runs, the latest first. What cannot be read is left out."""
    results = []
    with Journal(home) as memory:
        for content in memory.loads():
            try:
                results.append(msgspec.json.decode(content, type=Remembered))
            except JSON_ERRORS:
                continue
    return results


def best_loader(
    home: str, source: ModelFiles, device: str, machine: Machine | None, *, cold: bool
) -> Loader:
    """Return reading ahead, or what was faster here beyond the spread when last measured.

    Args:
        home: our own folder.
        source: what is to be loaded.
        device: on which.
        machine: this one; on another one, what was measured says nothing.
        cold: whether cold loads count, or warm ones.
    """
    latest: dict[Loader, Spread] = {}
    for earlier in remembered(home):
        result = earlier.result
        same = (result.model, result.repo, result.precision, result.device, result.source) == (
            source.model,
            source.repo,
            source.precision,
            device,
            source.kind,
        )
        spread = result.cold if cold else result.warm
        if not same or spread is None or machine is None or not _is_installed(result.loader):
            continue
        if earlier.machine.hardware() == machine.hardware():
            latest.setdefault(result.loader, spread)
    usual = latest.get("readahead")
    faster = [
        (spread.median, loader)
        for loader, spread in latest.items()
        if usual is not None and faster_or_slower(usual, spread) == "faster"
    ]
    return min(faster)[1] if faster else "readahead"


def _is_installed(loader: Loader) -> bool:
    try:
        streams.require_loader(loader)
    except UnloadableError:
        return False
    return True
