"""Xet where it is there, the shared store where it has the content, plain HTTP where Xet fails.

hf_xet is the real one and asks a CAS on loopback, but for what no server makes it do.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from huggingface_hub import constants

from tests.kit.caches import CacheBuilder, fingerprint
from tests.kit.cas import CHUNK, HEADER
from tests.kit.contents import Content
from tests.kit.hub import Fault, LoopbackHub, cut, hang, reset, slow, status, wrong_bytes
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
from vlmcache.hub import library

WEIGHTS, MORE = "model.safetensors", "more.safetensors"
CONTENTS = {WEIGHTS: b"w" * 300_000, MORE: b"v" * 200_000}
FILES: dict[str, Content] = {"config.json": b"{}", **CONTENTS}
XET = {WEIGHTS: "ab" * 32, MORE: "cd" * 32}
HAS_STORE = importlib.util.find_spec("huggingface_hub.utils._shared_blobs") is not None
"""Clients before 1.32 have no store of shared blobs."""
SHARED = list(XET) if HAS_STORE else []
PATIENT = msgspec.structs.replace(QUICK, data_timeout=60.0)
TOKEN, QUERY, CONTENT = "xet-read-token", "reconstructions", "xorbs"
OFF = "HF_HUB_DISABLE_XET=1"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    for name in ("HF_XET_CACHE", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES, xet=XET)
        yield hub


def over_http(hub: LoopbackHub) -> int:
    """Return the bytes of weights that came over plain HTTP."""
    return sum(hub.bytes_sent(file) for file in XET)


ALL = sum(map(len, CONTENTS.values()))


def test_files_come_through_xet_and_are_shared_as_the_client_does(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    listener = Listener()
    run = pull(hub, tmp_path / "cache", patience=PATIENT, progress=listener)
    assert (run.problem, listener.notes) == (None, [])
    assert over_http(hub) == 0
    right = expected(tmp_path / "expected", FILES, xet=XET, shared=SHARED)
    assert fingerprint(tmp_path / "cache") == right
    positions = [position for file, position in listener.positions if file == WEIGHTS]
    assert positions == sorted(positions)
    assert positions[-1] == len(CONTENTS[WEIGHTS])
    # What came over the network, if the client reports it: each chunk has a header.
    chunks = sum(-(-len(content) // CHUNK) for content in CONTENTS.values())
    headers = chunks * HEADER.size if library.xet_reports_early() else 0
    assert run.receipt is not None
    assert run.receipt.fetched == len(b"{}") + ALL + headers


def test_what_plain_http_left_of_a_file_is_removed_once_xet_has_brought_it(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    blobs = tmp_path / "cache/models--org--name/blobs"
    blobs.mkdir(parents=True)
    etag = hub._repos["model", REPO].file(WEIGHTS).etag
    (blobs / f"{etag}.incomplete").write_bytes(CONTENTS[WEIGHTS][:1000])
    assert pull(hub, tmp_path / "cache", patience=PATIENT).problem is None
    assert over_http(hub) == 0
    assert list(blobs.glob("*.incomplete")) == []


FAULTS = {
    "token hangs": hang().on(TOKEN, times=None),
    "token: server fails": status(500).on(TOKEN, times=None),
    "token: refused": status(403).on(TOKEN, times=None),
    "CAS hangs": hang().on(QUERY, times=None),
    "CAS: connections drop": reset().on(QUERY, times=None),
    "CAS refuses": status(403).on(QUERY, times=None),
    "CAS: no such file": status(404).on(QUERY, times=None),
    "CAS fails": status(500).on(QUERY, times=None),
    "content stops coming": hang(100_000).on(CONTENT, times=None),
    "content is cut": cut(100_000).on(CONTENT, times=None),
    "content is wrong": wrong_bytes(70_000).on(CONTENT, times=None),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_whatever_fails_is_reported_once_and_all_files_come_over_plain_http(
    hub: LoopbackHub, tmp_path: Path, fault: Fault
) -> None:
    hub.fault(fault)
    listener = Listener()
    assert pull(hub, tmp_path / "cache", progress=listener, max_workers=1).problem is None
    assert [OFF in note for note in listener.notes] == [True]
    assert over_http(hub) == ALL
    assert fingerprint(tmp_path / "cache") == expected(tmp_path / "expected", FILES, xet=XET)
    # The second file does not try it again.
    asked = {request.path.rpartition("/")[2] for request in hub.requests if QUERY in request.path}
    assert len(asked) <= 1


def test_a_cas_that_refuses_connections_is_given_up_after_the_timeout_of_a_download(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    listener = Listener()
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        hub.xet_url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        assert pull(hub, tmp_path / "cache", progress=listener).problem is None
    assert [OFF in note for note in listener.notes] == [True]
    assert over_http(hub) == ALL
    assert lies(tmp_path / "cache") == []


def test_one_failure_is_enough_for_all_models_of_a_run(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("org/two").commit({"config.json": b"{}", WEIGHTS: b"2" * 9000}, xet=XET)
    hub.fault(status(500).on(TOKEN, times=None))
    listener = Listener()
    run = pull(hub, tmp_path / "cache", REPO, "org/two", progress=listener)
    assert run.problem is None
    assert len(listener.notes) == 1
    assert hub.count(contains=f"org/two/{TOKEN}") == 0


def test_a_slow_cas_does_not_count_as_hanging(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(slow(100_000).on(CONTENT, times=None))
    listener, patience = Listener(), msgspec.structs.replace(QUICK, data_timeout=2.0)
    assert pull(hub, tmp_path / "cache", progress=listener, patience=patience).problem is None
    assert listener.notes == []
    assert over_http(hub) == 0


STAND_IN = """
import os, sys, time

class PanicException(BaseException):
    pass

class Refusal(Exception):
    def __str__(self):
        raise RuntimeError("nothing to say")

def __getattr__(name):
    if name not in ("XetFileInfo", "PyXetDownloadInfo"):
        raise AttributeError(name)
    os.write(1, b"words on standard output\\n")
    os.write(2, b"words on standard error\\n")
    CODE
    raise AttributeError(name)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A file that, once it is written, is imported in place of hf_xet."""
    path = tmp_path / "stand-in/hf_xet.py"
    path.parent.mkdir()
    return path


@pytest.mark.parametrize(
    "code",
    [
        "raise PanicException('called `Option::unwrap()` on a `None` value')",
        "raise KeyboardInterrupt",
        "raise SystemExit(0)",
        "raise Refusal",
        "os.abort()",
        "os._exit(0)",
        "[os.close(number) for number in range(3, 64)]",
        "time.sleep(600)",
    ],
)
def test_whatever_the_library_does_plain_http_follows(
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    stand_in: Path,
    code: str,
) -> None:
    stand_in.write_text(STAND_IN.replace("CODE", code))
    monkeypatch.syspath_prepend(str(stand_in.parent))
    listener = Listener()
    assert pull(hub, tmp_path / "cache", progress=listener).problem is None
    assert [OFF in note for note in listener.notes] == [True]
    assert fingerprint(tmp_path / "cache") == expected(tmp_path / "expected", FILES, xet=XET)
    assert capfd.readouterr() == ("", "")


def test_what_the_library_prints_is_shown_only_where_each_step_is(
    hub: LoopbackHub, tmp_path: Path, stand_in: Path
) -> None:
    stand_in.write_text(STAND_IN.replace("CODE", "raise RuntimeError('that is all')"))
    extra = {"PYTHONPATH": str(stand_in.parent), "HF_HUB_DISABLE_XET": "0"}
    for option, shown in (("-v", False), ("-vv", True)):
        run = vlmcache(hub, tmp_path / option, "pull", REPO, option, **extra)
        assert run.returncode == 0
        assert "that is all" in run.stderr
        assert [f"words on standard {name}" in run.stderr for name in ("output", "error")] == (
            [shown, shown]
        )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_pull_that_ends_takes_its_transfers_along(
    hub: LoopbackHub, tmp_path: Path, how: signal.Signals
) -> None:
    hub.fault(hang(100_000).on(CONTENT, times=None))
    more = {"HF_HUB_DISABLE_XET": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "300"}
    settings = {"VLMCACHE_CONFIG": str(small_config(tmp_path))}
    parent = subprocess.Popen(
        command("pull", REPO),
        env=variables(hub, tmp_path / "cache") | more | settings,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while hub.count(contains=CONTENT) == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = psutil.Process(parent.pid).children()
    assert len(children) == 1
    parent.send_signal(how)
    parent.wait(60)
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_a_rate_is_kept_without_xet_which_knows_none(hub: LoopbackHub, tmp_path: Path) -> None:
    assert pull(hub, tmp_path / "cache", limit_rate=100_000_000).problem is None
    assert hub.count(contains=TOKEN) == 0
    assert over_http(hub) == ALL


def test_an_application_without_an_interpreter_does_without_xet(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/application")
    listener = Listener()
    assert pull(hub, tmp_path / "cache", progress=listener).problem is None
    assert listener.notes == []
    assert over_http(hub) == ALL


@pytest.mark.skipif(not HAS_STORE, reason="this huggingface_hub has no store of shared blobs")
def test_content_in_the_shared_store_is_linked_and_not_fetched(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    builder = CacheBuilder(tmp_path / "cache")
    builder.repo("org/donor").revision(FILES, xet=XET, shared=SHARED)
    run = pull(hub, tmp_path / "cache")
    assert run.problem is None
    assert over_http(hub) == hub.count(contains=TOKEN) == 0
    both = CacheBuilder(tmp_path / "both")
    both.repo("org/donor").revision(FILES, xet=XET, shared=SHARED)
    both.repo(REPO).revision(FILES, xet=XET, shared=SHARED)
    assert fingerprint(tmp_path / "cache") == fingerprint(tmp_path / "both")


@pytest.mark.parametrize(("capacity", "size"), [(0, 3_000_000), (10**10, 3_000_000), (10**10, 0)])
def test_chunks_that_xet_may_use_again_are_reported_if_its_cache_is_on(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacity: int, size: int
) -> None:
    monkeypatch.setenv("HF_XET_CHUNK_CACHE_SIZE_BYTES", str(capacity))
    chunks = Path(os.environ["HF_XET_CACHE"]) / "https___cas-server/chunk-cache/ab"
    chunks.mkdir(parents=True)
    (chunks / "chunk").write_bytes(b"c" * size)
    listener = Listener()
    assert pull(hub, tmp_path / "cache", patience=PATIENT, progress=listener).problem is None
    noted = ["through Xet; 3 MB in its chunk cache may be used again"]
    assert listener.notes == (noted if capacity and size else [])
