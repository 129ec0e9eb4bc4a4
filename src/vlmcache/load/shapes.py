"""Whether quantized weights have the shape of the layer they are in: transformers does not check.

Of weights that bitsandbytes has stored it takes whatever is there (5.23), and fails, or computes
something else, once the model is used.
"""

from __future__ import annotations

from typing import Any


def wrong_shape(model: Any) -> str | None:
    """Return in words which quantized weight of a model has another shape than its layer."""
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is None or not hasattr(layer, "in_features"):
            continue
        if not type(weight).__module__.startswith("bitsan"):
            continue
        state = getattr(weight, "quant_state", None)
        found = tuple(weight.shape if state is None else state.shape)
        wanted = (layer.out_features, layer.in_features)
        if found != wanted:
            return f"{name}.weight has the shape {found}, and its layer {wanted}"
    return None
