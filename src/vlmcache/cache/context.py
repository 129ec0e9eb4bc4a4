"""The size of the key-value cache for a context, from config.json (pure).

The rules are transformers' (5.23): each layer keeps the keys and values of all tokens, or of the
last ones that a sliding window reaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")
"""Where a model of several parts has the configuration of its language model."""

_LAYERS = ("num_decoder_layers", "decoder_layers", "num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("decoder_attention_heads", "num_attention_heads", "n_head", "num_heads", "n_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
_HEAD_DIM = ("head_dim", "d_kv", "kv_channels", "attention_head_dim")
_MOST = 1 << 40
"""The largest number in a configuration that makes sense here."""

_WINDOWED = ("sliding_attention", "local_attention", "sliding", "local")
_CHUNKED = ("chunked_attention",)
_FULL = ("full_attention", "attention", "global_attention", "full", "global")


def context_memory(
    config: Mapping[str, Any], tokens: int, element: int
) -> tuple[int, tuple[str, ...]]:
    """Return the bytes of the key-value cache, and sentences on what is only approximate.

    The input of an encoder is taken to be as long as the context: its keys and values are kept for
    the decoder's cross attention.

    Args:
        config: the content of config.json.
        tokens: length of the context.
        element: bytes of one number, as the model computes.
    """
    text = _text_part(config)
    layers = _number(text, *_LAYERS)
    width = _width(text)
    if not layers or not width:
        return 0, ("the configuration does not say how large the key-value cache is",)
    notes = []
    if _number(text, "kv_lora_rank"):
        notes.append("keys and values of latent attention (MLA) are taken to be kept expanded")
    kinds = list(_kinds(text, layers))
    lengths = [_length(text, kind, tokens) for kind in kinds]
    if None in lengths:
        notes.append("layers without a key-value cache (linear or state-space) count nothing")
    if config.get("is_encoder_decoder") is True:
        lengths += [tokens] * layers
    return sum(filter(None, lengths)) * width * element, tuple(notes)


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of the language model in one, at most two levels deep."""
    for _ in range(2):
        below = (part for name in _TEXT_PARTS if isinstance(part := config.get(name), dict))
        config = next((part for part in below if _number(part, *_LAYERS)), config)
    return config


def _width(text: Mapping[str, Any]) -> int:
    """Return how many numbers one layer keeps for one token: keys and values of its heads."""
    heads = _number(text, *_HEADS) or 0
    if _number(text, "kv_lora_rank"):
        keys = (_number(text, "qk_nope_head_dim") or 0) + (_number(text, "qk_rope_head_dim") or 0)
        return heads * (keys + (_number(text, "v_head_dim") or 0))
    dim = _number(text, *_HEAD_DIM)
    if dim is None and heads:
        dim = (_number(text, *_HIDDEN) or 0) // heads
    kept = _number(text, *_KEY_HEADS)
    if kept is None:
        kept = 1 if text.get("multi_query") is True else heads
    return 2 * kept * (dim or 0)


def _kinds(text: Mapping[str, Any], layers: int) -> Iterator[str]:
    """Yield the kind of each layer."""
    named = text.get("layer_types", text.get("layers_block_type"))
    if isinstance(named, list) and len(named) == layers:
        yield from map(str, named)
        return
    every = _number(text, "full_attention_interval")
    linear = every is not None and "linear_num_key_heads" in text
    pattern = _number(text, "sliding_window_pattern")
    windowed = _window(text) is not None and text.get("use_sliding_window") is not False
    # With use_sliding_window, only the layers from max_window_layers on have a window.
    first = _number(text, "max_window_layers") or 0 if "use_sliding_window" in text else 0
    for number in range(layers):
        if linear and (number + 1) % (every or 1):
            yield "linear_attention"
        elif windowed and number >= first and (pattern is None or (number + 1) % pattern):
            yield _WINDOWED[0]
        else:
            yield _FULL[0]


def _length(text: Mapping[str, Any], kind: str, tokens: int) -> int | None:
    """Return for how many tokens a layer of a kind keeps keys and values; `None` if for none."""
    if kind in _FULL or kind.endswith("full_attention"):
        return tokens
    if kind in _WINDOWED:
        return min(tokens, _window(text) or tokens)
    if kind in _CHUNKED:
        return min(tokens, _number(text, "attention_chunk_size") or tokens)
    return None


def _window(text: Mapping[str, Any]) -> int | None:
    return _number(text, "sliding_window", "local_attention", "window_size")


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of the named numbers that a configuration has and that makes sense."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST:
            return value
    return None
