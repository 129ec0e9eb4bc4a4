"""Whether quantized weights have the shape of the layer they are in: transformers does not check.

It (5.23) accepts any shape of weights that bitsandbytes has stored, and fails, or computes
something else, once the model is used.
"""

from __future__ import annotations

from typing import Any


def wrong_shape(model: Any) -> str | None:
    """Return in words which quantized weight does not have its layer's shape; `None` for none."""
    for name, layer in model.named_modules():
        weight: Any = getattr(layer, "weight", None)
        is_quantized = type(weight).__module__.startswith("bitsan")
        if not is_quantized or not hasattr(layer, "in_features"):
            continue
        state = getattr(weight, "quant_state", None)
        shape = tuple(weight.shape if state is None else state.shape)
        expected = (layer.out_features, layer.in_features)
        if shape != expected:
            return f"{name}.weight has the shape {shape}, and its layer {expected}"
    return None
