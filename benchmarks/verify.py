"""`vlmcache verify` beside `hf cache verify`, which asks a hub on the loopback, and the bare hash.

All is in the page cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from pathlib import Path

from benchmarks.pairs import Row, Setting, values_row
from benchmarks.pull import OURS as PULL
from benchmarks.pull import PEER, REPO, environment, serving, timed
from tests.kit.contents import Synthetic
from vlmcache.cache.hashing import cores
from vlmcache.commands.verify.verify import verify
from vlmcache.config import CacheLocation, read_environment, shipped_config

VERIFY = [PULL[0], "verify", REPO, "-q"]
PEER_VERIFY = [PEER[0], "cache", "verify", REPO]
FILES = ("model.safetensors", "second.safetensors", "third.safetensors", "fourth.safetensors")
BLOCK = 1 << 20


def hash_only(size: int, count: int) -> float:
    """Return the seconds that so many threads together take to hash bytes of their own memory."""
    block = os.urandom(BLOCK)

    def work() -> None:
        digest = hashlib.sha256()
        for _ in range(size // count // BLOCK):
            digest.update(block)

    threads = [threading.Thread(target=work) for _ in range(count)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun


def stat_each(cache: Path) -> float:
    begun = time.perf_counter()
    for blob in cache.glob("models--*/blobs/*"):
        blob.stat()
    return time.perf_counter() - begun


def rows(setting: Setting) -> list[Row]:
    """Measure a first and a second verification."""
    where = setting.folder
    repo = where / "repos" / REPO
    repo.mkdir(parents=True)
    (repo / "config.json").write_text('{"model_type": "qwen2_vl"}')
    for number, name in enumerate(FILES):
        Synthetic(setting.size // len(FILES), number).write(repo / name)
    cache = where / "cache"
    with serving(where / "repos") as url:
        variables = environment(url, cache)
        subprocess.run([*PULL, "--all-files"], env=variables, check=True, capture_output=True)
        everything = [*VERIFY, "--max-age", "0"]
        own = read_environment(variables, str(where))
        location = CacheLocation(str(cache), "benchmark")

        def in_process(max_age: float) -> float:
            return verify(own, shipped_config(), location, [REPO], max_age=max_age).seconds

        for command in (everything, PEER_VERIFY):
            timed(command, variables)
        # What was fetched is still on its way to the disk, and takes its time of a core.
        os.sync()
        found: dict[str, list[float]] = {}
        for _ in range(setting.pairs):
            for name, seconds in (
                ("ours", timed(everything, variables)),
                ("peer", timed(PEER_VERIFY, variables)),
                ("again", timed(VERIFY, variables)),
                ("hashing", in_process(0)),
                ("limit", hash_only(setting.size, cores())),
                ("one core", hash_only(setting.size, 1)),
                ("remembered", in_process(7 * 86400)),
                ("stats", stat_each(cache)),
            ):
                found.setdefault(name, []).append(seconds)
    what = f"verify of {setting.size / 1e9:g} GB in memory"
    return [
        values_row(what, found["ours"], found["peer"], 1 / 1.7, "hf cache verify"),
        values_row(what, found["hashing"], found["limit"], 1 / 0.9, "sha256 on all cores"),
        values_row("sha256 on all cores", found["limit"], found["one core"], None, "on one core"),
        values_row("verify again, whole process", found["again"], found["ours"], 0.02, "first"),
        values_row("verify again, started", found["remembered"], found["hashing"], 0.02, "first"),
        values_row(
            "verify again, started", found["remembered"], found["stats"], None, "a stat of each"
        ),
    ]
