"""`vlmcache fleet pull` to four nodes compared with four `hf download`s, all from one slow hub.

The nodes are those of a Ray cluster on this machine, each with a cache of its own; the hub's rate
is limited in all. Starting and stopping the cluster is not measured.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.pairs import Row, Setting, rounds, values_row
from benchmarks.pull import OURS, PEER, PEER_NAME, REPO, environment, serving, write_repo
from tests.kit.ray_cluster import RayCluster, ray_cluster

NODES = ("node1", "node2", "node3", "node4")
RATE = 50_000_000
"""Bytes per second that the hub sends to all of them together."""
TARGET = 0.35


def rows(setting: Setting) -> list[Row]:
    """Measure a model that reaches four nodes."""
    where = setting.folder
    write_repo(where / "repos" / REPO, setting.size)
    limited = ("--total-rate", str(RATE))
    with serving(where / "repos", *limited) as url:
        variables = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        (where / "nodes").mkdir()
        with ray_cluster(where / "nodes", *NODES, environment=variables) as cluster:
            runs = rounds(
                {"ours": lambda: _ours(cluster, url), "peer": lambda: _peers(url, where)},
                setting.pairs,
            )
    what = (
        f"fleet pull of {setting.size / 1e9:g} GB to {len(NODES)} nodes, "
        f"the hub limited to {RATE // 1_000_000} MB/s in all"
    )
    name = f"{len(NODES)} x {PEER_NAME}"
    return [values_row(what, runs["ours"], runs["peer"], TARGET, name, runs.busy)]


def _ours(cluster: RayCluster, url: str) -> float:
    for node in cluster.nodes.values():
        shutil.rmtree(node.hub, ignore_errors=True)
    driver = next(iter(cluster.nodes.values())).home / "driver"
    command = [OURS[0], "fleet", "pull", REPO, "-q", "--yes", "--address", cluster.address]
    begun = time.perf_counter()
    subprocess.run(
        command, env=environment(url, driver / "hub"), check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begun


def _peers(url: str, where: Path) -> float:
    folders = [where / "peers" / name for name in NODES]
    shutil.rmtree(where / "peers", ignore_errors=True)
    begun = time.perf_counter()
    peers = [
        subprocess.Popen(PEER, env=environment(url, folder / "hub"), stdout=subprocess.DEVNULL)
        for folder in folders
    ]
    for peer in peers:
        if peer.wait() != 0:
            raise SystemExit(f"{PEER_NAME} failed")
    return time.perf_counter() - begun
