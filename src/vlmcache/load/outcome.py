"""What a model computes for a fixed input, so that two processes can be compared.

torch is imported by the functions.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

from vlmcache.load.device import CPU
from vlmcache.load.models import first_token
from vlmcache.load.residency import model_devices

TOLERANCE = 1e-2
"""The largest difference of two logits on an accelerator, as part of the largest of all logits.
On accelerators numbers are added in no fixed order; on a CPU the order is fixed, and nothing may
differ."""

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
    """Return in words how a model differs from what `save` wrote; `None` if it does not.

    The weights are compared too: token ids do not reach the parts that read images.
    """
    import torch

    saved = torch.load(path, weights_only=True)
    weights = fingerprints(model)
    changed = sorted(
        name
        for name in weights.keys() | saved["weights"].keys()
        if weights.get(name) != saved["weights"].get(name)
    )
    if changed:
        return f"{len(changed)} of its weights are not those that were saved: {changed[0]}"
    actual, expected = logits(model), saved["logits"]
    if actual.shape != expected.shape:
        return f"its logits have the shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if model_devices(model) == [CPU]:
        same = (actual == expected) | (actual.isnan() & expected.isnan())
        count = int((~same).sum())
        return f"{count} of its {actual.numel()} logits differ" if count else None
    scale = float(expected.abs().max()) or 1.0
    worst = float((actual - expected).abs().max()) / scale
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
    """Return what a model computes for a few token ids, or an image if it needs one.

    The tensor is on the CPU. It is empty for a model that needs other inputs, such as sounds or the
    positions of words.

    Raises:
        Exception: what the model raises for inputs that models of its class take.
    """
    import torch

    failed: list[tuple[dict[str, Any], Exception]] = []
    try:
        computed = first_token(model)
    except Exception as error:
        ids = torch.tensor([[1, 2, 3, 4]])
        failed.append(({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, error))
        for inputs in _with_image(model):
            try:
                computed = _computed(model, inputs)
                break
            except Exception as of_image:
                failed.append((inputs, of_image))
        else:
            _raise_unless_others_are_needed(model, failed)
            return torch.empty(0)
    return computed.detach().float().to(CPU)


def _with_image(model: Any) -> Iterator[dict[str, Any]]:
    """Yield those inputs that a model takes of an image and token ids: all, then without ids."""
    import torch

    config = model.config
    parts = (config, *(getattr(config, name, None) for name in ("vision_config", "encoder")))
    sizes = [size for part in parts if (size := getattr(part, "image_size", None)) is not None]
    if not sizes:
        return
    size = [sizes[0]] * 2 if isinstance(sizes[0], int) else list(sizes[0])
    weight = next(weight for weight in model.parameters() if weight.is_floating_point())
    image = torch.linspace(-1, 1, _CHANNELS * math.prod(size)).reshape(1, _CHANNELS, *size)
    ids = torch.tensor([[1, 2, 3, 4]], device=weight.device)
    # BLIP needs an image token for each of its queries.
    queries = getattr(config, "num_query_tokens", None) or 0
    token = getattr(config, "image_token_index", None) or 0
    inputs = {
        "pixel_values": image.to(weight.device, weight.dtype),
        "input_ids": torch.cat([ids.new_full((1, queries), token), ids], dim=1),
        "qformer_input_ids": ids,
        "decoder_input_ids": ids,
        "bbox": ids.new_zeros((1, 4, 4)),
    }
    taken = inspect.signature(model.forward).parameters
    for left_out in (set(), {"decoder_input_ids"}, {"input_ids"}):
        yield {name: inputs[name] for name in inputs if name in taken and name not in left_out}


def _raise_unless_others_are_needed(
    model: Any, failed: Sequence[tuple[dict[str, Any], Exception]]
) -> None:
    """Raise the first error of inputs that a model of the same class without weights accepts.

    Args:
        model: the model.
        failed: the inputs with which it computed nothing, and the error of each.
    """
    import torch

    try:
        with torch.device("meta"):
            bare = type(model)(model.config).eval()
    except (AttributeError, LookupError, TypeError, ValueError):
        return
    for inputs, error in failed:
        try:
            _computed(bare, {name: value.to("meta") for name, value in inputs.items()})
        except (AttributeError, LookupError, TypeError, ValueError):
            continue
        except Exception:  # noqa: S110
            # It accepted the inputs, and failed where it needed a weight's value.
            pass
        raise error


def _computed(model: Any, inputs: dict[str, Any]) -> Any:
    import torch

    with torch.inference_mode():
        answer = model(**inputs)
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(answer, name, None) is not None:
            return answer[name]
    return answer[0]
