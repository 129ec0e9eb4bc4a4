"""`warm` brings the files that loading opens into the page cache, as far as memory has room."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlmcache
from tests.kit.caches import CacheBuilder, model_files
from tests.kit.commands import Vlmcache
from vlmcache.errors import NotDownloadedError, UnknownModelError
from vlmcache.load import reader, warm

WEIGHTS = os.urandom(1 << 20) * 40
"""More than the kernel reads ahead by itself."""

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the page cache tells on Linux"
)


@pytest.fixture
def hub(vlmcache: Vlmcache) -> Iterator[Path]:
    """A cache on a disk: what is in memory only cannot leave it."""
    folder = Path(__file__).parents[2] / f".warm-test-{os.getpid()}"
    folder.mkdir()
    vlmcache.environment["HF_HUB_CACHE"] = str(folder)
    yield folder
    shutil.rmtree(folder)


def put(hub: Path, repo: str, files: dict[str, bytes]) -> None:
    """Add a model, none of which is in memory afterwards."""
    CacheBuilder(hub).repo(repo).revision(files)
    subprocess.run(["sync", "-f", str(hub)], check=True)
    paths = [str(path) for path in hub.glob("models--*/blobs/*")]
    reader.evict(paths)
    if reader.resident_fraction(paths):
        pytest.skip("this filesystem keeps what it is asked to forget")


def resident(hub: Path) -> int:
    return sum(reader.resident_bytes(str(path)) or 0 for path in hub.glob("models--*/blobs/*"))


def test_what_loading_opens_is_in_memory_afterwards(hub: Path, vlmcache: Vlmcache) -> None:
    files = {**model_files(), "model.safetensors": WEIGHTS}
    put(hub, "org/model", files)
    answer = vlmcache("warm", "org/model", "--json").document
    (model,) = answer["models"]
    assert model["repo"] == "org/model"
    # Configurations are read to know what is needed.
    assert model["resident_before"] < 10_000
    assert len(WEIGHTS) < model["resident_after"] == model["bytes"] < sum(map(len, files.values()))
    assert answer["too_large"] == 0


def test_a_model_that_is_named_twice_is_read_and_counted_once(
    hub: Path, vlmcache: Vlmcache
) -> None:
    put(hub, "org/model", {**model_files(), "model.safetensors": WEIGHTS})
    commit = next((hub / "models--org--model" / "snapshots").iterdir()).name
    (hub / "config.yaml").write_text("models:\n  key: {repo: org/model}\n")
    names = ["key", "org/model", f"org/model@{commit}"]
    done = vlmcache("warm", *names, "--config", str(hub / "config.yaml"), "--json")
    (model,) = done.document["models"]
    assert model["model"] == "key"
    assert model["bytes"] < 2 * len(WEIGHTS)


def test_the_base_of_an_adapter_is_read_too(hub: Path, vlmcache: Vlmcache) -> None:
    put(hub, "org/base", {**model_files(), "model.safetensors": WEIGHTS})
    settings = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    files = {"adapter_config.json": json.dumps(settings).encode()}
    put(hub, "org/adapter", files | {"adapter_model.safetensors": WEIGHTS[:5000]})
    (model,) = vlmcache("warm", "org/adapter", "--json").document["models"]
    assert len(WEIGHTS) + 5000 < model["resident_after"] == model["bytes"]


def test_what_a_pull_would_leave_out_is_not_read(hub: Path, vlmcache: Vlmcache) -> None:
    put(hub, "org/model", {**model_files(), "pytorch_model.bin": WEIGHTS})
    (model,) = vlmcache("warm", "org/model", "--json").document["models"]
    assert model["bytes"] < len(WEIGHTS)
    assert resident(hub) < len(WEIGHTS)


def test_one_variant_of_a_gguf_repo_is_read(hub: Path, vlmcache: Vlmcache) -> None:
    put(hub, "org/gguf", {"m-Q4_K_M.gguf": b"GGUF" + WEIGHTS, "m-Q8_0.gguf": b"GGUF8" + WEIGHTS})
    (model,) = vlmcache("warm", "org/gguf:Q4_K_M", "--json").document["models"]
    assert model["bytes"] == model["resident_after"] == len(WEIGHTS) + 4
    assert resident(hub) == model["bytes"]


def test_no_more_is_read_than_memory_has_room_for(
    hub: Path, vlmcache: Vlmcache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, "org/model", {**model_files(), "model.safetensors": WEIGHTS})
    put(hub, "org/other", {**model_files(), "model.safetensors": WEIGHTS + b"other"})
    room = len(WEIGHTS) + (8 << 20)
    monkeypatch.setattr(warm, "available_memory", lambda: room)
    report = _cache(hub).warm(["org/model", "org/other"])
    first, second = report.models
    assert first.resident_after == first.bytes
    assert second.resident_after is not None
    assert second.resident_before is not None
    # The kernel keeps whole pages, and reads ahead of what it is asked for: 8 MiB on some disks.
    allowed = room + second.resident_before + (16 << 20)
    assert first.bytes + second.resident_after <= allowed < first.bytes + second.bytes
    assert report.too_large == first.bytes + second.bytes - room
    assert report.problem is not None
    assert report.problem.exit_code == 3
    assert "name fewer models" in str(report.problem)


def _cache(hub: Path) -> vlmcache.Cache:
    return vlmcache.Cache(cache_dir=hub)


def test_an_incomplete_model_is_not_read(hub: Path, vlmcache: Vlmcache) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    files = {**model_files(), "model.safetensors.index.json": index.encode()}
    files["model-1.safetensors"] = files.pop("model.safetensors")
    put(hub, "org/model", files)
    done = vlmcache("warm", "org/model")
    assert done.code == NotDownloadedError.exit_code
    assert "vlmcache pull org/model" in done.err


def test_an_unknown_name_is_refused(hub: Path, vlmcache: Vlmcache) -> None:
    assert vlmcache("warm", "nobody").code == UnknownModelError.exit_code


def test_the_view_says_what_was_in_memory_before_and_after(hub: Path, vlmcache: Vlmcache) -> None:
    put(hub, "org/model", {**model_files(), "model.safetensors": WEIGHTS})
    done = vlmcache("warm", "org/model")
    assert done.out.startswith("org/model: 41.9 MB, 100% in memory, 0% before (")
    assert vlmcache("warm", "org/model", "-q").out == "org/model\n"
