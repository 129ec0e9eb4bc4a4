"""`load-test`'s figure for a plain load compared with a stopwatch around the same load.

    python -m benchmarks.stopwatch [--pairs 15] [--model qwen_vl_2b] [--folder PATH] [--cold]

Run it from the project's folder, on a quiet machine. A pair is one trial of `plain` as in a load
test, and one run of transformers alone that is timed from outside, each in a fresh process; the
order changes from pair to pair. The median of the paired ratios should be within 5 % of 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.load import run, trial
from benchmarks.pairs import machine
from vlmcache.load import reader, synthetic
from vlmcache.load.source import ModelFiles, read_source
from vlmcache.load.worker import run_child

OUTSIDE = """
import time
import torch
from transformers import AutoModelForImageTextToText
more = {} if DEVICE == "cpu" else {"device_map": {"": DEVICE}}
model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.bfloat16, **more)
if DEVICE == "cpu":
    from vlmcache.cache import page_cache
    for weight in model.parameters():
        assert page_cache.populate(weight.data_ptr(), weight.nbytes)
else:
    torch.cuda.synchronize()
"""


def pairs(
    source: ModelFiles, device: str, temperature: str, count: int, save: Path | None
) -> list[dict[str, Any]]:
    """Measure pairs of loads; print each, and save all so far, as soon as it is measured."""
    done: list[dict[str, Any]] = []
    values = {"FOLDER": source.folder, "DEVICE": device}

    def prepare() -> None:
        if temperature == "cold":
            reader.evict(source.weights)
        else:
            reader.ReadAhead(source.weights).wait()

    for number in range(count):
        pair: dict[str, Any] = {"load_average": os.getloadavg()[0], "temperature": temperature}
        for side in ("inside", "outside") if number % 2 else ("outside", "inside"):
            prepare()
            if side == "inside":
                pair["inside"], pair["phases"] = trial(source, device, temperature, "plain")
            else:
                pair["outside"] = run(OUTSIDE, values)
        pair["ratio"] = pair["inside"] / pair["outside"]
        done.append(pair)
        line = f"{temperature} inside {pair['inside']:.2f} s, outside {pair['outside']:.2f} s"
        print(f"{line}, ratio {pair['ratio']:.3f}", file=sys.stderr, flush=True)
        if save is not None:
            save.write_text(json.dumps({"machine": machine(), "pairs": done}, indent=1) + "\n")
    return done


def main() -> None:
    """Measure and print the median ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--model", default="qwen_vl_2b", help="synthetic model to make")
    parser.add_argument("--folder", help="folder of an existing model to load instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cold", action="store_true", help="evict the weights before each load")
    parser.add_argument("--save", type=Path, help="file for the figures of every pair, as JSON")
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    temperature = "cold" if given.cold else "warm"
    with tempfile.TemporaryDirectory(prefix="stopwatch-") as scratch:
        folder = given.folder or os.path.join(scratch, "model")
        if given.folder is None:
            run_child(
                {
                    "task": "synthesize",
                    "folder": folder,
                    "config": synthetic.CONFIGS[given.model],
                }
            )
        source = read_source(folder, model=given.model, precision="bf16")
        # The first load includes what is compiled and read only once.
        run(OUTSIDE, {"FOLDER": source.folder, "DEVICE": given.device})
        done = pairs(source, given.device, temperature, given.pairs, given.save)
    ratios = [pair["ratio"] for pair in done]
    print(
        f"{temperature}: median ratio {statistics.median(ratios):.3f} of {len(ratios)} pairs"
        f" ({min(ratios):.3f}-{max(ratios):.3f}), load average {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
