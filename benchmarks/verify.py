"""`vlmcache verify` compared with `hf cache verify`, which asks a hub, and with bare hashing.

The hub is on the loopback, and all files are in the page cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pairs import Row, Setting, beyond_row, rounds, values_row
from benchmarks.pull import OURS as PULL
from benchmarks.pull import PEER, REPO, environment, serving, timed
from tests.kit.contents import Synthetic
from vlmcache.cache.hashing import cores
from vlmcache.commands.verify.values import VerifyOptions
from vlmcache.commands.verify.verify import verify
from vlmcache.config import CacheLocation, Session, read_environment, shipped_config

VERIFY = [PULL[0], "verify", REPO, "-q"]
PEER_VERIFY = [PEER[0], "cache", "verify", REPO]
SMALL = 8
"""Files in addition to the large one, of one thirtieth of its length each."""
BLOCK = 1 << 20


def hash_only(sizes: Sequence[int], count: int) -> float:
    """Return the seconds that threads take to hash as many bytes of their own memory.

    Each length is hashed by one thread, since sha256 goes through a file from front to back; the
    longest come first.
    """
    pending = deque(sorted(sizes, reverse=True))

    def work() -> None:
        block = memoryview(os.urandom(BLOCK))
        with contextlib.suppress(IndexError):
            while True:
                left = pending.popleft()
                digest = hashlib.sha256(usedforsecurity=False)
                while left > 0:
                    digest.update(block[:left])
                    left -= BLOCK

    threads = [threading.Thread(target=work) for _ in range(count)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun


def stat_each(cache: Path) -> float:
    """Return the seconds that a stat of each blob takes."""
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
    sizes = [setting.size, *[setting.size // 30] * SMALL]
    for number, size in enumerate(sizes):
        Synthetic(size, number).write(repo / f"part{number}.safetensors")
    cache = where / "cache"
    with serving(where / "repos") as url:
        variables = environment(url, cache)
        subprocess.run([*PULL, "--all-files"], env=variables, check=True, capture_output=True)
        everything = [*VERIFY, "--max-age", "0"]
        own = read_environment(variables, str(where))
        location = CacheLocation(str(cache), "benchmark")

        def in_process(max_age: float) -> float:
            session = Session(own, shipped_config(), location)
            return verify(session, [REPO], VerifyOptions(max_age)).seconds

        # The kernel is still writing what was fetched, and would take a core meanwhile.
        os.sync()
        runs = rounds(
            {
                "ours": lambda: timed(everything, variables),
                "peer": lambda: timed(PEER_VERIFY, variables),
                "again": lambda: timed(VERIFY, variables),
                "help": lambda: timed([PULL[0], "--help"], variables),
                "hashing": lambda: in_process(0),
                "limit": lambda: hash_only(sizes, cores()),
                "remembered": lambda: in_process(7 * 86400),
                "stats": lambda: stat_each(cache),
            },
            setting.pairs,
        )

    def row(what: str, ours: str, theirs: str, target: float | None, peer: str) -> Row:
        return values_row(what, runs[ours], runs[theirs], target, peer, runs.busy)

    what = f"verify of {setting.size / 1e9:g} GB and {SMALL} small files, in memory"
    again = "verify again"
    return [
        row(what, "ours", "peer", 0.58, "hf cache verify"),
        row(what, "hashing", "limit", 1.15, "sha256 on all cores"),
        beyond_row(again, runs["again"], runs["help"], 0.05, "--help", runs.busy),
        row(f"{again}, started", "remembered", "stats", None, "a stat of each"),
    ]
