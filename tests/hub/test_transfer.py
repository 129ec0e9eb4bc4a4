"""What arrives is correct, whatever happens on the way, and little is sent twice."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, fingerprint
from tests.kit.contents import Content
from tests.kit.hub import (
    Fault,
    LoopbackHub,
    Synthetic,
    cut,
    expired,
    hang,
    html,
    no_sizes,
    rate_limited,
    redirect_loop,
    reset,
    short,
    slow,
    status,
    wrong_bytes,
    wrong_etag,
)
from tests.kit.pulls import REPO, Listener, config, environment, expected, fetches, lies, pull
from vlmcache.change import partials
from vlmcache.commands.pull.plan import FileSelection
from vlmcache.commands.pull.pull import pull as run_pull
from vlmcache.commands.pull.values import PullOptions
from vlmcache.config import CacheLocation, Session
from vlmcache.errors import ExitCode
from vlmcache.hub.retry import Patience

SIZE = 1_000_000
WEIGHTS = "model.safetensors"
FILES: dict[str, Content] = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    WEIGHTS: Synthetic(SIZE, 3),
    "sub/folder/notes.txt": b"",
    "tokenizer.json": b"{}" * 3000,
    "vocab.json": b"{}" * 3000,
}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


def assert_right(cache: Path, tmp_path: Path) -> None:
    assert fingerprint(cache) == expected(tmp_path / "expected", FILES)


@pytest.mark.parametrize("redirect", ["other-host", "same-host", "none"])
@pytest.mark.parametrize("page_size", [2, 1000])
def test_a_pull_leaves_exactly_what_the_client_leaves(
    tmp_path: Path, redirect: str, page_size: int
) -> None:
    with LoopbackHub(redirect=redirect, page_size=page_size) as hub:  # type: ignore[arg-type]
        hub.add_repo(REPO).commit(FILES)
        run = pull(hub, tmp_path / "cache")
    assert run.problem is None
    assert run.models[0].state == "pulled"
    assert run.receipt is not None
    # Two files share their content, and an empty one needs no transfer.
    distinct = SIZE + 6000 + len(FILES["config.json"])  # type: ignore[arg-type]
    assert run.receipt.fetched == distinct
    assert_right(tmp_path / "cache", tmp_path)


SOME_TROUBLE = {
    "wrong bytes once": [wrong_bytes(SIZE // 2)],
    "wrong bytes twice": [wrong_bytes(SIZE // 2), wrong_bytes(0)],
    "reset before headers": [reset()],
    "reset in the body": [reset(after=SIZE // 3)],
    "hang before headers": [hang()],
    "hang in the body": [hang(after=SIZE // 3)],
    "no sizes": [no_sizes().on(times=None)],
    "short without a size": [short(SIZE // 2)],
    "limited": [rate_limited(0, header="Retry-After"), rate_limited(0)],
    "down": [status(503, retry_after=0), status(500), status(502)],
    "expired address": [expired()],
    "page of a portal": [html()],
    "wrong etag in the headers": [wrong_etag().on(times=None)],
    "cut again and again": [cut(SIZE // 10).on(times=8)],
}


@pytest.mark.parametrize("trouble", SOME_TROUBLE)
def test_trouble_that_passes_ends_in_the_right_cache(
    hub: LoopbackHub, tmp_path: Path, trouble: str
) -> None:
    for fault in SOME_TROUBLE[trouble]:
        hub.fault(fault.on(WEIGHTS, times=fault.times))
    run = pull(hub, tmp_path / "cache")
    assert run.problem is None
    assert_right(tmp_path / "cache", tmp_path)


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_cut_costs_nothing_that_had_arrived(hub: LoopbackHub, tmp_path: Path, tenth: int) -> None:
    hub.fault(cut(SIZE * tenth // 10).on(WEIGHTS))
    assert pull(hub, tmp_path / "cache").problem is None
    assert hub.bytes_sent(WEIGHTS) == SIZE
    assert_right(tmp_path / "cache", tmp_path)


def test_a_pull_after_one_that_gave_up_continues_its_partial(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(cut(SIZE * 6 // 10).on(WEIGHTS))
    hub.fault(status(503).on(WEIGHTS, times=4, skip=2))
    first = pull(hub, tmp_path / "cache")
    assert first.problem is not None
    assert first.problem.exit_code == ExitCode.HUB
    assert lies(tmp_path / "cache") == []
    assert not (tmp_path / "cache/models--org--name/refs").exists()
    hub.clear_requests()
    planned = pull(hub, tmp_path / "cache", dry_run=True)
    assert fetches(planned)[WEIGHTS].have == SIZE * 6 // 10
    second = pull(hub, tmp_path / "cache")
    assert second.problem is None
    assert hub.bytes_sent(WEIGHTS) == SIZE * 4 // 10
    assert_right(tmp_path / "cache", tmp_path)


def test_a_server_without_ranges_sends_all_again_and_the_file_is_right(tmp_path: Path) -> None:
    with LoopbackHub(support_ranges=False) as hub:
        hub.add_repo(REPO).commit(FILES)
        hub.fault(cut(SIZE // 2).on(WEIGHTS))
        assert pull(hub, tmp_path / "cache").problem is None
        assert hub.bytes_sent(WEIGHTS) == SIZE + SIZE // 2
    assert_right(tmp_path / "cache", tmp_path)


def test_bytes_that_stay_wrong_are_fetched_three_times_and_never_published(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(wrong_bytes(17).on(WEIGHTS, times=None))
    listener = Listener()
    run = pull(hub, tmp_path / "cache", progress=listener)
    assert run.problem is not None
    assert (run.problem.code, run.problem.exit_code) == ("wrong-bytes", ExitCode.FAILED)
    assert hub.bytes_sent(WEIGHTS) == 3 * SIZE
    assert len(listener.notes) == 3
    repo = tmp_path / "cache/models--org--name"
    assert not (repo / "refs").exists()
    etag = hashlib.sha256(b"".join(Synthetic(SIZE, 3).blocks())).hexdigest()
    assert not list(repo.glob(f"blobs/{etag}*"))
    assert lies(tmp_path / "cache") == []
    # What was right is kept, and only the rest is fetched once the hub is well again.
    hub.clear_faults()
    hub.clear_requests()
    assert pull(hub, tmp_path / "cache").problem is None
    assert hub.bytes_sent() == SIZE
    assert_right(tmp_path / "cache", tmp_path)


def test_a_partial_that_is_wrong_costs_one_new_start(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = CacheBuilder(tmp_path / "cache").repo(REPO)
    etag = hub._repos["model", REPO].file(WEIGHTS).etag
    repo.partial(etag, data=b"z" * (SIZE // 2), old_style=True)
    run = pull(hub, tmp_path / "cache")
    assert run.problem is None
    assert hub.bytes_sent(WEIGHTS) == SIZE + SIZE // 2
    assert_right(tmp_path / "cache", tmp_path)


def test_a_partial_of_the_client_is_continued(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "_boot_time", float)
    repo = CacheBuilder(tmp_path / "cache").repo(REPO)
    file = hub._repos["model", REPO].file(WEIGHTS)
    client = repo.partial(file.etag, data=file.read()[: SIZE // 2], age=7200)
    assert fetches(pull(hub, tmp_path / "cache", dry_run=True))[WEIGHTS].have == SIZE // 2
    assert pull(hub, tmp_path / "cache").problem is None
    assert hub.bytes_sent(WEIGHTS) == SIZE - SIZE // 2
    client.unlink()
    assert_right(tmp_path / "cache", tmp_path)


@pytest.mark.parametrize("kind", ["sparse", "too long", "empty"])
def test_a_partial_that_cannot_be_a_beginning_is_not_counted(
    hub: LoopbackHub, tmp_path: Path, kind: str
) -> None:
    repo = CacheBuilder(tmp_path / "cache").repo(REPO)
    etag = hub._repos["model", REPO].file(WEIGHTS).etag
    size = {"sparse": SIZE // 2, "too long": SIZE + 1, "empty": 0}[kind]
    partial = repo.partial(etag, size=size, sparse=kind == "sparse", age=7200)
    plan = pull(hub, tmp_path / "cache", dry_run=True)
    assert fetches(plan)[WEIGHTS].have == 0
    assert pull(hub, tmp_path / "cache").problem is None
    assert hub.bytes_sent(WEIGHTS) == SIZE
    # It is not ours to remove: `clean` knows when it is stale.
    assert partial.exists()


def test_what_was_written_before_the_machine_went_down_is_trusted_but_for_the_last_parts(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "SYNC_EVERY", SIZE // 10)
    repo = CacheBuilder(tmp_path / "cache").repo(REPO)
    file = hub._repos["model", REPO].file(WEIGHTS)
    torn = file.read()[: SIZE // 2] + b"\0" * (SIZE // 20)
    repo.partial(file.etag, data=torn, old_style=True, age=10)
    monkeypatch.setattr(partials, "_boot_time", time.time)
    assert pull(hub, tmp_path / "cache").problem is None
    assert hub.bytes_sent(WEIGHTS) == SIZE * 7 // 10
    assert_right(tmp_path / "cache", tmp_path)


LASTING_TROUBLE: dict[str, tuple[Fault, ExitCode]] = {
    "hang": (hang(), ExitCode.HUB),
    "hang in the body at its start": (hang(after=0), ExitCode.HUB),
    "reset": (reset(), ExitCode.HUB),
    "down": (status(503), ExitCode.HUB),
    "forbidden": (status(403), ExitCode.HUB),
    "gone": (status(404), ExitCode.HUB),
    "portal": (html(), ExitCode.HUB),
    "circle": (redirect_loop(), ExitCode.HUB),
}


@pytest.mark.parametrize("trouble", LASTING_TROUBLE)
def test_trouble_that_stays_ends_soon_with_its_exit_code_and_no_lie(
    hub: LoopbackHub, tmp_path: Path, trouble: str
) -> None:
    fault, exit_code = LASTING_TROUBLE[trouble]
    hub.fault(fault.on(WEIGHTS, host="cdn", times=None))
    quick = Patience(attempts=2, asks=2, first_wait=0.01, answer_timeout=0.5, data_timeout=0.3)
    run = pull(hub, tmp_path / "cache", patience=quick)
    assert run.problem is not None
    assert run.problem.exit_code == exit_code
    assert lies(tmp_path / "cache") == []
    hub.clear_faults()
    assert pull(hub, tmp_path / "cache").problem is None
    assert_right(tmp_path / "cache", tmp_path)


def test_the_hub_says_how_long_to_wait_and_is_obeyed(hub: LoopbackHub, tmp_path: Path) -> None:
    for header in ("Retry-After", "RateLimit"):
        hub.fault(rate_limited(1, header=header).on("/revision/"))
    started = time.monotonic()
    assert pull(hub, tmp_path / "cache").problem is None
    assert time.monotonic() - started >= 2.0


def test_a_wait_that_is_too_long_is_refused_immediately(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(rate_limited(100_000).on("/revision/", times=None))
    run = pull(hub, tmp_path / "cache")
    assert run.problem is not None
    assert run.problem.exit_code == ExitCode.HUB


def test_the_token_goes_to_the_hub_and_to_no_other_host(tmp_path: Path) -> None:
    with LoopbackHub(redirect="other-host") as hub:
        hub.accept_token("hf_secret")
        hub.add_repo(REPO, private=True).commit(FILES)
        assert pull(hub, tmp_path / "cache", token="hf_secret").problem is None
        assert all(asked.authorization == (asked.host == "hub") for asked in hub.requests)
        assert {asked.host for asked in hub.requests} == {"hub", "cdn"}


def test_the_rate_is_kept_by_all_files_together(hub: LoopbackHub, tmp_path: Path) -> None:
    started = time.monotonic()
    assert pull(hub, tmp_path / "cache", limit_rate=SIZE // 2).problem is None
    assert time.monotonic() - started > 1.5


def test_progress_never_passes_the_size_and_ends_there(hub: LoopbackHub, tmp_path: Path) -> None:
    listener = Listener()
    hub.fault(cut(SIZE // 2).on(WEIGHTS))
    assert pull(hub, tmp_path / "cache", progress=listener).problem is None
    positions = [position for file, position in listener.positions if file == WEIGHTS]
    assert positions == sorted(positions)
    assert positions[-1] == SIZE


def test_without_links_files_are_put_where_the_client_puts_them(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True, raising=False)
    assert pull(hub, tmp_path / "cache").problem is None
    snapshot = next((tmp_path / "cache/models--org--name/snapshots").iterdir())
    assert not any(path.is_symlink() for path in snapshot.rglob("*"))
    for name in ("tokenizer.json", "vocab.json"):
        assert (snapshot / name).read_bytes() == b"{}" * 3000
    assert not any((tmp_path / "cache/models--org--name/blobs").iterdir())
    again = pull(hub, tmp_path / "cache")
    assert again.models[0].state == "cached"


def test_modes_follow_the_umask_as_the_clients_do(hub: LoopbackHub, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert pull(hub, tmp_path / "cache").problem is None
    finally:
        os.umask(before)
    blobs = list((tmp_path / "cache/models--org--name/blobs").iterdir())
    assert {blob.stat().st_mode & 0o777 for blob in blobs} == {0o600}


def test_a_slow_hub_does_not_count_as_hanging(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(slow(SIZE * 2).on(WEIGHTS))
    assert pull(hub, tmp_path / "cache").problem is None


def test_a_hub_that_sends_no_parts_of_a_file_is_asked_for_all_of_it(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(cut(SIZE // 2).on(WEIGHTS))
    hub.fault(status(416).on(WEIGHTS, host="cdn", skip=1, times=1))
    assert pull(hub, tmp_path / "cache").problem is None
    assert_right(tmp_path / "cache", tmp_path)


def test_a_file_that_is_refused_once_is_asked_for_again(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(status(403).on(WEIGHTS, host="hub", times=1))
    assert pull(hub, tmp_path / "cache").problem is None


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        (404, ExitCode.HUB, f"{REPO}: the hub lists {WEIGHTS} and refuses it"),
        (401, ExitCode.HUB, f"{REPO}: the hub lists {WEIGHTS} and refuses it"),
        (403, ExitCode.HUB, f"{REPO}: {WEIGHTS}: "),
    ],
)
def test_a_refusal_of_one_file_names_the_repo_and_the_file(
    hub: LoopbackHub, tmp_path: Path, code: int, exit_code: ExitCode, words: str
) -> None:
    hub.fault(status(code).on(WEIGHTS, host="hub", times=None))
    error = pull(hub, tmp_path / "cache").problem
    assert error is not None
    assert error.exit_code == exit_code
    assert error.message.startswith(words)


def test_what_revisions_share_is_planned_and_counted_once(hub: LoopbackHub, tmp_path: Path) -> None:
    hub._repos["model", REPO].commit({**FILES, "config.json": b"{2}"}, "dev")
    run = pull(hub, tmp_path / "cache", REPO, f"{REPO}@dev")
    assert run.problem is None
    assert run.receipt is not None
    assert run.plan.needs == run.receipt.fetched


def test_a_cached_model_does_not_wait_for_a_hub_that_has_had_enough(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    assert pull(hub, tmp_path / "cache").problem is None
    hub.clear_requests()
    hub.fault(rate_limited(60, header="Retry-After").on(times=None))
    run = pull(hub, tmp_path / "cache", patience=Patience())
    assert run.problem is None
    assert len(hub.requests) <= 2, "it was waited and asked again"
    assert [finding.code for finding in run.findings] == ["hub-not-asked"]


@pytest.mark.parametrize("source", ["--cache-dir", "HF_HUB_CACHE"])
def test_the_command_that_continues_is_the_one_that_was_given(
    hub: LoopbackHub, tmp_path: Path, source: str
) -> None:
    cache = tmp_path / "my cache"
    hub.accept_token("hf_secret")

    class Impatient(Listener):
        def started(self, repo: str, sizes: Mapping[str, int], have: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        run_pull(
            Session(environment(hub, cache), config(), CacheLocation(str(cache), source)),
            [f"{REPO}@main"],
            PullOptions(FileSelection(include=("*.safetensors",)), token="hf_secret"),
            Impatient(),
        )
    given = f" --cache-dir '{cache}'" if source == "--cache-dir" else ""
    again = f"vlmcache pull {REPO}@main --include '*.safetensors'{given}"
    assert raised.value.args[0] == f"'{again}' continues from here"
