"""Start-up, status, scan and completion compared with `hf`, `scan_cache_dir` and a plain walk."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pairs import (
    BIN,
    TIMED,
    Row,
    Setting,
    in_turn,
    memory_row,
    peak_memory,
    rounds,
    seconds_row,
    worst_row,
)

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
    work="state = scan_cache_dir(sys.argv[1])",
)
TIMED_WALK = TIMED.format(setup="", work=WALK)
PYTHON, OURS, PEER = sys.executable, str(BIN / "vlmcache"), str(BIN / "hf")
PEER_LIST = [PEER, "cache", "ls", "--json"]
LARGE = "1,000 repos x 100 files"


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


def cache_of(setting: Setting, repos: int, files: int) -> Path:
    """Return a cache with so many repos of so many files, made at its first use."""
    cache = setting.common / f"{repos}x{files}"
    if not cache.exists():
        make_cache(cache, repos, files)
        # The kernel is still writing what was made, and would take a core meanwhile.
        os.sync()
    return cache


def environment(setting: Setting, cache: Path) -> dict[str, str]:
    home = setting.folder / "home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def help_rows(setting: Setting) -> list[Row]:
    """Measure the complete process of `--help`."""
    commands = {
        "vlmcache --help": [OURS, "--help"],
        "import typer": [PYTHON, "-c", "import typer"],
        "hf version": [PEER, "version"],
    }
    # They are short, so more of them are run.
    runs = in_turn(commands, 3 * setting.pairs, environment(setting, setting.folder / "none"))
    return [
        seconds_row("--help", runs, "vlmcache --help", "import typer", 1.2),
        seconds_row("--help", runs, "vlmcache --help", "hf version", 0.4),
    ]


def status_rows(setting: Setting) -> list[Row]:
    """Measure `status --json` of a cache of usual size and of a large one."""
    rows = []
    for repos, files, target in ((200, 20, 0.42), (1000, 100, 0.28)):
        cache = cache_of(setting, repos, files)
        commands = {
            "vlmcache status": [OURS, "status", "--json"],
            "hf cache ls --json": PEER_LIST,
            "walk": [PYTHON, "-c", WALK, str(cache)],
        }
        runs = in_turn(commands, setting.pairs, environment(setting, cache))
        what = f"status --json, {repos:,} repos x {files} files"
        rows.append(seconds_row(what, runs, "vlmcache status", "hf cache ls --json", target))
        rows.append(seconds_row(what, runs, "vlmcache status", "walk", None))
    return rows


def scan_rows(setting: Setting) -> list[Row]:
    """Measure the scan without start-up and imports, on all cores and on one."""
    cache = cache_of(setting, 1000, 100)
    rows = []
    prefixes: list[tuple[str, Sequence[str]]] = [("", ())]
    if shutil.which("taskset"):
        core = min(os.sched_getaffinity(0))
        prefixes.append((", on one core", ("taskset", "-c", str(core))))
    for where, prefix in prefixes:
        commands = {
            name: [*prefix, PYTHON, "-c", program, str(cache)]
            for name, program in (
                ("scan", SCAN),
                ("walk", TIMED_WALK),
                ("scan_cache_dir", PEER_SCAN),
            )
        }
        runs = in_turn(commands, setting.pairs, environment(setting, cache))
        what = f"scan, {LARGE}{where}"
        rows.append(seconds_row(what, runs, "scan", "scan_cache_dir", 0.2))
        rows.append(seconds_row(what, runs, "scan", "walk", 1.5))
    return rows


def memory_rows(setting: Setting) -> list[Row]:
    """Measure the peak memory of a scan and of `status`."""
    cache = cache_of(setting, 1000, 100)
    variables = environment(setting, cache)
    commands = {
        "scan": [PYTHON, "-c", SCAN, str(cache)],
        "status": [OURS, "status", "--json"],
        "hf cache ls": PEER_LIST,
    }
    sides = {
        name: functools.partial(peak_memory, command, variables)
        for name, command in commands.items()
    }
    # Memory does not depend on a quiet machine.
    runs = rounds(sides, setting.pairs, lambda: True)
    return [
        memory_row(f"peak memory of a scan, {LARGE}", runs, "scan", "hf cache ls", 0.5),
        memory_row("peak memory of status --json", runs, "status", "hf cache ls", None),
    ]


def tab_rows(setting: Setting) -> list[Row]:
    """Measure one Tab with 1,000 cached repos."""
    variables = environment(setting, cache_of(setting, 1000, 100)) | {
        "_VLMCACHE_COMPLETE": "zsh",
        "_VLMCACHE_LINE": "vlmcache status org",
    }
    runs = in_turn({"tab": [OURS]}, 2 * setting.pairs, variables)
    return [worst_row("one Tab, 1,000 cached repos (seconds)", runs["tab"], 0.25, runs.busy)]
