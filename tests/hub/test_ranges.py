"""One large file over several connections if one is slow: complete, correct, little sent twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.kit.caches import fingerprint
from tests.kit.commands import is_failure
from tests.kit.contents import Content
from tests.kit.hub import (
    Fault,
    LoopbackHub,
    Request,
    Synthetic,
    cut,
    expired,
    hang,
    html,
    no_range,
    no_sizes,
    rate_limited,
    reset,
    short,
    slow,
    status,
    wrong_bytes,
)
from tests.kit.pulls import (
    REPO,
    Listener,
    expected,
    lies,
    pull,
    small_config,
    variables,
)
from vlmcache.hub import ranges, transfer
from vlmcache.hub.ranges import Ranges, Rules, Spare

SIZE = 2_000_000
RATE = 2_000_000
WEIGHTS = "model.safetensors"
FILES: dict[str, Content] = {"config.json": b"{}", WEIGHTS: Synthetic(SIZE, 11)}
# However busy the machine is, a gain of 0 keeps connections that were once begun.
RULES = Rules(least=500_000, slow=20_000_000, watch=0.05, gain=0, piece=80_000, ahead=160_000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(ranges, "RULES", RULES)
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


def assert_right(cache: Path, tmp_path: Path) -> None:
    assert fingerprint(cache) == expected(tmp_path / "expected", FILES)


def sent(hub: LoopbackHub) -> list[Request]:
    """Return the requests that brought bytes of the large file."""
    return [asked for asked in hub.requests if asked.file == WEIGHTS and asked.status in (200, 206)]


@pytest.mark.parametrize("redirect", ["other-host", "same-host", "none"])
def test_a_slow_file_comes_over_several_connections_and_nothing_much_twice(
    hub: LoopbackHub, tmp_path: Path, redirect: str
) -> None:
    hub.redirect = redirect  # type: ignore[assignment]
    hub.fault(slow(RATE).on(WEIGHTS))
    listener = Listener()
    run = pull(hub, tmp_path / "cache", progress=listener)
    assert run.problem is None
    assert len(sent(hub)) > 10
    assert hub.bytes_sent(WEIGHTS) < 1.5 * SIZE
    assert run.receipt is not None
    # The hub does not count the step in which the first connection is closed.
    uncounted = RATE // 20
    assert SIZE <= run.receipt.fetched - len(b"{}") <= hub.bytes_sent(WEIGHTS) + uncounted
    positions = [position for file, position in listener.positions if file == WEIGHTS]
    assert positions == sorted(positions)
    assert positions[-1] == SIZE
    assert_right(tmp_path / "cache", tmp_path)


def test_pieces_are_asked_of_the_final_address_and_not_of_the_hub_each_time(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(slow(RATE).on(WEIGHTS))
    assert pull(hub, tmp_path / "cache").problem is None
    assert hub.count(contains=f"resolve/{hub._repos['model', REPO].find('main')}/{WEIGHTS}") == 1


def test_an_address_that_expires_is_renewed_and_the_pieces_continue(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(slow(RATE).on(WEIGHTS))
    hub.fault(expired().on(WEIGHTS, skip=8))
    assert pull(hub, tmp_path / "cache").problem is None
    refused = [number for number, asked in enumerate(hub.requests) if asked.status == 403]
    assert refused
    after = [asked for asked in hub.requests[refused[-1] :] if asked.status == 206]
    assert len(after) > 3
    assert all((asked.range or "").rpartition("-")[2] for asked in after), "not pieces any more"
    assert hub.bytes_sent(WEIGHTS) < 1.5 * SIZE
    assert_right(tmp_path / "cache", tmp_path)


@pytest.mark.parametrize("redirect", ["other-host", "same-host"])
def test_the_token_goes_to_no_foreign_host_with_pieces_either(
    hub: LoopbackHub, tmp_path: Path, redirect: str
) -> None:
    hub.redirect = redirect  # type: ignore[assignment]
    hub.accept_token("hf_secret")
    hub.add_repo("org/private", private=True).commit(FILES)
    hub.fault(slow(RATE).on(WEIGHTS))
    hub.fault(expired().on(WEIGHTS, skip=5))
    run = pull(hub, tmp_path / "cache", "org/private", token="hf_secret")
    assert run.problem is None
    assert len(sent(hub)) > 10
    assert all(asked.authorization == (asked.host == "hub") for asked in hub.requests)


def test_a_piece_that_holds_up_all_others_is_fetched_anew(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RULES", msgspec.structs.replace(RULES, lag=0.2))
    hub.fault(slow(1000).on(WEIGHTS, host="cdn", skip=3, times=1))
    hub.fault(slow(RATE).on(WEIGHTS))
    run = pull(hub, tmp_path / "cache")
    assert run.problem is None
    assert any(asked.bytes_sent < _length(asked) // 2 for asked in sent(hub)), "it was waited for"
    assert_right(tmp_path / "cache", tmp_path)


def _length(asked: Request) -> int:
    """Return how many bytes a piece was asked for; 0 for a request without an end."""
    start, _, end = (asked.range or "").removeprefix("bytes=").partition("-")
    return int(end) - int(start) + 1 if start and end else 0


# How much more than the file may be sent: pieces that were half there, what a busy machine lets the
# hub send before it closes a connection, and all again if need be.
ON_PIECES: dict[str, tuple[list[Fault], float]] = {
    "cut": ([cut(30_000).on(times=3)], 1.6),
    "cut at once": ([cut(0).on(times=3)], 1.6),
    "short without a size": ([short(30_000)], 1.6),
    "wrong bytes": ([wrong_bytes(SIZE // 2).on(times=1)], 2.8),
    "reset before headers": ([reset().on(times=2)], 1.6),
    "reset in the body": ([reset(after=30_000).on(times=2)], 1.6),
    "hang": ([hang(after=30_000)], 1.6),
    "expired": ([expired().on(times=3)], 1.6),
    "the whole file": ([no_range()], 2.8),
    "the whole file always": ([no_range().on(times=None)], 2.8),
    "limited": ([rate_limited(0).on(times=3)], 1.6),
    "down": ([status(503, retry_after=0).on(times=3)], 1.6),
    "forbidden": ([status(403).on(times=4)], 1.6),
    "page of a portal": ([html()], 1.6),
    "no sizes": ([no_sizes().on(times=None)], 1.6),
}


LATER = ("cut", "wrong bytes", "hang", "the whole file", "limited")


@pytest.mark.parametrize(
    ("trouble", "skip"), [(name, 1) for name in ON_PIECES] + [(name, 8) for name in LATER]
)
def test_trouble_with_pieces_ends_in_the_right_file(
    hub: LoopbackHub, tmp_path: Path, trouble: str, skip: int
) -> None:
    faults, most = ON_PIECES[trouble]
    hub.fault(slow(RATE).on(WEIGHTS))
    for fault in faults:
        # What has no effect on the first connection's answer needs not be kept from it.
        spared = skip - (fault.kind == "no_range")
        hub.fault(fault.on(WEIGHTS, host="cdn", times=fault.times, skip=spared))
    run = pull(hub, tmp_path / "cache")
    assert run.problem is None
    assert len(sent(hub)) > 1, "there were no pieces"
    assert hub.bytes_sent(WEIGHTS) < most * SIZE
    assert_right(tmp_path / "cache", tmp_path)


def test_a_hub_that_ignores_ranges_costs_the_first_connection_nothing(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(slow(RATE).on(WEIGHTS))
    hub.fault(no_range().on(WEIGHTS, times=None))
    assert pull(hub, tmp_path / "cache").problem is None
    assert sent(hub)[0].bytes_sent == SIZE
    assert len(sent(hub)) <= 1 + RULES.most
    assert_right(tmp_path / "cache", tmp_path)


def test_a_fast_hub_gets_one_connection(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RULES", msgspec.structs.replace(RULES, slow=RATE // 2))
    hub.fault(slow(30 * RATE).on(WEIGHTS))
    hub.add_repo(REPO).commit({"config.json": b"{}", WEIGHTS: Synthetic(12_000_000, 11)})
    assert pull(hub, tmp_path / "cache").problem is None
    assert len(sent(hub)) == 1


def test_no_more_connections_than_workers(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(slow(2 * RATE).on(WEIGHTS))
    assert pull(hub, tmp_path / "cache", max_workers=1).problem is None
    assert len(sent(hub)) == 1


def test_a_rate_that_one_connection_fills_gets_one(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RULES", msgspec.structs.replace(RULES, watch=0.4))
    hub.fault(slow(8 * RATE).on(WEIGHTS))
    assert pull(hub, tmp_path / "cache", limit_rate=RATE).problem is None
    assert len(sent(hub)) == 1


def test_connections_that_do_not_help_are_dropped(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RULES", msgspec.structs.replace(RULES, gain=1000.0))
    hub.fault(slow(RATE).on(WEIGHTS))
    assert pull(hub, tmp_path / "cache").problem is None
    streams = [asked for asked in sent(hub) if not (asked.range or "-").rpartition("-")[2]]
    assert len(streams) >= 2, "the single connection did not come back"
    assert hub.bytes_sent(WEIGHTS) < 1.5 * SIZE
    assert_right(tmp_path / "cache", tmp_path)


def test_what_waits_in_memory_is_bounded(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    class Watched(Ranges):
        def reached(self, position: int) -> bool:
            held.append(sum(piece.end - piece.first for piece in list(self._pieces)))
            return super().reached(position)

    monkeypatch.setattr(transfer, "Ranges", Watched)
    # The first connection is slow and the others are not: they could run far ahead.
    hub.fault(slow(RATE).on(WEIGHTS, host="cdn", times=1))
    assert pull(hub, tmp_path / "cache").problem is None
    assert 0 < max(held) <= RULES.most * RULES.ahead
    assert_right(tmp_path / "cache", tmp_path)


def test_spare_connections_are_lent_up_to_a_bound_and_come_back() -> None:
    spare = Spare(2)
    spare.add()
    assert spare.take(2) == 2
    assert spare.take(2) == 0
    spare.give_back()
    assert spare.take(2) == 1
    spare.give_back()
    spare.give_back()
    assert spare.take(9) == 3


CHILD = f"""
import sys
from vlmcache.hub import ranges
ranges.RULES = ranges.{RULES}
from vlmcache.cli.main import main
sys.exit(main())
"""


def start(hub: LoopbackHub, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, "pull", REPO],
        env=variables(hub, cache)
        | {"VLMCACHE_CONFIG": str(small_config(cache.parent)), "HF_HUB_DOWNLOAD_TIMEOUT": "300"},
        cwd=cache.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_pieces(hub: LoopbackHub, child: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 30
    while len(sent(hub)) < count and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert child.poll() is None, child.communicate()


def partial(cache: Path) -> bytes:
    (found,) = cache.glob("**/*.incomplete")
    return found.read_bytes()


def test_after_kill_9_amid_pieces_the_partial_is_a_beginning_and_is_continued(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    hub.fault(slow(RATE).on(WEIGHTS))
    with start(hub, cache) as child:
        wait_for_pieces(hub, child, 12)
        child.kill()
    kept = partial(cache)
    whole = b"".join(Synthetic(SIZE, 11).blocks())
    assert len(kept) > RULES.piece
    assert whole.startswith(kept)
    assert lies(cache) == []
    hub.clear_faults()
    hub.clear_requests()
    assert pull(hub, cache).problem is None
    assert SIZE - len(kept) <= hub.bytes_sent(WEIGHTS) < SIZE - len(kept) + 2 * RULES.piece
    assert_right(cache, tmp_path)


@pytest.mark.parametrize("hung", [False, True], ids=["slow", "hung"])
def test_an_interruption_amid_pieces_ends_at_once(
    hub: LoopbackHub, tmp_path: Path, hung: bool
) -> None:
    cache = tmp_path / "cache"
    hub.fault(slow(RATE).on(WEIGHTS))
    if hung:
        hub.fault(hang(after=30_000).on(WEIGHTS, host="cdn", skip=8, times=None))
    with start(hub, cache) as child:
        wait_for_pieces(hub, child, 12)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=20)
    assert child.returncode == 130
    assert is_failure(stderr)
    assert b"".join(Synthetic(SIZE, 11).blocks()).startswith(partial(cache))
