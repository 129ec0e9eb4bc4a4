"""`vlmcache pull` beside `hf download`, against a hub on the loopback in its own process.

Every run is a whole process with a fresh cache on the same disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.pairs import Row, Setting, values_row
from tests.kit.contents import Synthetic
from tests.kit.hub import LEAKY_VARIABLES, LoopbackHub

REPO = "org/big"
SCRIPTS = Path(sys.executable).parent
OURS = [str(SCRIPTS / "vlmcache"), "pull", REPO, "-q"]
PEER = [str(SCRIPTS / "hf"), "download", REPO, "--quiet"]
PEER_NAME = "hf download"


def environment(url: str, cache: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not LEAKY_VARIABLES.match(name)}
    # An installed package has its bytecode, which an editable one may be kept from writing.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | {
        "HF_ENDPOINT": url,
        "HF_HUB_CACHE": str(cache),
        "HF_HOME": str(cache.parent / "hf"),
        "VLMCACHE_HOME": str(cache.parent / "own"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """Serve a folder of repos from another process."""
    command = [sys.executable, "-m", "tests.kit.hub", "--folder", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        try:
            yield hub.stdout.readline().strip()
        finally:
            hub.terminate()


def timed(command: list[str], variables: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def pairs(
    count: int, ours: Callable[[], float], peer: Callable[[], float]
) -> tuple[list[float], list[float]]:
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(count):
        # The order changes, so that neither always finds the other's dirty pages.
        order = ((0, ours), (1, peer)) if number % 2 else ((1, peer), (0, ours))
        for index, run in order:
            found[index].append(run())
    return found


def fresh(command: list[str], url: str, where: Path) -> Callable[[], float]:
    def run() -> float:
        cache = where / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        # Removing 2 GB and writing it back is not part of what is measured.
        os.sync()
        return timed(command, environment(url, cache))

    return run


def rows(setting: Setting) -> list[Row]:
    """Measure fresh, cached and interrupted downloads."""
    where = setting.folder
    repo = where / "repos" / REPO
    repo.mkdir(parents=True)
    (repo / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        Synthetic(setting.size // 2, number).write(repo / name)
    with serving(where / "repos") as url:
        found = pairs(setting.pairs, fresh(OURS, url, where), fresh(PEER, url, where))
        what = f"pull of {setting.size / 1e9:g} GB, every byte hashed"
        rows = [values_row(what, *found, 1.1, PEER_NAME)]
        rows.append(cached_row(url, where, setting.pairs))
    return [
        *rows,
        *request_rows(where),
        many_row(where, setting.pairs),
        slow_row(where, setting.pairs),
        *resume_rows(where, setting.size),
    ]


def many_row(where: Path, count: int, files: int = 2000, size: int = 10_000) -> Row:
    """Measure many small files."""
    repo = where / "many" / REPO
    repo.mkdir(parents=True)
    (repo / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    for number in range(files):
        path = repo / f"part{number % 20:02}" / f"{number:04}.json"
        path.parent.mkdir(exist_ok=True)
        Synthetic(size, number).write(path)
    with serving(where / "many") as url:
        ours = fresh([*OURS, "--all-files"], url, where)
        found = pairs(count, ours, fresh(PEER, url, where))
    return values_row(f"{files:,} files of {size // 1000} KB", *found, 0.6, PEER_NAME)


def slow_row(where: Path, count: int, rate: int = 20_000_000) -> Row:
    """Measure a large file over connections that are slow."""
    repo = where / "slow" / REPO
    repo.mkdir(parents=True)
    (repo / "config.json").write_text("{}")
    Synthetic(300_000_000, 9).write(repo / "model.safetensors")
    with serving(where / "slow", "--rate", str(rate)) as url:
        found = pairs(count, fresh(OURS, url, where), fresh(PEER, url, where))
    return values_row(f"300 MB at {rate / 1e6:g} MB/s a connection", *found, None, PEER_NAME)


def cached_row(url: str, where: Path, count: int) -> Row:
    """Measure a pull of what is there."""
    variables = environment(url, where / "cache")
    for command in (OURS, PEER):
        timed(command, variables)
    # What was fetched before is still on its way to the disk, and our journal would wait for it.
    os.sync()
    found = pairs(2 * count, lambda: timed(OURS, variables), lambda: timed(PEER, variables))
    return values_row("pull of what is cached", *found, 0.7, PEER_NAME)


def request_rows(where: Path) -> list[Row]:
    """Count how often the hub is asked where all is cached."""
    rows = []
    with LoopbackHub() as hub:
        commit = hub.add_repo(REPO).commit({"config.json": b"{}", "model.safetensors": b"x" * 1000})
        variables = hub.environment(where / "small") | {"VLMCACHE_HOME": str(where / "own")}
        for name, kind, most in ((REPO, "branch", 1), (f"{REPO}@{commit}", "commit", 0)):
            for _ in range(2):
                hub.clear_requests()
                command = [*OURS[:2], name, "-q"]
                subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
            count = len(hub.requests)
            what = f"requests of a cached pull, {kind}"
            rows.append(Row(what, count, most, str(count), "a count"))
    return rows


def resume_rows(where: Path, size: int) -> list[Row]:
    """Measure the bytes that are sent again after kill -9 at 60 %."""
    again: dict[str, float] = {}
    with LoopbackHub() as hub:
        hub.send_buffer = 1 << 16
        hub.add_repo(REPO).commit({"config.json": b"{}", "model.safetensors": Synthetic(size, 7)})
        for name, command in (("ours", OURS), ("peer", PEER)):
            cache = where / "killed" / name
            variables = hub.environment(cache) | {"VLMCACHE_HOME": str(where / "own")}
            hub.clear_requests()
            with subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL) as child:
                while hub.bytes_sent("model.safetensors") < 0.6 * size:
                    time.sleep(0.002)
                child.send_signal(signal.SIGKILL)
            time.sleep(0.5)
            hub.clear_requests()
            subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
            again[name] = hub.bytes_sent("model.safetensors") / size
            shutil.rmtree(cache)
    ours, peer = (f"{again[name]:.0%}" for name in ("ours", "peer"))
    what = "sent again after kill -9 at 60 %"
    return [Row(what, again["ours"], 0.42, ours, f"{PEER_NAME} {peer}")]
