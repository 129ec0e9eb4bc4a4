"""Which files a pull fetches and which are a second format, by their names alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.hostile import examples
from tests.kit.repositories import REPOSITORIES
from vlmcache.cache.formats import second_formats, wanted

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
PICKLED = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
PICKLED_INDEX = "pytorch_model.bin.index.json"


def second_names(names: Any) -> set[str]:
    """Return the files of all second formats among the names."""
    return {name for second in second_formats(names) for name in second.weights.files}


@pytest.mark.parametrize("repo", REPOSITORIES)
def test_what_a_real_repository_needs_is_fetched_and_the_rest_of_it_is_left_out(repo: str) -> None:
    names = set(REPOSITORIES[repo]["files"])
    assert set(REPOSITORIES[repo]["needed"]) <= wanted(names)
    assert not set(REPOSITORIES[repo]["left_out"]) & wanted(names)


@pytest.mark.parametrize("repo", REPOSITORIES)
def test_no_set_of_a_real_repository_is_second_to_one_that_is_not_complete(
    repo: str,
) -> None:
    names = set(REPOSITORIES[repo]["files"])
    for second in second_formats(names):
        if len(second.twins) > 1:
            continue
        for name in second.twins[0][1].shards or {second.twins[0][1].single}:
            assert not second.weights.files & second_names(names - {name})


def test_second_formats_and_other_copies_are_left_out_next_to_a_complete_default_set() -> None:
    kept = {"config.json", *SHARDS, INDEX, "README.md"}
    names = kept | {
        "consolidated.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "flax_model.msgpack",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "model-Q4_K_M.gguf",
        "original/consolidated.00.pth",
        "optimizer.pt",
    }
    assert wanted(names) == kept
    assert second_names(names) == {
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "flax_model.msgpack",
    }


@pytest.mark.parametrize(
    ("second", "twin"),
    [
        (["pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin"], [*SHARDS, INDEX]),
        ([*PICKLED, PICKLED_INDEX], ["model.safetensors"]),
        ([*PICKLED, PICKLED_INDEX], [*SHARDS, INDEX]),
        (["pytorch_model.fp16.bin"], ["model.fp16.safetensors"]),
        (
            ["pytorch_model.fp32-00001-of-00001.bin", "pytorch_model.bin.index.fp32.json"],
            ["model.fp32-00001-of-00001.safetensors", "model.safetensors.index.fp32.json"],
        ),
        (["diffusion_pytorch_model.bin"], ["diffusion_pytorch_model.safetensors"]),
        (["pytorch_lora_weights.bin"], ["pytorch_lora_weights.safetensors"]),
        (["adapter_model.bin"], ["adapter_model.safetensors"]),
        (["open_clip_pytorch_model.bin"], ["open_clip_model.safetensors"]),
        (["tf_model.h5", "flax_model.msgpack", "rust_model.ot"], ["model.safetensors"]),
        (["tf_model.h5", "flax_model.msgpack", "rust_model.ot"], ["pytorch_model.bin"]),
        (["tf_model.h5"], [*PICKLED, PICKLED_INDEX]),
    ],
)
@pytest.mark.parametrize("folder", ["", "part/"])
def test_a_set_of_weights_is_second_to_its_complete_twin_in_the_same_folder_only(
    second: list[str], twin: list[str], folder: str
) -> None:
    seconds = {folder + name for name in second}
    names = seconds | {folder + name for name in twin} | {folder + "config.json"}
    assert second_names(names) == seconds == names - wanted(names)
    for name in twin:
        assert not second_names(names - {folder + name}) & seconds
        elsewhere = names - {folder + name} | {"elsewhere/" + name}
        assert seconds <= wanted(elsewhere)


@pytest.mark.parametrize(
    "name",
    [
        "model.bin",
        "model.ckpt",
        "model.pt",
        "model.pth",
        "model.onnx",
        "model.npz",
        "model.pkl",
        "model.nemo",
        "campplus.onnx",
        "flow.pt",
        "Wan2.1_VAE.pth",
        "speakers.bin",
        "pytorch_model.generator.bin",
        "pytorch_model_vision.bin",
        "mm_projector.bin",
        "part/pytorch_model.bin",
        "part/model.gguf",
        "other_model.h5",
        "lora/pytorch_lora_weights.safetensors",
        "scheduler.py",
    ],
)
def test_weights_of_another_name_stay_next_to_complete_safetensors(name: str) -> None:
    names = {"config.json", "model.safetensors", "pytorch_model.bin", name}
    assert wanted(names) == names - {"pytorch_model.bin"}
    assert second_names(names) == {"pytorch_model.bin"}


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.bin", "optimizer.pt"])
def test_the_state_of_a_training_is_left_out_but_is_never_a_duplicate(name: str) -> None:
    names = {"config.json", "model.safetensors", name, name.replace(".bin", ".safetensors")}
    assert name not in wanted(names)
    assert not second_names(names)


def test_shards_without_their_index_replace_nothing() -> None:
    names = {"config.json", *SHARDS, *PICKLED, PICKLED_INDEX}
    assert wanted(names) == names


def test_nothing_is_a_copy_of_a_default_set_that_is_not_complete() -> None:
    copies = {"onnx/model.onnx", "m.gguf", "original/model.pth", "consolidated.safetensors"}
    for rest in ({"config.json", SHARDS[0], INDEX}, {"model.safetensors"}, {"config.json"}):
        assert wanted(copies | rest) == copies | rest


PIPELINE = {
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
}
PICKLED_PARTS = {"unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"}
VARIANTS = {
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.fp16.bin",
}


def test_a_pipeline_is_fetched_as_safetensors_and_without_variants_and_copies() -> None:
    copies = {
        "sd.ckpt",
        "sd.safetensors",
        "text_encoder/openvino_model.bin",
        "text_encoder/openvino_model.xml",
        "unet/diffusion_flax_model.msgpack",
    }
    lora = {"sd_offset_lora.safetensors", "pytorch_lora_weights.safetensors"}
    assert wanted(PIPELINE | PICKLED_PARTS | VARIANTS | copies | lora) == PIPELINE | lora


def test_a_pipeline_keeps_every_pickle_if_one_part_has_nothing_else() -> None:
    checker = {"safety_checker/config.json", "safety_checker/pytorch_model.bin"}
    names = PIPELINE | PICKLED_PARTS | checker
    assert wanted(names) == names
    assert not second_names(names)


def test_a_pipeline_keeps_its_variants_and_copies_if_one_part_has_no_default_weights() -> None:
    names = PIPELINE | {"sd.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors"}
    names |= {"vae/diffusion_pytorch_model.fp16.safetensors"}
    assert wanted(names) == names


STEMS = ["model", "pytorch_model", "diffusion_pytorch_model", "flow", "adapter_model", "tf_model"]
TAGS = ["", ".fp16", "-00001-of-00002", "-00002-of-00002", "-00000-of-00001", ".other"]
ENDINGS = [
    ".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json",
    ".h5", ".pt", ".pth", ".onnx", ".gguf", ".npz", ".ckpt",
]  # fmt: skip
FILES = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "unet/", "vae/", "onnx/", "original/"]),
    st.sampled_from(STEMS),
    st.sampled_from(TAGS),
    st.sampled_from(ENDINGS),
)
LISTINGS = st.sets(
    FILES | st.sampled_from(["config.json", "model_index.json", "adapter_config.json"]), max_size=14
)


OTHER_PROGRAMS = ("onnx", "original")


@examples(300)
@given(LISTINGS)
def test_whatever_is_left_out_the_same_weights_are_fetched_in_full(names: set[str]) -> None:
    kept = wanted(names)
    for second in second_formats(names):
        assert not second.weights.files & kept
        assert any(twin.files <= kept and twin.complete for _, twin in second.twins)
    if names - kept - second_names(names):
        assert any(name.endswith((".safetensors", ".bin")) for name in kept)
        assert kept & {"config.json", "model_index.json", "adapter_config.json"}


@examples(300)
@given(LISTINGS)
def test_a_pull_of_what_a_pull_fetched_leaves_nothing_out(names: set[str]) -> None:
    assert wanted(wanted(names)) == wanted(names)


@examples(300)
@given(LISTINGS)
def test_other_weights_are_left_out_only_from_folders_for_other_programs(names: set[str]) -> None:
    others = {
        name
        for name in names
        if name.endswith((".pt", ".pth", ".npz")) or (name.endswith(".onnx") and "/" not in name)
    }
    outside = {name for name in others if not name.startswith(("onnx/", "original/"))}
    assert outside <= wanted(names)
    assert not others & second_names(names)


@examples(300)
@given(st.lists(st.text("model.safetnrindxb-of012/ /", max_size=40)))
def test_odd_names_are_never_taken_for_weights_to_remove(names: list[str]) -> None:
    assert wanted(names) | second_names(names) <= set(names)
