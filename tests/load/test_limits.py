"""In a group with a real limit, a model loads if it fits, whatever its files fill of the memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.models import needs_torch
from tests.load.conftest import World
from vlmcache.load import reader

GROUPS = "/sys/fs/cgroup"
CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


@contextlib.contextmanager
def limited(size: int) -> Iterator[Path]:
    """Yield the folder of a new group with a limit; skips where none can be made."""
    name = f"vlmcache-test-{uuid.uuid4().hex[:8]}"
    first, second = Path(GROUPS, "memory", name), Path(GROUPS, name)
    is_first = first.parent.is_dir()
    folder = first if is_first else second
    limit = folder / ("memory.limit_in_bytes" if is_first else "memory.max")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        try:
            limit.write_text(str(size))
        except OSError as error:
            pytest.skip(f"control groups of memory are not to be had: {error}")
        yield folder
    finally:
        folder.rmdir()


def run_in(group: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a group."""
    return subprocess.run(
        ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', group, sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )


READ = """
import sys
from vlmcache.cache.free_memory import available_memory
before = available_memory()
with open({path!r}, "rb") as file:
    for _ in range(2):
        file.seek(0)
        while file.read(1 << 20):
            pass
print(before, available_memory())
"""


def test_files_that_a_process_reads_take_no_memory_from_it(tmp_path: Path) -> None:
    size = 100_000_000
    path = tmp_path / "weights"
    path.write_bytes(bytes(1_000_000) * 100)
    reader.evict([str(path)])
    with limited(4 * size) as group:
        done = run_in(group, READ.format(path=str(path)))
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert 2 * size < before < 4 * size
    assert abs(before - after) < size // 5


LOAD = """
import vlmcache
try:
    model, _ = vlmcache.load_model("big/model", {precision!r}, "cpu")
    print("loaded", type(model).__name__)
except vlmcache.VlmcacheError as error:
    print(error.code)
"""


@needs_torch
@pytest.mark.full
def test_a_model_that_fits_its_limit_is_loaded_and_no_other(world: World) -> None:
    made = world.root / "big"
    config = CONFIG | {"num_hidden_layers": 2, "intermediate_size": 15000}
    world.python(
        f"from vlmcache.load import synthetic; synthetic.make_model({str(made)!r}, {config!r})"
    )
    weights = made / "model.safetensors"
    size = weights.stat().st_size
    assert 1_400_000_000 < size < 1_460_000_000
    repo = world.cache.repo("big/model")
    commit = repo.revision({file.name: file for file in made.iterdir()})
    cached = repo.snapshots / commit / weights.name
    expected = {
        (2_300_000_000, "bf16"): "loaded Qwen2ForCausalLM",
        (1_200_000_000, "bf16"): "loaded Qwen2ForCausalLM",
        (2_300_000_000, "fp32"): "not-enough-memory",
    }
    found = {}
    for limit, precision in expected:
        reader.evict([str(cached)])
        with limited(limit) as group:
            done = run_in(group, LOAD.format(precision=precision), **world.environment)
        found[limit, precision] = done.stdout.strip() or f"{done.returncode}: {done.stderr[-500:]}"
    assert found == expected
