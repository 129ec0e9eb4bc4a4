"""All figures of the project, compared with the peers, in one table.

    python -m benchmarks [PART …]

Run it from the project's folder, on a quiet machine. Each row is the median of pairs of runs, one
of each side; the ratio is our time, memory or bytes divided by the other's. Before each pair it
waits, within bounds, until the machine is quiet.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import quiet
from benchmarks.pages import written
from benchmarks.pairs import Row, Setting, machine, table
from vlmcache.units import counted, parse_size

PARTS = {
    "help": "inspection:help_rows",
    "status": "inspection:status_rows",
    "scan": "inspection:scan_rows",
    "memory": "inspection:memory_rows",
    "tab": "inspection:tab_rows",
    "pull": "pull:rows",
    "many": "pull:many_rows",
    "slow": "pull:slow_rows",
    "serve": "pull:serve_rows",
    "from": "pull:folder_rows",
    "requests": "pull:request_rows",
    "interrupted": "pull:resume_rows",
    "verify": "verify:rows",
    "backup": "backup:rows",
    "load": "load:rows",
    "watch": "watch:rows",
    "fleet": "fleet:rows",
}
"""Part of the table -> the module and the function in it that measure it."""
SIZES = {
    "pull": 2_000_000_000,
    "serve": 2_000_000_000,
    "from": 2_000_000_000,
    "interrupted": 2_000_000_000,
    "verify": 3_000_000_000,
    "backup": 4_000_000_000,
    "fleet": 2_000_000_000,
}
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", default=list(PARTS), help=f"rows to measure: {', '.join(PARTS)}"
    )
    parser.add_argument("--size", type=parse_size, help="bytes to pull, verify and back up")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs that count")
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds to watch")
    parser.add_argument(
        "--wait",
        type=float,
        default=quiet.LONGEST_IN_ALL,
        help="seconds to wait for a quiet machine, over all pairs",
    )
    parser.add_argument("--folder", help="folder to work in, on the disk to be measured")
    parser.add_argument("--save", type=Path, help="file for the figures of every run, as JSON")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    quiet.bound(given.wait)
    rows: list[Row] = []
    busy: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=given.folder) as common:
        for part in given.parts:
            begun, busy[part] = time.monotonic(), os.getloadavg()[0]
            print(f"{part} … (load average {busy[part]:.1f})", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="part-", dir=common) as folder:
                size = given.size or SIZES.get(part, 0)
                setting = Setting(Path(folder), Path(common), size, given.pairs, given.seconds)
                module, _, name = PARTS[part].partition(":")
                measured = getattr(importlib.import_module(f"benchmarks.{module}"), name)(setting)
            rows += measured
            print(table(measured), file=sys.stderr)
            print(f"{part}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        pairs = counted(given.pairs, "pair")
        text = f"{machine()}; {time.strftime('%Y-%m-%d')}, {pairs}.\n\n{table(rows)}"
        print(text)
        if given.write:
            PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
        if given.save is not None:
            figures = {
                "machine": machine(),
                "load_average": busy,
                "rows": [row._asdict() for row in rows],
            }
            given.save.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
