"""Odd answers about a file: what the hash can judge arrives, all else ends after a second try."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.kit.caches import CacheBuilder, fingerprint
from tests.kit.contents import Content
from tests.kit.faults import Length
from tests.kit.hub import (
    Fault,
    LoopbackHub,
    Synthetic,
    begins,
    coded,
    cut,
    expired,
    headers,
    html,
    no_range,
    no_sizes,
    redirect_loop,
    reset,
    status,
)
from tests.kit.pulls import QUICK, REPO, Listener, expected, lies, pull, vlmcache
from vlmcache.commands.pull.values import PullReport
from vlmcache.errors import BadAnswerError, ExitCode
from vlmcache.hub.answers import FileAnswer
from vlmcache.hub.retry import Backoff, Patience, TroubleError
from vlmcache.progress import StopToken

SIZE = 200_000
BEGUN = 150_000
WEIGHTS = "model.safetensors"
# Half of it compresses, so that an encoded body is shorter than the file.
DATA = b"".join(Synthetic(SIZE // 2, 4).blocks()) + bytes(SIZE // 2)
FILES: dict[str, Content] = {"config.json": b"{}", WEIGHTS: DATA}

NOTHING = ["identity", "Identity", "", "aws-chunked", "binary", "none, identity", "utf-8", "foo"]
READ = ["gzip", "deflate", "raw deflate", "gzip, gzip", "deflate, gzip"]
# header, body
CODINGS = [(label, "identity") for label in NOTHING] + [(coding, coding) for coding in READ]
CODINGS += [("GZIP", "gzip"), ("x-gzip", "gzip"), ("gzip, identity", "gzip"), ("gzip", "identity")]
ODD_LENGTHS: list[Length] = ["file", "chunks"]
LENGTHS: list[tuple[str, str, Length]] = [
    *((label, body, "right") for label, body in CODINGS),
    *((label, body, "none") for label, body in CODINGS if body != "identity" or label == "gzip"),
    *(
        (label, body, length)
        for label, body in [("Identity", "identity"), ("gzip", "gzip"), ("gzip", "identity")]
        for length in ODD_LENGTHS
    ),
]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


def begin(hub: LoopbackHub, cache: Path, data: bytes) -> Path:
    """Leave a partial of the weights that is ours."""
    etag = hub._repos["model", REPO].file(WEIGHTS).etag
    return CacheBuilder(cache).repo(REPO).partial(etag, data=data, old_style=True)


def asked(hub: LoopbackHub, host: str = "cdn") -> int:
    """Return how often the weights were asked for."""
    return sum(one.file == WEIGHTS and one.host == host for one in hub.requests)


def pull_begun(hub: LoopbackHub, tmp_path: Path, begun: int) -> PullReport:
    if begun:
        begin(hub, tmp_path / "cache", DATA[:begun])
    return pull(hub, tmp_path / "cache")


def assert_right(run: PullReport, tmp_path: Path) -> None:
    assert run.problem is None, run.problem
    assert fingerprint(tmp_path / "cache") == expected(tmp_path / "expected", FILES)


@pytest.mark.parametrize("begun", [0, BEGUN], ids=["all", "rest"])
@pytest.mark.parametrize(("label", "coding", "length"), LENGTHS)
def test_a_body_that_can_be_read_arrives_whatever_its_headers_say(
    hub: LoopbackHub, tmp_path: Path, label: str, coding: str, length: Length, begun: int
) -> None:
    label = label.removeprefix("raw ")
    hub.fault(coded(coding, label=label, length=length).on(WEIGHTS, host="cdn"))
    assert_right(pull_begun(hub, tmp_path, begun), tmp_path)


@pytest.mark.parametrize("begun", [0, BEGUN], ids=["all", "rest"])
@pytest.mark.parametrize("label", ["br", "zstd", "gzip, br"])
@pytest.mark.parametrize("length", ["right", "none"])
def test_a_coding_that_nobody_here_can_read_does_not_matter_if_the_body_has_none(
    hub: LoopbackHub, tmp_path: Path, label: str, length: Length, begun: int
) -> None:
    hub.fault(coded("identity", label=label, length=length).on(WEIGHTS, host="cdn"))
    assert_right(pull_begun(hub, tmp_path, begun), tmp_path)


@pytest.mark.parametrize("begun", [0, BEGUN], ids=["all", "rest"])
@pytest.mark.parametrize(
    ("label", "coding", "words"),
    [
        ("br", "junk", "a body in the coding br, which cannot be decoded"),
        ("zstd", "junk", "a body in the coding zstd, which cannot be decoded"),
        ("gzip, gzip, gzip", "gzip, gzip, gzip", "which cannot be decoded"),
        ("", "junk", "100,000 bytes instead of the 200,000 that are listed"),
        ("gzip", "junk", "a body that is not gzip although its header says so"),
        ("gzip", "bomb", "more than the 200,000 bytes that are listed"),
    ],
)
def test_a_body_that_cannot_be_the_file_is_refused_the_second_time_and_nothing_is_lost(
    hub: LoopbackHub, tmp_path: Path, label: str, coding: str, words: str, begun: int
) -> None:
    hub.fault(coded(coding, label=label).on(WEIGHTS, host="cdn"))
    run = pull_begun(hub, tmp_path, begun)
    assert run.problem is not None
    assert run.problem.exit_code == ExitCode.HUB
    assert words in run.problem.message
    # With a beginning, a part is asked for first.
    assert asked(hub) <= 2 + bool(begun) * 2
    if begun:
        kept = max(tmp_path.glob("cache/**/*.incomplete"), key=lambda path: path.stat().st_size)
        assert kept.read_bytes() == DATA[:begun]
    hub.clear_faults()
    assert_right(pull(hub, tmp_path / "cache"), tmp_path)


def test_what_decodes_to_much_more_than_the_file_takes_little_memory() -> None:
    import httpx2

    packed = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    bomb = b"".join([*(packed.compress(bytes(1_000_000)) for _ in range(100)), packed.flush()])
    library = SimpleNamespace(http=httpx2, session=httpx2.Client())
    given = {"Content-Encoding": "gzip"}
    response = SimpleNamespace(status_code=200, headers=httpx2.Headers(given), url="http://a/b")
    client: Any = SimpleNamespace(library=library)
    answer = FileAnswer(client, response, WEIGHTS, 3_000_000, 0)
    tracemalloc.start()
    try:
        for read, data in enumerate(answer.content(iter([bomb]))):
            assert len(data) <= 2_000_000
            if read > 10:
                break
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
        library.session.close()


ODD_PARTS: dict[str, tuple[list[Fault], int]] = {
    # what happens to answers -> how many bytes are sent for the last 50,000 of 200,000
    "no Content-Range": ([headers({"Content-Range": None})], 50_000),
    "no Content-Range and no length": ([headers({"Content-Range": None}), no_sizes()], SIZE),
    "another unit's spelling": ([headers({"Content-Range": "Bytes=150000-199999/200000"})], 50_000),
    "total not known": ([headers({"Content-Range": "bytes 150000-199999/*"})], 50_000),
    "another total": ([headers({"Content-Range": "bytes 150000-199999/300000"})], SIZE),
    "several parts": (
        [headers({"Content-Range": None, "Content-Type": "multipart/byteranges; boundary=x"})],
        SIZE,
    ),
    "begins before": ([begins(100_000)], 100_000),
    "begins at the start": ([begins(0)], SIZE),
    "begins behind": ([begins(180_000)], SIZE),
    "encoded part": ([coded("gzip")], SIZE),
    "part that says it is encoded": ([coded("identity", label="gzip")], 50_000),
    "all": ([no_range().on(times=None)], SIZE),
    "all without a length": ([no_range().on(times=None), no_sizes().on(times=None)], SIZE),
    "all, encoded": ([no_range().on(times=None), coded("gzip")], SIZE),
    "416 once": ([status(416)], 50_000),
    "416 for every part": ([status(416).on(times=2)], SIZE),
}


@pytest.mark.parametrize("odd", ODD_PARTS)
def test_an_odd_answer_to_a_request_for_a_part_costs_at_most_the_file_once(
    hub: LoopbackHub, tmp_path: Path, odd: str
) -> None:
    faults, most = ODD_PARTS[odd]
    partial = begin(hub, tmp_path / "cache", DATA[:BEGUN])
    before = partial.stat().st_ino
    for fault in faults:
        hub.fault(fault.on(WEIGHTS, host="cdn", times=fault.times))
    assert_right(pull(hub, tmp_path / "cache"), tmp_path)
    # A part that is not read is closed at once, and counts as sent.
    assert hub.bytes_sent(WEIGHTS) <= most + (SIZE - BEGUN if most == SIZE else 0)
    blob = next(tmp_path.glob(f"cache/**/blobs/{partial.name.partition('.')[0]}"))
    assert blob.stat().st_ino == before, "what was there was written again"


def page(kind: str | None, *, sized: bool) -> Fault:
    return html(kind=kind, sized=sized)


@pytest.mark.parametrize("kind", ["text/html", "TEXT/HTML; charset=utf-8", "text/plain", None])
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("begun", [0, BEGUN], ids=["all", "rest"])
def test_a_web_page_is_never_part_of_a_weight_file(
    hub: LoopbackHub, tmp_path: Path, kind: str | None, sized: bool, begun: int
) -> None:
    hub.fault(page(kind, sized=sized).on(WEIGHTS, host="cdn"))
    run = pull_begun(hub, tmp_path, begun)
    assert_right(run, tmp_path)
    pages = 80
    assert hub.bytes_sent(WEIGHTS) == SIZE - begun + pages


@pytest.mark.parametrize("kind", ["text/html", "text/plain"])
def test_web_pages_end_a_pull_at_the_second_one_and_leave_what_was_there(
    hub: LoopbackHub, tmp_path: Path, kind: str
) -> None:
    hub.fault(page(kind, sized=False).on(WEIGHTS, host="cdn", times=None))
    partial = begin(hub, tmp_path / "cache", DATA[:BEGUN])
    run = pull(hub, tmp_path / "cache")
    assert run.problem is not None
    assert "answered with a web page" in run.problem.message
    assert asked(hub) == 2
    assert partial.read_bytes() == DATA[:BEGUN]
    assert [path.name for path in tmp_path.glob("cache/**/*.incomplete")] == [partial.name]


def test_a_file_that_is_a_web_page_is_pulled_from_a_hub_that_gives_no_lengths(
    tmp_path: Path,
) -> None:
    files: dict[str, Content] = {
        "config.json": b"{}",
        "docs/index.html": b"<!DOCTYPE html><html>yes</html>",
        "README.md": b"<div align='center'>\n<h1>Name</h1></div>",
    }
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(files)
        hub.fault(no_sizes().on(times=None))
        hub.fault(headers({"Content-Type": "text/html"}))
        assert pull(hub, tmp_path / "cache").problem is None
    assert fingerprint(tmp_path / "cache") == expected(tmp_path / "expected", files)


PERMANENT: dict[str, tuple[Fault, str, int]] = {
    # fault, host -> requests
    **{f"{code} of a signed address": (status(code), "cdn", 2) for code in (400, 401, 404, 410)},
    "403 of the hub": (status(403), "hub", 2),
    "404 of the hub": (status(404), "hub", 1),
    "451 of the hub": (status(451), "hub", 1),
    "web page": (html(), "cdn", 2),
    "another length": (headers({"Content-Length": "77"}), "cdn", 2),
    "a length that is none": (headers({"Content-Length": "many"}), "cdn", 2),
    "an unknown framing": (headers({"Transfer-Encoding": "odd", "Content-Length": None}), "cdn", 2),
    "redirect loop": (redirect_loop(), "cdn", 38),
    "416 without a part": (status(416), "cdn", 2),
}
PASSING: dict[str, tuple[Fault, str]] = {
    **{f"{code}": (status(code), "cdn") for code in (408, 425, 429, 500, 502, 503, 504)},
    "403 of a signed address": (status(403), "cdn"),
    "expired address": (expired(), "cdn"),
    "reset": (reset(), "cdn"),
    "cut at once": (cut(0), "cdn"),
}


@pytest.mark.parametrize("kind", PERMANENT)
def test_a_failure_that_does_not_pass_is_final_at_the_second_time(
    hub: LoopbackHub, tmp_path: Path, kind: str
) -> None:
    fault, host, times = PERMANENT[kind]
    hub.fault(fault.on(WEIGHTS, host=host, times=None))  # type: ignore[arg-type]
    run = pull(hub, tmp_path / "cache")
    assert run.problem is not None
    assert run.problem.exit_code == ExitCode.HUB
    assert asked(hub, host) == times


@pytest.mark.parametrize("kind", PASSING)
def test_a_failure_that_may_pass_is_tried_as_often_as_patience_lasts(
    hub: LoopbackHub, tmp_path: Path, kind: str
) -> None:
    fault, host = PASSING[kind]
    hub.fault(fault.on(WEIGHTS, host=host, times=None))  # type: ignore[arg-type]
    assert pull(hub, tmp_path / "cache").problem is not None
    assert asked(hub, host) == QUICK.attempts
    hub.clear_faults()
    assert_right(pull(hub, tmp_path / "cache"), tmp_path)


def test_failures_that_differ_are_not_the_second_of_their_kind(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(html().on(WEIGHTS, host="cdn", times=1))
    hub.fault(status(404).on(WEIGHTS, host="cdn", times=1))
    hub.fault(coded("junk").on(WEIGHTS, host="cdn", times=1))
    assert_right(pull(hub, tmp_path / "cache"), tmp_path)


def test_what_fails_again_and_again_is_said_once(
    monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub, tmp_path: Path
) -> None:
    monkeypatch.setattr(StopToken, "sleep", lambda *_: None)
    hub.add_repo("org/two").commit({name: DATA[: 50_000 + n] for n, name in enumerate("abcd")})
    hub.fault(status(503).on(host="cdn", times=None))
    hub.fault(status(503).on("resolve", host="hub", times=None))
    listener = Listener()
    run = pull(hub, tmp_path / "cache", "org/two", patience=Patience(), progress=listener)
    assert run.problem is not None
    (said,) = [note for note in listener.notes if "503" in note]
    assert "; next try in " in said
    assert " more at most" in said


def test_a_failure_is_counted_anew_after_something_has_arrived() -> None:
    said: list[str] = []
    patience = Patience(first_wait=0.0)
    backoff = Backoff(patience, StopToken(), lambda what, _: said.append(what), 3)
    lasting = TroubleError(BadAnswerError("no hub"))
    backoff.failed(lasting)
    backoff.progressed()
    backoff.failed(lasting)
    with pytest.raises(BadAnswerError):
        backoff.failed(lasting)


def test_a_refused_download_of_the_command_ends_within_two_tries_in_one_line(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(coded("junk", label="br").on(WEIGHTS, host="cdn"))
    result = vlmcache(hub, tmp_path / "cache", "pull", REPO)
    assert result.returncode == ExitCode.HUB
    assert "which cannot be decoded" in result.stderr
    assert "next try" not in result.stderr
    assert lies(tmp_path / "cache") == []
