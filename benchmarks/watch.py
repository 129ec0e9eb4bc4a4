"""`vlmcache watch` over 200 repos: CPU time and memory when idle, and how soon it shows a change.

The idle figures are those of the full screen in a pseudo-terminal, after the first seconds.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks import quiet
from benchmarks.pairs import Row, Setting, worst_row
from tests.kit.caches import CacheBuilder

REPOS = 200
FILES = 20
SETTLING = 15.0
TRIALS = 20
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def build(root: Path) -> CacheBuilder:
    cache = CacheBuilder(root)
    for number in range(REPOS):
        files = {f"part-{part:02}.bin": f"{number} {part}".encode() * 20 for part in range(FILES)}
        cache.repo(f"org/model-{number:03}").revision(files)
    return cache


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "vlmcache", "watch", *options]


def drain(descriptor: int) -> None:
    """Read what a program writes to its terminal, until it ends."""
    try:
        while os.read(descriptor, 1 << 16):
            pass
    except OSError:
        pass


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def measure_idle(environment: dict[str, str], seconds: float) -> tuple[float, list[int]]:
    """Return the share of one core, and resident bytes at every sixtieth of the time."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(), env=environment | {"TERM": "xterm-256color"}, stdin=slave, stdout=slave
    )
    os.close(slave)
    threading.Thread(target=drain, args=(master,), daemon=True).start()
    try:
        time.sleep(SETTLING)
        began, used = time.monotonic(), cpu_seconds(process.pid)
        memory = [resident(process.pid)]
        for _ in range(60):
            time.sleep(seconds / 60)
            memory.append(resident(process.pid))
        share = (cpu_seconds(process.pid) - used) / (time.monotonic() - began)
    finally:
        process.terminate()
        process.wait()
        os.close(master)
    return share, memory


def measure_delays(environment: dict[str, str], cache: CacheBuilder) -> list[float]:
    """Return the seconds from the making of a partial download to the line that reports it."""
    process = subprocess.Popen(
        command("--json"), env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    delays = []
    try:
        assert json.loads(process.stdout.readline())["kind"] == "snapshot"
        for trial in range(TRIALS):
            time.sleep(1.3)
            began = time.monotonic()
            partial = cache.repo(f"org/model-{trial:03}").partial()
            for line in process.stdout:
                event = json.loads(line)
                if event["kind"] == "download-started" and event["path"] == str(partial):
                    break
            delays.append(time.monotonic() - began)
            partial.unlink()
    finally:
        process.terminate()
        process.wait()
    return delays


def rows(setting: Setting) -> list[Row]:
    """Measure the idle view, and how soon it shows a download."""
    cache = build(setting.folder / "hub")
    environment = os.environ | {
        "HF_HUB_CACHE": str(cache.root),
        "HF_HOME": str(setting.folder / "hf"),
        "VLMCACHE_HOME": str(setting.folder / "own"),
    }
    busy = int(not quiet.wait())
    delays = measure_delays(environment, cache)
    busy_idle = int(not quiet.wait())
    share, memory = measure_idle(environment, setting.seconds)
    middle, end = memory[len(memory) // 2], memory[-1]
    return [
        Row(
            f"watch, {REPOS} repos, idle",
            share,
            0.005,
            f"{share:.2%}",
            "one core",
            busy=busy_idle,
        ),
        worst_row("watch shows a new partial (seconds)", delays, 0.25, busy),
        Row(
            f"watch, memory over {setting.seconds / 2:.0f} s",
            end / middle,
            None,
            f"{end / 1e6:.1f} MB",
            f"half way {middle / 1e6:.1f} MB",
        ),
    ]
