"""Reading again only what was touched finds what reading everything finds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, model_files
from vlmcache.cache.scan import Scanner, scan
from vlmcache.errors import ConfigError

FILES = model_files(shards=2)
NOW = 2_000_000_000.0


@pytest.fixture
def cache(tmp_path: Path) -> CacheBuilder:
    cache = CacheBuilder(tmp_path / "hub")
    cache.repo("org/one").revision(FILES)
    cache.repo("org/two").revision(FILES, shared=("model-00001-of-00002.safetensors",))
    cache.repo("org/three", "dataset").revision({"a.txt": b"a" * 5000})
    scan(cache.root)
    return cache


def add_partial(cache: CacheBuilder) -> str:
    return cache.repo("org/one").partial().parents[1].name


def remove_repo(cache: CacheBuilder) -> str:
    folder = cache.repo("org/one").folder
    shutil.rmtree(folder)
    return folder.name


def add_repo(cache: CacheBuilder) -> str:
    repo = cache.repo("org/new")
    repo.revision({"config.json": b"{}"})
    return repo.folder.name


def remove_shared_blob(cache: CacheBuilder) -> str:
    shutil.rmtree(cache.shared_store)
    return cache.shared_store.name


def add_stray(cache: CacheBuilder) -> str:
    return cache.stray_file().name


@pytest.mark.parametrize(
    "change", [add_partial, remove_repo, add_repo, remove_shared_blob, add_stray]
)
def test_a_scan_of_what_was_touched_equals_a_scan_of_everything(
    cache: CacheBuilder, change: Callable[[CacheBuilder], str]
) -> None:
    scanner = Scanner(cache.root)
    before = scanner.scan(now=NOW)

    touched = change(cache)

    scan(cache.root)  # Links are read for the first time here, which their access times tell.
    assert scanner.scan({touched}, now=NOW) == scan(cache.root, now=NOW) != before


def test_a_repo_that_was_not_touched_is_not_read_again(cache: CacheBuilder) -> None:
    scanner = Scanner(cache.root)
    before = scanner.scan(now=NOW)

    after = scanner.scan({add_partial(cache)}, now=NOW)

    same = {repo.id for repo in after.repos if any(repo is old for old in before.repos)}
    assert same == {"org/two", "org/three"}


def test_a_cache_that_goes_and_comes_is_followed(cache: CacheBuilder) -> None:
    scanner = Scanner(cache.root)
    before = scanner.scan(now=NOW)
    elsewhere = cache.root.with_name("away")
    cache.root.rename(elsewhere)
    assert not scanner.scan(set(), now=NOW).exists
    elsewhere.rename(cache.root)
    assert scanner.scan(set(), now=NOW) == before


def test_a_file_in_the_place_of_the_cache_is_told(tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("")
    with pytest.raises(ConfigError, match="not a folder"):
        Scanner(tmp_path / "hub").scan(set())
