"""`status` as a function: states, sizes, memory, recommendations."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated, model_files
from tests.kit.rooms import LONG
from vlmcache.cache.mounts import mount_of
from vlmcache.commands.status.status import select_rows, status
from vlmcache.commands.status.values import ModelStatus, NotCachedError, Status
from vlmcache.commands.verify.verify import verify
from vlmcache.config import (
    CacheLocation,
    Config,
    Limits,
    ModelConfig,
    Session,
    read_environment,
    shipped_config,
)

WEIGHTS = "model.safetensors"
HUGE = 10**18


def config(*repos: str, limits: Limits | None = None, **fields: object) -> Config:
    models = {
        repo.partition("/")[2]: ModelConfig(repo.partition("/")[2], repo, **fields)  # type: ignore[arg-type]
        for repo in repos
    }
    return Config("config.yaml", "./config.yaml", models, limits or Limits(0, 0))


def asked(cache: CacheBuilder, configuration: Config, *names: str) -> Status:
    location = CacheLocation(str(cache.root), "HF_HUB_CACHE")
    return status(Session(read_environment(), configuration, location), names)


def only_model(cache: CacheBuilder, configuration: Config) -> ModelStatus:
    return asked(cache, configuration).models[0]


def commands(report: Status) -> list[str | None]:
    return [step.command for step in report.recommendations]


def test_a_cached_model_has_its_size_commit_path_and_last_use(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    files = model_files()
    commit = repo.revision(files)
    weeks_ago = time.time() - 14 * 86400
    for path in (*repo.blobs.iterdir(), *repo.snapshots.glob("*/*")):
        os.utime(path, (weeks_ago, weeks_ago), follow_symlinks=False)
    model = only_model(cache, config("org/name"))
    assert (model.state, model.commit) == ("cached", commit)
    assert model.path == str(repo.snapshots / commit)
    assert model.size == model.expected_size == sum(map(len, files.values()))
    assert model.size_on_disk == sum(blob.stat().st_blocks * 512 for blob in repo.blobs.iterdir())
    mount = mount_of(str(cache.root))
    if mount is not None and mount.access_times != "never":
        assert model.last_used is not None
        assert abs(model.last_used.timestamp() - weeks_ago) < 2


def test_the_bytes_of_classes_and_repos_add_up(cache: CacheBuilder) -> None:
    for name in ("org/one", "org/two"):
        cache.repo(name).revision(model_files())
    cache.stray_file()
    report = asked(cache, config("org/one"))
    summary = report.cache
    assert summary.size_on_disk == summary.by_class.total == du_allocated(cache.root)
    assert {repo.repo: repo.size_on_disk for repo in report.repos} == {
        repo.repo: du_allocated(Path(repo.path)) for repo in report.repos
    }
    assert summary.free is not None
    assert summary.total is not None
    assert summary.filesystem


def test_memory_is_estimated_from_the_cached_headers(cache: CacheBuilder) -> None:
    cache.repo("org/name").revision(model_files(parameters=20_000))
    model = only_model(cache, config("org/name", precision="bf16"))
    assert model.memory_source == "weights"
    assert model.memory_overhead is not None
    assert model.memory_estimate == 40_000 + model.memory_overhead
    smaller = only_model(cache, config("org/name", precision="int8"))
    assert smaller.memory_estimate is not None
    assert smaller.memory_estimate < model.memory_estimate


def test_the_expected_size_of_a_missing_model_is_that_of_the_configuration_or_the_shipped_table(
    cache: CacheBuilder,
) -> None:
    configured = only_model(cache, config("org/name", expected_size=5_000_000_000))
    assert (configured.expected_size, configured.memory_source) == (5_000_000_000, "config")
    known = only_model(cache, config("Qwen/Qwen2-VL-7B-Instruct"))
    assert (known.expected_size, known.memory_source) == (16_600_000_000, "table")
    unknown = only_model(cache, config("org/unheard-of"))
    assert (unknown.expected_size, unknown.memory_estimate) == (None, None)


def test_a_partial_download_is_expected_at_the_size_that_its_listing_names(
    cache: CacheBuilder,
) -> None:
    files = model_files(second_format=True)
    cache.repo("org/name").revision(files, downloaded={"config.json"})
    model = only_model(cache, config("org/name"))
    assert model.state == "partial"
    assert WEIGHTS in model.missing_files
    wanted = {name: data for name, data in files.items() if name != "pytorch_model.bin"}
    assert model.expected_size == sum(map(len, wanted.values()))


def test_a_header_that_makes_no_sense_is_a_finding_and_not_a_failure(cache: CacheBuilder) -> None:
    cache.repo("org/name").revision(model_files() | {WEIGHTS: b"no header at all"})
    report = asked(cache, config("org/name"))
    assert "unreadable-header" in {finding.code for finding in report.findings}
    assert report.models[0].memory_estimate is None


def test_each_problem_has_the_command_that_repairs_it(cache: CacheBuilder) -> None:
    good, bad = cache.repo("org/good"), cache.repo("org/bad")
    good.revision(model_files())
    os.utime(good.orphan_blob(), (0, 0))
    bad.revision(model_files())
    bad.dangling_link(WEIGHTS)
    limits = Limits(min_free=HUGE, comfortable_free=2 * HUGE, max_size=1000)
    report = asked(cache, config("org/good", "org/bad", "org/absent", limits=limits))
    # The lost link's blob is there, so that restoring it takes no room; the rest would fail.
    assert commands(report) == [
        "vlmcache clean --free 0",
        None,
        None,
        "vlmcache verify bad --repair",
    ]
    text = report.recommendations[1].text
    assert report.recommendations[2].text == "no room to download absent, size unknown"
    for words in ("over its limit of 1 kB", "below the minimum of"):
        assert words in text
    assert "org/good (" in text


def test_a_complete_cache_on_a_disk_with_room_needs_nothing(cache: CacheBuilder) -> None:
    cache.repo("org/good").revision(model_files())
    assert asked(cache, config("org/good")).recommendations == ()


def test_reclaimable_bytes_are_what_orphans_detached_and_stale_occupy(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    repo.partial(size=50_000, age=LONG)
    unlinked = cache.repo("org/second")
    unlinked.revision(model_files())
    unlinked.orphan_blob(b"x" * 100_000)
    cache.repo("org/begun").partial("d" * 64, size=70_000, age=5)
    (step,) = asked(cache, config("org/name")).recommendations
    assert step.text.startswith("156 kB can be freed")


def test_models_asked_for_replace_the_configured_ones(cache: CacheBuilder) -> None:
    cache.repo("org/other").revision(model_files(), refs=("main", "v1"))
    report = asked(cache, shipped_config(), "qwen_vl_2b", "org/other@v1", "org/nowhere")
    assert [(model.key, model.revision, model.state) for model in report.models] == [
        ("qwen_vl_2b", "main", "missing"),
        ("org/other", "v1", "cached"),
        ("org/nowhere", "main", "missing"),
    ]
    failure = report.not_cached
    assert failure is not None
    assert failure.exit_code == 4
    assert failure.hint == "vlmcache pull qwen_vl_2b"


def test_a_status_raises_what_is_not_cached_once_it_is_checked(cache: CacheBuilder) -> None:
    cache.repo("org/cached").revision(model_files())
    complete = asked(cache, config("org/cached"))
    assert complete.not_cached is None
    assert complete.with_problem(complete.not_cached).check() == complete
    missing = asked(cache, config(), "org/absent@v1", "org/cached")
    assert [model.state for model in missing.models] == ["missing", "cached"]
    assert missing.check() is missing
    with pytest.raises(NotCachedError, match="org/absent is missing") as raised:
        missing.with_problem(missing.not_cached).check()
    assert raised.value.hint == "vlmcache pull org/absent@v1"


def test_the_ids_of_a_status_are_those_of_its_models_and_then_of_the_other_repos(
    cache: CacheBuilder,
) -> None:
    for name in ("org/other", "org/wanted"):
        cache.repo(name).revision(model_files(), refs=("main", "v1"))
    cache.repo("org/pages", "dataset").revision({"README.md": b"x"})
    report = asked(cache, config(), "org/wanted@v1", "org/wanted")
    assert report.ids == ["org/wanted@v1", "org/wanted"]
    rest = ["datasets/org/pages", "org/other"]
    assert report.all_ids[:2] == report.ids
    assert sorted(report.all_ids[2:]) == rest, "each can be typed"


def test_the_revision_asked_for_is_the_one_that_is_recommended(cache: CacheBuilder) -> None:
    cache.repo("org/name").revision(model_files())
    assert commands(asked(cache, config(), "org/name@v1")) == ["vlmcache pull org/name@v1"]


def test_a_key_that_is_a_cached_repo_is_recommended_by_its_repo(cache: CacheBuilder) -> None:
    cache.repo("wanted").revision(model_files())
    assert commands(asked(cache, config("org/wanted"))) == ["vlmcache pull org/wanted@main"]


def test_rows_are_filtered_and_sorted(cache: CacheBuilder) -> None:
    cache.repo("org/small").revision(model_files(parameters=6_000))
    cache.repo("org/large").revision(model_files(parameters=600_000))
    bad = cache.repo("org/bad")
    bad.revision(model_files())
    bad.truncated_blob(WEIGHTS)
    report = asked(cache, config("org/small", "org/large", "org/bad"))

    def keys(*filters: str, sort: str | None = None) -> list[str]:
        return [model.key for model in select_rows(report, filters, sort).models]

    assert keys(sort="size")[0] == "large"
    assert keys(sort="name") == ["bad", "large", "small"]
    assert keys(sort="state")[0] == "bad"
    assert keys("size>1MB") == ["large"]
    assert keys("state=cached", "name=SMALL") == ["small"]
    assert keys("state!=cached") == ["bad"]
    assert keys("used>30d") == []
    assert len(select_rows(report, ["type=dataset"], None).repos) == 0


def test_repos_are_sorted_by_their_type(cache: CacheBuilder) -> None:
    for repo in (cache.repo("org/b"), cache.repo("org/c", "dataset"), cache.repo("org/a")):
        repo.revision(model_files())
    report = select_rows(asked(cache, config()), (), "type")
    assert [repo.repo for repo in report.repos] == ["org/c", "org/a", "org/b"]


def test_a_tree_without_its_model_files_counts_shared_blobs_once(cache: CacheBuilder) -> None:
    shared = {WEIGHTS: "ab" * 32}
    for name in ("org/one", "org/two"):
        cache.repo(name).revision(model_files(), shared={WEIGHTS}, xet=shared)
    report = asked(cache, config("org/one", "org/two"))
    assert report.models[0].size == report.models[1].size
    assert report.models[0].state == report.models[1].state == "cached"


def test_the_status_survives_its_own_json(cache: CacheBuilder) -> None:
    cache.repo("org/name").revision(model_files())
    report = asked(cache, config("org/name"))
    assert msgspec.json.decode(msgspec.json.encode(report), type=Status) == report


def test_a_damaged_model_is_still_sized_by_what_is_on_disk(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    files = model_files()
    repo.revision(files)
    repo.dangling_link(WEIGHTS)
    model = only_model(cache, config("org/name"))
    assert model.state == "damaged"
    assert model.damaged_files == (WEIGHTS,)
    assert model.size == sum(len(data) for name, data in files.items() if name != WEIGHTS)


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_repos_of_other_types_are_listed_but_are_not_models(cache: CacheBuilder, kind: str) -> None:
    cache.repo("org/name", kind).revision({"README.md": b"x"})  # type: ignore[arg-type]
    report = asked(cache, config("org/name"))
    assert report.models[0].state == "missing"
    assert [(repo.repo, repo.type, repo.state) for repo in report.repos] == [
        ("org/name", kind, "cached")
    ]


def complete(cache: CacheBuilder, name: str = "org/name") -> CachedRepo:
    repo = cache.repo(name)
    repo.revision(model_files())
    return repo


def verified(cache: CacheBuilder, configuration: Config) -> None:
    location = CacheLocation(str(cache.root), "HF_HUB_CACHE")
    verify(Session(read_environment(), configuration, location), ())


def test_what_verify_found_damaged_is_damaged_until_it_changes(cache: CacheBuilder) -> None:
    configuration, repo = config("org/name"), complete(cache)
    blob = repo.blob(WEIGHTS)
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert only_model(cache, configuration).state == "cached"
    verified(cache, configuration)
    report = asked(cache, configuration)
    (model,) = report.models
    assert (model.state, model.damaged_files) == ("damaged", (WEIGHTS,))
    assert [(entry.state, entry.revisions[0].state) for entry in report.repos] == [
        ("damaged", "damaged")
    ]
    assert [finding.code for finding in report.findings] == ["damaged-blob"]
    assert commands(report) == ["vlmcache verify name --repair"]
    assert isinstance(report.not_cached, NotCachedError)
    blob.write_bytes(content)
    os.utime(blob, (1, 1))
    assert only_model(cache, configuration).state == "cached"


def test_a_repo_that_nobody_asked_for_is_damaged_too_once_verify_found_it(
    cache: CacheBuilder,
) -> None:
    repo = complete(cache, "org/other")
    blob = repo.blob(WEIGHTS)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    verified(cache, config())
    report = asked(cache, config())
    assert [entry.state for entry in report.repos] == ["damaged"]
    assert commands(report) == ["vlmcache verify org/other --repair"]


@pytest.mark.parametrize("is_elsewhere", [True, False])
def test_a_download_is_not_recommended_without_a_word_about_another_cache(
    cache: CacheBuilder, is_elsewhere: bool
) -> None:
    other = CacheBuilder(Path.home() / ".cache" / "huggingface" / "hub")
    complete(other, "org/name" if is_elsewhere else "org/else")
    report = asked(cache, config("org/name"))
    (finding,) = report.findings
    assert (finding.code, finding.path) == ("second-cache", str(other.root))
    assert ("org/name may be there already" in finding.detail) == is_elsewhere
    complete(cache)
    assert asked(cache, config("org/name")).findings == ()


def test_a_download_is_not_recommended_without_a_word_about_the_repo_in_another_spelling(
    cache: CacheBuilder,
) -> None:
    complete(cache, "org/Name")
    complete(cache, "ORG/name")
    report = asked(cache, config("org/name"))
    assert {finding.path for finding in report.findings if finding.code == "other-spelling"} == {
        str(cache.root / f"models--{folder}") for folder in ("org--Name", "ORG--name")
    }
