"""Which lines the tests reach: `python -m tests.kit.coverage [ARGUMENTS OF PYTEST]`.

Runs the check with coverage, in the processes that tests start too, and writes the figures of each
room into docs/testing.md. `python -m coverage report --show-missing` then names
the lines.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

from tests.kit.counts import write_counts

ALL = "**all**"


def table(report: dict[str, dict[str, dict[str, int]]]) -> str:
    """Return statements and those reached of each room, as Markdown."""
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, file in report.items():
        parts = Path(name).parts
        inside = parts[parts.index("vlmcache") + 1 : -1][:2]
        for row in ("/".join(inside) or "(the modules at the top)", ALL):
            rooms[row][0] += file["summary"]["num_statements"]
            rooms[row][1] += file["summary"]["covered_lines"]
    lines = ["| room | statements | reached |", "|---|---:|---:|"]
    lines += (
        f"| {room} | {count:,} | {reached / count:.1%} |"
        for room, (count, reached) in sorted(rooms.items(), key=_all_last)
        if count
    )
    return "\n".join([*lines, ""])


def _all_last(row: tuple[str, list[int]]) -> tuple[bool, str]:
    return row[0] == ALL, row[0]


def main(arguments: list[str]) -> int:
    """Run the tests with coverage and write the figures, unless a test fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "coverage.json")
        failed = pytest.main(["--cov=vlmcache", f"--cov-report=json:{report}", *arguments])
        figures = table(json.loads(report.read_text(encoding="utf-8"))["files"])
    print(figures)
    if not failed:
        write_counts("testing.md", "coverage", figures)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
