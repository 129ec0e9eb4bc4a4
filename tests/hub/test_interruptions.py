"""Killed, interrupted, crowded, out of space: the cache never lies, and the next pull finishes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.kit.caches import Entry, fingerprint
from tests.kit.commands import is_failure
from tests.kit.contents import Content
from tests.kit.disks import as_other_user, common_folder, read_only_view, small_filesystem
from tests.kit.hub import LoopbackHub, Synthetic, hang, slow
from tests.kit.pulls import (
    QUICK,
    REPO,
    Listener,
    command,
    expected,
    lies,
    pull,
    small_config,
    variables,
    vlmcache,
)
from vlmcache.cache import layout
from vlmcache.commands.pull import making_room
from vlmcache.errors import ExitCode

SIZE = 4_000_000
WEIGHTS = "model.safetensors"
FILES: dict[str, Content] = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    WEIGHTS: Synthetic(SIZE, 5),
    "sub/notes.txt": b"some notes",
    "tokenizer.json": b"{}" * 3000,
}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.send_buffer = 1 << 14
        hub.add_repo(REPO).commit(FILES)
        yield hub


def start(hub: LoopbackHub, cache: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("pull", *(arguments or (REPO,))),
        # A wait that ended by itself would look like an interruption that works.
        env=variables(hub, cache)
        | {"VLMCACHE_CONFIG": str(small_config(cache.parent)), "HF_HUB_DOWNLOAD_TIMEOUT": "300"},
        cwd=cache.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_client(hub: LoopbackHub, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [Path(sys.executable).with_name("hf"), "download", REPO],
        env=hub.environment(cache) | {"HF_HUB_DOWNLOAD_TIMEOUT": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_bytes(hub: LoopbackHub, count: int, child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while hub.bytes_sent(WEIGHTS) < count and child.poll() is None:
        assert time.monotonic() < deadline, "the child asks for nothing"
        time.sleep(0.002)


def without_temporaries(entries: dict[str, Entry]) -> dict[str, Entry]:
    # A lock file that was made just before the kill has no mode of its own yet.
    return {
        name: (*entry[:1], 0, *entry[2:]) if name.endswith(layout.LOCK_SUFFIX) else entry
        for name, entry in entries.items()
        if not layout.is_temporary(Path(name).name) and not name.endswith(".tmp")
    }


def test_kill_9_anywhere_costs_little_and_never_lies(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    rng = random.Random(20)
    hub.fault(slow(8_000_000).on(WEIGHTS))
    kills = 8
    for number in range(kills):
        with start(hub, cache) as child:
            if number % 2:
                # Somewhere in the start, the small files, the links.
                time.sleep(rng.uniform(0.25, 0.6))
            else:
                wait_for_bytes(hub, hub.bytes_sent(WEIGHTS) + rng.randrange(1, SIZE // 10), child)
            child.kill()
        assert lies(cache) == []
    hub.clear_faults()
    last = vlmcache(hub, cache, "pull", REPO)
    assert last.returncode == 0, last.stderr
    time.sleep(0.1)
    # What the hub counts as sent and the killed child had not yet read: two socket buffers.
    assert hub.bytes_sent(WEIGHTS) < SIZE + kills * 300_000
    whole = without_temporaries(expected(tmp_path / "expected", FILES))
    assert without_temporaries(fingerprint(cache)) == whole


def test_after_kill_9_at_60_percent_at_most_42_percent_is_sent_again(tmp_path: Path) -> None:
    size = 40_000_000
    cache = tmp_path / "cache"
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit({"config.json": b"{}", WEIGHTS: Synthetic(size)})
        hub.fault(slow(40_000_000).on(WEIGHTS))
        with start(hub, cache) as child:
            while sum(path.stat().st_size for path in cache.glob("**/*.incomplete")) < 0.6 * size:
                assert child.poll() is None
                time.sleep(0.005)
            child.kill()
        hub.clear_faults()
        time.sleep(0.2)
        hub.clear_requests()
        assert pull(hub, cache).problem is None
        assert hub.bytes_sent(WEIGHTS) <= 0.42 * size


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_an_interrupted_pull_ends_at_once_and_names_how_to_continue(
    hub: LoopbackHub, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    cache = tmp_path / "cache"
    hub.fault(slow(2_000_000).on(WEIGHTS))
    with start(hub, cache) as child:
        wait_for_bytes(hub, SIZE // 4, child)
        child.send_signal(number)
        _, stderr = child.communicate(timeout=20)
    assert child.returncode == exit_code
    assert is_failure(stderr)
    assert f"'vlmcache pull {REPO}' continues" in stderr
    assert len(list(cache.glob("**/*.incomplete"))) == 1
    assert lies(cache) == []
    hub.clear_faults()
    assert pull(hub, cache).problem is None
    assert hub.bytes_sent(WEIGHTS) < SIZE + 300_000


def test_an_interruption_ends_a_pull_that_the_hub_lets_hang(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(hang(after=SIZE // 2).on(WEIGHTS, times=None))
    with start(hub, tmp_path / "cache") as child:
        wait_for_bytes(hub, SIZE // 2, child)
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=20)
    assert child.returncode == 130


def test_two_pulls_and_a_client_beside_them_fetch_nothing_twice(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    waiting = threading.Event()
    hub.fault(hang(SIZE // 2, until=waiting).on(WEIGHTS))
    first = start(hub, cache)
    wait_for_bytes(hub, 1, first)
    client = start_client(hub, cache)
    second = start(hub, cache, "--json", REPO)
    assert second.stderr is not None
    said = ""
    while f"waiting for process {first.pid}" not in said:
        line = second.stderr.readline()
        assert line, said
        said += line
    waiting.set()
    outputs = [child.communicate(timeout=120) for child in (first, second, client)]
    assert [first.returncode, second.returncode, client.returncode] == [0, 0, 0], outputs
    assert hub.bytes_sent(WEIGHTS) == SIZE
    assert json.loads(outputs[1][0])["receipt"]["fetched"] == 0
    assert fingerprint(cache) == expected(tmp_path / "expected", FILES)


def test_a_pull_waits_for_the_client_that_was_first(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    waiting = threading.Event()

    class Waiting(Listener):
        def note(self, text: str) -> None:
            super().note(text)
            if f"waiting for process {client.pid}" in text:
                waiting.set()

    hub.fault(hang(SIZE // 2, until=waiting).on(WEIGHTS))
    client = start_client(hub, cache)
    wait_for_bytes(hub, 1, client)
    listener = Waiting()
    run = pull(hub, cache, progress=listener)
    client.communicate(timeout=120)
    assert run.problem is None
    assert hub.bytes_sent(WEIGHTS) == SIZE
    assert waiting.is_set(), listener.notes
    assert lies(cache) == []


def test_a_repo_removed_while_it_is_pulled_is_reported_and_the_next_pull_finishes(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    removed = threading.Event()

    def remove() -> None:
        while not any(path.stat().st_size for path in cache.glob("*/blobs/*.incomplete")):
            time.sleep(0.002)
        shutil.rmtree(cache / "models--org--name")
        removed.set()

    hub.fault(hang(SIZE // 2, until=removed).on(WEIGHTS))
    remover = threading.Thread(target=remove, daemon=True)
    remover.start()
    # One worker, so that nothing is made while all is removed.
    patience = msgspec.structs.replace(QUICK, data_timeout=300.0)
    run = pull(hub, cache, patience=patience, max_workers=1)
    remover.join()
    assert run.problem is not None
    assert "\n" not in run.problem.message
    assert lies(cache) == []
    hub.clear_faults()
    assert pull(hub, cache).problem is None
    assert fingerprint(cache) == expected(tmp_path / "expected", FILES)


def test_too_little_room_is_refused_before_the_first_byte(hub: LoopbackHub) -> None:
    with small_filesystem(SIZE + 2_000_000) as disk:
        run = pull(hub, disk / "cache", limits={"min_free": 3_000_000})
        assert run.problem is not None
        assert (run.problem.code, run.problem.exit_code) == ("no-space", ExitCode.SPACE)
        for number in ("4.1 MB", "3 MB", "6 MB", "1.1 MB"):
            assert number in run.problem.message
        assert hub.bytes_sent("model.safetensors") == 0
        assert not (disk / "cache").exists()
        assert run.receipt is not None
        assert (run.receipt.outcomes, run.receipt.freed, run.receipt.fetched) == ((), 0, 0)
        (model,) = run.models
        assert (model.state, model.error and model.error.code) == ("failed", "no-space")
        assert run.plan.needs > SIZE
        # What is there already is credited.
        assert pull(hub, disk / "cache").problem is None
        assert pull(hub, disk / "cache", limits={"min_free": 3_000_000}).problem is None


def test_a_disk_that_fills_up_keeps_what_came_and_the_rest_follows(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_filesystem(SIZE + 500_000) as disk:
        cache = disk / "cache"
        filler = disk / "filler"
        filler.write_bytes(b"x" * (SIZE // 2))
        monkeypatch.setattr(making_room, "find_shortage", lambda *_: None)
        run = pull(hub, cache)
        assert run.problem is not None
        assert run.problem.exit_code == ExitCode.SPACE
        assert "\n" not in run.problem.message
        assert "vlmcache status" in (run.problem.hint or "")
        assert f"vlmcache pull {REPO}" in (run.problem.hint or "")
        assert lies(cache) == []
        assert not list(cache.glob("**/refs/main"))
        kept = sum(path.stat().st_size for path in cache.glob("**/*.incomplete"))
        assert kept > SIZE // 4
        filler.unlink()
        hub.clear_requests()
        assert pull(hub, cache).problem is None
        assert hub.bytes_sent(WEIGHTS) == SIZE - kept
        assert fingerprint(cache) == expected(tmp_path / "expected", FILES)


def test_a_read_only_cache_serves_what_it_has_and_refuses_the_rest_in_one_line(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    with common_folder() as folder:
        assert pull(hub, folder).problem is None
        hub.add_repo("org/two").commit(FILES)
        before = fingerprint(folder)
        with read_only_view(folder) as view:
            assert pull(hub, view).models[0].state == "cached"
            run = pull(hub, view, "org/two")
        assert run.problem is not None
        assert run.problem.exit_code == ExitCode.FAILED
        assert "is read-only" in run.problem.message
        assert fingerprint(folder) == before


def test_another_users_cache_is_refused_in_one_line(hub: LoopbackHub, tmp_path: Path) -> None:
    with common_folder() as folder:
        (folder / "cache").mkdir(mode=0o755)
        result = as_other_user(
            command("pull", REPO),
            environment=variables(hub, folder / "cache")
            | {
                "VLMCACHE_CONFIG": str(small_config(folder)),
                "HOME": "/tmp",
                "HF_HOME": str(folder / "none"),
            },
            folder=folder,
        )
        assert result.returncode == ExitCode.FAILED, result.stderr
        assert is_failure(result.stderr)
        assert "Permission denied" in result.stderr
        assert list((folder / "cache").iterdir()) == []
