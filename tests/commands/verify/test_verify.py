"""`verify` finds what is damaged, remembers what is good, and knows what it cannot judge."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, fingerprint
from tests.kit.contents import Content
from vlmcache.cache.hashing import identify
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState
from vlmcache.commands.status.status import status
from vlmcache.commands.verify.repair import repair
from vlmcache.commands.verify.values import Verification, VerifyOptions
from vlmcache.commands.verify.verify import verify
from vlmcache.config import (
    CacheLocation,
    Config,
    Limits,
    ModelConfig,
    Session,
    own_home,
    read_environment,
    shipped_config,
)
from vlmcache.errors import ExitCode, UnknownModelError
from vlmcache.home.journal import Journal

WEIGHTS = "model.safetensors"
SAFETENSORS = b"\x02\0\0\0\0\0\0\0{}"
FILES: dict[str, Content] = {
    "config.json": b'{"model_type": "x"}',
    WEIGHTS: SAFETENSORS,
    "sub/other.safetensors": SAFETENSORS,
    "weights.bin": os.urandom(5_000_000),
}


def check(cache: CacheBuilder, *names: str, **options: Any) -> Verification:
    environment = read_environment()
    location = CacheLocation(str(cache.root), "test")
    session = Session(environment, shipped_config(), location)
    return verify(session, names, VerifyOptions(**options))


@pytest.fixture
def repo(cache: CacheBuilder) -> CachedRepo:
    repo = cache.repo("org/name")
    repo.revision(FILES)
    return repo


def test_a_complete_cache_is_good_and_is_not_touched(cache: CacheBuilder, repo: CachedRepo) -> None:
    before = fingerprint(cache.root)
    value = check(cache)
    assert fingerprint(cache.root) == before
    assert value.problem is None
    assert (value.checked, value.bytes) == (3, sum(f.stat().st_size for f in repo.blobs.iterdir()))
    assert not value.unverifiable
    assert not value.findings


@pytest.mark.parametrize("name", [*FILES])
def test_one_flipped_bit_is_found_in_each_kind_of_file(
    cache: CacheBuilder, repo: CachedRepo, name: str
) -> None:
    check(cache)
    repo.flipped_bit(name)
    value = check(cache)
    (damage,) = value.damaged
    assert damage.repo == "org/name"
    assert damage.path == str(repo.blob(name))
    assert damage.blob == damage.expected == repo.file(name).etag
    assert damage.actual not in (None, damage.expected)
    assert damage.problem == "wrong-content"
    assert name in damage.files
    found = value.problem
    assert found is not None
    assert found.exit_code == ExitCode.DAMAGE


DAMAGE: dict[str, Callable[[CachedRepo], object]] = {
    "dangling-link": lambda repo: repo.dangling_link("config.json"),
    "truncated-blob": lambda repo: repo.truncated_blob("weights.bin"),
    "ref-to-missing-commit": lambda repo: repo.ref_to_missing_commit(),
    "malformed-ref": lambda repo: repo.ref_with_newline(),
    "missing-snapshots": lambda repo: repo.missing_snapshots(),
    "empty-snapshot": lambda repo: repo.empty_snapshot(),
    "link-loop": lambda repo: repo.link_loop(),
    "outside-link": lambda repo: repo.leaving_link(Path("/etc/hosts")),
}


@pytest.mark.parametrize("code", DAMAGE)
def test_what_the_scan_finds_broken_is_damage(
    cache: CacheBuilder, repo: CachedRepo, code: str
) -> None:
    DAMAGE[code](repo)
    value = check(cache)
    assert code in {damage.problem for damage in value.damaged}


def test_a_link_to_another_files_content_is_damage(cache: CacheBuilder, repo: CachedRepo) -> None:
    pointer = repo.pointer("config.json")
    pointer.unlink()
    pointer.symlink_to(os.path.relpath(repo.blob("weights.bin"), pointer.parent))
    damage = {one.problem: one for one in check(cache).damaged}["wrong-link"]
    assert damage.path == str(pointer)
    assert damage.expected == repo.file("config.json").etag
    assert damage.actual == repo.file("weights.bin").etag


def test_a_second_run_reads_only_what_changed_meanwhile(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    first = check(cache)
    second = check(cache)
    assert (second.checked, second.remembered) == (0, first.checked)
    assert second.remembered_bytes == first.bytes
    assert check(cache, max_age=0).checked == first.checked
    repo.blob("weights.bin").touch()
    third = check(cache)
    assert (third.checked, third.remembered) == (1, first.checked - 1)


def test_what_is_damaged_is_found_again(cache: CacheBuilder, repo: CachedRepo) -> None:
    repo.flipped_bit("weights.bin")
    assert len(check(cache).damaged) == len(check(cache).damaged) == 1


def test_what_was_verified_too_long_ago_or_in_the_future_is_read_again(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    check(cache)
    blob = repo.blob("weights.bin")
    with Journal(own_home(read_environment())[0]) as memory:
        for at in (time.time() - 1000, time.time() + 1000):
            memory.record_verified([(identify(str(blob)), blob.name)], at)
            assert check(cache, max_age=500).checked == 1
            assert check(cache, max_age=500).checked == 0


def test_what_was_never_read_is_not_taken_for_good_however_old_it_may_be(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    repo.flipped_bit("weights.bin")
    value = check(cache, max_age=100 * 365 * 86400.0)
    assert (value.checked, value.remembered, len(value.damaged)) == (3, 0, 1)


def test_a_listing_that_cannot_be_read_is_damage(cache: CacheBuilder, repo: CachedRepo) -> None:
    path = repo.bad_tree("x")
    (damage,) = check(cache).damaged
    assert (damage.path, damage.problem) == (str(path), "unreadable-tree")


def test_without_a_home_to_write_everything_is_read_every_time(
    cache: CacheBuilder, repo: CachedRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMCACHE_HOME", "/dev/null/nowhere")
    assert check(cache).checked == check(cache).checked == 3


@pytest.mark.parametrize("link", ["copy", "move", "hardlink"])
def test_copies_in_place_of_links_are_checked_against_the_listing(
    cache: CacheBuilder, link: Any
) -> None:
    repo = cache.repo("org/name")
    repo.revision(FILES, link=link)
    assert check(cache).problem is None
    pointer = repo.pointer("weights.bin")
    pointer.write_bytes(b"y" * pointer.stat().st_size)
    damaged = {damage.path for damage in check(cache).damaged}
    assert str(pointer) in damaged


def test_copies_without_a_listing_cannot_be_judged(cache: CacheBuilder) -> None:
    cache.repo("org/name").revision(FILES, link="move", tree=False)
    value = check(cache)
    assert value.problem is None
    assert {one.files[0] for one in value.unverifiable} == set(FILES)


def test_a_blob_named_otherwise_is_judged_by_the_listing_or_not_at_all(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    blob, pointer = repo.blob("weights.bin"), repo.pointer("weights.bin")
    renamed = blob.rename(blob.with_name("d41d8cd98f00b204e9800998ecf8427e-5"))
    pointer.unlink()
    pointer.symlink_to(os.path.relpath(renamed, pointer.parent))
    assert check(cache).problem is None
    (repo.trees / f"{repo.latest}.json").unlink()
    value = check(cache)
    assert value.problem is None
    assert [one.path for one in value.unverifiable] == [str(renamed)]


def test_a_header_that_makes_no_sense_is_damage_where_no_hash_vouches_for_it(
    cache: CacheBuilder,
) -> None:
    cache.repo("org/odd").revision({"config.json": b"{}", WEIGHTS: b"not tensors"})
    vouched = check(cache)
    assert vouched.problem is None
    assert [one.code for one in vouched.findings] == ["unreadable-header"]
    cache.repo("org/copy").revision({"config.json": b"{}", WEIGHTS: b"x"}, link="move", tree=False)
    (damage,) = check(cache).damaged
    assert (damage.repo, damage.problem) == ("org/copy", "unreadable-header")


def test_content_in_the_shared_store_is_hashed_once_and_its_damage_reported_for_each_repo(
    cache: CacheBuilder,
) -> None:
    xet = {WEIGHTS: "ab" * 32}
    for name in ("org/one", "org/two"):
        content: dict[str, Content] = {"config.json": name.encode(), WEIGHTS: SAFETENSORS}
        cache.repo(name).revision(content, shared=[WEIGHTS], xet=xet)
    assert check(cache).checked == 3
    repo = cache.repo("org/one")
    repo.revision(
        {"config.json": b"org/one", WEIGHTS: SAFETENSORS}, xet=xet, refs=(), commit="a" * 40
    )
    repo.flipped_bit(WEIGHTS)
    damaged = check(cache).damaged
    assert [damage.repo for damage in damaged] == ["org/one", "org/two"]
    assert len({damage.actual for damage in damaged}) == 1


def test_a_shared_blob_that_no_repo_names_cannot_be_judged(cache: CacheBuilder) -> None:
    repo = cache.repo("org/one")
    repo.revision({"config.json": b"{}", WEIGHTS: SAFETENSORS}, shared=[WEIGHTS])
    shared = repo.blob(WEIGHTS).resolve()
    repo.blob(WEIGHTS).unlink()
    assert [one.path for one in check(cache).unverifiable] == [str(shared)]


def test_only_what_is_asked_for_is_read(cache: CacheBuilder, repo: CachedRepo) -> None:
    other = cache.repo("org/other")
    first = other.revision({"config.json": b"{}", "pytorch_model.bin": b"1"}, refs=())
    other.revision({"config.json": b"{}", "pytorch_model.bin": b"2"})
    repo.flipped_bit("weights.bin")
    assert check(cache, "org/other").problem is None
    assert check(cache, "org/name").problem is not None
    other.flipped_bit("pytorch_model.bin")
    assert check(cache, f"org/other@{first}").problem is None
    assert check(cache, "org/other@main").problem is not None


def test_what_is_missing_is_reported(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    repo.revision(FILES, downloaded=[WEIGHTS])
    value = check(cache)
    lost = ["config.json", "sub/other.safetensors", "weights.bin"]
    assert [(one.repo, one.file) for one in value.missing] == [("org/name", name) for name in lost]
    (absent,) = check(cache, "got_ocr").missing
    assert (absent.repo, absent.file) == ("stepfun-ai/GOT-OCR2_0", "*")
    with pytest.raises(UnknownModelError):
        check(cache, "org/nothing")


def test_a_first_download_in_progress_is_missing_and_not_damaged(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    commit = repo.revision(FILES, downloaded=[])
    (repo.snapshots / commit).rmdir()
    repo.snapshots.rmdir()
    repo.partial()
    value = check(cache)
    assert not value.damaged
    assert value.missing


def test_what_to_do_about_damage_is_a_command_that_repairs_it(cache: CacheBuilder) -> None:
    mine = Config("config.yaml", "--config", {"mine": ModelConfig("mine", "org/absent")}, Limits())
    session = Session(read_environment(), mine, CacheLocation(str(cache.root), "test"))
    error = verify(session, ["mine"]).problem
    assert error is not None
    assert error.hint == "fetch it: vlmcache pull org/absent --config config.yaml"

    data = cache.repo("org/data", "dataset")
    data.revision({"a.bin": b"data" * 1000})
    data.missing_blob("a.bin")
    found = verify(session)
    assert found.findings == ()
    error = found.problem
    assert error is not None
    again = "vlmcache verify --repair --config config.yaml"
    assert error.hint == f"'{again}' fetches what is bad, and only that"
    shown = status(session)
    remedies = [one.remedy for one in shown.findings if one.severity == "error"]
    assert remedies == ["vlmcache pull datasets/org/data --config config.yaml"]


def test_a_blob_of_a_length_that_no_listing_gives_is_damaged_without_being_read(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    os.truncate(repo.blob("weights.bin"), 1 << 40)
    repo.truncated_blob("config.json")
    value = check(cache)
    assert {damage.path: damage.problem for damage in value.damaged} == {
        str(repo.blob("weights.bin")): "oversized-blob",
        str(repo.blob("config.json")): "truncated-blob",
    }
    assert {damage.actual for damage in value.damaged} == {None}
    assert value.checked == 1


def test_a_copy_of_a_length_that_its_listing_does_not_give_is_not_read(
    cache: CacheBuilder,
) -> None:
    repo = cache.repo("org/copies")
    repo.revision(FILES, link="move")
    os.truncate(repo.pointer("weights.bin"), 1 << 40)
    (damage,) = check(cache).damaged
    assert (damage.path, damage.actual) == (str(repo.pointer("weights.bin")), None)


def test_a_blob_of_holes_that_no_listing_names_is_not_read(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    orphan = repo.orphan_blob(b"q")
    os.truncate(orphan, 1 << 40)
    value = check(cache)
    assert not value.damaged
    assert [one.path for one in value.unverifiable] == [str(orphan)]
    assert "holes" in value.unverifiable[0].reason
    assert value.checked == 3


@pytest.mark.parametrize("repairs", [True, False], ids=["repair", "verify"])
def test_what_was_swapped_while_it_ran_is_no_success(
    cache: CacheBuilder,
    repo: CachedRepo,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    repairs: bool,
) -> None:
    def swapped(cache_dir: str) -> CacheState:
        state = scan(cache_dir)
        repo.blobs.rename(tmp_path / "aside")
        repo.blobs.symlink_to(tmp_path / "aside")
        return state

    monkeypatch.setattr("vlmcache.commands.verify.verify.scan", swapped)
    monkeypatch.setattr("vlmcache.commands.verify.repair.scan", swapped)
    if repairs:
        location = CacheLocation(str(cache.root), "test")
        session = Session(read_environment(), shipped_config(), location)
        value: Verification = repair(session, options=VerifyOptions(dry_run=True))
    else:
        value = check(cache)
    assert len(value.unverifiable) == 3
    assert value.problem is not None
    assert value.problem.exit_code == ExitCode.PARTLY
    assert "could not be checked" in value.problem.message


def test_a_repair_that_could_not_check_all_says_so(cache: CacheBuilder, repo: CachedRepo) -> None:
    kept = repo.blob("weights.bin").rename(cache.root.parent / "kept")
    repo.blob("weights.bin").symlink_to(kept)
    location = CacheLocation(str(cache.root), "test")
    value = repair(Session(read_environment(), shipped_config(), location))
    assert value.problem is not None
    assert value.problem.exit_code == ExitCode.PARTLY
    assert "could not be checked" in value.problem.message
