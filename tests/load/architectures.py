"""Loads tiny models of many architectures with vlmcache and with plain transformers, and compares.

Arguments: what to compare (`loads` or `copies`), then names of architectures.json. Prints a JSON
object: architecture -> what differs, or nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import vlmcache
from tests.kit.caches import CacheBuilder

CACHE = CacheBuilder(Path(os.environ["HF_HOME"]) / "hub")
MODELS = json.loads((Path(os.environ["ARCHITECTURES"])).read_text())["models"]
WITH_IMAGE = ("blip2_t5", "clip", "donut", "instructblip", "kosmos2", "nougat", "siglip")
"""Models that do nothing without one."""
IMAGE_PARTS = ("vision_config", "encoder")
STORED = (torch.bfloat16, torch.float32, torch.float16)


def make(name: str, dtype: Any) -> Path:
    """Put a model with random weights into the cache; return its snapshot."""
    case = MODELS[name]
    arguments = dict(case["config"])
    kind = arguments.pop("model_type", name)
    config = CONFIG_MAPPING[kind](**arguments)
    torch.manual_seed(0)
    model = getattr(transformers, case["class"])(config).to(dtype)
    folder = Path(os.environ["VLMCACHE_HOME"]).with_name(f"made-{name}")
    model.save_pretrained(folder)
    files = {file.name: file for file in folder.iterdir()}
    CACHE.repo(f"tiny/{name}").revision(files)
    return next(CACHE.repo(f"tiny/{name}").snapshots.iterdir())


def logits(name: str, model: Any) -> Any:
    """Return what a forward pass gives for a few token ids, and an image where one is needed."""
    ids = torch.tensor([[5, 7, 11, 13]])
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder or name in ("donut", "nougat"):
        arguments["decoder_input_ids"] = ids[:, :2]
    torch.manual_seed(1)
    if name in WITH_IMAGE:
        parts = (model.config, *(getattr(model.config, part, None) for part in IMAGE_PARTS))
        size = next(part.image_size for part in parts if hasattr(part, "image_size"))
        height, width = size if isinstance(size, list | tuple) else (size, size)
        arguments["pixel_values"] = torch.randn(1, 3, height, width).to(model.dtype)
    if name in ("donut", "nougat", "whisper"):
        del arguments["input_ids"], arguments["attention_mask"]
        arguments["use_cache"] = False
    if name == "instructblip":
        arguments |= {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}
    if name == "whisper":
        frames = 2 * model.config.max_source_positions
        features = torch.randn(1, model.config.num_mel_bins, frames)
        arguments["input_features"] = features.to(model.dtype)
    if name == "kosmos2":
        mask = torch.zeros_like(ids)
        mask[:, : model.config.latent_query_num] = 1
        arguments["image_embeds_position_mask"] = mask
    if name == "udop":
        arguments["bbox"] = torch.rand(1, 4, 4).to(model.dtype)
    with torch.inference_mode():
        answer = model(**arguments)
    return answer.logits if "logits" in answer else answer[0]


def compare(name: str, ours: Any, theirs: Any) -> None:
    """Make sure that two models are the same: class, weights, types and logits."""
    assert type(ours) is type(theirs), (type(ours), type(theirs))
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    types = [name for name in left if left[name].dtype != right[name].dtype]
    assert not types, types
    unlike = [name for name in left if not torch.equal(left[name], right[name])]
    assert not unlike, unlike
    assert torch.equal(logits(name, ours), logits(name, theirs))


def loads(name: str) -> None:
    dtype = STORED[sorted(MODELS).index(name) % len(STORED)]
    snapshot = make(name, dtype)
    ours, _ = vlmcache.load_model(f"tiny/{name}", device="cpu")
    kind = getattr(transformers, MODELS[name]["class"])
    compare(name, ours, kind.from_pretrained(snapshot).eval())
    assert ours.config.dtype == dtype


def copies(name: str) -> None:
    make(name, torch.bfloat16)
    for precision in ("int8", "int4"):
        fresh, _ = vlmcache.load_model(f"tiny/{name}", precision, "cpu")
        try:
            made = vlmcache.Cache().quantize(f"tiny/{name}", precision=precision, device="cpu")
        except vlmcache.UnloadableError:
            continue  # What does not run once it is quantized, or cannot be saved, has no copy.
        expected = logits(name, fresh)
        copy, _ = vlmcache.load_model(f"tiny/{name}", precision, "cpu")
        assert copy.config._name_or_path == made.path, "the copy is not used"
        assert type(copy) is type(fresh)
        assert torch.equal(logits(name, copy), expected), precision


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    work, *names = sys.argv[1:]
    results: dict[str, str | None] = {}
    for name in names:
        try:
            # Parts of some models are classes of timm.
            if name == "gemma3n" and importlib.util.find_spec("timm") is None:
                results[name] = "skip: needs timm"
                continue
            {"loads": loads, "copies": copies}[work](name)
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    with open(answer, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
