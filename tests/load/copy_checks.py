"""Checks of kept copies and of contexts that need torch, in one process as those of checks.py."""

from __future__ import annotations

import json
import os
import shutil
import traceback
from pathlib import Path

import pytest
import torch
import transformers

import vlmcache
from tests.kit.caches import CacheBuilder
from vlmcache.errors import NoDeviceError, UnsupportedPrecisionError
from vlmcache.home import copies
from vlmcache.load import models, outcome, quantized, scratch
from vlmcache.load.source import read_source

HOME = os.environ["VLMCACHE_HOME"]
CACHE = CacheBuilder(Path(os.environ["HF_HOME"]) / "hub")


def a_copy_that_cannot_be_loaded_is_set_aside() -> None:
    origin = next(CACHE.repo("tiny/qwen2").snapshots.iterdir())
    source = read_source(
        str(origin), model="tiny/qwen2", precision="int8", repo="tiny/qwen2", commit=origin.name
    )
    right = os.path.join(HOME, "right")
    models.build_model(source, "cpu").save_pretrained(right)
    for key in ("intermediate_size", "hidden_size"):
        with scratch.new_folder(os.path.join(HOME, copies.FOLDER)) as making:
            shutil.copytree(right, making, dirs_exist_ok=True)
            config = Path(making) / "config.json"
            content = json.loads(config.read_text())
            config.write_text(json.dumps(content | {key: content[key] * 2}))
            made = quantized.publish(HOME, making, source)
        with pytest.raises(NoDeviceError):
            vlmcache.load_model("tiny/qwen2", "int8", "cuda:7")
        # That was not the copy's fault.
        assert copies.failure(made.path) is None
        assert quantized.preferred(HOME, source).kind == "copy"
        model, _ = vlmcache.load_model("tiny/qwen2", "int8", "cpu")
        assert model.config._name_or_path == str(origin), key
        assert copies.failure(made.path), key
        assert quantized.preferred(HOME, source) is source
    (finding,) = (one for one in vlmcache.Cache().status().findings if one.code == "failed-copy")
    assert finding.path == made.path
    shutil.rmtree(made.path)


def what_is_stored_quantized_is_not_quantized() -> None:
    with pytest.raises(UnsupportedPrecisionError, match="already quantized") as caught:
        vlmcache.Cache().quantize("tiny/gptq", precision="int4")
    assert "--precision" not in str(caught.value.hint)


def outcomes_differ_in_weights_and_in_logits() -> None:
    path = os.path.join(HOME, "outcome")
    model, _ = vlmcache.load_model("tiny/qwen2", "fp32", "cpu")
    outcome.save(model, path)
    assert outcome.difference(model, path) is None
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"logits": saved["logits"] + 1e-7}, path)
    assert "logits differ" in str(outcome.difference(model, path))
    torch.save(saved | {"logits": saved["logits"][:, :2]}, path)
    assert "instead of" in str(outcome.difference(model, path))
    model = vlmcache.load_model("tiny/qwen2", "bf16", "cpu")[0].float()
    outcome.save(model, path)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert "1 of its weights" in str(outcome.difference(model, path))


def one_that_sees() -> transformers.ViTModel:
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    return transformers.ViTModel(
        transformers.ViTConfig(**size, num_attention_heads=2, image_size=32, patch_size=16)
    ).eval()


def a_model_that_needs_images_or_sounds_is_compared() -> None:
    assert outcome.logits(one_that_sees()).numel() > 0
    hears = transformers.WhisperModel(
        transformers.WhisperConfig(
            vocab_size=64,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    ).eval()
    assert outcome.logits(hears).numel() == 0


def a_model_that_fails_when_it_computes_raises() -> None:
    model, _ = vlmcache.load_model("tiny/qwen2", "fp32", "cpu")
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(8, 3))
    with pytest.raises(RuntimeError):
        outcome.logits(model)
    for kind in (AssertionError, TypeError, ValueError):
        sees = one_that_sees()

        def fail(*_: object, kind: type[Exception] = kind) -> None:
            raise kind("as kernels for quantized weights do")

        next(iter(one for one in sees.modules() if isinstance(one, torch.nn.Linear))).forward = fail
        with pytest.raises(kind, match="as kernels for quantized weights do"):
            outcome.logits(sees)


def the_cache_of_a_context_is_as_large_as_estimated() -> None:
    from vlmcache.cache.context import context_memory

    text = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    window = {"sliding_window": 64, "max_position_embeddings": 512}
    seq2seq = {"d_model": 64, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    for kind, config in (
        (transformers.LlamaForCausalLM, transformers.LlamaConfig(**text, **heads)),
        (transformers.MistralForCausalLM, transformers.MistralConfig(**text, **heads, **window)),
        (
            transformers.Gemma3ForCausalLM,
            transformers.Gemma3TextConfig(**text, **heads, **window, head_dim=32),
        ),
        (transformers.GPT2LMHeadModel, transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4)),
        (
            transformers.T5ForConditionalGeneration,
            transformers.T5Config(**seq2seq, vocab_size=64, decoder_start_token_id=0),
        ),
    ):
        model = kind(config).eval()
        ids = torch.ones(1, 300, dtype=torch.long)
        given = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
        with torch.inference_mode():
            kept = model(input_ids=ids, use_cache=True, **given).past_key_values
        caches = (kept.self_attention_cache, kept.cross_attention_cache) if given else (kept,)
        layers = [layer for cache in caches for layer in cache.layers]
        size = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        estimated, notes = context_memory(json.loads(config.to_json_string()), 300, 4)
        assert not notes
        assert abs(estimated / size - 1) < 0.03, (kind.__name__, estimated, size)


CHECKS = (
    a_copy_that_cannot_be_loaded_is_set_aside,
    what_is_stored_quantized_is_not_quantized,
    outcomes_differ_in_weights_and_in_logits,
    a_model_that_needs_images_or_sounds_is_compared,
    a_model_that_fails_when_it_computes_raises,
    the_cache_of_a_context_is_as_large_as_estimated,
)


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)
    results: dict[str, str | None] = {}
    for check in CHECKS:
        results[check.__name__] = None
        try:
            check()
        except Exception:
            results[check.__name__] = traceback.format_exc()
    with open(answer, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
