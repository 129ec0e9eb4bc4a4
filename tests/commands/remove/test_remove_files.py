"""`rm org/name:VARIANT` and `rm --include` free exactly the files that they name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated, fingerprint
from vlmcache.change.plan import Remove
from vlmcache.commands.remove.remove import remove
from vlmcache.commands.remove.values import Removal, RemoveOptions
from vlmcache.config import CacheLocation, Config, Limits, ModelConfig, Session, read_environment
from vlmcache.errors import UnknownModelError, UsageError

NAME = "org/name-GGUF"
Q4, Q8 = "name-Q4_K_M.gguf", "name-Q8_0.gguf"
PARTS = ("BF16/name-BF16-00001-of-00002.gguf", "BF16/name-BF16-00002-of-00002.gguf")
FILES = {
    "README.md": b"# name",
    "mmproj-name-f16.gguf": b"p" * 9000,
    Q4: b"4" * 20_000,
    Q8: b"8" * 40_000,
    PARTS[0]: b"a" * 30_000,
    PARTS[1]: b"b" * 30_000,
}
XET = "c" * 64
CONFIG = Config("c", "user", {"small": ModelConfig("small", NAME, variant="Q4_K_M")}, Limits(0, 0))


@pytest.fixture
def repo(cache: CacheBuilder) -> CachedRepo:
    repo = cache.repo(NAME)
    repo.revision(FILES)
    return repo


def rm(cache: CacheBuilder, name: str, *include: str, dry_run: bool = False) -> Removal:
    session = Session(read_environment(), CONFIG, CacheLocation(str(cache.root), "--cache-dir"))
    removal = remove(session, [name], RemoveOptions(include=include), dry_run=dry_run)
    assert removal.problem is None
    return removal


def names(repo: CachedRepo) -> set[str]:
    snapshot = repo.folder / "snapshots" / repo.latest
    return {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize(
    ("name", "include", "gone"),
    [
        (f"{NAME}:Q4_K_M", (), {Q4}),
        (f"{NAME}@main:q4_k_m", (), {Q4}),
        ("org/NAME-gguf:q8_0", (), {Q8}),
        (f"{NAME}:bf16", (), set(PARTS)),
        ("small", (), {Q4}),
        ("small:Q8_0", (), {Q8}),
        (NAME, ("*.gguf",), {*FILES} - {"README.md"}),
        (NAME, ("BF16/", "*Q8*"), {*PARTS, Q8}),
    ],
)
def test_just_the_files_that_are_named_are_removed_with_their_blobs(
    repo: CachedRepo, name: str, include: tuple[str, ...], gone: set[str]
) -> None:
    before = fingerprint(repo.cache.root)
    planned = rm(repo.cache, name, *include, dry_run=True)
    assert fingerprint(repo.cache.root) == before
    blobs = {path: repo.blob(path) for path in FILES}
    occupied = du_allocated(repo.cache.root)
    removal = rm(repo.cache, name, *include)
    assert removal.plan == planned.plan
    assert removal.receipt is not None
    assert names(repo) == {*FILES} - gone
    assert {path for path, blob in blobs.items() if not blob.exists()} == gone
    assert (repo.refs / "main").read_text() == repo.latest
    assert (repo.folder / "trees" / f"{repo.latest}.json").exists()
    assert removal.receipt.freed == removal.plan.frees
    assert occupied - du_allocated(repo.cache.root) == removal.receipt.freed
    kinds = {action.kind for action in removal.plan.actions if isinstance(action, Remove)}
    assert kinds <= {"link", "blob", "lock"}


def test_a_file_that_another_revision_links_to_keeps_its_blob(repo: CachedRepo) -> None:
    old, blob = repo.latest, repo.blob(Q4)
    repo.revision({**FILES, "README.md": b"new"}, refs=["next"])
    rm(repo.cache, f"{NAME}@{old}:Q4_K_M")
    assert blob.exists()
    assert Q4 in names(repo)
    rm(repo.cache, f"{NAME}:Q4_K_M")
    assert not blob.exists()
    assert Q4 not in names(repo)


def test_a_file_with_the_content_of_another_keeps_its_blob(cache: CacheBuilder) -> None:
    repo = cache.repo(NAME)
    repo.revision({**FILES, "copy.gguf": FILES[Q4]})
    rm(cache, f"{NAME}:Q4_K_M")
    assert repo.blob("copy.gguf").exists()


def test_a_shared_blob_is_released_and_stays_for_others(cache: CacheBuilder) -> None:
    repo, other = cache.repo(NAME), cache.repo("org/other")
    hashes = {Q4: XET, Q8: "d" * 64}
    repo.revision(FILES, shared=hashes, xet=hashes)
    other.revision({Q4: FILES[Q4]}, shared=[Q4], xet={Q4: XET})
    content = Path(os.path.realpath(repo.blob(Q4)))
    assert content == Path(os.path.realpath(other.blob(Q4)))
    rm(cache, f"{NAME}:Q4_K_M")
    assert content.exists()
    assert other.blob(Q4).read_bytes() == FILES[Q4]
    lone = Path(os.path.realpath(repo.blob(Q8)))
    rm(cache, f"{NAME}:Q8_0")
    assert not lone.exists()


def test_what_was_begun_of_a_variant_is_removed_with_it_and_no_other(cache: CacheBuilder) -> None:
    repo = cache.repo(NAME)
    repo.revision(FILES, downloaded={"README.md", Q8})
    begun = repo.partial(repo.file(Q4).etag, age=7200)
    others = repo.partial(repo.file(PARTS[0]).etag, age=7200)
    rm(cache, f"{NAME}:Q4_K_M")
    assert not begun.exists()
    assert others.exists()


def test_the_last_file_of_a_repo_is_removed_with_the_repo(cache: CacheBuilder) -> None:
    repo = cache.repo(NAME)
    repo.revision({Q4: FILES[Q4]})
    rm(cache, f"{NAME}:Q4_K_M")
    assert not repo.folder.exists()


@pytest.mark.parametrize(
    ("name", "include", "kind", "hint"),
    [
        (f"{NAME}:Q2_K", (), UnknownModelError, "it has BF16, Q4_K_M, Q8_0"),
        (NAME, ("*.safetensors",), UnknownModelError, None),
        ("org/none:Q4_K_M", (), UnknownModelError, None),
        (f"{NAME}:Q4_K_M", ("*.md",), UsageError, None),
        (f"{NAME}:Q4_K_M@main", (), UsageError, f"type {NAME}@main:Q4_K_M"),
    ],
)
def test_what_is_not_there_removes_nothing(
    repo: CachedRepo, name: str, include: tuple[str, ...], kind: type[Exception], hint: str | None
) -> None:
    before = fingerprint(repo.cache.root)
    with pytest.raises(kind) as caught:
        rm(repo.cache, name, *include)
    assert fingerprint(repo.cache.root) == before
    if hint is not None:
        assert getattr(caught.value, "hint", None) == hint


def test_a_word_that_can_be_two_variants_removes_neither(cache: CacheBuilder) -> None:
    repo = cache.repo(NAME)
    repo.revision({"a/name-Q4_K_M.gguf": b"a", "b/name-Q4_K_M.gguf": b"b", "README.md": b"#"})
    before = fingerprint(cache.root)
    with pytest.raises(UsageError):
        rm(cache, f"{NAME}:Q4_K_M")
    assert fingerprint(cache.root) == before
    rm(cache, f"{NAME}:a/name-Q4_K_M")
    assert names(repo) == {"b/name-Q4_K_M.gguf", "README.md"}


def test_a_variant_in_use_stays_and_one_next_to_it_can_be_removed(repo: CachedRepo) -> None:
    with repo.blob(Q8).open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as sleeper:
        try:
            with pytest.raises(AssertionError):
                rm(repo.cache, f"{NAME}:Q8_0")
            assert Q8 in names(repo)
            rm(repo.cache, f"{NAME}:Q4_K_M")
            assert names(repo) == {*FILES} - {Q4}
        finally:
            sleeper.kill()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_blob_that_a_file_left_links_to_is_ever_removed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cache = CacheBuilder(tmp_path_factory.mktemp("hub"))
    repo = cache.repo(NAME)
    contents = st.sampled_from([b"1" * 5000, b"2" * 5000, b"3" * 5000])
    files = st.dictionaries(st.sampled_from([Q4, Q8, *PARTS, "README.md"]), contents, min_size=1)
    for ref in ("main", "next"):
        repo.revision({**data.draw(files), f"{ref}.txt": ref.encode()}, refs=[ref])
    pattern = data.draw(st.sampled_from(["*.gguf", "*Q4*", "BF16/", "*.md", "*.txt", "*"]))
    ref = data.draw(st.sampled_from(["", "@main", "@next"]))
    try:
        rm(cache, NAME + ref, pattern)
    except UnknownModelError:
        return
    links = [path for path in repo.folder.rglob("snapshots/**/*") if path.is_symlink()]
    assert all(path.exists() for path in links)
    used = {os.path.basename(os.path.realpath(path)) for path in links}
    assert used == {path.name for path in repo.folder.glob("blobs/*")}
