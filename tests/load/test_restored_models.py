"""A model that was backed up loads offline on a machine that had nothing."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kit.models import needs_torch
from tests.load.conftest import World

pytestmark = needs_torch

LOAD = """
import json, os
from transformers import AutoModelForCausalLM
sums = []
for cache in json.loads(os.environ["CACHES"]):
    model = AutoModelForCausalLM.from_pretrained("tiny/qwen2", cache_dir=cache)
    sums.append(sum(weight.double().abs().sum().item() for weight in model.state_dict().values()))
print(json.dumps(sums))
"""


def test_what_comes_back_from_a_tar_and_from_a_store_loads_offline(
    tiny_world: World, tmp_path: Path
) -> None:
    caches = [str(tiny_world.cache.root)]
    for name in ("saved.tar", "store/"):
        place, cache = f"{tmp_path}/{name}", str(tmp_path / f"{len(caches)}" / "hub")
        done = tiny_world.vlmcache("backup", place, "tiny/qwen2", "-q")
        assert done.returncode == 0, done.stderr
        done = tiny_world.vlmcache("restore", place, "-q", "--cache-dir", cache)
        assert done.returncode == 0, done.stderr
        caches.append(cache)
    # An empty home, and no network: HF_HUB_OFFLINE is set.
    home = str(tmp_path / "home")
    given = {"HF_HOME": home, "HOME": home, "CACHES": json.dumps(caches)}
    sums = json.loads(tiny_world.torch(LOAD, **given))
    assert len(set(sums)) == 1
    assert sums[0] > 0
