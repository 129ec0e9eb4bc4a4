"""What other programs write into the cache is known as theirs, or left alone as unknown."""

from __future__ import annotations

import fcntl

import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated
from tests.kit.damages import FILES, WEIGHTS
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import REPO, fetches, pull
from vlmcache.cache import layout
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.commands.doctor.permissions import AccessEntry, entries

SUFFIXES = list(layout.OTHER_CLIENTS)
ETAG = "c" * 64


@pytest.fixture
def repo(cache: CacheBuilder) -> CachedRepo:
    repo = cache.repo(REPO)
    repo.revision(FILES)
    return repo


def looked(repo: CachedRepo) -> tuple[CacheState, Repo]:
    """Scan, and hold the scan against `du`."""
    state = scan(repo.cache.root)
    assert state.by_class.total == du_allocated(repo.cache.root)
    found = state.repo(REPO)
    assert found is not None
    return state, found


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("age", "code"), [(0, "live-partial"), (7200, "stale-partial")])
def test_an_unfinished_download_of_another_program_is_a_partial_of_that_program(
    repo: CachedRepo, suffix: str, age: float, code: str
) -> None:
    path = repo.partial(ETAG, size=9000, age=age, suffix=suffix)
    state, found = looked(repo)
    (partial,) = found.partials
    client = layout.OTHER_CLIENTS[suffix]
    assert (partial.path, partial.etag, partial.client) == (str(path), ETAG, client)
    assert state.by_class.partial == partial.allocated == path.stat().st_blocks * 512
    (finding,) = state.all_findings()
    assert (finding.code, finding.path) == (code, str(path))
    assert client in finding.detail
    assert "pull" not in (finding.remedy or "")
    assert set(found.blobs) == {one.name for one in repo.blobs.iterdir()} - {path.name}


@pytest.mark.parametrize("suffix", [".incomplete", *SUFFIXES])
def test_the_lock_that_other_clients_keep_beside_their_blob_is_honored(
    repo: CachedRepo, suffix: str
) -> None:
    repo.partial(ETAG, age=9000, suffix=suffix)
    lock = repo.blobs / f"{ETAG}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state, found = looked(repo)
        assert found.partials[0].locked
        assert {one.code for one in state.all_findings()} == {"live-partial"}
    assert not looked(repo)[1].partials[0].locked
    assert found.strays == ()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("age", [0, 7200, 90 * 86400])
def test_a_pull_neither_continues_nor_removes_what_another_program_downloads(
    cache: CacheBuilder, mending_hub: LoopbackHub, suffix: str, age: float
) -> None:
    repo = cache.repo(REPO)
    repo.revision(FILES)
    repo.missing_blob(WEIGHTS)
    data = FILES[WEIGHTS]
    assert isinstance(data, bytes)
    path = repo.partial(
        repo.file(WEIGHTS).etag, data=b"other bytes" + data[11:5000], age=age, suffix=suffix
    )
    before = path.stat()
    planned = pull(mending_hub, cache.root, dry_run=True)
    assert fetches(planned)[WEIGHTS].have == 0
    assert planned.plan.needs == len(data)
    assert pull(mending_hub, cache.root).problem is None
    assert mending_hub.bytes_sent() == len(data)
    assert repo.blob(WEIGHTS).read_bytes() == data
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )


UNKNOWN = [
    "notes.txt",
    "backup-of-weights",
    f"{'a' * 64}.aria2",
    f"{'a' * 64}.etag",
    f"{'a' * 40}.bak",
    "A" * 64,
    "a" * 63,
    "mine.incomplete",
    "mine.downloadInProgress",
    "tmp_model",
    "tmp-results.tmp",
    "tmpdata.tmp",
    ".mine.0123abcd.old",
    "tmp_------------------------------------",
]


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("link", [False, True])
def test_a_file_among_the_blobs_that_no_rule_knows_is_shown_as_foreign(
    repo: CachedRepo, name: str, link: bool
) -> None:
    path = repo.blobs / name
    if link:
        path.symlink_to("/nowhere/at/all")
    else:
        path.write_bytes(b"x" * 9000)
    state, found = looked(repo)
    (stray,) = found.strays
    assert (stray.path, stray.leftover) == (str(path), False)
    assert state.by_class.foreign == stray.allocated
    assert state.by_class.orphan == 0
    (finding,) = state.all_findings()
    assert (finding.code, finding.path, finding.remedy) == ("stray-file", str(path), None)


@pytest.mark.parametrize("folder", ["", "refs", "trees", "."])
@pytest.mark.parametrize("name", ["tmp-results.tmp", "notes.tmp", ".mine.0123abcd.old"])
def test_only_names_that_the_hubs_libraries_write_are_leftovers(
    repo: CachedRepo, folder: str, name: str
) -> None:
    place = repo.cache.root if folder == "." else repo.folder / folder
    (place / name).write_text("mine")
    state, found = looked(repo)
    assert not any(stray.leftover for stray in (*state.strays, *found.strays))


@pytest.mark.parametrize("name", ["main.0123abcd.tmp", f"tmp_{'0' * 8}-0000-0000-0000-{'0' * 12}"])
def test_a_folder_is_no_leftover_whatever_its_name(cache: CacheBuilder, name: str) -> None:
    (cache.root / name).mkdir()
    (stray,) = scan(cache.root).strays
    assert not stray.leftover


def test_a_blob_of_any_name_is_a_blob_if_a_snapshot_links_to_it(repo: CachedRepo) -> None:
    name = "5d41402abc4b2a76b9719d911017c592-3"
    (repo.blobs / name).write_bytes(b"of a mirror")
    repo.pointer("mirrored.txt").symlink_to(f"../../blobs/{name}")
    state, found = looked(repo)
    assert name in found.blobs
    assert found.strays == ()
    assert not list(state.all_findings())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_partial_of_another_program_is_not_taken_for_content_that_never_changes(
    repo: CachedRepo, suffix: str
) -> None:
    path = repo.partial(ETAG, suffix=suffix)
    found = [one for one in entries(str(repo.cache.root)) if isinstance(one, AccessEntry)]
    assert [one.kind for one in found if one.path == str(path)] == ["file"]
