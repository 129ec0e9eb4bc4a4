"""Earlier load tests: reports in files, and results as the journal remembers them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import msgspec

from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.change import place
from vlmcache.config import Session, cached_models, expand_patterns, find_model, own_home
from vlmcache.errors import UsageError, reason_of
from vlmcache.home.journal import Journal
from vlmcache.load import streams
from vlmcache.load.comparing import FEWEST, compare, faster_or_slower
from vlmcache.load.report import (
    Loader,
    LoadReport,
    Machine,
    Remembered,
    Spread,
)
from vlmcache.load.source import ModelFiles

_REPORT_LIMIT = 64_000_000


def read_report(path: str) -> LoadReport:
    """Return a report that `--save` or `--json` wrote.

    Raises:
        UsageError: the file cannot be read, or is not a load report.
    """
    try:
        return msgspec.json.decode(read_bytes(path, _REPORT_LIMIT), type=LoadReport)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {reason_of(error)}") from None
    except JSON_ERRORS as error:
        raise UsageError(
            f"{path}: not a load report: {reason_of(error)}",
            "write one with vlmcache load-test --save",
        ) from None


def compared(report: LoadReport, earlier: LoadReport | None) -> LoadReport:
    """Return a report with its comparison with an earlier one, if that is given."""
    if earlier is None:
        return report
    return msgspec.structs.replace(report, comparison=compare(earlier, report))


def check_targets(*paths: str | None) -> None:
    """Make sure, before minutes of measuring, that files can be written.

    Raises:
        UsageError: a file's folder does not exist or cannot be written to.
    """
    for path in paths:
        if path is None:
            continue
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
            raise UsageError(
                f"{path}: cannot be written there", "name a file in an existing folder of yours"
            )


def save_report(path: str, report: LoadReport) -> LoadReport:
    """Write a report as JSON; return it with the file's path added.

    Raises:
        OSError: it cannot be written; a file that was there before is unchanged.
    """
    path = os.path.abspath(path)
    content = {"schema": "vlmcache.load-test/1"} | msgspec.to_builtins(report)
    encoded = msgspec.json.format(msgspec.json.encode(content), indent=2)
    place.write_file(path, encoded + b"\n")
    return msgspec.structs.replace(report, written=report.written | {"report": path})


def history(session: Session, names: Sequence[str]) -> LoadReport:
    """Return the results of earlier runs, the latest first, of all models or of those named.

    Raises:
        UnknownModelError: a name is neither a key, nor a repo id, nor one that is remembered.
    """
    home, _ = own_home(session.environment)
    results = remembered(home)
    known = {earlier.result.model for earlier in results}
    repos = {earlier.result.repo for earlier in results if earlier.result.repo is not None}
    names = expand_patterns(
        session.config, names, {*cached_models(session.cache), *repos}, missing=True
    )
    unknown = (name for name in names if name not in known)
    wanted = {*names, *(find_model(session.config, name, repos).repo for name in unknown)}
    chosen = (
        earlier
        for earlier in results
        if not wanted or earlier.result.model in wanted or earlier.result.repo in wanted
    )
    return LoadReport(None, (), history=tuple(chosen))


def remembered(home: str) -> list[Remembered]:
    """Return the readable results of earlier runs, the latest first."""
    results = []
    with Journal(home) as journal:
        for content in journal.loads():
            with contextlib.suppress(*JSON_ERRORS):
                results.append(msgspec.json.decode(content, type=Remembered))
    return results


def best_loader(
    home: str, source: ModelFiles, device: str, machine: Machine | None, *, cold: bool
) -> Loader:
    """Return the loader that was clearly faster than reading ahead when last measured, else that.

    Only results with enough valid trials count: a disturbed one does not replace an earlier one.

    Args:
        home: vlmcache's own folder.
        source: the files that are to be loaded.
        device: the device to load on.
        machine: this machine; results of other machines do not count.
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
        if not same or spread is None or machine is None or not streams.is_installed(result.loader):
            continue
        alike = earlier.machine.hardware() == machine.hardware()
        if alike and spread.count >= FEWEST and not result.cold_libraries:
            latest.setdefault(result.loader, spread)
    usual = latest.get("readahead")
    faster = [
        (spread.median, loader)
        for loader, spread in latest.items()
        if usual is not None and faster_or_slower(usual, spread) == "faster"
    ]
    return min(faster)[1] if faster else "readahead"
