"""Trials are cold when they say so, failures stay apart, and every one has a line that helps."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest

from tests.kit.commands import is_failure
from tests.kit.contents import Content
from tests.kit.disks import small_filesystem
from tests.kit.hub import LoopbackHub
from tests.kit.models import needs_bitsandbytes, needs_torch
from tests.load.conftest import World
from tests.load.test_report import report
from vlmcache.errors import CrashedError, UnloadableError
from vlmcache.home.journal import Journal
from vlmcache.installing import install_extra, install_package
from vlmcache.load import conditions, reader, trials
from vlmcache.load.report import Remembered
from vlmcache.load.saved import best_loader
from vlmcache.load.source import ModelFiles, check_fits, estimate_memory, read_source
from vlmcache.load.worker import crash, run_child

HOLD = """
import mmap, sys
file = open(sys.argv[1], "rb")
mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(mapping[at] for at in range(0, len(mapping), mmap.PAGESIZE))
print("held", flush=True)
sys.stdin.read()
"""
DYING = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux evicts files from memory on request"
)


@contextlib.contextmanager
def held_in_memory(path: Path) -> Iterator[None]:
    """Let another process keep a file mapped and touched."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.kill()


def write_file(path: Path, size: int = 5_000_000) -> Path:
    path.write_bytes(bytes(range(256)) * (size // 256))
    return path


@linux_only
def test_files_are_cold_after_preparing_a_cold_trial(tmp_path: Path) -> None:
    path = write_file(tmp_path / "weights")
    assert reader.resident_bytes(str(path)) == path.stat().st_size
    assert conditions.set_temperature([str(path)], "cold") == (0.0, None)


@linux_only
def test_files_that_another_process_keeps_in_memory_are_not_cold(tmp_path: Path) -> None:
    path = write_file(tmp_path / "weights")
    with held_in_memory(path):
        resident, why_not = conditions.set_temperature([str(path)], "cold")
    assert resident is not None
    assert resident > 0.9
    assert why_not is not None
    assert "stay in memory after eviction" in why_not


@linux_only
def test_files_on_a_filesystem_in_memory_are_never_cold() -> None:
    with small_filesystem(10_000_000) as place:
        path = write_file(place / "weights")
        assert conditions.set_temperature([str(path)], "cold") == (
            1.0,
            "the weights are on tmpfs, which is memory",
        )


def test_files_are_in_memory_after_preparing_a_warm_trial(tmp_path: Path) -> None:
    path = write_file(tmp_path / "weights")
    reader.evict([str(path)])
    assert conditions.set_temperature([str(path)], "warm") == (1.0, None)


@linux_only
@needs_torch
def test_a_trial_whose_pages_another_process_keeps_does_not_count(tiny_world: World) -> None:
    weights = next(tiny_world.cache.repo("tiny/qwen2").snapshots.glob("*/model.safetensors"))
    with held_in_memory(weights):
        done = tiny_world.forked_vlmcache(
            *("load-test", "tiny/qwen2", "--cold", "--trials", "1", "--precision", "bf16", "--json")
        )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    (trial,) = result["trials"]
    assert trial["valid"] is False
    assert "a process uses them" in trial["why_not"]
    assert trial["resident_before"] > 0.9
    assert trial["seconds"] > 0
    assert result["cold"] is None
    assert "no trial is valid" in result["verdict"]


@pytest.mark.full
@needs_torch
def test_a_synthetic_model_is_measured_and_leaves_nothing_behind(tiny_world: World) -> None:
    code, document = tiny_world.document(
        "load-test", "--synthetic", "tiny", "--trials", "1", "--tokens", "3"
    )
    assert code == 0
    (result,) = document["results"]
    # On a busy machine a trial is repeated.
    assert {trial["temperature"] for trial in result["trials"]} == {"cold", "warm", "hot"}
    assert len(result["trials"]) <= 6
    cold, warm, hot = result["trials"][:3]
    assert result["bytes"] > 20_000_000
    for trial in (cold, warm):
        assert sum(trial["phases"].values()) == pytest.approx(trial["seconds"])
        assert set(trial["phases"]) == {"start", "import", "build", "read"}
        assert trial["peak_memory"] > result["bytes"]
        assert trial["first_token"] > 0
        assert trial["disturbed"] or trial["valid"]
    assert cold["cold_parts"] == ["weights"]
    assert warm["resident_before"] == 1.0
    assert hot["seconds"] < warm["seconds"]
    assert cold["resident_before"] <= 0.01
    assert cold["bytes_read"] >= result["bytes"] * 0.9
    if result["cold"]:
        assert result["disk_limit_seconds"] > 0
        assert 0 < result["efficiency"] < 1.5
    assert list((tiny_world.root / "own" / "synthetic").iterdir()) == []
    code, history = tiny_world.document("load-test", "--history", "tiny")
    assert code == 0
    assert history["history"][0]["result"]["model"] == "tiny"
    assert history["history"][0]["result"]["warm"] == result["warm"]


def own_code(modeling: str) -> dict[str, Content]:
    names = {"AutoConfig": "configuration_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    return {
        "config.json": json.dumps({"model_type": "dying", "auto_map": names}).encode(),
        "configuration_own.py": modeling.encode(),
        "modeling_own.py": modeling.encode(),
        "model.safetensors": (2).to_bytes(8, "little") + b"{}",
    }


@needs_torch
def test_each_failure_is_reported_and_none_costs_the_results_of_others(
    tiny_world: World,
) -> None:
    cache = tiny_world.cache
    config = {"config.json": tiny_world.made["qwen2"]["config.json"]}
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    cache.repo("bad/shard").revision(
        config
        | {
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model-1.safetensors": b"x" * 100,
        },
        tree=False,
    )
    cache.repo("bad/header").revision(config | {"model.safetensors": b"\xff" * 1000})
    cache.repo("bad/unknown").revision(
        {"config.json": b'{"model_type": "nobody_knows"}'}
        | {"model.safetensors": tiny_world.made["qwen2"]["model.safetensors"]}
    )
    cache.repo("bad/code").revision(own_code(DYING))
    dying = cache.repo("bad/dying").revision(own_code(DYING), refs=())
    big = cache.repo("bad/big")
    big.revision(config | {"model.safetensors": b"small"}, tree=False)
    shape = [1_000_000, 1_000_000]
    header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * 10**12]}}
    encoded = json.dumps(header).encode()
    blob = next(big.snapshots.glob("*/model.safetensors")).resolve()
    with blob.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        # A hole: a length without content.
        file.truncate(8 + len(encoded) + 4 * 10**12)
    (tiny_world.root / "models.yaml").write_text(
        f"models:\n  dying:\n    model_path: bad/dying\n    revision: {dying}\n"
        "    trust_remote_code: true\n"
    )
    names = ["bad/shard", "bad/header", "bad/unknown", "bad/code", "bad/big", "dying", "bad/absent"]
    done = tiny_world.forked_vlmcache(
        "load-test",
        *names,
        "tiny/qwen2",
        "--config",
        "models.yaml",
        "--cold",
        "--trials",
        "1",
        "--precision",
        "bf16",
        "--loader",
        "readahead",
        "--json",
    )
    blob.unlink()
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert [result["model"] for result in document["results"]] == ["tiny/qwen2"]
    failures = {failure["model"]: failure for failure in document["failures"]}
    assert {name: failure["code"] for name, failure in failures.items()} == {
        "bad/shard": "not-downloaded",
        "bad/header": "damaged-weights",
        "bad/unknown": "unknown-architecture",
        "bad/code": "untrusted-code",
        "bad/big": "not-enough-memory",
        "bad/absent": "not-downloaded",
        "dying": "crashed",
    }
    assert "model-2.safetensors" in failures["bad/shard"]["message"]
    assert failures["bad/shard"]["hint"] == "vlmcache pull bad/shard"
    assert "verify bad/header" in failures["bad/header"]["hint"]
    assert "nobody_knows" in failures["bad/unknown"]["message"]
    assert "--trust-remote-code" in failures["bad/code"]["hint"]
    assert "needs about 2 TB" in failures["bad/big"]["message"]
    assert "SIGKILL" in failures["dying"]["message"]
    assert document["errors"][0]["code"] == "partly"


@needs_torch
def test_an_absent_device_is_exit_11_and_one_line(tiny_world: World) -> None:
    done = tiny_world.forked_vlmcache("load-test", "tiny/qwen2", "--device", "cuda:9", "-q")
    assert done.returncode == 11
    assert done.stdout == ""
    assert done.stderr == "error: no device 'cuda:9' on this machine\nhint: choose one of: cpu\n"


@needs_bitsandbytes
def test_a_missing_bitsandbytes_is_exit_11_and_one_line(tiny_world: World) -> None:
    done = tiny_world.forked_vlmcache(
        "load-test", "tiny/qwen2", "--precision", "int8", "-q", without="bitsandbytes"
    )
    assert done.returncode == 11
    assert done.stderr.startswith("error: int8 needs bitsandbytes")
    assert done.stderr.endswith(f"\nhint: {install_package('bitsandbytes')}\n")
    assert is_failure(done.stderr)


@pytest.mark.parametrize(
    "arguments", [("load-test", "--synthetic", "tiny"), ("load-test", "org/name")]
)
def test_without_torch_one_line_says_what_to_install(
    world: World, arguments: tuple[str, ...]
) -> None:
    done = world.vlmcache(*arguments, **world.without("torch", "transformers"))
    assert done.returncode == 11
    assert done.stderr == (
        f"error: loading models needs torch and transformers\nhint: {install_extra('load')}\n"
    )
    assert done.stdout == ""


@pytest.mark.full
@needs_bitsandbytes
def test_a_kept_copy_is_measured_next_to_quantizing_at_load(tiny_world: World) -> None:
    code, made = tiny_world.document("quantize", "tiny/qwen3_vl", "--precision", "int8")
    assert code == 0
    assert made["made"] is True
    assert Path(made["path"]).is_dir()
    code, document = tiny_world.document(
        "load-test", "tiny/qwen3_vl", "--precision", "int8", "--warm", "--trials", "1"
    )
    assert code == 0
    copy, at_load = document["results"]
    assert copy["loader"] == at_load["loader"]
    assert (copy["source"], at_load["source"]) == ("copy", "at-load")
    assert copy["bytes"] < at_load["bytes"]
    assert "quantise" not in copy["trials"][0]["phases"]
    assert at_load["trials"][0]["phases"]["quantise"] > 0
    code, gone = tiny_world.document("quantize", "tiny/qwen3_vl", "--remove")
    assert code == 0
    assert gone["freed"] > 0
    assert not Path(made["path"]).exists()


def test_a_child_that_is_killed_is_reported() -> None:
    with pytest.raises(CrashedError, match="was killed") as caught:
        raise crash("tiny", -signal.SIGKILL, [])
    assert caught.value.hint is not None


def test_a_child_without_an_answer_is_reported_with_its_last_words() -> None:
    with pytest.raises(UnloadableError, match="KeyError: 'no-such-task'"):
        run_child({"task": "no-such-task"}, "tiny")


def test_a_model_that_does_not_fit_is_reported_with_a_precision_that_does(tmp_path: Path) -> None:
    header = {"layer.weight": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 4000000]}}
    encoded = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(
        len(encoded).to_bytes(8, "little") + encoded + bytes(4_000_000)
    )
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    source = read_source(str(tmp_path), model="m", precision="fp32")
    need = estimate_memory(source)
    check_fits(source, need, need.total, "cpu")
    with pytest.raises(UnloadableError, match="needs about 604 MB") as caught:
        check_fits(source, need, 603_000_000, "cpu")
    assert "cpu has 603 MB free" in caught.value.message
    assert caught.value.hint == "--precision fp16 takes about 602 MB"


@needs_torch
def test_an_interrupted_load_test_leaves_nothing_running(world: World) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmcache", "load-test", "--synthetic", "tiny"],
        env=world.environment,
        cwd=world.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    making = world.root / "own" / "synthetic"
    while not (making.is_dir() and any(making.iterdir())) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    assert list(making.iterdir()) == []


@needs_torch
def test_doctor_asks_torch_for_its_devices(world: World) -> None:
    document = json.loads(world.forked_vlmcache("doctor", "--json").stdout)
    assert document["devices"] == [device for device in document["devices"] if device["torch"]]
    assert "torch-broken" not in {finding["code"] for finding in document["findings"]}
    broken = world.root / "broken"
    (broken / "torch").mkdir(parents=True)
    (broken / "torch" / "__init__.py").write_text("raise ImportError('no libcudart.so')\n")
    _, document = world.document("doctor", PYTHONPATH=str(broken))
    (finding,) = [finding for finding in document["findings"] if finding["code"] == "torch-broken"]
    assert "no libcudart.so" in finding["detail"]


@needs_torch
def test_load_model_downloads_what_is_not_cached(tiny_world: World) -> None:
    code = (
        "import vlmcache; model, processor = vlmcache.load_model('org/far', 'bf16', 'cpu');"
        "print(type(model).__name__)"
    )
    with LoopbackHub() as hub:
        files = tiny_world.made["qwen2"]
        hub.add_repo("org/far").commit(files)
        printed = tiny_world.python(code, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    assert printed == "Qwen2ForCausalLM\n"
    assert tiny_world.torch(code) == "Qwen2ForCausalLM\n"


def test_the_loader_is_the_one_that_was_clearly_faster_on_this_machine(world: World) -> None:
    home = str(world.root / "own")
    machine = conditions.describe_machine((), str(world.root))
    source = read_source_of_nothing(world.root)

    def chosen() -> str:
        return best_loader(home, source, "cpu", machine, cold=True)

    def measured(loader: str, *seconds: float, cpu: str = machine.cpu) -> None:
        (result,) = report(*seconds, loader=loader).results
        measured_on = msgspec.structs.replace(machine, cpu=cpu)
        with Journal(home) as memory:
            at = datetime.now(timezone.utc)
            memory.record_load(msgspec.json.encode(Remembered(at, measured_on, result)))

    assert chosen() == "readahead"
    measured("plain", 1.0, 1.1, 1.2)
    assert chosen() == "readahead"
    measured("readahead", 1.1, 2.0, 3.0)
    assert chosen() == "readahead"
    measured("readahead", 2.0, 2.1, 2.2)
    assert chosen() == "plain"
    # A later run that was disturbed leaves what was measured before.
    measured("plain", 9.0)
    assert chosen() == "plain"
    measured("plain", 0.1, 0.1, 0.1, cpu="another")
    measured("plain", 5.0, 5.0, 5.0)
    assert chosen() == "readahead"


def read_source_of_nothing(folder: Path) -> ModelFiles:
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return read_source(str(folder), model="m", precision="bf16")


@linux_only
def test_a_loader_that_bypasses_the_page_cache_has_no_warm_load(tmp_path: Path) -> None:
    source = read_source_of_nothing(tmp_path)
    if not conditions.counts_reads(source.folder):
        pytest.skip("no block device below")
    said = trials._why_not_read(source, "fastsafetensors", "warm", source.bytes)
    assert "fastsafetensors bypasses it (direct I/O)" in str(said)
    assert trials._why_not_read(source, "fastsafetensors", "cold", source.bytes) is None
    assert "another process was reading" in str(trials._why_not_read(source, "plain", "cold", 0))
    assert trials._why_not_read(source, "plain", "warm", None) is None


def test_the_libraries_files_are_those_next_to_torch_and_transformers() -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'vlmcache[load]'")
    files = set(conditions.library_files())
    import importlib.util

    for name in ("torch", "transformers"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert str(spec.origin) in files
