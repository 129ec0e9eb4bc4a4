"""Loading side by side with transformers: cold, warm, and int8 from a kept copy."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.pairs import Row, Setting, values_row
from tests.kit.caches import CacheBuilder
from vlmcache.load import conditions, reader, synthetic

REPO = "synthetic/model"
MODEL = "qwen_vl_2b"

MAKE = """
import sys
from vlmcache.load import synthetic
synthetic.make(sys.argv[1], synthetic.CONFIGS[sys.argv[2]])
"""
IMPORTS = """
import torch, transformers
getattr(transformers, CLASS)
"""
READY = """
print("ready", time.monotonic(), flush=True)
import os
os._exit(0)
"""
PEER = """
import time
from transformers import AutoModelForImageTextToText
import torch
model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.bfloat16)
for weight in model.parameters():
    weight.detach().reshape(-1).view(torch.uint8)[::4096].sum().item()
"""
OURS = """
import time
import vlmcache
model, _ = vlmcache.load_model(REPO, "bf16", "cpu")
"""
PEER_INT8 = """
import time
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
import transformers, torch, bitsandbytes, accelerate
getattr(transformers, CLASS)
print("begin", time.monotonic(), flush=True)
settings = BitsAndBytesConfig(load_in_8bit=True)
model = AutoModelForImageTextToText.from_pretrained(
    FOLDER, dtype=torch.bfloat16, device_map="cpu", quantization_config=settings
)
for weight in model.parameters():
    weight.detach().reshape(-1).view(torch.uint8)[::4096].sum().item()
"""
OURS_INT8 = """
import time
import vlmcache
import torch, transformers, bitsandbytes, accelerate
getattr(transformers, CLASS)
print("begin", time.monotonic(), flush=True)
model, _ = vlmcache.load_model(REPO, "int8", "cpu")
"""


def run(program: str, values: dict[str, str]) -> float:
    """Return the seconds from process start (or from `begin`) until `ready`."""
    given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    code = given + program + READY
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "import time\n" + code],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr[-2000:])
    instants = dict(line.split() for line in done.stdout.splitlines() if line.count(" ") == 1)
    return float(instants["ready"]) - float(instants.get("begin", started))


def pairs(
    count: int, files: list[str], programs: dict[str, str], values: dict[str, str], *, cold: bool
) -> dict[str, list[float]]:
    """Run each program in turn, so many times, on files that are evicted or in memory."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(count):
        for name, program in programs.items():
            if cold:
                reader.evict(files)
                resident = reader.resident_fraction(files)
                if resident is None or resident > 0.01:
                    raise SystemExit(f"not cold: {resident} of the weights stay in memory")
            else:
                reader.ReadAhead(files).wait()
            seconds[name].append(run(program, values))
    return seconds


def rows(setting: Setting) -> list[Row]:
    """Measure loads of a model with random weights, 4.4 GB as bf16."""
    scratch = setting.folder
    variables = {
        "HF_HOME": str(scratch / "home"),
        "VLMCACHE_HOME": str(scratch / "own"),
        "HF_HUB_CACHE": str(scratch / "home" / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    os.environ |= variables
    try:
        return measure(setting, scratch)
    finally:
        for name in variables:
            del os.environ[name]


def measure(setting: Setting, scratch: Path) -> list[Row]:
    made = scratch / "made"
    subprocess.run([sys.executable, "-c", MAKE, made, MODEL], check=True)
    repo = CacheBuilder(scratch / "home" / "hub").repo(REPO)
    commit = repo.revision({file.name: file for file in sorted(made.iterdir())})
    shutil.rmtree(made)
    folder = repo.snapshots / commit
    files = [str(file) for file in sorted(folder.glob("*.safetensors"))]
    size = sum(os.path.getsize(file) for file in files)
    config = synthetic.CONFIGS[MODEL]
    values = {"FOLDER": str(folder), "REPO": REPO, "CLASS": config["architectures"][0]}
    disk = conditions.measure_disk(files)
    assert disk is not None
    imports = statistics.median(run(IMPORTS, values) for _ in range(setting.pairs))
    reading = size / disk.best
    limit = max(imports, reading)
    programs = {"peer": PEER, "vlmcache": OURS}
    cold = pairs(setting.pairs, files, programs, values, cold=True)
    warm = pairs(setting.pairs, files, programs, values, cold=False)
    quantize = [sys.executable, "-m", "vlmcache", "quantize", REPO, "--precision", "int8", "-q"]
    subprocess.run(quantize, check=True, stdout=subprocess.DEVNULL)
    copies = [str(path) for path in (scratch / "own").rglob("*.safetensors")]
    programs = {"peer": PEER_INT8, "vlmcache": OURS_INT8}
    int8 = pairs(setting.pairs, files + copies, programs, values, cold=False)
    what = f"cold load of {size / 1e9:.1f} GB"
    bound = f"imports {imports:.2g} s, disk {reading:.2g} s"
    ours = statistics.median(cold["vlmcache"])
    return [
        values_row(what, cold["vlmcache"], cold["peer"], 0.5, "from_pretrained"),
        Row(what, ours / limit, 1.2, f"{ours:.3g} s", bound),
        values_row("warm load", warm["vlmcache"], warm["peer"], 1.0, "from_pretrained"),
        values_row(
            "int8 from a kept copy, imports left out",
            int8["vlmcache"],
            int8["peer"],
            0.1,
            "from_pretrained",
        ),
    ]
