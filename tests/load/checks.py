"""Checks that need torch, run one after another in one process: its import takes seconds.

Arguments: `all`, or `only` for no other checks than these: pairs of a model and a precision, as in
"qwen2 int8", of which the logits are compared.
Prints a JSON object: the name of each check -> what went wrong, or nothing.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import BitsAndBytesConfig

import vlmcache
from tests.kit import forks
from tests.kit.caches import CacheBuilder
from tests.kit.models import CONFIGS
from vlmcache.errors import (
    DamagedWeightsError,
    MissingPackageError,
    NoDeviceError,
    UnloadableError,
    UnsupportedPrecisionError,
)
from vlmcache.load import models, residency

HOME = os.environ["VLMCACHE_HOME"]
CACHE = CacheBuilder(Path(os.environ["HF_HOME"]) / "hub")


def snapshot(repo: str) -> Path:
    folder = CACHE.repo(repo).snapshots
    return next(folder.iterdir())


def plain(name: str, precision: str) -> Any:
    """Load as transformers' own documentation says, without vlmcache."""
    arguments: dict[str, Any] = {"dtype": torch.bfloat16}
    if precision in ("fp32", "fp16"):
        arguments["dtype"] = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    if precision == "int8":
        arguments |= {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    if precision == "int4":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        arguments |= {"quantization_config": settings}
    if precision in ("int8", "int4"):
        arguments |= {"device_map": "cpu"}
    loader = getattr(transformers, CONFIGS[name]["architectures"][0])
    return loader.from_pretrained(snapshot(f"tiny/{name}"), **arguments).eval()


def same_logits(name: str, precision: str) -> None:
    model, processor = vlmcache.load_model(f"tiny/{name}", precision, "cpu")
    assert type(model).__name__ == CONFIGS[name]["architectures"][0]
    assert processor is None
    ours, theirs = models.first_token(model), models.first_token(plain(name, precision))
    assert ours.dtype == theirs.dtype
    assert torch.isfinite(ours).all()
    assert torch.equal(ours, theirs)
    for number in range(3):
        ids = torch.tensor([[number + 5, 7, 400 - number]])
        with torch.inference_mode():
            left = model(input_ids=ids).logits
        assert left.shape[:2] == (1, 3)


def copy_has_the_logits_of_quantizing(precision: str) -> None:
    before = models.first_token(vlmcache.load_model("tiny/qwen2_vl", precision, "cpu")[0])
    made = vlmcache.Cache().quantize("tiny/qwen2_vl", precision=precision).check()
    assert made.made
    model, _ = vlmcache.load_model("tiny/qwen2_vl", precision, "cpu")
    assert model.config._name_or_path == made.path
    assert torch.equal(models.first_token(model), before)
    # A copy whose bytes changed is not used.
    weights = Path(made.path) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    model, _ = vlmcache.load_model("tiny/qwen2_vl", precision, "cpu")
    assert model.config._name_or_path != made.path
    shutil.rmtree(Path(made.path).parent)


def loaders_give_the_same_logits(loader: str) -> None:
    from vlmcache.load.source import read_source

    source = read_source(str(snapshot("tiny/qwen2_vl")), model="tiny", precision="bf16")
    left = models.build_model(source, "cpu", loader=loader)  # type: ignore[arg-type]
    residency.touch_all_weights(left)
    assert torch.equal(models.first_token(left), models.first_token(plain("qwen2_vl", "bf16")))


def own_code_runs_only_when_allowed() -> None:
    repo = "tiny/own-code"
    with contextlib.suppress(UnloadableError):
        vlmcache.load_model(repo, "bf16", "cpu")
        raise AssertionError("the code ran unasked")
    model, _ = vlmcache.load_model(repo, "bf16", "cpu", trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"


def sharded_weights_load() -> None:
    model, _ = vlmcache.load_model("tiny/sharded", "fp32", "cpu")
    assert torch.equal(models.first_token(model), models.first_token(plain("qwen2", "fp32")))


def missing_weights_are_reported() -> None:
    with raises(DamagedWeightsError, "are not in its files: model.layers.1"):
        vlmcache.load_model("tiny/lacking", "fp32", "cpu")


def a_processor_needs_no_torchvision_for_images_and_text() -> None:
    from PIL import Image

    _, processor = vlmcache.load_model("tiny/with-processor", "fp32", "cpu")
    assert type(processor).__name__ == "Qwen2VLProcessor"
    made = processor(text=["a <|image_pad|> b"], images=[Image.new("RGB", (56, 56))])
    assert len(made["pixel_values"]) == 16
    assert made["input_ids"][0].count(5) == 4
    assert processor(text=["a b"])["input_ids"] == [[3, 4]]
    # Nothing of transformers stays as it was for the making.
    videos = transformers.models.auto.video_processing_auto.AutoVideoProcessor.from_pretrained
    for held in (transformers.ProcessorMixin.check_argument_for_proper_class, videos):
        assert held.__module__.startswith("transformers.")


def a_tokenizer_is_returned() -> None:
    _, processor = vlmcache.load_model("tiny/with-tokenizer", "fp32", "cpu")
    assert processor("a b")["input_ids"] == [3, 4]


def a_vision_model_with_only_a_tokenizer_has_that() -> None:
    _, processor = vlmcache.load_model("tiny/vision-with-tokenizer", "fp32", "cpu")
    assert processor("a b")["input_ids"] == [3, 4]


def the_class_that_the_configuration_names_is_loaded() -> None:
    from vlmcache.load.source import read_source

    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    bert = transformers.BertConfig(**text)
    qwen = transformers.Qwen3Config(**text, num_key_value_heads=1, head_dim=16)
    for kind, config in (
        (transformers.BertModel, bert),
        (transformers.BertForSequenceClassification, bert),
        (transformers.Qwen3Model, qwen),
        (transformers.Qwen3ForCausalLM, qwen),
    ):
        folder = Path(HOME).with_name(kind.__name__)
        kind(config).save_pretrained(folder)
        source = read_source(str(folder), model="tiny", precision="fp32")
        model = models.build_model(source, "cpu")
        assert type(model) is kind, type(model)
        theirs = kind.from_pretrained(folder).eval()
        assert torch.equal(models.first_token(model), models.first_token(theirs))


def tokens_that_cannot_be_generated_are_no_failure() -> None:
    from vlmcache.load import worker

    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    answer = worker._tokens(transformers.BertModel(config).eval(), 5)
    assert answer["first_token"] > 0
    assert "generate" in answer["no_token"]


def a_trial(loader: str) -> dict[str, Any]:
    """Make a trial in this process."""
    import time

    import msgspec

    from vlmcache.load import worker
    from vlmcache.load.source import read_source

    source = read_source(str(snapshot("tiny/qwen2_vl")), model="tiny", precision="bf16")
    return worker._trial(
        {
            "source": msgspec.to_builtins(source),
            "device": "cpu",
            "loader": loader,
            "temperature": "cold",
            "tokens": 5,
            "again": True,
            "started": time.monotonic(),
        }
    )


def plain_leaves_the_collector_alone_and_named_loaders_do_not() -> None:
    collecting = []
    original = models.import_for

    def seen(source: Any) -> None:
        collecting.append(gc.isenabled())
        original(source)

    with mock.patch.object(models, "import_for", seen):
        a_trial("plain")
        a_trial("pinned")
    assert collecting == [True, False]


def what_a_loader_reads_while_the_model_is_built_counts_as_reading() -> None:
    from vlmcache.load import pinned, worker

    now = 0.0
    original = pinned.read_pinned

    def slow(*arguments: Any) -> Any:
        nonlocal now
        now += 100.0
        return original(*arguments)

    clock = mock.Mock(monotonic=lambda: now)
    with mock.patch.object(pinned, "read_pinned", slow), mock.patch.object(worker, "time", clock):
        answer = a_trial("pinned")
    assert answer["phases"]["read"] == 100.0
    assert answer["phases"]["build"] == 0.0
    assert answer["again"]["phases"]["read"] == 100.0


def decoding_is_warmed_up_before_it_is_timed() -> None:
    from vlmcache.load import worker

    counts: list[int] = []
    with mock.patch.object(models, "more_tokens", lambda _model, count: counts.append(count)):
        worker._tokens(vlmcache.load_model("tiny/qwen2", "fp32", "cpu")[0], 20)
    assert counts == [worker._WARM_UP, 1, 20]


def an_absent_device_is_reported() -> None:
    with raises(NoDeviceError, "no device 'cuda:7'") as error:
        vlmcache.load_model("tiny/qwen2", "fp32", "cuda:7")
    assert "cpu" in str(error[0].hint)


def a_quantized_model_is_not_quantized_again() -> None:
    with raises(UnsupportedPrecisionError, "already quantized"):
        vlmcache.load_model("tiny/quantized", "int4", "cpu")


def bitsandbytes_prints_nothing_useless() -> None:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("bitsandbytes").addHandler(handler)
    models.first_token(vlmcache.load_model("tiny/qwen2", "int8", "cpu")[0])
    logging.getLogger("bitsandbytes").removeHandler(handler)
    assert said.getvalue() == forks.SAID.getvalue() == ""


def collecting_continues_after_a_load() -> None:
    vlmcache.load_model("tiny/qwen2", "fp32", "cpu")
    assert gc.isenabled()


def every_weight_is_resident_afterwards() -> None:
    from vlmcache.load import reader

    weights = [str(snapshot("tiny/qwen2") / "model.safetensors")]
    reader.evict(weights)
    vlmcache.load_model("tiny/qwen2", "bf16", "cpu")
    assert reader.resident_fraction(weights) == 1.0


def the_use_is_remembered() -> None:
    from vlmcache.home.journal import Journal

    with Journal(HOME) as memory:
        uses = memory.uses(str(CACHE.root))
    assert ("model", "tiny/qwen2", snapshot("tiny/qwen2").name) in uses


@contextlib.contextmanager
def raises(kind: type[vlmcache.VlmcacheError], words: str) -> Iterator[list[Any]]:
    caught: list[Any] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    if not caught:
        raise AssertionError(f"{kind.__name__} was not raised")
    assert words in caught[0].message, caught[0].message


def checks(which: str, *pairs: str) -> Iterator[tuple[str, Callable[[], None]]]:
    for pair in pairs:
        name, precision = pair.split(" ")
        yield pair, lambda n=name, p=precision: same_logits(n, p)  # type: ignore[misc]
    if which == "only":
        return
    for precision in ("int8", "int4"):
        yield f"copy {precision}", lambda p=precision: copy_has_the_logits_of_quantizing(p)  # type: ignore[misc]
    for loader in ("pinned", "fastsafetensors", "runai"):
        yield f"loader {loader}", lambda name=loader: loaders_give_the_same_logits(name)  # type: ignore[misc]
    for check in (
        own_code_runs_only_when_allowed,
        sharded_weights_load,
        missing_weights_are_reported,
        a_processor_needs_no_torchvision_for_images_and_text,
        a_tokenizer_is_returned,
        a_vision_model_with_only_a_tokenizer_has_that,
        the_class_that_the_configuration_names_is_loaded,
        tokens_that_cannot_be_generated_are_no_failure,
        plain_leaves_the_collector_alone_and_named_loaders_do_not,
        what_a_loader_reads_while_the_model_is_built_counts_as_reading,
        decoding_is_warmed_up_before_it_is_timed,
        an_absent_device_is_reported,
        a_quantized_model_is_not_quantized_again,
        bitsandbytes_prints_nothing_useless,
        collecting_continues_after_a_load,
        every_weight_is_resident_afterwards,
        the_use_is_remembered,
    ):
        yield check.__name__, check


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)
    results: dict[str, str | None] = {}
    for name, check in checks(*sys.argv[1:]):
        try:
            check()
            results[name] = None
        except MissingPackageError as absent:
            results[name] = f"skip: {absent.message}"
        except Exception:
            results[name] = traceback.format_exc()
    with open(answer, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
