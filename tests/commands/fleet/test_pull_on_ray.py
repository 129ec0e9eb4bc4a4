"""`fleet pull` on real clusters: a node dies, fills up, is damaged, and the driver is killed."""

import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.disks import fill_disk, small_filesystem
from tests.kit.fleet_simulation import Simulation, Speeds, most_rounds
from tests.kit.hub import LoopbackHub, hang, slow
from tests.kit.local_fleet import REPO, wait_until
from tests.kit.pulls import pull, small_config, small_weights
from tests.kit.ray_cluster import RayCluster, ray_cluster
from vlmcache.cache import layout
from vlmcache.cache.hashing import hash_file

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]

SENT_TOKEN = r'Bearer|"token": ?"|token=[\w-]{43}'
"""What comes before a token, wherever one is sent."""
NODES = ("n1", "n2", "n3", "n4")
SIZE = 20 << 20
WEIGHTS = [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
FILES: dict[str, bytes] = {
    "config.json": b'{"model_type": "bert", "architectures": ["BertModel"]}',
    "tokenizer.json": b'{"version": "1.0"}',
    "vocab.txt": b"a\nb\n",
    "model.safetensors.index.json": json.dumps(
        {"metadata": {}, "weight_map": {f"w{n}": name for n, name in enumerate(WEIGHTS)}}
    ).encode(),
    **{name: small_weights(SIZE + number) for number, name in enumerate(WEIGHTS)},
}
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture(autouse=True, scope="module")
def _ray_imported() -> Iterator[None]:
    """Import Ray, which sets variables of the process, before a test compares these."""
    before = dict(os.environ)
    importlib.import_module("ray.cluster_utils")
    importlib.import_module("ray.util.client")
    os.environ.setdefault("RAY_CLIENT_MODE", "0")
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


@pytest.fixture
def cluster(hub: LoopbackHub, tmp_path: Path) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path, *NODES, environment=variables(hub, tmp_path)) as cluster:
        yield cluster


def variables(hub: LoopbackHub, folder: Path) -> dict[str, str]:
    config = str(small_config(folder))
    return {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "VLMCACHE_CONFIG": config}


class Driver:
    """`vlmcache fleet pull`, typed on a machine that has no cache."""

    def __init__(self, cluster: RayCluster, hub: LoopbackHub, folder: Path, *options: str) -> None:
        self.log = folder / "driver.log"
        command = [sys.executable, "-m", "vlmcache", "fleet", "pull", REPO, "--json", *options]
        environment = hub.environment(folder / "driver") | {"VLMCACHE_LOG": str(self.log)}
        self.process = subprocess.Popen(
            [*command, "--address", cluster.address],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> dict[str, Any]:
        """Return the document, once it has ended."""
        out, err = self.process.communicate(timeout=300)
        assert out, err
        document: dict[str, Any] = json.loads(out)
        assert document["exit_code"] == self.process.returncode
        return document


def fleet_pull(
    cluster: RayCluster, hub: LoopbackHub, folder: Path, *options: str
) -> dict[str, Any]:
    return Driver(cluster, hub, folder, *options).end()


def bodies(hub: LoopbackHub) -> Counter[str]:
    return Counter(
        request.file
        for request in hub.requests
        if request.method == "GET" and request.file is not None and request.bytes_sent
    )


def check_complete(hub: LoopbackHub, cache: Path) -> None:
    """A plain pull fetches nothing, and every blob is what its name says."""
    blobs = cache / layout.folder_of(REPO) / "blobs"
    names = {path.name for path in blobs.iterdir()}
    assert len(names) == len(FILES)
    assert all(hash_file(str(blobs / name), name) == name for name in names)
    before = sum(bodies(hub).values())
    report = pull(hub, cache)
    assert report.models[0].state == "cached"
    assert sum(bodies(hub).values()) == before


def check_nothing_wrong(cache: Path) -> None:
    """Where a pull was interrupted, blobs are good, and no ref names what is not complete."""
    repo = cache / layout.folder_of(REPO)
    blobs = repo / "blobs"
    for path in blobs.iterdir() if blobs.is_dir() else ():
        if layout.is_etag(path.name):
            assert hash_file(str(path), path.name) == path.name
    assert not (repo / "refs" / "main").exists()


def states(document: dict[str, Any]) -> dict[str, str]:
    return {node["node"]: node["models"][0]["state"] for node in document["nodes"]}


def test_a_model_reaches_four_nodes_as_the_simulation_says(
    hub: LoopbackHub, cluster: RayCluster, tmp_path: Path
) -> None:
    document = fleet_pull(cluster, hub, tmp_path)
    assert document["ok"]
    assert states(document) == dict.fromkeys(NODES, "pulled")
    assert bodies(hub) == dict.fromkeys(FILES, 1)
    for node in cluster.nodes.values():
        check_complete(hub, node.hub)
    outcome = Simulation(len(NODES), {name: len(FILES[name]) for name in WEIGHTS}, Speeds()).run()
    assert document["from_hub"] == pytest.approx(outcome.from_hub, rel=0.2)
    assert document["from_nodes"] == pytest.approx(sum(outcome.up.values()), rel=0.2)
    received = [node["from_hub"] + node["from_nodes"] for node in document["nodes"]]
    assert received == pytest.approx([outcome.down[f"node-{n}"] for n in range(4)], rel=0.2)
    assert abs(document["rounds"] - outcome.rounds) <= 0.2 * outcome.rounds + 0.5
    assert document["rounds"] <= most_rounds(len(NODES))
    again = fleet_pull(cluster, hub, tmp_path)
    assert states(again) == dict.fromkeys(NODES, "cached")
    assert again["from_hub"] == again["from_nodes"] == 0


def test_the_token_is_in_no_command_line_no_log_and_none_of_rays_files(
    hub: LoopbackHub, cluster: RayCluster, tmp_path: Path
) -> None:
    hub.fault(slow(4 << 20).on("*.safetensors"))
    driver = Driver(cluster, hub, tmp_path, "-vv")
    wait_until(lambda: sum(bodies(hub).values()) > 4, 120)
    lines = [
        path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.parent.name != str(os.getpid()) and path.exists()
    ]
    assert any(b"fleet" in line for line in lines)
    assert not any(re.search(SENT_TOKEN, line.decode("utf-8", "replace")) for line in lines)
    hub.clear_faults()
    hub.release()
    out, err = driver.process.communicate(timeout=300)
    assert driver.process.returncode == 0, err
    text = driver.log.read_text()
    assert text
    assert not re.search(SENT_TOKEN, text + out + err)
    for path in Path(cluster.scratch).rglob("*"):
        if path.is_file():
            assert not re.search(SENT_TOKEN, path.read_text("utf-8", "replace")), path


def test_a_node_that_is_killed_during_the_transfer_costs_the_others_nothing(
    hub: LoopbackHub, cluster: RayCluster, tmp_path: Path
) -> None:
    hub.fault(slow(6 << 20).on("*.safetensors"))
    driver = Driver(cluster, hub, tmp_path)
    wait_until(lambda: hub.bytes_sent(WEIGHTS[0]) > 4 << 20, 120)
    lost = cluster.nodes["n3"]
    cluster.kill("n3")
    document = driver.end()
    assert document["exit_code"] == 3
    assert "n3" in document["errors"][0]["message"]
    assert {n for n, state in states(document).items() if state == "failed"} == {"n3"}
    for node in cluster.nodes.values():
        check_complete(hub, node.hub)
    check_nothing_wrong(lost.hub)
    # Of what the lost node alone fetched, the hub sent again what nobody else had.
    assert sum(bodies(hub).values()) <= len(FILES) + 2


def test_a_full_disk_on_one_node_is_named_and_the_others_are_complete(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    with (
        small_filesystem(40 << 20) as small,
        ray_cluster(tmp_path, "n1", "n2", environment=variables(hub, tmp_path)) as cluster,
    ):
        cluster.add("n3", HF_HUB_CACHE=str(small / "hub"))
        document = fleet_pull(cluster, hub, tmp_path)
        assert document["exit_code"] == 9
        assert "n3" in document["errors"][0]["message"]
        assert not (cluster.nodes["n1"].hub / layout.folder_of(REPO)).exists()
        assert set(bodies(hub)) <= {"config.json", "model.safetensors.index.json"}
    hub.clear_requests()
    again = tmp_path / "again"
    again.mkdir()
    with (
        small_filesystem(100 << 20) as small,
        ray_cluster(again, "n1", "n2", environment=variables(hub, again)) as cluster,
    ):
        cluster.add("n3", HF_HUB_CACHE=str(small / "hub"))
        hub.fault(slow(2 << 20).on("*.safetensors"))
        driver = Driver(cluster, hub, again)
        wait_until(lambda: hub.bytes_sent(WEIGHTS[0]) > 1 << 20, 120)
        # Another program writes all that is left, after the room was judged.
        fill_disk(small / "filler")
        hub.clear_faults()
        hub.release()
        document = driver.end()
        assert document["exit_code"] == 3
        assert states(document) == {"n1": "pulled", "n2": "pulled", "n3": "failed"}
        assert document["nodes"][2]["error"]["code"] == "no-space"
        check_complete(hub, cluster.nodes["n1"].hub)
        check_complete(hub, cluster.nodes["n2"].hub)
        check_nothing_wrong(small / "hub")


def test_a_node_with_wrong_bytes_is_named_and_repaired(
    hub: LoopbackHub, cluster: RayCluster, tmp_path: Path
) -> None:
    pull(hub, cluster.nodes["n2"].hub)
    blobs = cluster.nodes["n2"].hub / layout.folder_of(REPO) / "blobs"
    largest = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    hub.clear_requests()
    document = fleet_pull(cluster, hub, tmp_path)
    assert document["ok"]
    assert any("n2" in finding["detail"] for finding in document["findings"])
    for node in cluster.nodes.values():
        check_complete(hub, node.hub)
    assert sum(bodies(hub)[name] for name in WEIGHTS) == 1


def test_after_the_driver_is_killed_the_same_command_continues(
    hub: LoopbackHub, cluster: RayCluster, tmp_path: Path
) -> None:
    hub.fault(hang(10 << 20).on("*.safetensors", times=None))
    driver = Driver(cluster, hub, tmp_path)
    wait_until(lambda: min(hub.bytes_sent(name) for name in WEIGHTS) >= 10 << 20, 120)
    driver.process.send_signal(signal.SIGKILL)
    # Ray's process has the same pipe for what it says, and ends with the driver.
    driver.process.communicate(timeout=120)
    hub.clear_faults()
    hub.release()
    # The actors end, and let go of their locks.
    wait_until(lambda: not _workers(cluster), 120)
    for node in cluster.nodes.values():
        check_nothing_wrong(node.hub)
    hub.clear_requests()
    document = fleet_pull(cluster, hub, tmp_path)
    assert document["ok"]
    for node in cluster.nodes.values():
        check_complete(hub, node.hub)
    # A socket's buffer holds what the killed process has not written.
    sent = sum(hub.bytes_sent(name) for name in WEIGHTS)
    assert sent <= TOTAL - 4 * (5 << 20)


def _workers(cluster: RayCluster) -> list[bytes]:
    """Return what runs in the cluster as an actor of ours."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
            environment = path.with_name("environ").read_bytes()
        except OSError:
            continue
        if line.startswith(b"ray::") and str(cluster._folder).encode() in environment:
            lines.append(line)
    return [line for line in lines if b"Worker" in line]


def test_a_node_of_another_version_is_named_before_anything_starts(
    hub: LoopbackHub, cluster: RayCluster, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text(
        "import sys\nimport vlmcache\nvlmcache.__version__ = '0.0.1'\n"
    )
    cluster.add("old", PYTHONPATH=str(other))
    document = fleet_pull(cluster, hub, tmp_path)
    assert document["exit_code"] != 0
    assert "old" in document["errors"][0]["message"]
    assert "0.0.1" in document["errors"][0]["message"]
    assert not bodies(hub)
