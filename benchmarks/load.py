"""Loading compared with transformers: cold, warm, and int8 from a kept copy."""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.pairs import Rounds, Row, Setting, rounds, values_row
from tests.kit.caches import CacheBuilder
from vlmcache.load import conditions, reader, synthetic
from vlmcache.load.disk import measure_disk, remember_readers
from vlmcache.load.report import Loader
from vlmcache.load.source import ModelFiles, read_source
from vlmcache.load.worker import run_child

REPO = "synthetic/model"
MODEL = "qwen_vl_2b"
OTHERS: dict[Loader, str] = {"fastsafetensors": "fastsafetensors", "runai": "runai_model_streamer"}
"""Other loaders -> the module that has to be installed."""

MAKE = """
import sys
from vlmcache.load import synthetic
synthetic.make_model(sys.argv[1], synthetic.CONFIGS[sys.argv[2]])
"""
IMPORTS = """
import os
import torch
from vlmcache.load import class_list
with class_list.kept(os.environ["VLMCACHE_HOME"]):
    import transformers
    getattr(transformers, CLASS)
"""
READY = """
print("ready", time.monotonic(), flush=True)
import os
os._exit(0)
"""
TOUCH = """
from vlmcache.cache import page_cache
for weight in model.parameters():
    assert page_cache.populate(weight.data_ptr(), weight.nbytes)
"""
"""Makes every weight resident, in the same way as `load_model`."""
PEER = (
    """
import time
from transformers import AutoModelForImageTextToText
import torch
model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.bfloat16)
"""
    + TOUCH
)
OURS = """
import time
import vlmcache
model, _ = vlmcache.load_model(REPO, "bf16", "cpu")
"""
PEER_INT8 = (
    """
import time
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
import transformers, torch, bitsandbytes, accelerate
getattr(transformers, CLASS)
print("begin", time.monotonic(), flush=True)
settings = BitsAndBytesConfig(load_in_8bit=True)
model = AutoModelForImageTextToText.from_pretrained(
    FOLDER, dtype=torch.bfloat16, device_map="cpu", quantization_config=settings
)
"""
    + TOUCH
)
OURS_INT8 = """
import time
import vlmcache
import torch, transformers, bitsandbytes, accelerate
getattr(transformers, CLASS)
print("begin", time.monotonic(), flush=True)
model, _ = vlmcache.load_model(REPO, "int8", "cpu")
"""


def run(program: str, values: dict[str, str]) -> float:
    """Run a program; return the seconds from process start (or from `begin`) until `ready`."""
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


def prepared(files: Sequence[str], *, cold: bool) -> None:
    """Evict files, so that at most 1 % of their bytes stays in memory, or read them into it."""
    if not cold:
        reader.ReadAhead(files).wait()
        return
    reader.evict(files)
    resident = reader.resident_fraction(files)
    if resident is None or resident > conditions.COLD_AT_MOST:
        raise SystemExit(f"not cold: {resident} of the weights stay in memory")


def sides(
    programs: Mapping[str, str], files: Sequence[str], values: dict[str, str], *, cold: bool
) -> dict[str, Callable[[], float]]:
    """Return for each program a function that runs it with files that are evicted or in memory."""

    def measure(program: str) -> float:
        prepared(files, cold=cold)
        return run(program, values)

    return {name: partial(measure, program) for name, program in programs.items()}


def streamed(folder: str, files: Sequence[str], loader: Loader, *, cold: bool) -> float:
    """Return the seconds from process start to the last weight with another loader."""
    prepared(files, cold=cold)
    source = read_source(folder, model=MODEL, precision="bf16")
    return trial(source, "cpu", "cold" if cold else "warm", loader)[0]


def trial(
    source: ModelFiles, device: str, temperature: str, loader: Loader
) -> tuple[float, dict[str, float]]:
    """Make one trial of a loader as in a load test; return its seconds, and those of its phases."""
    request = {
        "task": "trial",
        "source": msgspec.to_builtins(source),
        "device": device,
        "loader": loader,
        "temperature": temperature,
        "tokens": 1,
        "again": False,
    }
    answer = run_child(request, source.model)
    return answer["seconds"], answer["phases"]


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
    disk = measure_disk(files)
    assert disk is not None
    remember_readers(str(scratch / "own"), files, disk)
    reading = size / disk.best
    others = {
        name: partial(streamed, str(folder), files, name)
        for name, package in OTHERS.items()
        if importlib.util.find_spec(package) is not None
    }
    programs = {"peer": PEER, "vlmcache": OURS}
    rows: list[Row] = []
    for what, cold, target in (
        (f"cold load of {size / 1e9:.1f} GB", True, 0.45),
        ("warm load", False, 0.9),
    ):
        measured = rounds(
            sides(programs | ({"imports": IMPORTS} if cold else {}), files, values, cold=cold)
            | {name: partial(work, cold=cold) for name, work in others.items()},
            setting.pairs,
        )
        rows.append(row(what, measured, "vlmcache", target))
        if cold:
            rows.append(limit_row(what, measured, reading))
        rows += [row(f"{what}, {name}", measured, name, None) for name in others]
    quantize = [sys.executable, "-m", "vlmcache", "quantize", REPO, "--precision", "int8", "-q"]
    subprocess.run(quantize, check=True, stdout=subprocess.DEVNULL)
    copies = [str(path) for path in (scratch / "own").rglob("*.safetensors")]
    programs = {"peer": PEER_INT8, "vlmcache": OURS_INT8}
    int8 = rounds(sides(programs, files + copies, values, cold=False), setting.pairs)
    rows.append(row("int8 from a kept copy, imports left out", int8, "vlmcache", 0.06))
    return rows


def row(what: str, measured: Rounds[float], ours: str, target: float | None) -> Row:
    """Return the row that compares one side with `from_pretrained`."""
    peer = measured["peer"]
    return values_row(what, measured[ours], peer, target, "from_pretrained", measured.busy)


def limit_row(what: str, measured: Rounds[float], reading: float) -> Row:
    """Return the row that compares a load with its imports or its reading, the longer."""
    limits = [max(imports, reading) for imports in measured["imports"]]
    imports = statistics.median(measured["imports"])
    bound = f"imports {imports:.2g} s, disk {reading:.2g} s; limit"
    return values_row(what, measured["vlmcache"], limits, 1.25, bound, measured.busy)
