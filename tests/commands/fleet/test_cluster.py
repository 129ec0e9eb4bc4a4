"""`fleet` on a real Ray cluster of two nodes on this machine, each with a cache of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from tests.kit.caches import fingerprint, model_files
from tests.kit.commands import Done, Vlmcache, run_here
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import pull
from tests.kit.ray_cluster import RayCluster, ray_cluster

pytest.importorskip("ray")

SECRET = "hf_" + "S3cret" * 5


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("fleet"), "gpu1", "gpu2") as running:
        yield running


@pytest.fixture
def fleet(cluster: RayCluster, vlmcache: Vlmcache) -> Fleet:
    """Nodes that both have org/good, of which gpu2 has another commit; gpu1 has org/only too."""
    for node in cluster.nodes.values():
        subprocess.run(["rm", "-rf", node.hub], check=True)
        node.hub.mkdir()
        files = model_files() if node.name == "gpu1" else {**model_files(), "README.md": b"new"}
        node.cache.repo("org/good").revision(files)
    cluster.nodes["gpu1"].cache.repo("org/only").revision(model_files())
    return Fleet(cluster, vlmcache)


class Fleet:
    """Runs `vlmcache fleet` on the cluster, in a real process."""

    def __init__(self, cluster: RayCluster, vlmcache: Vlmcache) -> None:
        self.cluster = cluster
        self.vlmcache = vlmcache

    def __call__(self, *words: str) -> Done:
        return self.vlmcache("fleet", *words, "--address", self.cluster.address)

    def document(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.err == ""
        document = json.loads(done.out)
        schema = json.loads(run_here("schema", f"fleet-{words[0]}").out)
        jsonschema.validate(document, schema)
        assert document["exit_code"] == done.code
        return document


def test_status_is_a_row_for_each_node_and_check_is_exit_4_if_they_differ(fleet: Fleet) -> None:
    document = fleet.document("status", "--check")
    assert document["schema"] == "vlmcache.fleet-status/1"
    assert document["exit_code"] == 4
    assert [node["node"] for node in document["nodes"]] == ["gpu1", "gpu2"]
    for node in document["nodes"]:
        assert node["cache"] == str(fleet.cluster.nodes[node["node"]].hub)
        assert node["free"] > 0
        assert node["error"] is None
    states = [{m["repo"]: m["state"] for m in node["models"]} for node in document["nodes"]]
    assert states[0] == {"org/good": "cached", "org/only": "cached"}
    assert states[1] == {"org/good": "cached", "org/only": "missing"}
    (error,) = document["errors"]
    assert "org/only is missing on gpu2" in error["message"]
    assert "commits of org/good differ" in error["message"]


def test_a_chosen_node_is_shown_to_people_without_a_word_of_ray(fleet: Fleet) -> None:
    done = fleet("status", "org/good", "--check", "--nodes", "gpu[1-1]")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == "1 node, 1 model: 1 of 1 have org/good"
    assert "gpu2" not in done.out


@pytest.mark.full
def test_rm_removes_on_the_nodes_that_have_it_and_nothing_else(fleet: Fleet) -> None:
    before = fingerprint(fleet.cluster.nodes["gpu2"].hub)
    refused = fleet("rm", "org/only")
    assert (refused.code, "--yes removes them" in refused.err) == (5, True)
    kept = fleet.document("rm", "org/only", "--yes", "--trash")
    receipt = kept["nodes"][0]["receipt"]
    assert kept["trashed"] == receipt["trashed"] > kept["freed"]
    assert receipt["trash_id"]
    fleet.cluster.nodes["gpu1"].cache.repo("org/only").revision(model_files())
    document = fleet.document("rm", "org/only", "--yes")
    assert document["exit_code"] == 0
    first, second = document["nodes"]
    assert [model["repo"] for model in first["models"]] == ["org/only"]
    assert document["freed"] == first["receipt"]["freed"] > 0
    assert (second["models"], second["error"]) == ([], None)
    assert not fleet.cluster.nodes["gpu1"].cache.repo("org/only").folder.exists()
    assert fleet.cluster.nodes["gpu1"].cache.repo("org/good").folder.exists()
    assert fingerprint(fleet.cluster.nodes["gpu2"].hub) == before


def test_pull_lets_the_node_that_has_a_model_send_it_to_the_other(fleet: Fleet) -> None:
    for node in fleet.cluster.nodes.values():
        settings = node.home / "config" / "vlmcache" / "config.yaml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text("models:\n  one: {model_path: org/one}\nvlmcache:\n  min_free: 0\n")
        subprocess.run(["rm", "-rf", node.hub], check=True)
    with LoopbackHub() as hub:
        hub.add_repo("org/good").commit(model_files())
        pull(hub, fleet.cluster.nodes["gpu1"].hub, "org/good")
        hub.clear_requests()
        fleet.vlmcache.environment["HF_ENDPOINT"] = hub.url
        # The nodes do not reach the hub: the driver asks it, and one node has everything.
        document = fleet.document("pull", "org/good")
        assert document["exit_code"] == 0
        bodies = {request.file for request in hub.requests if request.file is not None}
        assert bodies <= {"config.json", "model.safetensors.index.json"}
    assert [node["models"][0]["state"] for node in document["nodes"]] == ["cached", "pulled"]
    assert document["nodes"][0]["sent"] == document["nodes"][1]["from_nodes"] > 0
    status = fleet.document("status", "org/good", "--check")
    assert status["exit_code"] == 0


def test_verify_names_the_node_whose_blob_is_damaged_and_no_token_crosses(fleet: Fleet) -> None:
    blobs = fleet.cluster.nodes["gpu2"].cache.repo("org/good").blobs
    blob = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(b"x" * blob.stat().st_size)
    fleet.vlmcache.environment["HF_TOKEN"] = SECRET
    document = fleet.document("verify")
    assert document["exit_code"] == 4
    assert [len(node["damaged"]) for node in document["nodes"]] == [0, 1]
    assert "gpu2" in document["errors"][0]["message"]
    # Ray keeps the command lines of its drivers, and a log of each process.
    logs = Path(fleet.cluster.scratch).rglob("*")
    assert not [path for path in logs if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.full
def test_wrong_nodes_and_addresses_are_one_line(fleet: Fleet) -> None:
    done = fleet("status", "--nodes", "gpu[1-4]")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [
        "error: no such node: 'gpu3'",
        "hint: the cluster has gpu1, gpu2",
    ]


# Without a cluster.


@pytest.mark.parametrize(
    ("address", "code"), [("127.0.0.1:1", 1), ("nonsense", 2), ("http://x:1", 2), ("x:99999", 1)]
)
def test_an_address_without_a_cluster_is_one_line(address: str, code: int) -> None:
    done = run_here("fleet", "status", "--address", address)
    assert (done.code, done.out) == (code, "")
    assert len(done.err.splitlines()) == 2


def test_without_ray_one_line_says_what_to_install(vlmcache: Vlmcache, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['ray'] = None; from vlmcache.__main__ import main; "
        "sys.argv[1:] = ['fleet', 'status']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=vlmcache.environment, capture_output=True, text=True
    )
    error, hint = done.stderr.splitlines()
    assert (done.returncode, error) == (11, "error: fleet needs Ray, which is not installed")
    assert "vlmcache[fleet]" in hint or "[fleet]" in hint
    assert vlmcache("status").code == 0


def test_a_token_that_is_not_accepted_is_said_as_soon_as_ray_prints_it(
    vlmcache: Vlmcache, tmp_path: Path
) -> None:
    # Ray tries again and again meanwhile; this one never ends.
    (tmp_path / "ray.py").write_text(
        "import sys, time\n__version__ = '0'\n"
        "def init(**_):\n"
        "    print('gcs_client.cc:210: Unauthenticated: InvalidAuthToken', file=sys.stderr)\n"
        "    time.sleep(3600)\n"
    )
    vlmcache.environment["PYTHONPATH"] = str(tmp_path)
    done = vlmcache("fleet", "status", "--address", "auto")
    error, hint = done.err.splitlines()
    assert (done.code, done.out) == (1, "")
    assert error.startswith("error: this machine's cluster was not joined: it asks for a token")
    assert "RAY_AUTH_MODE=token" in hint


# What takes longer: nodes that die, hang and differ.


@pytest.fixture
def three(tmp_path: Path) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path / "three", "gpu1", "gpu2", "gpu3") as running:
        for node in running.nodes.values():
            node.cache.repo("org/good").revision(model_files())
        yield running


def workers_of(cluster: RayCluster, name: str) -> list[psutil.Process]:
    """Return the processes of actors on a node."""
    home = str(cluster.nodes[name].home)
    found = []
    for process in psutil.process_iter():
        try:
            title = " ".join(process.cmdline())
            if title.startswith("ray::Worker") and process.environ().get("HOME") == home:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.full
def test_a_node_that_dies_before_or_meanwhile_is_a_row_and_the_others_answer(
    three: RayCluster, vlmcache: Vlmcache
) -> None:
    started = vlmcache.start("fleet", "status", "--json", "--address", three.address)
    timer = threading.Timer(2.0, three.kill, ("gpu3",))
    timer.start()
    out, _ = started.communicate()
    timer.join()
    document = json.loads(out)
    rows = {node["node"]: node["error"] for node in document["nodes"]}
    assert rows["gpu1"] is None
    assert rows["gpu2"] is None
    if rows["gpu3"] is not None:
        assert (rows["gpu3"]["code"], document["exit_code"]) == ("node-lost", 3)
    again = vlmcache("fleet", "status", "--json", "--address", three.address)
    assert [n["error"] for n in again.document["nodes"] if n["node"] != "gpu3"] == [None, None]


@pytest.mark.full
def test_a_driver_that_is_killed_leaves_no_actor_behind(
    three: RayCluster, vlmcache: Vlmcache
) -> None:
    started = vlmcache.start(
        "fleet", "load-test", "--synthetic", "tiny", "--address", three.address
    )
    while not workers_of(three, "gpu2"):
        assert started.poll() is None
    started.send_signal(signal.SIGKILL)
    started.communicate()
    psutil.wait_procs(workers_of(three, "gpu2"), timeout=60)
    assert workers_of(three, "gpu2") == []


@pytest.mark.full
def test_a_load_test_sees_the_gpus_and_ctrl_c_ends_it_with_130_and_one_line(
    three: RayCluster, vlmcache: Vlmcache
) -> None:
    started = vlmcache.start(
        "fleet", "load-test", "--synthetic", "tiny", "--address", three.address
    )
    while not workers_of(three, "gpu2"):
        assert started.poll() is None
    # Ray hides the GPUs from an actor that reserves none, unless this is set.
    (worker,) = workers_of(three, "gpu2")
    assert worker.environ()["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "0"
    started.send_signal(signal.SIGINT)
    _, err = started.communicate()
    assert started.returncode == 130
    assert err.decode().splitlines()[-1] == "error: interrupted"


@pytest.mark.full
def test_nodes_of_another_version_are_one_line_before_anything_starts(
    tmp_path: Path, vlmcache: Vlmcache
) -> None:
    source = Path(__file__).parents[3] / "src"
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", source, other], check=True)
    init = other / "vlmcache" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "9.'))
    with ray_cluster(tmp_path / "two", "gpu1") as cluster:
        cluster.add("gpu2", PYTHONPATH=str(other))
        done = vlmcache("fleet", "clean", "--yes", "--address", cluster.address)
    assert (done.code, done.out) == (1, "")
    assert "nodes have other versions: vlmcache 9." in done.err.splitlines()[0]
    assert "on gpu2" in done.err.splitlines()[0]
