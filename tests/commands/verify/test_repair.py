"""`verify --repair` repairs every kind of damage with no more bytes than that takes."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.kit.caches import CacheBuilder, Entry, fingerprint
from tests.kit.contents import Content
from tests.kit.damages import FILES, GOOD, SEEN_BY_HASHING, SEEN_BY_LOOKING, SIZE, WEIGHTS
from tests.kit.disks import small_filesystem
from tests.kit.faulty import FAULTS, Fault, Subject, fault_name, try_every
from tests.kit.hub import LoopbackHub
from tests.kit.hub_process import Hub, HubProcess, served
from tests.kit.pulls import (
    QUICK,
    REPO,
    config,
    content,
    environment,
    expected,
    lies,
    pull,
    small_config,
    vlmcache,
)
from vlmcache.cache.scan import scan
from vlmcache.change.names import find_targets
from vlmcache.change.plan import Fetch
from vlmcache.change.tree import WAIT_SECONDS
from vlmcache.commands.verify.repair import repair
from vlmcache.commands.verify.values import RepairReport, VerifyOptions
from vlmcache.config import CacheLocation, Session, read_environment
from vlmcache.errors import ExitCode

DAMAGE = SEEN_BY_LOOKING | SEEN_BY_HASHING


def repaired(
    hub: Hub, cache: Path, variables: dict[str, str] | None = None, *, dry_run: bool = False
) -> RepairReport:
    where = environment(hub, cache)
    if variables:
        where = read_environment(where.variables | variables, str(cache.parent))
    location = CacheLocation(str(cache), "test")
    options = VerifyOptions(max_age=60.0, dry_run=dry_run)
    return repair(Session(where, config(), location), (), options, patience=QUICK)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_repaired_with_only_the_bytes_that_are_bad(
    repair_hub: LoopbackHub, tmp_path: Path, kind: str
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    repo.revision(FILES)
    right = fingerprint(cache)
    good = repo.blob(GOOD).stat()
    damage, size = DAMAGE[kind]
    damage(repo)
    planned = repaired(repair_hub, cache, dry_run=True)
    assert planned.receipt is None
    assert repair_hub.bytes_sent() == 0
    run = repaired(repair_hub, cache)
    assert run.problem is None
    assert run.plan == planned.plan
    assert run.receipt is not None
    assert run.receipt.fetched == repair_hub.bytes_sent() == size
    assert run.receipt.whole
    assert run.remaining == ()
    assert lies(cache) == []
    assert fingerprint(cache) == right
    after = repo.blob(GOOD).stat()
    assert (after.st_ino, after.st_mtime_ns) == (good.st_ino, good.st_mtime_ns)


def test_the_commit_stays_although_the_hub_has_a_newer_one(
    repair_hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    commit = repo.revision(FILES)
    repair_hub._repos["model", REPO].commit({**FILES, "config.json": b"{}"})
    repo.flipped_bit(WEIGHTS)
    repo.ref_with_newline()
    assert repaired(repair_hub, cache).problem is None
    assert (repo.refs / "main").read_text() == commit
    assert os.listdir(repo.snapshots) == [commit]


def test_a_blob_that_two_revisions_share_is_fetched_once(
    repair_hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    repo.revision(FILES, refs=())
    second: dict[str, Content] = {**FILES, "config.json": b"{}"}
    repair_hub._repos["model", REPO].commit(second)
    repo.revision(second)
    right = fingerprint(cache)
    repo.flipped_bit(WEIGHTS)
    run = repaired(repair_hub, cache)
    assert run.problem is None
    assert repair_hub.bytes_sent() == SIZE
    assert fingerprint(cache) == right


def test_bad_content_of_the_shared_store_is_repaired_for_every_repo_at_once(
    repair_hub: LoopbackHub, tmp_path: Path
) -> None:
    builder = CacheBuilder(tmp_path / "cache")
    for name in (REPO, "org/two"):
        if name != REPO:
            repair_hub.add_repo(name).commit(FILES)
        builder.repo(name).revision(FILES, shared=[WEIGHTS], xet={WEIGHTS: "ab" * 32})
    right = fingerprint(builder.root)
    repo = builder.repo(REPO)
    repo.revision(FILES, refs=(), commit="a" * 40, xet={WEIGHTS: "ab" * 32})
    snapshot = repo.snapshots / ("a" * 40)
    repo.flipped_bit(WEIGHTS)
    for path in (*snapshot.rglob("*"), repo.trees / f"{'a' * 40}.json"):
        if not path.is_dir() or path.is_symlink():
            path.unlink()
    (snapshot / "sub").rmdir()
    snapshot.rmdir()
    run = repaired(repair_hub, builder.root)
    assert run.problem is None
    assert repair_hub.bytes_sent() == SIZE
    assert fingerprint(builder.root) == right


def test_a_bad_blob_that_nothing_links_to_is_removed(
    repair_hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    repo.revision(FILES)
    good, bad = repo.orphan_blob(b"good"), repo.orphan_blob(b"bad!")
    bad.write_bytes(b"worse")
    run = repaired(repair_hub, cache)
    assert run.problem is None
    assert run.receipt is not None
    assert run.receipt.freed > 0
    assert good.exists()
    assert not bad.exists()


def test_a_held_lock_ends_a_repair_after_the_patience_of_every_command(
    repair_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, 0.1)
    waited = SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None)
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    repo.revision(FILES)
    DAMAGE[next(iter(SEEN_BY_HASHING))][0](repo)
    plan = repaired(repair_hub, cache, dry_run=True).plan
    assert plan is not None
    names = [action.etag for action in plan.actions if isinstance(action, Fetch)]
    assert len(names) == 1
    with repo._lock_file(names[0]).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr("vlmcache.change.locks.time", waited)
        problem = repaired(repair_hub, cache).problem
    assert problem is not None
    assert problem.exit_code == ExitCode.BUSY
    assert f"is held by process {os.getpid()} (" in problem.message
    assert WAIT_SECONDS <= next(clock) < WAIT_SECONDS + 2


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_it_says_what_it_would_need_and_changes_nothing(
    repair_hub: LoopbackHub, tmp_path: Path, switch: str
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    repo.revision(FILES)
    repo.flipped_bit(WEIGHTS)
    before = fingerprint(cache)
    run = repaired(repair_hub, cache, {switch: "1"})
    assert run.problem is not None
    assert run.problem.exit_code == ExitCode.HUB
    assert run.problem.message.startswith(f"{switch} is set: ")
    assert "20 kB" in run.problem.message
    assert WEIGHTS in run.problem.message
    assert run.problem.hint == f"unset {switch}, then repair again"
    assert run.plan is not None
    assert [type(action) for action in run.plan.actions] == [Fetch]
    assert fingerprint(cache) == before
    repo.flipped_bit(WEIGHTS)
    repo.dangling_link(WEIGHTS)
    assert repaired(repair_hub, cache, {switch: "1"}).problem is None


def test_offline_the_trash_is_not_emptied_for_a_repair(repair_hub: LoopbackHub) -> None:
    with small_filesystem(24_000_000) as disk:
        cache = CacheBuilder(disk / "hub")
        files: dict[str, Content] = {"config.json": b"{}", WEIGHTS: os.urandom(6_000_000)}
        repo = cache.repo(REPO)
        repo.revision(files)
        repo.flipped_bit(WEIGHTS)
        cache.repo("org/other").revision(files)
        small_config(disk).write_text("vlmcache: {min_free: 10MB}\n")
        kept = vlmcache(repair_hub, cache.root, "rm", "org/other", "--trash", "--yes")
        assert kept.returncode == 0, kept.stderr
        done = vlmcache(repair_hub, cache.root, "verify", "--repair", HF_HUB_OFFLINE="1")
        assert done.returncode == ExitCode.HUB, done.stderr
        undone = vlmcache(repair_hub, cache.root, "undo")
        assert undone.returncode == 0, undone.stderr


def test_what_the_hub_no_longer_has_is_reported_and_the_rest_is_repaired(
    repair_hub: LoopbackHub, tmp_path: Path
) -> None:
    builder = CacheBuilder(tmp_path / "cache")
    gone = builder.repo("org/gone")
    gone.revision(FILES)
    gone.flipped_bit(WEIGHTS)
    repo = builder.repo(REPO)
    repo.revision(FILES)
    repo.flipped_bit(WEIGHTS)
    run = repaired(repair_hub, builder.root)
    assert run.problem is not None
    assert run.remaining == (str(gone.blob(WEIGHTS)),)


SMALL: dict[str, Content] = {"config.json": b"{1}", WEIGHTS: b"weights" * 100}


@pytest.fixture(scope="module")
def served_hub() -> Iterator[HubProcess]:
    with served({REPO: SMALL}) as hub:
        yield hub


class Repair(Subject[RepairReport]):
    """A wrong blob, a dangling link and a ref with a newline are repaired."""

    command = "verify --repair"

    def __init__(self, hub: Hub, right: dict[str, Entry]) -> None:
        self.hub = hub
        self.right = right
        self.before: set[str] = set()

    def begin(self, place: Path) -> None:
        repo = CacheBuilder(place / "cache").repo(REPO)
        repo.revision(SMALL)
        repo.flipped_bit(WEIGHTS)
        repo.dangling_link("config.json")
        repo.ref_with_newline()
        self.before = set(lies(place / "cache"))

    def run(self, place: Path) -> RepairReport:
        return repaired(self.hub, place / "cache")

    def hold(self, place: Path, answer: RepairReport | None) -> None:
        assert set(lies(place / "cache")) <= self.before
        if answer is not None and answer.problem is None:
            assert content(place / "cache") == self.right
        if answer is not None and answer.problem is not None:
            assert "\n" not in answer.problem.message
            assert "internal" not in answer.problem.message

    def again(self, place: Path) -> None:
        assert self.run(place).problem is None
        assert content(place / "cache") == self.right


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_call_makes_nothing_worse_and_the_next_repair_finishes(
    served_hub: HubProcess, tmp_path: Path, fault: Fault
) -> None:
    expected(tmp_path / "right", SMALL)
    try_every(Repair(served_hub, content(tmp_path / "right")), fault, at_least=20)


@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("by", ["repair", "pull"])
def test_a_folder_in_place_of_a_link_is_removed_only_if_it_is_empty(
    repair_hub: LoopbackHub, tmp_path: Path, by: str, holds: bool
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    repo.revision(FILES)
    right = fingerprint(cache)
    pointer = repo.pointer(WEIGHTS)
    pointer.unlink()
    pointer.mkdir()
    if holds:
        (pointer / "mine.txt").write_text("somebody's")
    before = fingerprint(cache)
    error = (repaired if by == "repair" else pull)(repair_hub, cache).problem
    if not holds:
        assert error is None
        assert fingerprint(cache) == right
        return
    assert error is not None
    assert error.message.endswith(f"in the place of a file of the model: {pointer}")
    assert error.hint == "move that folder elsewhere, then run this again"
    assert (pointer / "mine.txt").read_text() == "somebody's"
    if by == "repair":
        assert fingerprint(cache) == before
        dry = repaired(repair_hub, cache, dry_run=True)
        assert dry.problem is not None
        assert dry.problem.message == error.message
    found = scan(cache)
    assert [
        (one.path, one.remedy) for one in found.all_findings() if one.code == "stray-folder"
    ] == [(str(pointer), "move that folder elsewhere, then pull the model again")]
    assert find_targets(found, config(), [str(pointer)])[0].stray is not None
