"""What is sent again is compared with what is there, and never costs a good beginning."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder, fingerprint
from tests.kit.contents import Content
from tests.kit.disks import small_filesystem
from tests.kit.hub import LoopbackHub, Synthetic, cut, html, no_parts, slow, status
from tests.kit.pulls import (
    QUICK,
    REPO,
    command,
    environment,
    expected,
    fetches,
    lies,
    pull,
    small_config,
    variables,
)
from vlmcache.cache import layout
from vlmcache.cache.scan import scan
from vlmcache.change import arriving
from vlmcache.change.tree import Tree
from vlmcache.commands.remove.clean import clean
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.config import CacheLocation, Config, Limits, Session

SIZE = 100_000
WEIGHTS = "model.safetensors"
DATA = b"".join(Synthetic(SIZE, 8).blocks())
FILES: dict[str, Content] = {"config.json": b"{}", WEIGHTS: DATA}
PAGE = 80
SERVERS = ["ranges", "no ranges", "416 once", "416 always", "page once"]
SENDS_AGAIN = ["no ranges", "416 always"]


@pytest.fixture(scope="module")
def shared_hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


def etag_of(hub: LoopbackHub) -> str:
    return hub._repos["model", REPO].file(WEIGHTS).etag


def begun(length: int, wrong_at: int | None) -> bytes:
    """Return a beginning of the file, longer than it if asked for, with a wrong byte or not."""
    data = bytearray((DATA + b"longer" * SIZE)[:length])
    if wrong_at is not None and wrong_at < length:
        data[wrong_at] ^= 0xFF
    return bytes(data)


def good_bytes(cache: Path) -> int:
    """Return how many bytes of the file's beginning are kept."""
    return max(
        (arriving._common_length(DATA, path.read_bytes()) for path in unfinished(cache)), default=0
    )


def unfinished(cache: Path) -> list[Path]:
    return sorted(cache.glob("**/*.incomplete"), key=lambda path: path.name.count("."))


def set_up(hub: LoopbackHub, server: str, cut_after: int | None) -> None:
    hub.clear_faults()
    hub.clear_requests()
    hub.support_ranges = server != "no ranges"
    match server:
        case "416 once" | "416 always":
            hub.fault(no_parts().on(WEIGHTS, host="cdn", times=1 if "once" in server else None))
        case "page once":
            hub.fault(html(sized=False).on(WEIGHTS, host="cdn"))
    if cut_after is not None:
        hub.fault(cut(cut_after).on(WEIGHTS, host="cdn"))


def most_bytes(server: str, length: int, wrong_at: int | None, cut_after: int | None) -> int:
    """Return how many bytes of the file a pull may need."""
    kept = length if length <= SIZE else 0
    wrong = wrong_at is not None and wrong_at < kept
    resumes = server not in SENDS_AGAIN
    most = PAGE if server == "page once" else 0
    if kept == SIZE:
        most += SIZE if wrong else 0
    elif resumes:
        most += SIZE - kept + (SIZE if wrong else 0)
    else:
        # All of it, once more after a connection that was cut; the 416 shows it early.
        most += SIZE
    return most + (min(cut_after, SIZE) if cut_after is not None and not resumes else 0)


@settings(max_examples=25, deadline=None)
@given(
    server=st.sampled_from(SERVERS),
    length=st.one_of(st.integers(0, SIZE + 10), st.sampled_from([0, 1, SIZE - 1, SIZE, SIZE + 1])),
    wrong_at=st.one_of(st.none(), st.integers(0, SIZE - 1)),
    cut_after=st.one_of(st.none(), st.integers(0, SIZE - 1)),
)
@example(server="416 always", length=SIZE // 2, wrong_at=None, cut_after=0)
def test_whatever_is_there_and_whatever_the_server_does_the_file_arrives(
    shared_hub: LoopbackHub, server: str, length: int, wrong_at: int | None, cut_after: int | None
) -> None:
    hub = shared_hub
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        data = begun(length, wrong_at)
        CacheBuilder(cache).repo(REPO).partial(etag_of(hub), data=data, old_style=True)
        set_up(hub, server, cut_after)
        assert pull(hub, cache).problem is None
        assert (cache / f"models--org--name/blobs/{etag_of(hub)}").read_bytes() == DATA
        assert unfinished(cache) == []
        assert hub.bytes_sent(WEIGHTS) <= most_bytes(server, length, wrong_at, cut_after)


@settings(max_examples=25, deadline=None)
@given(
    server=st.sampled_from(SERVERS),
    length=st.integers(0, SIZE),
    wrong_at=st.integers(0, SIZE - 1),
    cuts=st.lists(st.integers(0, SIZE - 1), min_size=2, max_size=2),
)
def test_a_pull_that_fails_leaves_no_fewer_good_bytes_than_it_found(
    shared_hub: LoopbackHub, server: str, length: int, wrong_at: int, cuts: list[int]
) -> None:
    hub = shared_hub
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        # What a server continues that is wrong is complete at once, and thrown away by its hash.
        data = begun(length, wrong_at if server in SENDS_AGAIN else None)
        CacheBuilder(cache).repo(REPO).partial(etag_of(hub), data=data, old_style=True)
        for cut_after in cuts:
            before = good_bytes(cache)
            set_up(hub, server, cut_after)
            hub.fault(status(503).on(WEIGHTS, host="cdn", times=None, skip=1))
            run = pull(hub, cache)
            if run.problem is None:
                return
            assert good_bytes(cache) >= before
            assert lies(cache) == []
        set_up(hub, "ranges", None)
        assert pull(hub, cache).problem is None
        assert (cache / f"models--org--name/blobs/{etag_of(hub)}").read_bytes() == DATA


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(0, 600),
    wrong_at=st.one_of(st.none(), st.integers(0, 599)),
    answers=st.lists(
        st.tuples(
            st.integers(0, 600), st.one_of(st.none(), st.integers(0, 599)), st.integers(0, 600)
        ),
        max_size=6,
    ),
    step=st.integers(1, 300),
)
def test_the_longer_file_is_the_partial_and_never_gets_shorter(
    length: int,
    wrong_at: int | None,
    answers: list[tuple[int, int | None, int]],
    step: int,
) -> None:
    size, right = 600, DATA[:600]
    with tempfile.TemporaryDirectory() as folder:
        tree, path, etag = Tree(folder), Path(folder, f"{'a' * 64}.incomplete"), "a" * 64
        path.write_bytes(begun(length, wrong_at))
        for start, other_at, stop in answers:
            sent = bytearray(right)
            if other_at is not None:
                sent[other_at] ^= 0xFF
            before = path.stat().st_size
            blob = arriving.ArrivingBlob(tree, str(path), etag, size, lambda _: None)
            with blob.opened(lambda: None) as position:
                start = min(start, position)
                blob.follow(start)
                for at in range(start, stop, step):
                    blob.add(bytes(sent[at : min(at + step, stop)]))
                on_disk = max((file.read_bytes() for file in Path(folder).iterdir()), key=len)
                assert len(on_disk) >= before, "what a kill leaves now is shorter"
                blob.fall_back()
                assert blob.position == path.stat().st_size >= before
                blob.resume(blob.position, lambda: None)
                kept = blob.hash
            assert kept == hash_of(path, size)


def hash_of(path: Path, size: int) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_difference_costs_nothing_until_what_arrives_is_longer(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    old = begun(80_000, 30_000)
    partial = repo.partial(etag_of(hub), data=old, old_style=True)
    second = partial.with_name(etag_of(hub) + layout.SECOND_PARTIAL)
    hub.support_ranges = False
    hub.fault(cut(60_000).on(WEIGHTS, host="cdn", times=1))
    hub.fault(status(503).on(WEIGHTS, host="cdn", times=4, skip=1))
    assert pull(hub, cache).problem is not None
    assert partial.read_bytes() == old
    assert second.read_bytes() == DATA[:60_000]
    # `status` and `pull` know both for unfinished downloads, and count the longer one.
    found = scan(str(cache)).repos[0]
    assert [one.etag for one in found.partials] == [etag_of(hub)] * 2
    assert fetches(pull(hub, cache, dry_run=True))[WEIGHTS].have == 80_000
    # The bytes of the second file are compared too, and not written again.
    inode = second.stat().st_ino
    hub.clear_faults()
    assert pull(hub, cache).problem is None
    assert (repo.blobs / etag_of(hub)).stat().st_ino == inode
    assert fingerprint(cache) == expected(tmp_path / "expected", FILES)


def test_a_second_file_that_is_a_link_is_not_written_through(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    partial = repo.partial(etag_of(hub), data=begun(80_000, 30_000), old_style=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious" * 50_000)
    partial.with_name(etag_of(hub) + layout.SECOND_PARTIAL).symlink_to(victim)
    hub.support_ranges = False
    assert pull(hub, cache).problem is None
    assert victim.read_bytes() == b"precious" * 50_000
    assert fingerprint(cache) == expected(tmp_path / "expected", FILES)


def test_a_partial_that_turns_out_wrong_leaves_the_second_file_to_continue(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    partial = repo.partial(etag_of(hub), data=begun(80_000, 30_000), old_style=True)
    partial.with_name(etag_of(hub) + layout.SECOND_PARTIAL).write_bytes(DATA[:60_000])
    assert pull(hub, cache).problem is None
    assert hub.bytes_sent(WEIGHTS) == 20_000 + 40_000
    assert fingerprint(cache) == expected(tmp_path / "expected", FILES)


@pytest.mark.parametrize("seen", [True, False], ids=["known", "found out"])
def test_without_room_for_two_the_old_file_is_dropped_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    size = 4_000_000
    data = b"".join(Synthetic(size, 6).blocks())
    if not seen:
        # As where a quota counts, which no call shows before it is used up.
        monkeypatch.setattr(arriving.ArrivingBlob, "_has_room", lambda _: True)
    with LoopbackHub() as hub, small_filesystem(size + 1_500_000) as disk:
        hub.add_repo(REPO).commit({"config.json": b"{}", WEIGHTS: data})
        hub.support_ranges = False
        old = bytearray(data[: size * 9 // 10])
        old[size // 4] ^= 0xFF
        partial = CacheBuilder(disk / "cache").repo(REPO)
        partial.partial(etag_of(hub), data=bytes(old), old_style=True)
        assert pull(hub, disk / "cache").problem is None
        assert hub.bytes_sent(WEIGHTS) == size
        assert (disk / f"cache/models--org--name/blobs/{etag_of(hub)}").read_bytes() == data
        assert unfinished(disk / "cache") == []


def test_a_second_file_that_is_left_behind_is_stale_and_clean_removes_it(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    for number, suffix in enumerate([".incomplete", layout.SECOND_PARTIAL]):
        repo.partial(etag_of(hub), data=DATA[: 1000 + number], suffix=suffix, age=7200)
    assert [one.code for one in scan(str(cache)).all_findings() if "partial" in one.code] == [
        "stale-partial"
    ] * 2
    session = Session(
        environment(hub, cache),
        Config("config.yaml", "--config", {}, Limits()),
        CacheLocation(str(cache), "--cache-dir"),
    )
    clean(session, CleanOptions(partials=True))
    assert unfinished(cache) == []


@contextlib.contextmanager
def killed_once(hub: LoopbackHub, cache: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a pull and kill it at the end of the block."""
    with subprocess.Popen(
        command("pull", REPO),
        env=variables(hub, cache) | {"VLMCACHE_CONFIG": str(small_config(cache.parent))},
        cwd=cache.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def wait_for(path: Path, length: int, child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() or path.stat().st_size < length:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_kill_9_leaves_the_longer_file_and_what_arrived_beside_it(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    size = 4_000_000
    data = b"".join(Synthetic(size, 6).blocks())
    hub.add_repo(REPO).commit({"config.json": b"{}", WEIGHTS: data})
    cache = tmp_path / "cache"
    old = bytearray(data[: size // 2])
    old[size // 8] ^= 0xFF
    partial = CacheBuilder(cache).repo(REPO).partial(etag_of(hub), data=bytes(old), old_style=True)
    second = partial.with_name(etag_of(hub) + layout.SECOND_PARTIAL)
    hub.support_ranges = False
    hub.fault(slow(2_000_000).on(WEIGHTS))
    with killed_once(hub, cache) as child:
        wait_for(second, size // 4, child)
    assert partial.read_bytes() == old
    assert data.startswith(second.read_bytes())
    kept = second.stat()
    with killed_once(hub, cache) as child:
        wait_for(partial, size // 2 + 1, child)
    assert partial.stat().st_ino == kept.st_ino
    assert data.startswith(partial.read_bytes())
    assert not second.exists()
    assert lies(cache) == []
    hub.clear_faults()
    hub.support_ranges = True
    hub.clear_requests()
    rest = size - partial.stat().st_size
    assert pull(hub, cache).problem is None
    assert hub.bytes_sent(WEIGHTS) == rest
    assert (cache / f"models--org--name/blobs/{etag_of(hub)}").read_bytes() == data


def test_a_page_and_a_416_between_good_answers_cost_a_few_bytes(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    CacheBuilder(cache).repo(REPO).partial(etag_of(hub), data=DATA[:90_000], old_style=True)
    hub.fault(html(sized=False).on(WEIGHTS, host="cdn", times=1))
    hub.fault(no_parts().on(WEIGHTS, host="cdn", times=1))
    assert pull(hub, cache, patience=QUICK).problem is None
    assert hub.bytes_sent(WEIGHTS) == SIZE - 90_000 + PAGE
