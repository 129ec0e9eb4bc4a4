"""Reports kept in files: written whole or not at all, read with care."""

from __future__ import annotations

import os

import msgspec

from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.change import place
from vlmcache.errors import UsageError
from vlmcache.load.report import LoadReport, compare

_REPORT_LIMIT = 64_000_000


def read_report(path: str) -> LoadReport:
    """Return a report that `--save` or `--json` wrote.

    Raises:
        UsageError: the file cannot be read, or is no such report.
    """
    try:
        report = msgspec.json.decode(read_bytes(path, _REPORT_LIMIT), type=LoadReport)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except JSON_ERRORS as error:
        hint = "write one with vlmcache load-test --save"
        raise UsageError(f"{path}: no load report: {error}", hint) from None
    return report


def compared(report: LoadReport, earlier: LoadReport | None) -> LoadReport:
    """Return a report with the comparison to an earlier one, if there is one."""
    if earlier is None:
        return report
    return msgspec.structs.replace(report, comparison=compare(earlier, report))


def check_targets(*paths: str | None) -> None:
    """Make sure, before minutes of measuring, that files can be written where they are wanted.

    Raises:
        UsageError: a folder is not there or cannot be written.
    """
    for path in paths:
        if path is None:
            continue
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
            raise UsageError(f"{path}: cannot be written there")


def save_report(path: str, report: LoadReport) -> None:
    """Write a report as JSON.

    Raises:
        OSError: it cannot be written; what was at the path before is untouched.
    """
    content = msgspec.to_builtins(report)
    content = {"schema": "vlmcache.load-test/1"} | content
    encoded = msgspec.json.format(msgspec.json.encode(content), indent=2)
    place.write_file(os.path.abspath(path), encoded + b"\n")
