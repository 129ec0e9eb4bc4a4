"""`vlmcache pull` compared with `hf download`, from a hub on the loopback in its own process.

Every run is a complete process with a fresh cache on the same disk.
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
from functools import partial
from pathlib import Path

from benchmarks.pairs import BIN, Row, Setting, rounds, values_row
from tests.kit.contents import Synthetic
from tests.kit.hub import LEAKY_VARIABLES, LoopbackHub

REPO = "org/big"
OURS = [str(BIN / "vlmcache"), "pull", REPO, "-q"]
PEER = [str(BIN / "hf"), "download", REPO, "--quiet"]
PEER_NAME = "hf download"
TOKEN = "a-token-for-benchmarks"


def environment(url: str, cache: Path) -> dict[str, str]:
    """Return the variables of a client of a hub, with a cache of its own."""
    inherited = {
        name: value for name, value in os.environ.items() if not LEAKY_VARIABLES.match(name)
    }
    # An installed package has its bytecode; this variable could keep an editable one from it.
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    return inherited | {
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
    """Serve a folder of repos from another process, and yield its address."""
    command = [sys.executable, "-m", "tests.kit.hub", "--folder", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        try:
            yield hub.stdout.readline().strip()
        finally:
            hub.terminate()


def timed(command: list[str], variables: dict[str, str]) -> float:
    """Return the seconds that a command takes."""
    begun = time.perf_counter()
    # In the root folder is no config.yaml, which one of the two would read.
    subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL, cwd="/")
    return time.perf_counter() - begun


def fresh(command: list[str], url: str, where: Path, **more: str) -> Callable[[], float]:
    """Return a function that times a command with a new cache."""

    def run() -> float:
        cache = where / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        # Removing 2 GB and writing it back is not part of what is measured.
        os.sync()
        return timed(command, environment(url, cache) | more)

    return run


def pair_row(
    what: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    count: int,
    target: float | None,
) -> Row:
    """Return the row that compares a pull with the hub's own client."""
    runs = rounds({"ours": ours, "peer": peer}, count)
    return values_row(what, runs["ours"], runs["peer"], target, PEER_NAME, runs.busy)


def write_repo(repo: Path, size: int) -> None:
    """Write a repo whose two weight files have so many bytes in all."""
    repo.mkdir(parents=True)
    (repo / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    for number in (1, 2):
        Synthetic(size // 2, number).write(repo / f"model-0000{number}-of-00002.safetensors")


def rows(setting: Setting) -> list[Row]:
    """Measure a fresh download, and one of what is cached."""
    where = setting.folder
    write_repo(where / "repos" / REPO, setting.size)
    what = f"pull of {setting.size / 1e9:g} GB, every byte hashed"
    with serving(where / "repos") as url:
        ours, peer = (fresh(command, url, where) for command in (OURS, PEER))
        return [
            pair_row(what, ours, peer, setting.pairs, 0.8),
            cached_row(url, where, setting.pairs),
        ]


def many_rows(setting: Setting, files: int = 2000, size: int = 10_000) -> list[Row]:
    """Measure many small files."""
    where = setting.folder
    repo = where / "many" / REPO
    repo.mkdir(parents=True)
    (repo / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    for number in range(files):
        path = repo / f"part{number % 20:02}" / f"{number:04}.json"
        path.parent.mkdir(exist_ok=True)
        Synthetic(size, number).write(path)
    what = f"pull of {files:,} files of {size // 1000} KB"
    with serving(where / "many") as url:
        ours = fresh([*OURS, "--all-files"], url, where)
        return [pair_row(what, ours, fresh(PEER, url, where), setting.pairs, 0.6)]


def slow_rows(setting: Setting, rate: int = 20_000_000) -> list[Row]:
    """Measure a large file over connections that are slow."""
    where = setting.folder
    repo = where / "slow" / REPO
    repo.mkdir(parents=True)
    (repo / "config.json").write_text("{}")
    Synthetic(300_000_000, 9).write(repo / "model.safetensors")
    what = f"300 MB at {rate / 1e6:g} MB/s a connection"
    with serving(where / "slow", "--rate", str(rate)) as url:
        ours, peer = (fresh(command, url, where) for command in (OURS, PEER))
        return [pair_row(what, ours, peer, min(3, setting.pairs), None)]


def cached_row(url: str, where: Path, count: int) -> Row:
    """Measure a pull of a model that is cached."""
    variables = environment(url, where / "cache")
    for command in (OURS, PEER):
        timed(command, variables)
    # The kernel is still writing what was fetched before, and our journal would wait for it.
    os.sync()
    ours, peer = (partial(timed, command, variables) for command in (OURS, PEER))
    return pair_row("pull of what is cached", ours, peer, 2 * count, 0.42)


def serve_rows(setting: Setting) -> list[Row]:
    """Measure a download from another machine's cache, compared with a static server."""
    where = setting.folder
    write_repo(where / "repos" / REPO, setting.size)
    what = f"pull of {setting.size / 1e9:g} GB from serve"
    with serving(where / "repos", "--redirect", "none") as url:
        variables = environment(url, where / "source" / "hub")
        for command in (OURS, [OURS[0], "verify", "-q"]):
            subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
        command = [OURS[0], "serve", REPO, "--listen", "127.0.0.1:0", "-q"]
        variables |= {"VLMCACHE_SERVE_TOKEN": TOKEN}
        with subprocess.Popen(
            command,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as server:
            assert server.stdout is not None
            try:
                address = server.stdout.readline().strip()
                ours = fresh(OURS, address, where, HF_TOKEN=TOKEN)
                peer = fresh(PEER, url, where)
                return [pair_row(what, ours, peer, setting.pairs, 1.0)]
            finally:
                server.terminate()


def folder_rows(setting: Setting) -> list[Row]:
    """Measure a pull from another cache on the same disk, compared with a copy hashed afterwards.

    If the filesystem shares blocks, both sides do; the row says so.
    """
    where = setting.folder
    write_repo(where / "repos" / REPO, setting.size)
    other = where / "other" / "hub"
    with serving(where / "repos", "--redirect", "none") as url:
        subprocess.run(OURS, env=environment(url, other), check=True, stdout=subprocess.DEVNULL)
        ours = fresh([*OURS, "--from", str(other)], url, where)
        copied = where / "copied"
        script = 'cp -r "$0" "$1" && find "$1" -type f -path "*/blobs/*" -exec sha256sum {} +'

        def peer() -> float:
            shutil.rmtree(copied, ignore_errors=True)
            os.sync()
            return timed(["sh", "-c", script, str(other), str(copied)], dict(os.environ))

        blob = next(other.glob("models--*/blobs/*"))
        probe = ["cp", "--reflink=always", str(blob), str(where / "probe")]
        shares = subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0
        on = "blocks shared" if shares else "copied"
        what = f"pull --from a folder, {setting.size / 1e9:g} GB, {on}"
        runs = rounds({"ours": ours, "peer": peer}, setting.pairs)
        target = None if shares else 1.0
        name = "cp -r + sha256sum"
        return [values_row(what, runs["ours"], runs["peer"], target, name, runs.busy)]


def request_rows(setting: Setting) -> list[Row]:
    """Count the requests to the hub for a model that is cached."""
    where, rows = setting.folder, []
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


def resume_rows(setting: Setting) -> list[Row]:
    """Measure the bytes that are sent again after kill -9 at 60 %."""
    where, size = setting.folder, setting.size
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
