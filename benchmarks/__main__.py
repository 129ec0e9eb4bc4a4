"""All of the project's figures, side by side with the peers, in one table.

    python -m benchmarks [inspection] [pull] [verify] [backup] [load] [watch]

Run it from the project's folder, on a quiet machine. Every row is the median of pairs of runs, one
of each side after the other; the ratio is that of ours to the other's time, memory or bytes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.pairs import Row, Setting, machine, table
from vlmcache.units import parse_size

SIZES = {"inspection": 0, "pull": 2_000_000_000, "verify": 4_000_000_000, "backup": 4_000_000_000}
PARTS = (*SIZES, "load", "watch")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"which of {', '.join(PARTS)}")
    parser.add_argument("--size", type=parse_size, help="bytes to pull, verify and back up")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch")
    parser.add_argument("--folder", help="where to work; a folder on the disk to be measured")
    parser.add_argument("--save", type=Path, help="a file for the figures of every run, as JSON")
    given = parser.parse_args()
    rows: list[Row] = []
    busy: dict[str, float] = {}
    for part in given.parts:
        if part not in PARTS:
            parser.error(f"no such part: {part}")
        busy[part] = os.getloadavg()[0]
        print(f"{part} … (load average {busy[part]:.1f})", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=given.folder) as folder:
            size = given.size or SIZES.get(part, 0)
            setting = Setting(Path(folder), size, given.pairs, given.seconds)
            found = importlib.import_module(f"benchmarks.{part}").rows(setting)
        rows += found
        print(table(found), file=sys.stderr, flush=True)
    print(f"{machine()}\n\n{table(rows)}")
    if given.save is not None:
        kept = {"machine": machine(), "load_average": busy, "rows": [row._asdict() for row in rows]}
        given.save.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
