"""One function says what of a repo is needed, what comes along and what is left out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.hostile import examples
from tests.kit.repositories import REPOSITORIES, contents
from vlmcache.cache.model_configs import KnownFiles, OtherRepo, Read
from vlmcache.cache.needed_files import Division, divide

SHARDS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
INDEX = "model.safetensors.index.json"
PICKLED = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}
PICKLED_INDEX = "pytorch_model.bin.index.json"


def divided(
    names: Iterable[str],
    present: AbstractSet[str] = frozenset(),
    read: Read = lambda _: None,
    *,
    listed: bool = True,
    sizes: Mapping[str, int] | None = None,
    variant: str | None = None,
    complement: bool = False,
) -> Division:
    """Divide the files of a repo, by what is known about them."""
    files = KnownFiles(frozenset(names), present, read, listed, sizes or {})
    return divide(files, variant, complement=complement)


def here(
    files: Mapping[str, Any] | Collection[str],
    listed: Collection[str] | None = None,
    **options: Any,
) -> Division:
    """Divide a repo of which files are here, each with its content or as what JSON says."""
    content = files if isinstance(files, Mapping) else {}

    def read(name: str) -> bytes | None:
        data = content.get(name)
        return data if isinstance(data, bytes | None) else json.dumps(data).encode()

    names = set(files)
    return divided(names | set(listed or ()), names, read, listed=listed is not None, **options)


@pytest.mark.parametrize(
    ("names", "complete"),
    [
        ({"config.json", "model.safetensors"}, True),
        ({"config.json", *SHARDS, INDEX}, True),
        ({"config.json", "pytorch_model.bin"}, True),
        ({"config.json", *PICKLED, PICKLED_INDEX}, True),
        ({"config.json", "model.fp16.safetensors"}, True),
        ({"config.json", "model.safetensors", "vocab.json", "merges.txt"}, True),
        ({"config.json", "model.bin", "tokenizer.json", "vocabulary.txt"}, True),
        ({"config.json", "tf_model.h5"}, True),
        ({"modeling_x.py", "configuration_x.py"}, True),
        ({"tokenizer.json", "tokenizer_config.json"}, True),
        ({"a-Q4_K_M.gguf"}, True),
        ({"consolidated.safetensors", "params.json", "tekken.json"}, True),
        ({"adapter_config.json", "adapter_model.safetensors"}, True),
        ({"config.json", *SHARDS}, False),
        ({"config.json", "model-00001-of-00002.safetensors", INDEX}, False),
        ({"config.json"}, False),
        ({"README.md"}, False),
        ({"model.safetensors"}, False),
        ({"adapter_model.safetensors"}, False),
        ({"adapter_config.json"}, False),
        ({"consolidated.safetensors", "tekken.json"}, False),
        ({"consolidated.safetensors", "params.json"}, False),
        ({"a-00001-of-00003.gguf", "a-00003-of-00003.gguf"}, False),
        ({"config.json", "model.safetensors", "config_sentence_transformers.json"}, False),
        ({"config.json", "model.safetensors", "1_Pooling/config.json"}, False),
        ({"config.json", *PICKLED, PICKLED_INDEX, *SHARDS}, True),
        ({"config.json", *PICKLED, INDEX, min(SHARDS)}, False),
    ],
)
def test_without_a_listing_a_complete_set_is_enough_and_a_part_is_not(
    names: set[str], complete: bool
) -> None:
    found = here(names)
    assert (not found.missing) is complete, found.missing


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf"])
def test_a_pull_request_with_nothing_but_weights_is_a_complement(name: str) -> None:
    assert not here({name}, complement=True).missing
    assert here({name, "preprocessor_config.json"}).missing or name == "model.gguf"


MODEL = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "LICENSE",
        ".gitattributes",
        "generation_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "assets/picture.png",
        "vocab.json",
        "tokenizer.model",
        "handler.py",
        "sample_inference.py",
        "requirements.txt",
        "runs/Jul01/events.out.tfevents.1",
    ],
)
def test_what_no_loader_misses_comes_along_and_is_never_missing(name: str) -> None:
    found = here(MODEL, {*MODEL, name})
    assert name in found.along
    assert not found.missing


@pytest.mark.parametrize(
    "name",
    [
        "preprocessor_config.json",
        "qwen.tiktoken",
        "tiktoken.model",
        "source.spm",
        "tekken.json",
        "speakers.npz",
        "mm_projector.bin",
        "detector.pt",
        "vocoder/vocoder.safetensors",
        "vision-lora/adapter_model.safetensors",
        "vision-lora/adapter_config.json",
        "pytorch_model.generator.bin",
        "config_sentence_transformers.json",
    ],
)
def test_other_weights_and_vocabularies_are_needed(name: str) -> None:
    listed = {*MODEL, name, "vision-lora/adapter_model.safetensors", "modules.json"}
    assert name in here(listed - {name}, listed).missing


@pytest.mark.parametrize(
    ("copies", "reason"),
    [
        ({"pytorch_model.bin"}, "the same weights are in model.safetensors"),
        ({*PICKLED, PICKLED_INDEX}, "the same weights are in model.safetensors"),
        (
            {
                "model.fp32-00001-of-00002.safetensors",
                "model.fp32-00002-of-00002.safetensors",
                "model.safetensors.index.fp32.json",
            },
            "the default weights once more (fp32)",
        ),
        (
            {"checkpoint-500/model.safetensors", "checkpoint-500/trainer_state.json"},
            "it is of a training, not of the model",
        ),
        (
            {"global_step20/mp_rank_00_model_states.pt", "global_step20/latest"},
            "it is of a training, not of the model",
        ),
        ({"64.tflite", "64-8bits.tflite"}, "a copy for other programs (TFLite)"),
        ({"a-Q4_K_M.gguf", "a-Q8_0.gguf"}, "a copy for other programs (GGUF)"),
        ({"onnx/model.onnx", "onnx/config.json"}, "a copy for other programs (onnx/)"),
        (
            {"open_clip_model.safetensors"},
            "the same weights under the name of another library",
        ),
    ],
)
def test_copies_are_left_out_with_a_reason(copies: set[str], reason: str) -> None:
    assert divided(MODEL | copies).left_out == dict.fromkeys(copies, reason)


def test_what_nothing_needs_is_left_out_beyond_a_megabyte() -> None:
    sizes = {"README.md": 9_000_000, "a.png": 400_000, "b.png": 500_000, "film.mp4": 900_000}
    found = divided(MODEL | sizes.keys(), sizes=sizes)
    assert found.left_out == {"film.mp4": "no loader opens it"}


def test_large_files_that_are_not_known_are_needed_and_small_ones_come_along() -> None:
    sizes = {"idf.json": 550_000, "words.txt": 400_000, "model.xyz": 9_000_000, "film.mp4": 900_000}
    found = divided(MODEL | sizes.keys(), sizes=sizes)
    assert found.needed == MODEL | {"model.xyz"}
    assert found.along == {"idf.json", "words.txt"}
    assert found.left_out.keys() == {"film.mp4"}
    assert divided(MODEL | sizes.keys(), frozenset(MODEL), sizes=sizes).missing == {"model.xyz"}


def test_next_to_gguf_nothing_large_is_opened() -> None:
    sizes = {"a-Q8_0.gguf": 9_000_000, "a.imatrix": 9_000_000}
    assert divided(sizes, sizes=sizes).left_out == {"a.imatrix": "no loader opens it"}


@pytest.mark.parametrize(
    "names",
    [
        {"alphabet.json"},
        {"language_model/lm.binary", "language_model/unigrams.txt", "language_model/attrs.json"},
        {"layout/inference.pdiparams", "layout/inference.pdmodel", "layout/inference.yml"},
        {"detector.tflite", "face.task", "net.pkl"},
    ],
)
def test_models_that_a_processor_loads_are_needed(names: set[str]) -> None:
    for name in names:
        assert here((MODEL | names) - {name}, MODEL | names).missing == {name}


def test_of_a_repo_without_anything_to_load_all_files_are_needed() -> None:
    names = {"README.md", ".gitattributes", "film.mp4"}
    sizes = dict.fromkeys(names, 900_000)
    assert divided(names, sizes=sizes).missing == names
    assert not divided(names, names, sizes=sizes).missing


@pytest.mark.parametrize("other", ["text_encoders/controlnet.safetensors", "text_encoders/x.pt"])
def test_of_text_encoders_only_what_the_pipeline_has_too_is_left_out(other: str) -> None:
    copy = "text_encoders/t5xxl_fp16.safetensors"
    names = {"model_index.json", "text_encoder/model.safetensors", copy, other}
    assert divided(names).left_out == {copy: "a copy for other programs"}
    names.remove("text_encoder/model.safetensors")
    names.add("unet/model.safetensors")
    assert copy in divided(names).needed


def test_a_lora_in_a_folder_replaces_no_weights() -> None:
    lora = {"lora/adapter_config.json", "lora/adapter_model.safetensors"}
    names = {"config.json", "pytorch_model.bin", *lora}
    assert divided(names).needed == names


def test_an_adapter_needs_its_base_model() -> None:
    config = {"base_model_name_or_path": "org/base", "revision": "v1"}
    files = {"adapter_config.json": config, "adapter_model.safetensors": b""}
    assert here(files).repos == (OtherRepo("org/base", revision="v1"),)
    for path in ("/home/me/model", "./model", "../org/base", "model", 7, None):
        files["adapter_config.json"] = {"base_model_name_or_path": path}
        assert here(files).repos == ()


def test_code_of_another_repo_is_needed_and_only_that() -> None:
    config = {
        "auto_map": {
            "AutoConfig": "org/code--configuration_x.XConfig",
            "AutoModel": "org/code--modeling_x.XModel",
            "AutoTokenizer": ["org/words--words.Tokenizer", None],
        }
    }
    files = {"config.json": config, "model.safetensors": b""}
    assert here(files).repos == (
        OtherRepo("org/code", frozenset({"configuration_x.py", "modeling_x.py"})),
        OtherRepo("org/words", frozenset({"words.py"})),
    )


CODE = {
    "config.json": {"auto_map": {"AutoModel": "modeling_x.Model"}},
    "model.safetensors": b"",
    "modeling_x.py": b"from .layers import (\n    A,\n)\nfrom . import rope\nclass Model: ...",
    "layers.py": b"import torch\n    from .deep.er import B as C\n",
    "rope.py": b"",
    "deep/er.py": b"",
    "unused.py": b"from .other import x",
}


def test_of_code_what_the_named_class_imports_is_needed_and_nothing_else() -> None:
    for name in CODE:
        rest = {other: content for other, content in CODE.items() if other != name}
        for listed in (CODE, None):
            found = here(rest, listed)
            if name not in ("config.json", "model.safetensors"):
                assert found.missing == ({name} if name != "unused.py" else set())


def test_code_without_a_class_that_is_named_is_needed_if_it_looks_like_code_of_a_model() -> None:
    listed = {*MODEL, "modeling_x.py", "layers.py", "handler.py"}
    assert here(MODEL, listed).missing == {"modeling_x.py", "layers.py"}
    assert not here(MODEL, {*MODEL, "convert_weights.py", "utils.py"}).missing


SENTENCES = {
    **dict.fromkeys(MODEL, b""),
    "modules.json": [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": b"",
    "2_Dense/config.json": b"",
    "2_Dense/model.safetensors": b"",
    "2_Dense/pytorch_model.bin": b"",
    "sentence_bert_config.json": b"",
}


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "2_Dense/config.json"])
def test_a_sentence_transformer_needs_its_modules_whether_they_are_listed_or_not(
    name: str,
) -> None:
    rest = {other: content for other, content in SENTENCES.items() if other != name}
    assert here(rest, SENTENCES).missing == {name}
    assert here(rest).missing == {name}
    assert not here(SENTENCES, SENTENCES).missing


def test_the_head_of_a_sentence_transformer_can_be_pickled() -> None:
    rest = {**SENTENCES}
    del rest["2_Dense/model.safetensors"]
    assert not here(rest, SENTENCES).missing
    del rest["2_Dense/pytorch_model.bin"]
    assert here(rest, SENTENCES).missing == {"2_Dense/model.safetensors"}


PIPELINE: dict[str, Any] = {
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
    },
    "unet/config.json": b"",
    "unet/diffusion_pytorch_model.safetensors": b"",
    "unet/diffusion_pytorch_model.bin": b"",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"",
    "scheduler/scheduler_config.json": b"",
    "vae_1_0/config.json": b"",
    "vae_1_0/diffusion_pytorch_model.safetensors": b"",
    "sd.ckpt": b"",
}


@pytest.mark.parametrize(
    ("weights", "note"),
    [
        ("unet/diffusion_pytorch_model.safetensors", None),
        ("unet/diffusion_pytorch_model.bin", None),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "fp16"),
    ],
)
def test_what_diffusers_has_fetched_of_a_pipeline_is_complete(
    weights: str, note: str | None
) -> None:
    names = {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json", weights}
    files = {name: PIPELINE[name] for name in names}
    for listed in (PIPELINE, None):
        found = here(files, listed)
        assert not found.missing
        assert found.note == note
        for name in names - {"model_index.json"}:
            rest = {other: data for other, data in files.items() if other != name}
            assert here(rest, PIPELINE).missing


def test_without_a_listing_a_part_that_the_pipeline_names_is_missing() -> None:
    files = {"model_index.json": PIPELINE["model_index.json"], "unet/config.json": b""}
    files["unet/diffusion_pytorch_model.safetensors"] = b""
    assert here(files).missing == {"scheduler/scheduler_config.json"}


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "rust_model.ot"])
def test_weights_that_no_library_loads_are_complete_and_noted(name: str) -> None:
    found = here({"config.json", name}, {"config.json", name, "README.md"})
    assert not found.missing
    assert found.note == "no-loader"


def test_an_index_that_names_odd_shards_is_believed() -> None:
    files = {
        "config.json": {},
        INDEX: {"weight_map": {"a": "first.safetensors", "b": "second.safetensors"}},
    }
    listed = {*files, "first.safetensors", "second.safetensors"}
    assert here(files, listed).missing == {"first.safetensors", "second.safetensors"}


def test_of_several_variants_one_has_to_be_chosen_and_one_is_enough() -> None:
    names = {"a-Q4_K_M.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"}
    names |= {"mmproj-f16.gguf", "mmproj-f32.gguf"}
    assert divided(names).choices is not None
    for variant in ("q8_0", "Q4_K_M"):
        found = divided(names, variant=variant)
        assert "mmproj-f16.gguf" in found.needed
        assert found.left_out.keys() == names - found.needed
        assert not here(found.needed, names).missing
        for name in found.needed:
            assert name in here(found.needed - {name}, names, variant=variant).missing


# Properties, over real repositories with some files taken away or added.

EXTRA = [
    "README.md", "pytorch_model.bin", "model.safetensors", "tf_model.h5", "tokenizer.json",
    "vocab.json", "merges.txt", "adapter_config.json", "adapter_model.safetensors", "modules.json",
    "model.fp16.safetensors", "consolidated.safetensors", "params.json", "x-Q4_K_M.gguf",
    "x-Q8_0.gguf", "onnx/model.onnx", "config.json", "model_index.json", INDEX, *SHARDS, *PICKLED,
    PICKLED_INDEX, "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.bin", "1_Pooling/config.json",
    "checkpoint-1/model.safetensors",
]  # fmt: skip


@st.composite
def repositories(draw: st.DrawFn) -> dict[str, bytes]:
    case = REPOSITORIES[draw(st.sampled_from(sorted(REPOSITORIES)))]
    names = set(case["files"]) if draw(st.booleans()) else set()
    names -= draw(st.sets(st.sampled_from(sorted(case["files"])), max_size=4))
    names |= draw(st.sets(st.sampled_from(EXTRA), max_size=8))
    return contents(names, case.get("config"))  # type: ignore[return-value]


@examples(200)
@given(repositories())
def test_each_file_is_in_one_class(files: dict[str, bytes]) -> None:
    # Without content, for an index may name what the hub does not have.
    found = divided(files)
    assert found.needed | found.along | found.left_out.keys() == files.keys()
    assert not found.needed & found.along
    assert not (found.needed | found.along) & found.left_out.keys()


@examples(200)
@given(repositories(), st.data())
def test_what_was_fetched_is_complete_and_stays_so_without_what_came_along(
    files: dict[str, bytes], data: st.DataObject
) -> None:
    first = divided(files, frozenset(), files.get)
    fetched = first.needed | first.along
    assert not divided(files, fetched, files.get).missing & files.keys()
    along = data.draw(
        st.sets(st.sampled_from(sorted(first.along))) if first.along else st.just(set())
    )
    assert not divided(files, fetched - along, files.get).missing & files.keys()


@examples(200)
@given(repositories(), st.data())
def test_fetching_what_is_missing_ends_with_a_complete_set(
    files: dict[str, bytes], data: st.DataObject
) -> None:
    present = data.draw(st.sets(st.sampled_from(sorted(files))) if files else st.just(set()))
    read = lambda name: files[name] if name in present else None  # noqa: E731
    for _ in range(3):  # What is fetched can name what else is needed.
        found = divided(files, present, read)
        assert not found.missing & present
        present |= found.missing & files.keys()
    assert not divided(files, present, read).missing & files.keys()


@examples(200)
@given(repositories(), st.data())
def test_without_one_needed_file_another_complete_set_is_here_or_it_is_missing(
    files: dict[str, bytes], data: st.DataObject
) -> None:
    first = divided(files, frozenset(), files.get)
    if first.needed:
        name = data.draw(st.sampled_from(sorted(first.needed)))
        # Only what is needed is here, so that no other set is.
        rest = first.needed - {name}
        found = divided(files, rest, files.get)
        others = {name for name in rest if name.endswith(".gguf") or "consolidated" in name}
        assert found.missing or others or name == "tokenizer.json"


def test_without_listing_and_weights_an_adapter_misses_its_own_weights() -> None:
    assert here({"adapter_config.json"}).missing == {"adapter_model.safetensors"}
    assert here({"adapter_config.json", "config.json"}).missing == {"adapter_model.safetensors"}
    assert here({"config.json"}).missing == {"model.safetensors"}
