"""A model is cached only if everything that loading needs is here; else it says what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder, CachedRepo, model_files
from vlmcache.cache.completeness import Judgement, judge, judge_repo
from vlmcache.cache.scan import scan

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def judged(repo: CachedRepo, revision: str = "main") -> Judgement:
    return judge(scan(repo.cache.root).repo(repo.id), revision)


def without(files: Mapping[str, bytes], *names: str) -> set[str]:
    return set(files) - set(names)


@pytest.fixture
def repo(cache: CacheBuilder) -> CachedRepo:
    return cache.repo("org/name")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tree", [True, False])
def test_a_complete_download_is_cached(repo: CachedRepo, shards: int, tree: bool) -> None:
    repo.revision(model_files(shards=shards), tree=tree)
    assert judged(repo).state == "cached"


@pytest.mark.parametrize("tree", [True, False])
def test_a_shard_that_the_index_names_and_is_absent_makes_it_partial(
    repo: CachedRepo, tree: bool
) -> None:
    files = model_files(shards=3)
    shard = "model-00002-of-00003.safetensors"
    repo.revision(files, downloaded=without(files, shard), tree=tree)
    assert judged(repo).state == "partial"
    assert judged(repo).missing == (shard,)


def test_an_index_that_is_absent_makes_it_partial(repo: CachedRepo) -> None:
    files = model_files(shards=2)
    repo.revision(files, downloaded=without(files, INDEX))
    assert judged(repo).missing == (INDEX,)


def test_absent_weights_make_it_partial_and_are_named(repo: CachedRepo) -> None:
    files = model_files()
    repo.revision(files, downloaded=without(files, WEIGHTS), tree=False)
    assert judged(repo).state == "partial"
    assert judged(repo).missing == (WEIGHTS,)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_a_listed_file_that_loading_needs_makes_it_partial(repo: CachedRepo, name: str) -> None:
    files = model_files()
    repo.revision(files, downloaded=without(files, name))
    assert judged(repo).missing == (name,)


def test_config_is_needed_although_no_listing_names_it(repo: CachedRepo) -> None:
    files = model_files()
    repo.revision(files, downloaded=without(files, "config.json"), tree=False)
    assert judged(repo).missing == ("config.json",)


@pytest.mark.parametrize("name", ["README.md", "pytorch_model.bin"])
def test_files_that_loading_does_not_need_may_be_absent(repo: CachedRepo, name: str) -> None:
    files = model_files(second_format=True)
    repo.revision(files, downloaded=without(files, name))
    assert judged(repo).state == "cached"


def test_remote_code_that_the_listing_names_is_needed(repo: CachedRepo) -> None:
    files = model_files() | {"modeling_GOT.py": b"import torch\n", "qwen.tiktoken": b"x"}
    repo.revision(files, downloaded=without(files, "modeling_GOT.py"))
    assert judged(repo).missing == ("modeling_GOT.py",)


def test_torch_weights_alone_are_enough(repo: CachedRepo) -> None:
    files = model_files(second_format=True)
    repo.revision({name: data for name, data in files.items() if name != WEIGHTS})
    assert judged(repo).state == "cached"


@pytest.mark.parametrize("damage", ["dangling_link", "truncated_blob", "empty_blob"])
@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "README.md"])
def test_a_file_that_cannot_be_what_it_should_is_damage(
    repo: CachedRepo, damage: str, name: str
) -> None:
    repo.revision(model_files())
    getattr(repo, damage)(name)
    assert judged(repo).state == "damaged"
    assert judged(repo).damaged == (name,)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../../../../etc/passwd"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": 7}}',
        "[" * 100_000,
    ],
)
def test_an_index_that_makes_no_sense_is_damage(repo: CachedRepo, text: str) -> None:
    files = model_files(shards=2) | {INDEX: text.encode()}
    repo.revision(files)
    assert judged(repo).state == "damaged"
    assert judged(repo).damaged == (INDEX,)


def test_a_ref_with_a_newline_is_damage_since_offline_loading_fails(repo: CachedRepo) -> None:
    repo.revision(model_files())
    repo.ref_with_newline()
    assert judged(repo).state == "damaged"


def test_a_ref_to_an_absent_commit_is_damage_unless_its_download_has_begun(
    repo: CachedRepo,
) -> None:
    repo.revision(model_files())
    repo.ref_to_missing_commit()
    assert judged(repo).state == "damaged"
    repo.partial(size=10)
    assert judged(repo).state == "partial"


def test_a_ref_and_a_listing_alone_are_a_download_that_has_begun(repo: CachedRepo) -> None:
    commit = repo.revision(model_files())
    shutil.rmtree(repo.snapshots / commit)
    shutil.rmtree(repo.blobs)
    assert judged(repo).state == "partial"


def test_content_without_any_link_to_it_is_damage_and_not_a_download_that_has_begun(
    repo: CachedRepo,
) -> None:
    commit = repo.revision(model_files())
    shutil.rmtree(repo.snapshots / commit)
    assert judged(repo).state == "damaged"


def test_an_absent_repo_and_an_absent_revision_are_missing(repo: CachedRepo) -> None:
    assert judge(None, "main").state == "missing"
    repo.revision(model_files())
    assert judged(repo, "v9").state == "missing"
    assert judged(repo, "f" * 40).state == "missing"


def test_a_first_download_that_left_only_partial_files_is_partial(repo: CachedRepo) -> None:
    repo.partial(size=10)
    assert judged(repo).state == "partial"


def test_a_first_download_that_was_killed_before_its_ref_is_partial(repo: CachedRepo) -> None:
    repo.revision(model_files(), refs=(), downloaded={"config.json"})
    repo.partial(size=10)
    assert judged(repo).state == "partial"
    assert judged(repo, "v9").state == "partial"


def test_a_revision_is_found_by_branch_tag_commit_and_beginning_of_commit(
    repo: CachedRepo,
) -> None:
    commit = repo.revision(model_files(), refs=("main", "v1", "refs/pr/1"))
    for revision in ("main", "v1", "refs/pr/1", commit, commit[:7]):
        assert judged(repo, revision).commit == commit
    assert judged(repo, commit[:6]).state == "missing"


def test_all_files_that_the_listing_of_a_dataset_names_are_needed(cache: CacheBuilder) -> None:
    repo = cache.repo("org/data", "dataset")
    files = {"a.csv": b"1", "b/c.csv": b"2"}
    repo.revision(files, downloaded={"a.csv"})
    found = scan(cache.root).repo("org/data", "dataset")
    assert found is not None
    assert judge(found, "main").missing == ("b/c.csv",)
    assert judge_repo(found) == "partial"


def test_a_repo_is_as_bad_as_its_worst_revision(repo: CachedRepo) -> None:
    repo.revision(model_files())
    repo.revision(model_files(parameters=30_000), refs=("v1",))
    repo.truncated_blob(WEIGHTS)
    found = scan(repo.cache.root).repo(repo.id)
    assert found is not None
    assert judge_repo(found) == "damaged"
    assert judged(repo, "main").state == "cached"


def test_an_incomplete_format_is_not_replaced_by_another(repo: CachedRepo) -> None:
    """Transformers takes the first format that it finds, and fails if a shard of it is missing."""
    files = {**model_files(shards=3), "pytorch_model.bin": b"pickled"}
    repo.revision(files, downloaded=without(files, "model-00002-of-00003.safetensors"), tree=False)
    assert judged(repo).state == "partial"
    assert judged(repo).missing == ("model-00002-of-00003.safetensors",)


def test_of_shards_without_their_index_the_index_and_the_other_shards_are_missing(
    repo: CachedRepo,
) -> None:
    files = model_files(shards=3)
    gone = without(files, INDEX, "model-00002-of-00003.safetensors")
    repo.revision(files, downloaded=gone, tree=False)
    assert judged(repo).missing == ("model-00002-of-00003.safetensors", INDEX)


@pytest.mark.parametrize(
    "names",
    [
        ["config.json", "model.bin", "tokenizer.json", "vocabulary.txt"],
        ["config.json", "diffusion_pytorch_model.safetensors"],
        ["config.json", "model.fp16.safetensors"],
        ["open_clip_config.json", "open_clip_model.safetensors"],
        ["tokenizer.json", "tokenizer_config.json"],
        ["net.pth"],
    ],
)
def test_a_repo_of_another_library_is_cached_once_all_that_is_listed_is_there(
    cache: CacheBuilder, names: list[str]
) -> None:
    files = {name: name.encode() for name in names}
    whole, part = cache.repo("org/whole"), cache.repo("org/part")
    whole.revision(files)
    assert judged(whole).state == "cached"
    part.revision(files, downloaded=without(files, names[0]))
    assert judged(part).missing == (names[0],)


def test_a_download_that_ended_after_the_listing_names_what_is_missing(
    repo: CachedRepo,
) -> None:
    files = {**model_files(), "README.md": b"read me"}
    repo.revision(files, downloaded=[])
    for path in (repo.snapshots, repo.blobs):
        shutil.rmtree(path, ignore_errors=True)
    found = judged(repo)
    assert found.state == judge_repo(scan(repo.cache.root).repos[0]) == "partial"
    along = {"README.md", "generation_config.json", "chat_template.json"}
    assert set(found.missing) == without(files, "vocab.json", "merges.txt", *along)
    assert found.tree is not None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_the_missing_files_are_exactly_what_turns_partial_into_cached(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    files = model_files(shards=data.draw(st.integers(1, 3)))
    present = data.draw(st.sets(st.sampled_from(sorted(files))))
    repo = CacheBuilder(tmp_path_factory.mktemp("some") / "hub").repo("org/name")
    repo.revision(files, downloaded=present)
    found = judged(repo)
    if found.revision is None or found.state == "cached":
        return
    again = CacheBuilder(tmp_path_factory.mktemp("more") / "hub").repo("org/name")
    again.revision(files, downloaded=present | set(found.missing))
    rest = judged(again)
    if INDEX in found.missing:  # only the index names the shards
        again.revision(files, downloaded=set(rest.missing))
        rest = judged(again)
    assert rest.state == "cached"
    assert json.dumps(rest.missing) == "[]"
