"""Touching makes every weight resident, whatever kind of memory it is in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.kit import forks
from tests.kit.models import HAS_TORCH
from vlmcache.cache import page_cache

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the page cache tells on Linux"
)

PROGRAM = """
import resource, sys
import torch
from safetensors.torch import load_file, save_file
from vlmcache.cache import page_cache
from vlmcache.load import residency

path, how = sys.argv[1:]
left_out = torch.zeros(9_000_000, dtype=torch.uint8)
save_file({
    "a": torch.ones(3_000_001, dtype=torch.bfloat16),
    "b": torch.ones(2_000, 1_500),
    "c": torch.ones(7, dtype=torch.uint8),
    "d": left_out,
}, path)
page_cache.evict([path])
calls = []
if how == "where madvise fails":
    page_cache.populate = lambda address, length: calls.append(length)
tensors = load_file(path)
del tensors["d"]
module = torch.nn.Module()
for name, tensor in tensors.items():
    module.register_buffer(name, tensor)
module.register_buffer("turned", tensors["b"].t()[3:, 5:])
module.register_buffer("made", torch.zeros(5_000_000))
module.register_buffer("wide", torch.ones(1).expand(1_000_000))
module.register_buffer("empty", torch.ones(0))
residency.touch_all_weights(module)

def faults():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt

scratch = torch.ones(8)
before = faults()
for name in ("a", "b", "made"):
    flat = getattr(module, name).reshape(-1).view(torch.uint8)
    for at in range(0, len(flat), page_cache.PAGE * 16):
        scratch[0] = flat[at]
print(faults() - before, len(calls))
"""


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
@pytest.mark.parametrize("how", ["with madvise", "where madvise fails"])
def test_no_weight_costs_a_page_fault_after_it_was_touched(how: str, tmp_path: Path) -> None:
    weights = f"{tmp_path}/weights.safetensors"
    done = forks.finished(PROGRAM, weights, how, environment=dict(os.environ), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    faults, refused = map(int, done.stdout.split())
    # There are hundreds of steps through them, and a few faults are Python's own.
    assert faults < 50
    assert (refused > 0) == (how == "where madvise fails")


def test_memory_that_is_not_mapped_cannot_be_populated() -> None:
    assert not page_cache.populate(1 << 46, page_cache.PAGE)
