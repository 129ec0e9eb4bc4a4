"""Models of a known architecture and size with random weights, made on this machine.

They load as the real ones do: the same classes, the same tensors, as many bytes. Their output is
noise.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from vlmcache.cache import formats
from vlmcache.change import place
from vlmcache.errors import UsageError

_SHARD_BYTES = 4_000_000_000
_BLOCK = 16_000_000

_QWEN2_VL_2B: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen2_vl_text",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": [16, 24, 24],
        },
    },
    "vision_config": {
        "model_type": "qwen2_vl_vision",
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}

_QWEN2_VL_7B: dict[str, Any] = _QWEN2_VL_2B | {
    "tie_word_embeddings": False,
    "text_config": _QWEN2_VL_2B["text_config"]
    | {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "vision_config": _QWEN2_VL_2B["vision_config"] | {"hidden_size": 3584},
}

_TINY: dict[str, Any] = _QWEN2_VL_2B | {
    "text_config": _QWEN2_VL_2B["text_config"]
    | {
        "vocab_size": 32000,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": [8, 12, 12],
        },
    },
    "vision_config": _QWEN2_VL_2B["vision_config"]
    | {"depth": 2, "embed_dim": 128, "hidden_size": 256, "num_heads": 4},
}

_GOT_OCR: dict[str, Any] = {
    "model_type": "got_ocr2",
    "architectures": ["GotOcr2ForConditionalGeneration"],
    # The repo stores its output head although it equals the embedding, and both are read.
    "tie_word_embeddings": False,
    "image_token_index": 151859,
    "text_config": {
        "model_type": "qwen2",
        "vocab_size": 151860,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "model_type": "got_ocr2_vision",
        "hidden_size": 768,
        "output_channels": 256,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 1024,
        "patch_size": 16,
        "window_size": 14,
        "global_attn_indexes": [2, 5, 8, 11],
        "mlp_dim": 3072,
    },
}

CONFIGS = {
    "tiny": _TINY,
    "got_ocr": _GOT_OCR,
    "qwen_vl_2b": _QWEN2_VL_2B,
    "qwen_vl_7b": _QWEN2_VL_7B,
}
"""Name, as `--synthetic` takes it -> config.json. The sizes are those of Qwen/Qwen2-VL-2B-Instruct,
Qwen/Qwen2-VL-7B-Instruct and stepfun-ai/GOT-OCR2_0, the last in the form of transformers itself."""


def check_name(name: str) -> None:
    """Make sure that there is a synthetic model of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in CONFIGS:
        raise UsageError(f"no synthetic model {name!r}", "known: " + ", ".join(CONFIGS))


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a model of this configuration stores, by name."""
    import torch
    import transformers

    settings = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(settings)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied
    }


def make_model(folder: str, config: dict[str, Any], seed: int = 0) -> int:
    """Write a model of a configuration with random bfloat16 weights; return the weights' bytes.

    The values repeat one block of random numbers, shifted for each tensor: a disk has as many bytes
    to read, and the model need not fit into memory.

    Args:
        folder: the folder, which is made.
        config: the content of config.json.
        seed: the seed of the random numbers.

    Raises:
        OSError: it cannot be written.
    """
    import torch

    os.makedirs(folder, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(_BLOCK // 2, generator=generator).mul_(0.02).to(torch.bfloat16)
    content = memoryview(block.view(torch.uint8).numpy())
    shards = _shards(shapes(config))
    total = 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = formats.SAFETENSORS_SINGLE
        if len(shards) > 1:
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, name)
        total += _write_shard(os.path.join(folder, name), shard, content)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        place.write_file(
            os.path.join(folder, formats.SAFETENSORS_INDEX), json.dumps(index, indent=1).encode()
        )
    # Last: a folder with config.json is a complete model.
    place.write_file(
        os.path.join(folder, formats.CONFIG),
        json.dumps(config | {"dtype": "bfloat16"}, indent=1).encode(),
    )
    return total


def _shards(tensors: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in tensors.items():
        size = _bytes(shape)
        if filled and filled + size > _SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _write_shard(path: str, tensors: dict[str, tuple[int, ...]], content: memoryview) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        end = at + _bytes(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for number, shape in enumerate(tensors.values()):
            left = _bytes(shape)
            begin = (number * 7919 * 2) % len(content)
            while left:
                part = content[begin : begin + left]
                file.write(part)
                left -= len(part)
                begin = 0
        file.flush()
        os.fsync(file.fileno())
    return at
