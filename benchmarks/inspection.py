"""Start-up, status and scan beside `hf`, `scan_cache_dir` and a plain walk."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from benchmarks.pairs import BIN, TIMED, Row, Setting, in_turn, memory_row, seconds_row

WALK = """
import os, sys
pending = [sys.argv[1]]
while pending:
    with os.scandir(pending.pop()) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
"""
SCAN = TIMED.format(
    setup="import sys; from vlmcache.cache.scan import scan", work="state = scan(sys.argv[1])"
)
PEER_SCAN = TIMED.format(
    setup="import sys; from huggingface_hub import scan_cache_dir",
    work="found = scan_cache_dir(sys.argv[1])",
)
TIMED_WALK = TIMED.format(setup="", work=WALK)


def make_cache(root: Path, repos: int, files: int) -> None:
    """Make a cache of small files in the hub's layout."""
    for number in range(repos):
        commit = hashlib.sha1(str(number).encode(), usedforsecurity=False).hexdigest()
        folder = root / f"models--org--name{number}"
        snapshot = folder / "snapshots" / commit
        for path in (folder / "blobs", folder / "refs", snapshot):
            path.mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        for index in range(files):
            etag = hashlib.sha256(f"{number} {index}".encode()).hexdigest()
            (folder / "blobs" / etag).write_bytes(b"x" * 100)
            (snapshot / f"file{index:03}.json").symlink_to(f"../../blobs/{etag}")


def rows(setting: Setting) -> list[Row]:
    """Measure start-up, `status` and the scan."""
    python, ours, peer = sys.executable, str(BIN / "vlmcache"), str(BIN / "hf")
    middle, large, home = (setting.folder / name for name in ("middle", "large", "home"))
    make_cache(middle, 200, 20)
    make_cache(large, 1000, 100)
    home.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(middle),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    found: list[Row] = []
    runs = in_turn(
        {
            "vlmcache --help": [ours, "--help"],
            "import typer": [python, "-c", "import typer"],
            "hf version": [peer, "version"],
        },
        2 * setting.pairs,
        environment,
    )
    found.append(seconds_row("--help", runs, "vlmcache --help", "import typer", 1.3))
    found.append(seconds_row("--help", runs, "vlmcache --help", "hf version", 0.5))
    runs = in_turn(
        {
            "vlmcache status": [ours, "status", "--json"],
            "hf cache ls": [peer, "cache", "ls", "--json"],
            "walk": [python, "-c", WALK, str(middle)],
        },
        setting.pairs,
        environment,
    )
    what = "status --json, 200 repos x 20 files"
    found.append(seconds_row(what, runs, "vlmcache status", "hf cache ls", 0.5))
    found.append(seconds_row(what, runs, "vlmcache status", "walk", None))
    environment["HF_HUB_CACHE"] = str(large)
    runs = in_turn(
        {
            "scan": [python, "-c", SCAN, str(large)],
            "walk": [python, "-c", TIMED_WALK, str(large)],
            "scan_cache_dir": [python, "-c", PEER_SCAN, str(large)],
            "hf cache ls": [peer, "cache", "ls", "--json"],
        },
        setting.pairs,
        environment,
    )
    what = "scan, 1,000 repos x 100 files"
    found.append(seconds_row(what, runs, "scan", "scan_cache_dir", 0.2))
    found.append(seconds_row(what, runs, "scan", "walk", 2.0))
    found.append(memory_row("peak memory of that scan", runs, "scan", "hf cache ls", 0.6))
    return found
