"""What a model computes for a fixed input, to be compared between two processes.

torch is imported by the functions.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterator, Sequence
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
    """Return what a model computes for a few token ids, or an image if it needs one, on the CPU.

    Nothing is returned of a model that needs other inputs, such as sounds or the places of words.

    Raises:
        Exception: what the model raises for inputs that models of its class take.
    """
    import torch

    failed: list[tuple[dict[str, Any], Exception]] = []
    try:
        found = first_token(model)
    except Exception as error:
        ids = torch.tensor([[1, 2, 3, 4]])
        failed.append(({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, error))
        for given in _with_image(model):
            try:
                found = _computed(model, given)
                break
            except Exception as of_image:
                failed.append((given, of_image))
        else:
            _raise_unless_others_are_needed(model, failed)
            return torch.empty(0)
    return found.detach().float().to(CPU)


def _with_image(model: Any) -> Iterator[dict[str, Any]]:
    """Yield inputs with an image, as far as a model takes them: with token ids and without."""
    import torch

    config = model.config
    parts = (config, *(getattr(config, name, None) for name in ("vision_config", "encoder")))
    sizes = [size for part in parts if (size := getattr(part, "image_size", None)) is not None]
    if not sizes:
        return
    size = [sizes[0]] * 2 if isinstance(sizes[0], int) else list(sizes[0])
    some = next(weight for weight in model.parameters() if weight.is_floating_point())
    image = torch.linspace(-1, 1, _CHANNELS * math.prod(size)).reshape(1, _CHANNELS, *size)
    ids = torch.tensor([[1, 2, 3, 4]], device=some.device)
    # BLIP takes the place of each query from tokens of their own.
    queries = getattr(config, "num_query_tokens", None) or 0
    token = getattr(config, "image_token_index", None) or 0
    every = {
        "pixel_values": image.to(some.device, some.dtype),
        "input_ids": torch.cat([ids.new_full((1, queries), token), ids], dim=1),
        "qformer_input_ids": ids,
        "decoder_input_ids": ids,
        "bbox": ids.new_zeros((1, 4, 4)),
    }
    taken = inspect.signature(model.forward).parameters
    for left_out in (set(), {"decoder_input_ids"}, {"input_ids"}):
        yield {name: every[name] for name in every if name in taken and name not in left_out}


def _raise_unless_others_are_needed(
    model: Any, failed: Sequence[tuple[dict[str, Any], Exception]]
) -> None:
    """Raise the first error of inputs which a model of the class takes that has no weights.

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
    for given, error in failed:
        try:
            _computed(bare, {name: value.to("meta") for name, value in given.items()})
        except (AttributeError, LookupError, TypeError, ValueError):
            continue
        except Exception:  # noqa: S110
            # It came as far as needing a number.
            pass
        raise error


def _computed(model: Any, given: dict[str, Any]) -> Any:
    import torch

    with torch.inference_mode():
        answer = model(**given)
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(answer, name, None) is not None:
            return answer[name]
    return answer[0]
