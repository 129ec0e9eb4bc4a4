"""What a model computes for a fixed input, to be compared between two processes.

torch is imported by the functions.
"""

from __future__ import annotations

import hashlib
from typing import Any

from vlmcache.load.device import CPU
from vlmcache.load.models import first_token, model_devices

TOLERANCE = 1e-2
"""The largest difference of two logits on an accelerator, as part of the largest of all logits.
There the order in which numbers are added is not fixed; on a CPU it is, and nothing may differ."""

_CHANNELS = 3


def save(model: Any, path: str) -> None:
    """Write what a model computes, and what its weights are, to a file.

    Raises:
        Exception: whatever the model raises when it computes.
    """
    import torch

    weights = fingerprints(model)
    torch.save({"logits": logits(model), "weights": weights}, path)


def difference(model: Any, path: str) -> str | None:
    """Return in words how a model differs from what was saved of another; `None` if it does not.

    The weights are compared too: token ids alone reach no part that looks at images.
    """
    import torch

    saved = torch.load(path, weights_only=True)
    weights = fingerprints(model)
    other = sorted(
        name
        for name in weights.keys() | saved["weights"].keys()
        if weights.get(name) != saved["weights"].get(name)
    )
    if other:
        return f"{len(other)} of its weights are not those that were saved: {other[0]}"
    found, wanted = logits(model), saved["logits"]
    if found.shape != wanted.shape:
        return f"its logits have the shape {tuple(found.shape)} in place of {tuple(wanted.shape)}"
    if model_devices(model) == [CPU]:
        same = (found == wanted) | (found.isnan() & wanted.isnan())
        count = int((~same).sum())
        return f"{count} of its {found.numel()} logits differ" if count else None
    scale = float(wanted.abs().max()) or 1.0
    worst = float((found - wanted).abs().max()) / scale
    return None if worst <= TOLERANCE else f"its logits differ by {worst:.1%} of the largest"


def fingerprints(model: Any) -> dict[str, str]:
    """Return the hash of each weight of a model, by its name."""
    import torch

    return {
        name: hashlib.sha256(
            weight.detach().to(CPU).contiguous().reshape(-1).view(torch.uint8).numpy()
        ).hexdigest()
        for name, weight in model.named_parameters()
    }


def logits(model: Any) -> Any:
    """Return what a model computes for a few token ids, or an image if it needs one, on the CPU."""
    try:
        found = first_token(model)
    except Exception:
        size = _image_size(model.config)
        if size is None:
            raise
        found = _with_image(model, size)
    return found.detach().float().to(CPU)


def _image_size(config: Any) -> int | None:
    for part in (config, getattr(config, "vision_config", None)):
        size = getattr(part, "image_size", None)
        if isinstance(size, int):
            return size
    return None


def _with_image(model: Any, size: int) -> Any:
    """Return what a model computes that needs an image: with token ids, or for an encoder alone."""
    import torch

    some = next(weight for weight in model.parameters() if weight.is_floating_point())
    count = _CHANNELS * size * size
    pixels = torch.linspace(-1, 1, count).reshape(1, _CHANNELS, size, size)
    given = {"pixel_values": pixels.to(some.device, some.dtype)}
    if model.main_input_name != "pixel_values":
        given["input_ids"] = torch.tensor([[1, 2, 3, 4]], device=some.device)
    with torch.inference_mode():
        answer = model(**given)
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(answer, name, None) is not None:
            return answer[name]
    return answer[0]
