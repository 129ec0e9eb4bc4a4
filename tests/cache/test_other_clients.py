"""What other programs write into the cache is known as theirs, or left alone as unknown."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated, fingerprint
from tests.kit.damages import FILES, WEIGHTS
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import REPO, fetches, pull
from vlmcache.cache import layout
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.change import partials
from vlmcache.commands.doctor.permissions import AccessEntry, entries

SUFFIXES = list(layout.OTHER_CLIENTS)
ETAG = "c" * 64
_CONTENT = FILES[WEIGHTS]
assert isinstance(_CONTENT, bytes)
DATA: bytes = _CONTENT


@pytest.fixture
def repo(cache: CacheBuilder) -> CachedRepo:
    repo = cache.repo(REPO)
    repo.revision(FILES)
    return repo


def scanned(repo: CachedRepo) -> tuple[CacheState, Repo]:
    """Scan a repo's cache, and compare its size with `du`."""
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
    state, found = scanned(repo)
    (partial,) = found.partials
    client = layout.OTHER_CLIENTS[suffix]
    assert (partial.path, partial.etag, partial.client) == (str(path), ETAG, client)
    assert state.by_class.partial == partial.allocated == path.stat().st_blocks * 512
    (finding,) = state.all_findings()
    assert (finding.code, finding.path) == (code, str(path))
    assert client in finding.detail
    assert "pull" not in (finding.remedy or "")
    assert set(found.blobs) == set(os.listdir(repo.blobs)) - {path.name}


@pytest.mark.parametrize("suffix", [".incomplete", *SUFFIXES])
def test_the_lock_that_other_clients_keep_next_to_their_blob_is_honored(
    repo: CachedRepo, suffix: str
) -> None:
    repo.partial(ETAG, age=9000, suffix=suffix)
    lock = repo.blobs / f"{ETAG}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state, found = scanned(repo)
        assert found.partials[0].locked
        assert {finding.code for finding in state.all_findings()} == {"live-partial"}
    assert not scanned(repo)[1].partials[0].locked
    assert found.strays == ()


BEGUN = [".0123abcd.incomplete", *SUFFIXES]
WRONG = b"other bytes"
"""In place of the first bytes of a file."""


@pytest.fixture
def missing(cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch) -> CachedRepo:
    """A repo whose weights are missing, on a machine that has been on all the time."""
    monkeypatch.setattr(partials, "_boot_time", float)
    repo = cache.repo(REPO)
    repo.revision(FILES)
    repo.missing_blob(WEIGHTS)
    return repo


def pulled(repo: CachedRepo, hub: LoopbackHub, partial: Path) -> tuple[int, int, int]:
    """Pull next to another program's partial; return what the plan credits, needs, and was sent."""
    before = fingerprint(partial.parent)[partial.name]
    state = partial.stat()
    planned = pull(hub, repo.cache.root, dry_run=True)
    assert pull(hub, repo.cache.root).problem is None
    assert repo.blob(WEIGHTS).read_bytes() == DATA
    assert partial.stat().st_ino == state.st_ino
    assert partial.stat().st_mtime_ns == state.st_mtime_ns
    assert fingerprint(partial.parent)[partial.name] == before
    assert not (partial.parent / f"{repo.file(WEIGHTS).etag}.incomplete").exists()
    return fetches(planned)[WEIGHTS].have, planned.plan.needs, hub.bytes_sent()


@pytest.mark.parametrize("suffix", BEGUN)
def test_a_pull_copies_what_another_program_left_behind_and_leaves_it_as_it_is(
    missing: CachedRepo, repair_hub: LoopbackHub, suffix: str
) -> None:
    path = missing.partial(missing.file(WEIGHTS).etag, data=DATA[:5000], age=7200, suffix=suffix)
    assert pulled(missing, repair_hub, path) == (5000, len(DATA), len(DATA) - 5000)


def test_the_longest_of_several_beginnings_is_copied(
    missing: CachedRepo, repair_hub: LoopbackHub
) -> None:
    etag = missing.file(WEIGHTS).etag
    for number, suffix in enumerate(BEGUN):
        missing.partial(etag, data=DATA[: 1000 * number], age=7200, suffix=suffix)
    longest = missing.partial(etag, data=DATA[:8000], age=7200, suffix=".76543210.incomplete")
    assert pulled(missing, repair_hub, longest)[2] == len(DATA) - 8000


@pytest.mark.parametrize("suffix", BEGUN)
def test_a_beginning_that_turns_out_wrong_costs_one_new_start(
    missing: CachedRepo, repair_hub: LoopbackHub, suffix: str
) -> None:
    wrong = WRONG + DATA[len(WRONG) : 5000]
    path = missing.partial(missing.file(WEIGHTS).etag, data=wrong, age=7200, suffix=suffix)
    assert pulled(missing, repair_hub, path)[2] == 2 * len(DATA) - 5000


@pytest.mark.parametrize("suffix", BEGUN)
@pytest.mark.parametrize("why", ["fresh", "holes", "longer", "empty"])
def test_a_partial_that_may_still_be_written_or_is_not_a_beginning_is_not_used(
    missing: CachedRepo, repair_hub: LoopbackHub, suffix: str, why: str
) -> None:
    data = {"longer": DATA + b"x", "empty": b""}.get(why, DATA[:5000])
    age = 60 if why == "fresh" else 7200
    path = missing.partial(missing.file(WEIGHTS).etag, data=data, age=age, suffix=suffix)
    if why == "holes":
        with path.open("r+b") as file:
            file.truncate(0)
            file.seek(len(DATA) - 4096)
            file.write(DATA[-4096:])
        os.utime(path, (1, 1))
    assert pulled(missing, repair_hub, path) == (0, len(DATA), len(DATA))


def test_a_partial_that_a_process_has_open_is_not_used(
    missing: CachedRepo, repair_hub: LoopbackHub
) -> None:
    path = missing.partial(
        missing.file(WEIGHTS).etag, data=DATA[:5000], age=7200, suffix=".downloadInProgress"
    )
    with path.open("ab") as file, subprocess.Popen(["sleep", "60"], stdin=file) as sleeper:
        assert pulled(missing, repair_hub, path)[2] == len(DATA)
        sleeper.kill()


def test_our_own_partial_is_continued_whatever_another_program_has(
    missing: CachedRepo, repair_hub: LoopbackHub
) -> None:
    etag = missing.file(WEIGHTS).etag
    missing.partial(etag, data=DATA[:2000], age=60, old_style=True)
    path = missing.partial(etag, data=DATA[:5000], age=7200, suffix=".sync.part")
    have, needs, sent = pulled(missing, repair_hub, path)
    assert (have, needs, sent) == (2000, len(DATA) - 2000, len(DATA) - 2000)


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
    state, found = scanned(repo)
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
    state, found = scanned(repo)
    assert not any(stray.leftover for stray in (*state.strays, *found.strays))


@pytest.mark.parametrize("name", ["main.0123abcd.tmp", f"tmp_{'0' * 8}-0000-0000-0000-{'0' * 12}"])
def test_a_folder_is_never_a_leftover_whatever_its_name(cache: CacheBuilder, name: str) -> None:
    (cache.root / name).mkdir()
    (stray,) = scan(cache.root).strays
    assert not stray.leftover


def test_a_blob_of_any_name_is_a_blob_if_a_snapshot_links_to_it(repo: CachedRepo) -> None:
    name = "5d41402abc4b2a76b9719d911017c592-3"
    (repo.blobs / name).write_bytes(b"of a mirror")
    repo.pointer("mirrored.txt").symlink_to(f"../../blobs/{name}")
    state, found = scanned(repo)
    assert name in found.blobs
    assert found.strays == ()
    assert not list(state.all_findings())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_partial_of_another_program_is_not_taken_for_content_that_never_changes(
    repo: CachedRepo, suffix: str
) -> None:
    path = repo.partial(ETAG, suffix=suffix)
    found = [entry for entry in entries(str(repo.cache.root)) if isinstance(entry, AccessEntry)]
    assert [entry.kind for entry in found if entry.path == str(path)] == ["file"]
