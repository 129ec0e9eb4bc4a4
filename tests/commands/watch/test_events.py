"""The events between two states are what turns the one into the other."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder, CachedRepo, model_files
from vlmcache.cache.entries import STALE_AFTER
from vlmcache.cache.scan import scan
from vlmcache.cache.state import Blob, ByClass, CacheState, Partial, Repo, Revision
from vlmcache.commands.watch.events import Notifications, changes
from vlmcache.commands.watch.values import Event

FILES = model_files()
NOW = 1_800_000_000.0


@pytest.fixture
def repo(tmp_path: Path) -> CachedRepo:
    repo = CacheBuilder(tmp_path / "hub").repo("org/name")
    repo.revision(FILES)
    return repo


def happened(repo: CachedRepo, change: Callable[[], object]) -> tuple[Event, ...]:
    before = scan(repo.cache.root)
    change()
    return changes(before, scan(repo.cache.root))


def kinds(events: tuple[Event, ...]) -> list[str]:
    return [event.kind for event in events]


def test_nothing_happened_between_two_scans_of_the_same(repo: CachedRepo) -> None:
    repo.partial()
    assert happened(repo, lambda: None) == ()


def test_a_removed_repo_is_reported_with_the_bytes_it_had(repo: CachedRepo) -> None:
    size = scan(repo.cache.root).repos[0].size_on_disk
    (event,) = happened(repo, lambda: shutil.rmtree(repo.folder))
    assert (event.kind, event.repo, event.size) == ("removed", "org/name", size)


def test_a_new_repo_is_reported_as_revision_and_download(repo: CachedRepo) -> None:
    other = repo.cache.repo("org/other")
    events = happened(repo, lambda: other.revision({"config.json": b"{}", "a.bin": b"a" * 9}))
    assert kinds(events) == ["new-revision", "downloaded"]
    assert events[0].refs == ("main",)
    assert events[1].files == ("a.bin", "config.json")
    assert events[1].size == 11


def test_a_ref_that_moves_is_reported_as_a_new_revision(repo: CachedRepo) -> None:
    first = repo.latest
    second = repo.revision({**FILES, "config.json": b"{ }"})
    events = happened(repo, lambda: repo.ref("main", first))
    assert [(event.kind, event.revision) for event in events] == [("new-revision", first)]
    assert second != first


def test_a_removed_revision_is_reported_with_the_blobs_that_were_removed_with_it(
    repo: CachedRepo,
) -> None:
    commit = repo.revision({**FILES, "config.json": b"{ }" * 2000})
    blob = repo.blob("config.json")

    def remove() -> None:
        shutil.rmtree(repo.snapshots / commit)
        blob.unlink()
        repo.ref("main", next(iter(repo.revisions)))

    size = blob.stat().st_blocks * 512
    events = happened(repo, remove)
    assert ("removed", commit, size) in [
        (event.kind, event.revision, event.size) for event in events
    ]
    assert "damaged" not in kinds(events)


def test_a_lost_blob_is_reported_as_removed_and_as_damage(repo: CachedRepo) -> None:
    events = happened(repo, lambda: repo.missing_blob("model.safetensors"))
    assert kinds(events) == ["removed", "damaged"]
    assert events[0].files == ("model.safetensors",)
    assert events[1].path == str(repo.pointer("model.safetensors"))


def test_damage_is_reported_once(repo: CachedRepo) -> None:
    repo.truncated_blob("model.safetensors")
    assert happened(repo, repo.orphan_blob) != ()
    assert "damaged" not in kinds(happened(repo, repo.partial))


def test_a_repaired_blob_is_reported_as_downloaded(repo: CachedRepo) -> None:
    whole = repo.blob("model.safetensors").read_bytes()
    blob = repo.truncated_blob("model.safetensors")
    (event,) = happened(repo, lambda: blob.write_bytes(whole))
    assert (event.kind, event.files) == ("downloaded", ("model.safetensors",))


def test_the_beginning_of_a_first_download_is_no_damage(repo: CachedRepo) -> None:
    other = repo.cache.repo("org/other")

    def begin() -> None:
        other.ref("main", "a" * 40)

    assert happened(repo, begin) == ()


@pytest.mark.parametrize("lose", ["missing_snapshots", "empty_snapshot"])
def test_the_loss_of_snapshots_is_damage(repo: CachedRepo, lose: str) -> None:
    def change() -> None:
        if lose == "missing_snapshots":
            repo.missing_snapshots()
        else:
            repo.empty_snapshot(repo.latest)

    assert "damaged" in kinds(happened(repo, change))


def test_a_partial_is_reported_when_it_starts_grows_and_becomes_a_blob(repo: CachedRepo) -> None:
    repo.missing_blob("model.safetensors")
    etag = repo.file("model.safetensors").etag
    content = repo.file("model.safetensors").read()
    (started,) = happened(repo, lambda: repo.partial(etag, data=content[:500]))
    assert started.kind == "download-started"
    assert started.files == ("model.safetensors",)
    assert (started.size, started.expected_size) == (500, len(content))

    (grown,) = happened(repo, lambda: repo.partial(etag, data=content))
    assert (grown.kind, grown.size) == ("download-advanced", len(content))

    partial = repo.blobs / f"{etag}.00000000.incomplete"
    (done,) = happened(repo, lambda: partial.rename(repo.blobs / etag))
    assert (done.kind, done.files, done.size) == (
        "downloaded",
        ("model.safetensors",),
        len(content),
    )


def test_a_partial_that_vanishes_is_reported_as_removed(repo: CachedRepo) -> None:
    partial = repo.partial()
    (event,) = happened(repo, partial.unlink)
    assert (event.kind, event.path) == ("removed", str(partial))


def a_state(repos: tuple[Repo, ...], at: float = NOW) -> CacheState:
    return CacheState("/c", True, repos, {}, False, (), ByClass(), (), at)


def a_repo(
    blobs: dict[str, int] | None = None,
    partials: tuple[Partial, ...] = (),
    commits: tuple[str, ...] = (),
    name: str = "name",
) -> Repo:
    return Repo(
        f"org/{name}",
        "model",
        f"models--org--{name}",
        f"/c/models--org--{name}",
        {},
        tuple(Revision(commit, f"/c/{commit}", (), (), 0) for commit in commits),
        {key: Blob(1, 0, size, size, key, 1, 1, 0) for key, size in (blobs or {}).items()},
        partials,
        (),
        ByClass(referenced=sum((blobs or {}).values())),
        (),
    )


def a_partial(*, locked: bool, age: float = 0, size: int = 5) -> Partial:
    when = int((NOW - age) * 1e9)
    return Partial(7, when, size, size, "x.incomplete", "x", "/c/x.incomplete", locked)


def test_a_download_that_lost_its_lock_was_left_behind() -> None:
    before = a_state((a_repo(partials=(a_partial(locked=True),)),))
    after = a_state((a_repo(partials=(a_partial(locked=False, size=6),)),))
    assert kinds(changes(before, after)) == ["download-advanced", "download-left-behind"]


def test_a_download_that_nobody_locks_was_left_behind_when_it_is_stale() -> None:
    partial = a_partial(locked=False)
    before = a_state((a_repo(partials=(partial,)),), NOW + STALE_AFTER - 1)
    after = a_state((a_repo(partials=(partial,)),), NOW + STALE_AFTER + 1)
    assert kinds(changes(before, after)) == ["download-left-behind"]
    assert changes(after, msgspec.structs.replace(after, scanned_at=NOW + 9999)) == ()


NAMES = st.sampled_from(["a", "b", "c", "d"])
REPOS = st.builds(
    a_repo,
    blobs=st.dictionaries(NAMES, st.integers(0, 9), max_size=4),
    commits=st.lists(NAMES, unique=True, max_size=3).map(tuple),
)
STATES = st.dictionaries(NAMES, REPOS, max_size=4).map(
    lambda repos: a_state(
        tuple(
            msgspec.structs.replace(repo, id=f"org/{name}", folder=f"models--org--{name}")
            for name, repo in repos.items()
        )
    )
)


@given(STATES)
def test_equal_states_have_nothing_between_them(state: CacheState) -> None:
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=CacheState)
    assert changes(state, again) == ()


def repos_of(state: CacheState) -> dict[str, Repo]:
    return {repo.id: repo for repo in state.repos}


@given(STATES, STATES)
def test_applying_what_happened_to_the_repos_gives_the_later_ones(
    before: CacheState, after: CacheState
) -> None:
    old, new = repos_of(before), repos_of(after)
    commits = {(name, revision.commit) for name, repo in old.items() for revision in repo.revisions}
    blobs = {(name, blob) for name, repo in old.items() for blob in repo.blobs}
    for event in changes(before, after):
        name = event.repo or ""
        if event.kind == "new-revision":
            commits.add((name, event.revision or ""))
        elif event.kind == "downloaded":
            blobs |= {(name, file) for file in event.files}
        elif event.kind == "removed" and event.revision is not None:
            commits.remove((name, event.revision))
        elif event.kind == "removed" and event.files:
            blobs -= {(name, file) for file in event.files}
        elif event.kind == "removed":
            commits = {pair for pair in commits if pair[0] != name}
            blobs = {pair for pair in blobs if pair[0] != name}
    assert commits == {
        (name, revision.commit) for name, repo in new.items() for revision in repo.revisions
    }
    assert blobs == {(name, blob) for name, repo in new.items() for blob in repo.blobs}


@given(STATES, STATES)
def test_bytes_removed_are_those_that_are_no_longer_there(
    before: CacheState, after: CacheState
) -> None:
    old, new = repos_of(before), repos_of(after)
    gone = sum(
        blob.allocated
        for name, repo in old.items()
        for key, blob in repo.blobs.items()
        if name not in new or key not in new[name].blobs
    )
    removed = sum(event.size or 0 for event in changes(before, after) if event.kind == "removed")
    assert removed == gone


def test_the_filesystem_reports_which_entry_of_the_cache_changed(repo: CachedRepo) -> None:
    notifications = Notifications(str(repo.cache.root))
    try:
        assert notifications.take() == set()
        repo.partial()
        notifications.wake.settimeout(5)
        assert notifications.wake.recv(1) == b"\0"
        notifications.wake.setblocking(False)
        assert notifications.take() == {repo.folder.name}
    finally:
        notifications.close()
    assert not notifications.alive


def test_reading_the_cache_is_no_change_of_it(repo: CachedRepo) -> None:
    notifications = Notifications(str(repo.cache.root))
    try:
        scan(repo.cache.root)
        os.listdir(repo.blobs)
        time.sleep(0.6)
        assert notifications.take() == set()
    finally:
        notifications.close()
