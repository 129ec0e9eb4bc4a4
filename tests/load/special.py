"""Loads repos with code of their own, with unusual weights, and adapters; one process for all.

Prints a JSON object: the name of each check -> what went wrong, or nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

import vlmcache
from tests.kit.caches import CacheBuilder
from vlmcache.errors import (
    DamagedWeightsError,
    MissingPackageError,
    NotDownloadedError,
    OtherFormatError,
    UnloadableError,
    UnsupportedPrecisionError,
    UntrustedCodeError,
)
from vlmcache.installing import install_extra

CACHE = CacheBuilder(Path(os.environ["HF_HOME"]) / "hub")
ROOT = Path(os.environ["VLMCACHE_HOME"]).parent
CANARY = ROOT / "canary"
CHECKS: list[Callable[[], None]] = []
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
OWN = """
import pathlib
import torch
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers import PreTrainedTokenizerFast

with open({canary!r}, "a") as file:
    file.write({mark!r})

class OwnConfig(PretrainedConfig):
    model_type = {kind!r}
    is_own = True

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.inner = torch.nn.Linear(4, 4)
        self.post_init()
    def _init_weights(self, module):
        pass

class OwnTokenizer(PreTrainedTokenizerFast):
    pass

class OwnProcessor:
    _auto_class = None
    @classmethod
    def register_for_auto_class(cls, auto_class="AutoProcessor"):
        cls._auto_class = auto_class
    @classmethod
    def from_pretrained(cls, folder, **named):
        return cls()
"""
WORDS = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"[U]": 0, "a": 3}, "unk_token": "[U]"},
}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS.append(function)
    return function


def own_code(kind: str = "qwen2", mark: str = "x") -> bytes:
    return OWN.format(canary=str(CANARY), mark=mark, kind=kind).encode()


def own_repo(name: str, config: dict[str, Any], more: dict[str, bytes] | None = None) -> str:
    """Put a repo into the cache whose weights fit its own class only; return its commit."""
    weights = ROOT / "own.safetensors"
    torch.manual_seed(3)
    tensors = {"inner.weight": torch.randn(4, 4), "inner.bias": torch.randn(4)}
    save_file(tensors, weights, {"format": "pt"})
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights.read_bytes()}
    return CACHE.repo(name).revision(files | (more or {}))


def saved(name: str, model: Any, edit: Callable[[Path], None] = lambda _: None) -> Path:
    """Put a model into the cache, once its files were edited; return the folder it was made in."""
    folder = ROOT / "made" / name
    model.save_pretrained(folder)
    edit(folder)
    CACHE.repo(f"tiny/{name}").revision({file.name: file for file in folder.iterdir()})
    return folder


def qwen(**more: Any) -> Any:
    torch.manual_seed(5)
    config = transformers.Qwen2Config(**TEXT, num_key_value_heads=1, **more)
    return transformers.Qwen2ForCausalLM(config)


def tensors_of(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def config_of(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@contextlib.contextmanager
def raises(kind: type[vlmcache.VlmcacheError], *words: str) -> Iterator[list[Any]]:
    caught: list[Any] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    assert caught, f"{kind.__name__} was not raised"
    for word in words:
        assert word in caught[0].message, caught[0].message


def load(name: str, precision: str | None = None, **named: Any) -> tuple[Any, Any, list[str]]:
    """Load a model on the CPU; return it, its processor and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, processor = vlmcache.load_model(name, precision, "cpu", **named)
    return model, processor, [str(one.message) for one in caught if one.category is UserWarning]


def ran() -> str:
    """Return the marks of the code that ran since this was asked last."""
    marks = CANARY.read_text() if CANARY.exists() else ""
    CANARY.unlink(missing_ok=True)
    return marks


def from_modules_cache() -> None:
    """Let code that ran before in this process run again at its next load."""
    shutil.rmtree(Path(os.environ["HF_HOME"]) / "modules", ignore_errors=True)


@check
def allowed_code_of_a_known_architecture_is_what_loads() -> None:
    for number, auto in enumerate(
        (
            "AutoModel",
            "AutoModelForCausalLM",
            "AutoModelForImageTextToText",
            "AutoModelForVision2Seq",
            "AutoModelForSequenceClassification",
        )
    ):
        name = f"known/{auto}"
        classes = {"AutoConfig": f"own{number}.OwnConfig", auto: f"own{number}.OwnModel"}
        config = {"model_type": "qwen2", "architectures": ["OwnModel"], "auto_map": classes}
        own_repo(name, TEXT | config, {f"own{number}.py": own_code()})
        with raises(UntrustedCodeError, "needs Python code of its repo (architecture 'qwen2')"):
            load(name)
        assert ran() == "", auto
        model, _, _ = load(name, trust_remote_code=True)
        assert (type(model).__name__, model.config.is_own) == ("OwnModel", True)
        assert ran() == "x", auto


@check
def the_architecture_decides_among_several_classes() -> None:
    classes = {
        "AutoConfig": "several.OwnConfig",
        "AutoModelForCausalLM": "several.Other",
        "AutoModel": "several.OwnModel",
        "AutoTokenizer": ["several.OwnTokenizer", None],
        "AutoModelForMaskedLM": None,
    }
    config = {"model_type": "own_several", "architectures": ["OwnModel"], "auto_map": classes}
    own_repo("known/several", config, {"several.py": own_code("own_several")})
    assert type(load("known/several", trust_remote_code=True)[0]).__name__ == "OwnModel"
    ran()


@check
def a_null_in_place_of_code_is_none() -> None:
    for number, value in enumerate((None, {"AutoModel": None, "AutoConfig": None}, {})):
        saved(f"null-{number}", qwen(), lambda folder, v=value: config_of(folder, auto_map=v))  # type: ignore[misc]
        for trust in (False, True):
            model, _, _ = load(f"tiny/null-{number}", trust_remote_code=trust)
            assert type(model) is transformers.Qwen2ForCausalLM


@check
def processors_of_the_repo_run_only_when_allowed() -> None:
    for place in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        name = f"processor-{place.partition('_')[0]}"
        module = name.replace("-", "_")
        named = json.dumps({"auto_map": {"AutoProcessor": f"{module}.OwnProcessor"}})

        def edit(folder: Path, place: str = place, named: str = named, m: str = module) -> None:
            (folder / place).write_text(named)
            (folder / f"{m}.py").write_bytes(own_code())

        saved(name, qwen(), edit)
        with raises(UntrustedCodeError, "needs Python code of its repo"):
            load(f"tiny/{name}")
        assert ran() == "", place
        _, processor, _ = load(f"tiny/{name}", trust_remote_code=True)
        assert type(processor).__name__ == "OwnProcessor", place
        assert ran() == "x", place


@check
def a_tokenizer_of_the_repo_runs_only_when_allowed() -> None:
    named = {"AutoTokenizer": [None, "tokens_own.OwnTokenizer"]}

    def edit(folder: Path) -> None:
        config = {"tokenizer_class": "OwnTokenizer", "auto_map": named}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text(json.dumps(WORDS))
        (folder / "tokens_own.py").write_bytes(own_code())

    saved("own-tokenizer", qwen(), edit)
    with contextlib.suppress(UntrustedCodeError):
        load("tiny/own-tokenizer")
    assert ran() == ""
    _, processor, _ = load("tiny/own-tokenizer", trust_remote_code=True)
    assert type(processor).__name__ == "OwnTokenizer"
    assert ran() == "x"


@check
def a_class_of_the_repo_that_only_config_json_names_is_used_where_it_is_allowed() -> None:
    for number, named in enumerate((["named0.OwnTokenizer", None], [None, "named1.OwnTokenizer"])):
        for name, content in (("", {}), ("-typed", {"tokenizer_class": "OwnTokenizer"})):

            def edit(folder: Path, n: int = number, to: Any = named, said: Any = content) -> None:
                config_of(folder, auto_map={"AutoTokenizer": to})
                (folder / "tokenizer_config.json").write_text(json.dumps(said))
                (folder / "tokenizer.json").write_text(json.dumps(WORDS))
                (folder / f"named{n}.py").write_bytes(own_code())

            saved(f"named{name}-{number}", qwen(), edit)
            with contextlib.suppress(UntrustedCodeError):
                load(f"tiny/named{name}-{number}")
            assert ran() == ""
            _, processor, _ = load(f"tiny/named{name}-{number}", trust_remote_code=True)
            assert type(processor).__name__ == "OwnTokenizer", (name, number)
            assert processor("a")["input_ids"] == [3]
            assert ran() == "x"


@check
def code_of_another_repo_runs_at_the_commit_that_is_pinned() -> None:
    first = CACHE.repo("org/code").revision({"elsewhere.py": own_code("own_else", "1")})
    CACHE.repo("org/code").revision({"elsewhere.py": own_code("own_else", "2")})
    where = "org/code--elsewhere"
    classes = {"AutoConfig": f"{where}.OwnConfig", "AutoModel": f"{where}.OwnModel"}
    config = {"model_type": "own_else", "architectures": ["OwnModel"], "auto_map": classes}
    commit = own_repo("org/elsewhere", config)
    allowed = f"trust_remote_code: true, revision: {commit}"
    path = ROOT / "pinned.yaml"

    def configured(code: str) -> str:
        path.write_text(f"models:\n  it: {{repo: org/elsewhere, {allowed}}}\n{code}")
        return str(path)

    entry = "  code: {repo: org/code, trust_remote_code: %s, revision: %s}\n"
    refused = ("", entry % ("true", "main"), entry % ("false", first))
    for code in refused:
        with raises(UntrustedCodeError, "needs Python code of org/code") as error:
            load("it", config=configured(code))
        assert "org/code, too, an entry" in error[0].hint
        assert ran() == "", code
    with raises(
        NotDownloadedError, f"commit {'0' * 40} of org/code, whose code is to run"
    ) as error:
        load("it", config=configured(entry % ("true", "0" * 40)))
    assert error[0].hint == f"vlmcache pull org/code@{'0' * 40}"
    load("it", config=configured(entry % ("true", first)))
    assert ran() == "1"
    from_modules_cache()
    load("org/elsewhere", trust_remote_code=True, config=configured(""))
    assert ran() == "2"
    with raises(UntrustedCodeError, "needs Python code of org/code"):
        load("org/elsewhere", config=configured(""))
    # A folder of the repo's name is not that repo.
    hostile = ROOT / "cwd" / "org" / "code"
    hostile.mkdir(parents=True)
    (hostile / "elsewhere.py").write_bytes(own_code("own_else", "hostile"))
    before = os.getcwd()
    os.chdir(ROOT / "cwd")
    try:
        with contextlib.suppress(UnloadableError):
            load("it", config=configured(entry % ("true", first)))
    finally:
        os.chdir(before)
    assert "hostile" not in ran()


@check
def code_that_needs_what_is_not_installed_names_it() -> None:
    for number, (words, message) in enumerate(
        (
            ("import surely_absent", "a package is missing: surely_absent"),
            (
                "import surely_absent, absent_too",
                "packages are missing: absent_too, surely_absent",
            ),
            ("import torch.absent", "the package torch is broken: ModuleNotFoundError: No module"),
        )
    ):
        module = f"needing{number}"
        classes = {"AutoConfig": f"{module}.OwnConfig", "AutoModel": f"{module}.OwnModel"}
        config = {"model_type": f"own_{module}", "auto_map": classes}
        code = words.encode() + b"\n" + own_code(f"own_{module}")
        own_repo(f"needing/{number}", config, {f"{module}.py": code})
        with raises(UnloadableError) as error:
            load(f"needing/{number}", trust_remote_code=True)
        said = error[0].message
        options = {message, "packages are missing: surely_absent, absent_too"}
        assert any(option in said for option in options), said


@check
def a_pooler_or_a_head_that_is_missing_is_noted() -> None:
    bert = transformers.BertModel(transformers.BertConfig(**TEXT))

    def without(*words: str) -> Callable[[Path], None]:
        def drop(tensors: dict[str, Any]) -> None:
            for name in [name for name in tensors if any(word in name for word in words)]:
                del tensors[name]

        return lambda folder: tensors_of(folder, drop)

    saved("no-pooler", bert, without("pooler"))
    model, _, notes = load("tiny/no-pooler")
    assert type(model) is transformers.BertModel
    pooler = "pooler.dense.bias, pooler.dense.weight"
    assert notes == [f"tiny/no-pooler: its files hold no weights for {pooler}, which are random"]
    saved("no-head", qwen(tie_word_embeddings=False), without("lm_head"))
    _, _, notes = load("tiny/no-head")
    assert notes == ["tiny/no-head: its files hold no weights for lm_head.weight, which are random"]
    saved("no-layer", qwen(), without("layers.1.mlp"))
    with raises(UnloadableError, "3 weights are not in its files: model.layers.1.mlp.down_proj"):
        load("tiny/no-layer")


@check
def a_wrong_shape_names_the_tensor_and_both_shapes() -> None:
    def narrow(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"] = torch.ones(16)

    saved("narrow", qwen(), lambda folder: tensors_of(folder, narrow))
    with raises(UnloadableError) as error:
        load("tiny/narrow")
    assert error[0].message == (
        "tiny/narrow: model.norm.weight has the shape [16] in its files, and [32] by config.json"
    )


@check
def a_model_loads_in_the_type_in_which_it_is_stored() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = f"stored-{str(dtype).rpartition('.')[2]}"
        saved(name, qwen().to(dtype))
        silent = saved(
            f"{name}-silent", qwen().to(dtype), lambda folder: config_of(folder, dtype=None)
        )
        assert json.loads((silent / "config.json").read_text())["dtype"] is None
        for one in (name, f"{name}-silent"):
            assert load(f"tiny/{one}")[0].dtype == dtype, one


@check
def what_fp16_cannot_hold_is_an_error_and_loads_as_stored() -> None:
    large = qwen().to(torch.bfloat16)
    large.model.norm.weight.data[0] = 1e5
    saved("large", large)
    assert float(load("tiny/large")[0].model.norm.weight[0]) > 9e4
    with raises(UnsupportedPrecisionError, "model.norm.weight holds values that fp16") as error:
        load("tiny/large", "fp16")
    assert error[0].hint == "--precision bf16"
    assert error[0].exit_code == 11
    # Whatever config.json says, the files hold bf16.
    saved("said-fp16", large, lambda folder: config_of(folder, dtype="float16"))
    for precision in (None, "fp16"):
        with raises(UnsupportedPrecisionError, "model.norm.weight holds values that fp16") as error:
            load("tiny/said-fp16", precision)
        assert error[0].hint == "--precision bf16"


@check
def what_int8_cannot_hold_is_an_error() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    large = qwen().to(torch.bfloat16)
    large.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    saved("large-int8", large)
    up = "model.layers.0.mlp.up_proj.weight holds values that int8 cannot"
    with raises(UnsupportedPrecisionError, up) as error:
        load("tiny/large-int8", "int8")
    assert error[0].hint == "--precision bf16"


@check
def pickled_weights_that_would_run_code_say_so_and_others_are_damaged() -> None:
    tensors = dict(qwen().state_dict())

    class Code:
        def __reduce__(self) -> Any:
            return os.system, (f"echo pickle >> {CANARY}",)

    def pickled(name: str, edit: Callable[[bytes], bytes], **more: Any) -> None:
        def edit_all(folder: Path) -> None:
            (folder / "model.safetensors").unlink()
            file = folder / "pytorch_model.bin"
            torch.save(tensors | more, file)
            file.write_bytes(edit(file.read_bytes()))

        saved(name, qwen(), edit_all)

    pickled("pickle-code", lambda content: content, more=Code())
    with raises(UnloadableError, "its pickled weights would run code (posix.system)") as error:
        load("tiny/pickle-code")
    assert "weights_only" not in f"{error[0].message} {error[0].hint}"
    assert ran() == ""
    edits: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _: b"",
        "short": lambda content: content[:-2000],
        "other": lambda content: b"<html>" + content,
    }
    for name, edit in edits.items():
        pickled(f"pickle-{name}", edit)
        with raises(
            DamagedWeightsError, f"tiny/pickle-{name}: the weights cannot be read"
        ) as error:
            load(f"tiny/pickle-{name}")
        assert "weights_only" not in error[0].message
        assert error[0].hint == f"vlmcache verify tiny/pickle-{name} --repair"


@check
def weights_of_mlx_next_to_a_configuration_of_transformers_say_so() -> None:
    def pack(tensors: dict[str, Any]) -> None:
        tensors["model.embed_tokens.weight"] = torch.zeros(64, 4, dtype=torch.uint32)

    def edit(folder: Path) -> None:
        tensors_of(folder, pack)
        config_of(folder, quantization={"bits": 4, "group_size": 64})

    saved("mlx", qwen(), edit)
    with raises(OtherFormatError, "its weights are MLX's"):
        load("tiny/mlx")


@check
def code_for_generating_loads_if_it_is_allowed() -> None:
    folder = ROOT / "made" / "generating"
    qwen().save_pretrained(folder)
    files: dict[str, Any] = {file.name: file for file in folder.iterdir()}
    code = b"def generate(model):\n    pass\n"
    CACHE.repo("tiny/generating").revision(files | {"custom_generate/generate.py": code})
    for trust in (False, True):
        model, _, _ = load("tiny/generating", trust_remote_code=trust)
        assert type(model) is transformers.Qwen2ForCausalLM


@check
def config_json_may_hold_infinity() -> None:
    def edit(folder: Path) -> None:
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace("{", '{"limit": Infinity, ', 1))

    saved("infinity", qwen(), edit)
    assert load("tiny/infinity")[0].config.limit == float("inf")


@check
def attention_is_what_was_asked_for() -> None:
    saved("attention", qwen())
    path = ROOT / "attention.yaml"
    for asked in ("sdpa", "eager"):
        assert load("tiny/attention", attention=asked)[0].config._attn_implementation == asked
        path.write_text(f"models: {{it: {{repo: tiny/attention, attention: {asked}}}}}")
        model, _, notes = load("it", config=str(path))
        assert (model.config._attn_implementation, notes) == (asked, [])
    with raises(vlmcache.UsageError, "'nonsense' is not one of"):
        load("tiny/attention", attention="nonsense")
    with raises(MissingPackageError, "flash_attention_2 needs flash-attn") as error:
        load("tiny/attention", attention="flash_attention_2")
    assert error[0].hint == "--attention sdpa"


@check
def flash_attention_of_config_json_falls_back_with_a_note() -> None:
    for number, key in enumerate(("attn_implementation", "_attn_implementation")):
        name = f"flash-{number}"
        flash = {key: "flash_attention_2"}
        saved(name, qwen(), lambda folder, flash=flash: config_of(folder, **flash))  # type: ignore[misc]
        model, _, notes = load(f"tiny/{name}")
        assert model.config._attn_implementation == "sdpa", key
        assert [note.partition(",")[0] for note in notes] == [
            f"tiny/{name}: config.json asks for flash_attention_2"
        ], notes
        assert load(f"tiny/{name}", attention="eager")[2] == []


@check
def an_adapter_loads_onto_its_base() -> None:
    if importlib.util.find_spec("peft") is None:
        settings = {"base_model_name_or_path": "tiny/base", "peft_type": "LORA"}
        saved("base", qwen())
        files = {"adapter_config.json": json.dumps(settings).encode()}
        weights = ROOT / "adapter.safetensors"
        save_file({"x": torch.ones(1)}, weights)
        CACHE.repo("tiny/adapter").revision(files | {"adapter_model.safetensors": weights})
        with raises(
            MissingPackageError, "is an adapter (PEFT), and loading it needs peft"
        ) as error:
            load("tiny/adapter")
        assert error[0].hint == install_extra("adapters")
        return
    import peft

    base = saved("base", qwen())
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = transformers.Qwen2ForCausalLM.from_pretrained(base)
    folder = ROOT / "made" / "adapter"
    peft.get_peft_model(model, config).save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    plain = settings | {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(plain))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    settings["base_model_name_or_path"] = "tiny/base"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    CACHE.repo("tiny/adapter").revision({file.name: file for file in folder.iterdir()})
    ours, _, _ = load("tiny/adapter")
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        without = load("tiny/base")[0](ids).logits
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
        assert not torch.equal(ours(ids).logits, without)
    with raises(UnloadableError, "is an adapter: only its base model can be quantized"):
        vlmcache.Cache().quantize("tiny/adapter", device="cpu").check()


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)
    results: dict[str, str | None] = {}
    for function in CHECKS:
        try:
            function()
            results[function.__name__] = None
        except Exception:
            results[function.__name__] = traceback.format_exc()
    with open(answer, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
