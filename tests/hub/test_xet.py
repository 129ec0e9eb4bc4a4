"""Xet where it is there, the shared store where it has the content, plain HTTP where Xet fails.

Xet's own servers are not here: `xet_get` is replaced, and all around it is real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

from tests.kit.caches import CacheBuilder, fingerprint
from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import REPO, Listener, expected, lies, pull

WEIGHTS = "model.safetensors"
DATA = b"w" * 50_000
FILES: dict[str, Content] = {"config.json": b"{}", WEIGHTS: DATA}
XET = {WEIGHTS: "ab" * 32}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES, xet=XET)
        yield hub


def fake_xet(data: bytes, seen: list[dict[str, Any]]) -> Callable[..., None]:
    def xet_get(*, incomplete_path: Path, **options: Any) -> None:
        seen.append(options)
        incomplete_path.write_bytes(data)
        options["_tqdm_bar"].update(len(data))

    return xet_get


def test_a_file_comes_through_xet_and_is_shared_as_the_client_does(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(file_download, "xet_get", fake_xet(DATA, seen))
    assert pull(hub, tmp_path / "cache").error is None
    assert [options["xet_file_data"].file_hash for options in seen] == [XET[WEIGHTS]]
    assert hub.bytes_sent(WEIGHTS) == 0
    right = expected(tmp_path / "expected", FILES, xet=XET, shared=[WEIGHTS])
    assert fingerprint(tmp_path / "cache") == right


@pytest.mark.parametrize("data", [b"w" * 49_999, b"v" * 50_000, b""], ids=["short", "wrong", "no"])
def test_wrong_bytes_from_xet_are_never_published_and_plain_http_follows(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(file_download, "xet_get", fake_xet(data, []))
    listener = Listener()
    assert pull(hub, tmp_path / "cache", progress=listener).error is None
    assert any("Xet failed" in note for note in listener.notes)
    assert hub.bytes_sent(WEIGHTS) == len(DATA)
    assert fingerprint(tmp_path / "cache") == expected(tmp_path / "expected", FILES, xet=XET)


def test_a_failure_of_xet_is_followed_by_plain_http(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no CAS server")

    monkeypatch.setattr(file_download, "xet_get", fail)
    assert pull(hub, tmp_path / "cache").error is None
    assert lies(tmp_path / "cache") == []
    assert hub.bytes_sent(WEIGHTS) == len(DATA)


def test_content_in_the_shared_store_is_linked_and_not_fetched(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    builder = CacheBuilder(tmp_path / "cache")
    builder.repo("org/donor").revision(FILES, xet=XET, shared=[WEIGHTS])
    run = pull(hub, tmp_path / "cache")
    assert run.error is None
    assert hub.bytes_sent(WEIGHTS) == 0
    both = CacheBuilder(tmp_path / "both")
    both.repo("org/donor").revision(FILES, xet=XET, shared=[WEIGHTS])
    both.repo(REPO).revision(FILES, xet=XET, shared=[WEIGHTS])
    assert fingerprint(tmp_path / "cache") == fingerprint(tmp_path / "both")


def test_what_xet_says_was_transferred_is_what_was_fetched(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def xet_get(*, incomplete_path: Path, _tqdm_bar: Any, **_: Any) -> None:
        incomplete_path.write_bytes(DATA)
        reporter = XetDownloadProgressReporter(
            reconstruction_desc="", log_level=0, external_reconstruction_bar=_tqdm_bar
        )
        for transferred, written in ((5_000, 0), (20_000, 30_000), (20_000, 50_000)):
            report = SimpleNamespace(
                total_bytes=len(DATA),
                total_bytes_completed=written,
                total_transfer_bytes_completed=transferred,
                total_bytes_completion_rate=None,
                total_transfer_bytes_completion_rate=None,
            )
            reporter.update_progress(report)

    monkeypatch.setattr(file_download, "xet_get", xet_get)
    listener = Listener()
    run = pull(hub, tmp_path / "cache", progress=listener)
    assert run.value.receipt is not None
    assert run.value.receipt.fetched == 20_000 + len(b"{}")
    positions = [position for file, position in listener.positions if file == WEIGHTS]
    assert positions == sorted(positions)
    assert positions[-1] == len(DATA)


@pytest.mark.parametrize("capacity", [0, 10_000_000_000])
def test_chunks_that_xet_may_use_again_are_told_where_its_cache_is_on(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    monkeypatch.setattr(file_download, "xet_get", fake_xet(DATA, []))
    monkeypatch.setattr(constants, "HF_XET_CACHE", str(tmp_path / "xet"))
    monkeypatch.setenv("HF_XET_CHUNK_CACHE_SIZE_BYTES", str(capacity))
    chunks = tmp_path / "xet/https___cas-server/chunk-cache/ab"
    chunks.mkdir(parents=True)
    (chunks / "chunk").write_bytes(b"c" * 3_000_000)
    listener = Listener()
    run = pull(hub, tmp_path / "cache", progress=listener)
    assert run.value.receipt is not None
    # The stand-in tells of no transfer: all came from the chunks, if there were any.
    assert run.value.receipt.fetched == len(b"{}") + (0 if capacity else len(DATA))
    told = f"{WEIGHTS}: through Xet; 3 MB in its chunk cache may be used again"
    assert (told in listener.notes) == bool(capacity)


def test_an_empty_chunk_cache_is_not_told_of(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_download, "xet_get", fake_xet(DATA, []))
    monkeypatch.setattr(constants, "HF_XET_CACHE", str(tmp_path / "xet"))
    monkeypatch.setenv("HF_XET_CHUNK_CACHE_SIZE_BYTES", "10000000000")
    listener = Listener()
    assert pull(hub, tmp_path / "cache", progress=listener).error is None
    assert listener.notes == []
