"""Variants of GGUF models, by the names of their files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmcache.cache.gguf import variants

_TAGS = ("Q2_K", "Q4_K_M", "q4_0", "IQ3_XXS", "Q8_0", "BF16", "f16", "F32", "MXFP4")


def _split(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a-Q4_K_M.gguf", "a-Q8_0.gguf", "README.md"], ["Q4_K_M", "Q8_0"]),
        (["a.Q4_K_M.gguf", "a.f16.gguf"], ["Q4_K_M", "f16"]),
        (["Qwen2.5-7B-Instruct-IQ3_XXS.gguf"], ["IQ3_XXS"]),
        (["ggml-model.gguf"], ["ggml-model"]),
        (["Q4_K_M/00001-of-00002.gguf"], ["Q4_K_M"]),
        (_split("BF16/model", 2), ["BF16"]),
        (_split("Q4_K_M/a-Q4_K_M", 3), ["Q4_K_M"]),
        (_split("a-Q4_K_M", 3), ["Q4_K_M"]),
        (["a-7b-Q8_0.gguf", "b-3b-Q8_0.gguf"], ["a-7b-Q8_0", "b-3b-Q8_0"]),
        (["a-Q8_0.gguf", *_split("a-Q8_0", 2)], ["a-Q8_0", "a-Q8_0-00001-of-00002"]),
        (["a-Q8_0.GGUF"], ["Q8_0"]),
    ],
)
def test_a_variant_is_called_by_its_tag_its_folder_or_its_path(
    names: list[str], expected: list[str]
) -> None:
    assert [variant.name for variant in variants(names).variants] == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("q4_k_m", ["Q4_K_M"]),
        ("UD-Q4_K_XL", ["Q4_K_XL"]),
        ("q4_K_xl", ["Q4_K_XL"]),
        ("bf16", ["BF16"]),
        ("a-Q4_K_M.gguf", ["Q4_K_M"]),
        ("Q4_K", []),
    ],
)
def test_a_variant_is_found_in_any_case_by_tag_folder_or_file(
    word: str, expected: list[str]
) -> None:
    names = ["a-Q4_K_M.gguf", "a-UD-Q4_K_XL.gguf", *_split("BF16/a-BF16", 2)]
    assert [variant.name for variant in variants(names).called(word)] == expected


def test_a_projector_and_an_importance_matrix_are_not_variants() -> None:
    found = variants(
        ["a-Q8_0.gguf", "mmproj-a-f32.gguf", "a-mmproj-F16.gguf", "imatrix.gguf", "a.imatrix"]
    )
    assert [variant.name for variant in found.variants] == ["Q8_0"]
    assert found.projector({}) == "a-mmproj-F16.gguf"


def test_without_a_projector_at_f16_the_smallest_is_needed() -> None:
    found = variants(["mmproj-a-f32.gguf", "mmproj-a-bf16.gguf", "mmproj-a-Q8_0.gguf"])
    sizes = {"mmproj-a-f32.gguf": 4, "mmproj-a-bf16.gguf": 1, "mmproj-a-Q8_0.gguf": 2}
    assert found.projector(sizes) == "mmproj-a-bf16.gguf"
    assert variants(["a-Q8_0.gguf"]).projector({}) is None


def test_a_count_that_no_model_has_is_not_believed() -> None:
    (variant,) = variants(["a-Q8_0-00001-of-99999.gguf"]).variants
    assert variant.files == ("a-Q8_0-00001-of-99999.gguf",)


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(("", "x/", "X/Q8_0/")), st.sampled_from(("a", "b-UD", "c.d"))),
        st.dictionaries(st.sampled_from(_TAGS), st.integers(0, 4), min_size=1),
        min_size=1,
    ),
    st.data(),
)
def test_each_file_is_of_one_variant_and_each_variant_has_its_own_name(
    repo: dict[tuple[str, str], dict[str, int]], data: st.DataObject
) -> None:
    sets = [
        _split(f"{folder}{stem}-{tag}", count) if count else (f"{folder}{stem}-{tag}.gguf",)
        for (folder, stem), tags in repo.items()
        for tag, count in tags.items()
    ]
    # Some parts are missing; one stays.
    names = [
        name
        for files in sets
        for name in data.draw(st.sets(st.sampled_from(files), min_size=1), label="on disk")
    ]
    found = variants(names).variants
    assert sorted(variant.files for variant in found) == sorted(sets)
    assert len({variant.name.casefold() for variant in found}) == len(found)
    for variant in found:
        assert variants(names).called(variant.name.swapcase()) == [variant]
