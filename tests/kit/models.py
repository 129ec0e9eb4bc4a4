"""Tiny models of each architecture, made when the tests run; and whether that is possible here."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

HAS_TORCH = all(
    importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "accelerate")
)
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None

needs_torch = pytest.mark.skipif(
    not HAS_TORCH, reason="needs torch and transformers: pip install 'vlmcache[load]'"
)
needs_bitsandbytes = pytest.mark.skipif(
    not HAS_TORCH or not HAS_BITSANDBYTES,
    reason="needs torch and bitsandbytes: pip install 'vlmcache[load]'",
)

_TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "tie_word_embeddings": True,
        "text_config": _TEXT | {"model_type": "qwen2_vl_text", "rope_parameters": _ROPE},
        "vision_config": {
            "model_type": "qwen2_vl_vision",
            "depth": 1,
            "embed_dim": 64,
            "hidden_size": 64,
            "num_heads": 2,
        },
    },
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "tie_word_embeddings": False,
        "text_config": _TEXT
        | {
            "model_type": "qwen2_5_vl_text",
            "rope_parameters": _ROPE,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [0],
        },
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "tie_word_embeddings": True,
        "text_config": _TEXT
        | {"model_type": "qwen3_vl_text", "head_dim": 16, "rope_parameters": _ROPE},
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    },
    "got_ocr2": {
        "model_type": "got_ocr2",
        "architectures": ["GotOcr2ForConditionalGeneration"],
        "tie_word_embeddings": True,
        "image_token_index": 500,
        "text_config": _TEXT | {"model_type": "qwen2", "tie_word_embeddings": True},
        "vision_config": {
            "model_type": "got_ocr2_vision",
            "hidden_size": 64,
            "output_channels": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "global_attn_indexes": [0],
            "mlp_dim": 128,
        },
    },
    "qwen2": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": False,
    }
    | _TEXT,
}
"""Architecture, as transformers names it -> config.json of a model of it with few weights."""
