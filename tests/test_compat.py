"""The functions for code written for the guide's helper scripts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import vlmcache
from tests.kit.caches import CacheBuilder, du_allocated, model_files


@pytest.fixture(autouse=True)
def _cache(cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.root))
    Path(os.getcwd(), "config.yaml").write_text("models: {good: {repo: org/good}}")
    cache.repo("org/good").revision(model_files())
    files = model_files()
    cache.repo("org/part").revision(files, downloaded={"config.json"})


def test_a_cached_model_is_said_to_be_cached_and_where() -> None:
    cached, message = vlmcache.check_model_cache("good")
    assert cached
    assert message.startswith("org/good is cached at /")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("org/part", "org/part is partial: model.safetensors, "),
        ("org/absent", "org/absent is missing (vlmcache pull org/absent)"),
        ("goood", "no such model: goood (did you mean good?)"),
    ],
)
def test_what_is_not_cached_says_why_and_what_to_do(key: str, words: str) -> None:
    cached, message = vlmcache.check_model_cache(key)
    assert not cached
    assert words in message


def test_the_cache_in_numbers(cache: CacheBuilder) -> None:
    cache.repo("org/data", "dataset").revision({"a.csv": b"1"})
    info = vlmcache.get_cache_info()
    assert info["model_count"] == 2
    assert info["repo_count"] == 3
    assert info["total_size_gb"] == du_allocated(cache.root) / 1e9
    assert info["cache_dir"] == str(cache.root)


def test_cached_models_are_listed_with_id_and_size(cache: CacheBuilder) -> None:
    models = {model["model_id"]: model for model in vlmcache.list_cached_models()}
    assert set(models) == {"org/good", "org/part"}
    folder = cache.repo("org/good").folder
    assert models["org/good"]["size_gb"] == du_allocated(folder) / 1e9
    assert models["org/good"]["path"] == str(folder)
