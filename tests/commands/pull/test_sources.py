"""`pull --from`: content from places other than the hub, each checked by its hash."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest

import vlmcache
from tests.kit.caches import CacheBuilder, fingerprint
from tests.kit.contents import Content
from tests.kit.hub import Fault, LoopbackHub, Synthetic, hang, slow, status
from tests.kit.pulls import QUICK, REPO, content, fetches, lies, variables
from tests.kit.pulls import pull as pull_quickly
from tests.kit.served import TOKEN, serving
from vlmcache.commands.pull import sources
from vlmcache.commands.pull.values import PullReport
from vlmcache.errors import UsageError
from vlmcache.hub.sources import Sources
from vlmcache.progress import Throttle

WEIGHTS = "model.safetensors"
SIZE = 3_000_000
FILES: dict[str, Content] = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    WEIGHTS: Synthetic(SIZE, 3),
    "tokenizer.json": b"{}" * 3000,
}
KINDS = ("cache", "store", "tar", "tar.gz", "plain", "plain.gz", "serve")
STEADY = msgspec.structs.replace(QUICK, answer_timeout=30.0, data_timeout=30.0)
"""Patience that no busy machine exhausts."""
pull = partial(pull_quickly, patience=STEADY)
SERVE = {"VLMCACHE_SERVE_TOKEN": TOKEN}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


@pytest.fixture
def other(tmp_path: Path) -> CacheBuilder:
    """Another machine's cache that has the model."""
    built = CacheBuilder(tmp_path / "usb" / "hub")
    built.repo(REPO).revision(FILES)
    return built


@pytest.fixture
def source_of(
    other: CacheBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], str]]:
    """Return what makes a source of the other cache as it is then."""
    with ExitStack() as stack:

        def make(kind: str) -> str:
            if kind == "cache":
                return str(other.root)
            if kind == "serve":
                monkeypatch.setenv("VLMCACHE_SERVE_TOKEN", TOKEN)
                return stack.enter_context(serving(other.root)).address
            if kind.startswith("plain"):
                packed = tmp_path / f"hub.{kind.replace('plain', 'tar')}"
                with tarfile.open(packed, "w:gz" if kind.endswith("gz") else "w") as tar:
                    tar.add(other.root, "huggingface/hub")
                return str(packed)
            place = tmp_path / ("store" if kind == "store" else f"backup.{kind}")
            vlmcache.Cache(other.root).backup(str(place) + "/" * (kind == "store")).check()
            return str(place)

        yield make


def origins(report: PullReport) -> dict[str, str]:
    return {file.path: file.source for file in report.models[0].origins}


def codes(report: PullReport) -> set[str]:
    return {finding.code for finding in report.findings}


def blob_of(cache: CacheBuilder, name: str) -> Path:
    return next(cache.root.glob(f"models--org--name/snapshots/*/{name}")).resolve()


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_source_sends_everything(
    kind: str, hub: LoopbackHub, tmp_path: Path, source_of: Callable[[str], str]
) -> None:
    source, cache = source_of(kind), tmp_path / "cache"
    planned = pull(hub, cache, sources=(source,), dry_run=True, extra=SERVE)
    assert origins(planned) == dict.fromkeys(FILES, source)
    assert not cache.exists()
    report = pull(hub, cache, sources=(source,), extra=SERVE).check()
    assert origins(report) == dict.fromkeys(FILES, source)
    assert report.sources[0].fetched >= sum(fetch.size for fetch in fetches(planned).values())
    assert hub.bytes_sent() == 0
    assert lies(cache) == []
    # The cache is the one that a pull from the hub would leave.
    pull(hub, tmp_path / "by-hub").check()
    assert fingerprint(cache) == fingerprint(tmp_path / "by-hub")


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_hub_a_source_vouches_for_its_listing(
    kind: str, hub: LoopbackHub, tmp_path: Path, source_of: Callable[[str], str]
) -> None:
    if kind == "serve":
        pytest.skip("HF_HUB_OFFLINE switches the network off")
    source, cache = source_of(kind), tmp_path / "cache"
    offline = {"HF_HUB_OFFLINE": "1"}
    report = pull(hub, cache, sources=(source,), extra=offline).check()
    (finding,) = [one for one in report.findings if one.code == "vouched-by-source"]
    assert f"content vouched for by {source}, not by the hub" in finding.detail
    assert hub.requests == []
    assert lies(cache) == []
    # It is not kept as the hub's listing: the next pull asks the hub, and keeps the hub's.
    assert not list(cache.glob("models--*/trees/*"))
    assert pull(hub, cache).check().models[0].state == "cached"
    assert list(cache.glob("models--*/trees/*"))


def test_a_server_vouches_for_its_listing_if_the_hub_is_down(
    hub: LoopbackHub, tmp_path: Path, source_of: Callable[[str], str]
) -> None:
    hub.fault(replace(status(503), times=None))
    source, cache = source_of("serve"), tmp_path / "cache"
    report = pull(hub, cache, sources=(source,), extra=SERVE).check()
    assert "vouched-by-source" in codes(report)
    assert lies(cache) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_source_does_not_have_comes_from_the_next_one_and_then_from_the_hub(
    kind: str,
    hub: LoopbackHub,
    tmp_path: Path,
    source_of: Callable[[str], str],
) -> None:
    cache = tmp_path / "cache"
    rest = CacheBuilder(tmp_path / "rest")
    rest.repo(REPO).revision(FILES, downloaded={"config.json"})
    source = source_of(kind)
    hub.add_repo(REPO).commit({**FILES, "vocab.json": b"{}" * 50})
    sources = (str(rest.root), source)
    report = pull(hub, cache, sources=sources, extra=SERVE).check()
    assert origins(report) == {
        "config.json": str(rest.root),
        "tokenizer.json": source,
        WEIGHTS: source,
        "vocab.json": "hub",
    }
    assert hub.bytes_sent() == 100
    assert lies(cache) == []


def spoiled(path: Path, kind: str, weights: Path) -> None:
    """Change a byte of the weights in a source, wherever they are in it."""
    data = weights.read_bytes()
    if kind == "cache":
        target = weights
    elif kind == "store":
        target = next(path.glob(f"blobs/*/{weights.name}"))
    else:
        target = path
    held = target.read_bytes()
    at = held.index(data[1000:1100])
    target.chmod(0o644)
    target.write_bytes(held[:at] + bytes([held[at] ^ 1]) + held[at + 1 :])


@pytest.mark.parametrize("kind", ["cache", "store", "tar", "plain"])
def test_a_source_that_sends_wrong_bytes_is_dropped_and_named(
    kind: str,
    hub: LoopbackHub,
    other: CacheBuilder,
    tmp_path: Path,
    source_of: Callable[[str], str],
) -> None:
    source, cache = source_of(kind), tmp_path / "cache"
    spoiled(Path(source), kind, blob_of(other, WEIGHTS))
    report = pull(hub, cache, sources=(source,)).check()
    assert origins(report)[WEIGHTS] == "hub"
    assert "wrong bytes" in (report.sources[0].problem or "")
    assert any(source in one.detail for one in report.findings if one.code == "source-dropped")
    assert lies(cache) == []


def test_wrong_bytes_of_a_compressed_tar_do_no_harm(
    hub: LoopbackHub, tmp_path: Path, source_of: Callable[[str], str]
) -> None:
    source, cache = source_of("tar.gz"), tmp_path / "cache"
    held = Path(source).read_bytes()
    Path(source).write_bytes(held[: len(held) // 2])
    report = pull(hub, cache, sources=(source,)).check()
    assert report.sources[0].problem
    assert hub.bytes_sent(WEIGHTS) in range(1, SIZE + 1)
    assert lies(cache) == []


def test_a_source_that_stops_responding_is_dropped_and_the_partial_continues(
    hub: LoopbackHub,
    tmp_path: Path,
    source_of: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vlmcache.commands.pull import sources

    stuck = threading.Event()

    def hanging(file: object, count: int) -> Iterator[bytes]:
        if count <= 1 << 20:
            yield file.read(count)  # type: ignore[attr-defined]
            return
        yield file.read(1 << 20)  # type: ignore[attr-defined]
        stuck.wait(60)

    monkeypatch.setattr(sources, "_blocks", hanging)
    source, cache = source_of("cache"), tmp_path / "cache"
    patience = msgspec.structs.replace(STEADY, data_timeout=2.0)
    try:
        report = pull(hub, cache, sources=(source,), patience=patience).check()
    finally:
        stuck.set()
    assert "no byte in" in (report.sources[0].problem or "")
    assert hub.bytes_sent(WEIGHTS) == SIZE - (1 << 20)
    assert lies(cache) == []


@pytest.mark.parametrize("fault", [status(503), status(401), hang()], ids=str)
def test_a_server_that_does_not_answer_is_named(
    fault: Fault, hub: LoopbackHub, tmp_path: Path
) -> None:
    with LoopbackHub() as silent:
        silent.fault(replace(fault, times=None))
        patience = msgspec.structs.replace(STEADY, answer_timeout=2.0)
        report = pull(
            hub, tmp_path / "cache", sources=(silent.url,), extra=SERVE, patience=patience
        ).check()
    assert codes(report) == {"source-unusable"}
    assert origins(report) == {}


def test_the_name_of_a_dropped_source_is_not_said_twice() -> None:
    notes: list[str] = []
    server = Mock(kind="serve")
    server.name = "http://box:9401"
    used = Sources(Throttle(), notes.append)
    used.use([server], first=True)
    used.drop(server, "http://box:9401 cannot be reached: connection reset")
    assert notes == ["http://box:9401: cannot be reached: connection reset; not used any more"]
    assert [use.problem for use in used.uses] == ["cannot be reached: connection reset"]


@pytest.mark.parametrize("kind", ["cache", "tar.gz"])
def test_a_listing_that_is_here_keeps_the_hub_from_being_asked(
    kind: str, hub: LoopbackHub, tmp_path: Path, source_of: Callable[[str], str]
) -> None:
    cache = tmp_path / "cache"
    built = CacheBuilder(cache)
    built.repo(REPO).revision(FILES, downloaded={"config.json"})
    report = pull(hub, cache, sources=(source_of(kind),)).check()
    assert hub.requests == []
    assert codes(report) <= {"hub-not-asked"}
    assert origins(report).keys() == {WEIGHTS, "tokenizer.json"}
    assert lies(cache) == []
    again = pull(hub, cache, sources=(source_of(kind),)).check()
    assert again.models[0].state == "cached"
    assert hub.requests == []


def test_an_ollama_store_has_what_is_named_by_the_same_hash(
    hub: LoopbackHub, other: CacheBuilder, tmp_path: Path
) -> None:
    ollama = tmp_path / "ollama" / "models"
    (ollama / "manifests").mkdir(parents=True)
    (ollama / "blobs").mkdir()
    weights = blob_of(other, WEIGHTS)
    shutil.copy(weights, ollama / "blobs" / f"sha256-{weights.name}")
    os.mkfifo(ollama / "blobs" / f"sha256-{'1' * 64}")
    cache = tmp_path / "cache"
    report = pull(hub, cache, sources=(str(ollama.parent),)).check()
    assert origins(report)[WEIGHTS] == str(ollama.parent)
    assert report.sources[0].kind == "ollama"
    assert origins(report)["config.json"] == "hub"
    assert lies(cache) == []


def test_what_cannot_be_a_source_is_a_usage_error(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no tar")
    os.mkfifo(tmp_path / "pipe")
    cache = CacheBuilder(tmp_path / "cache")
    cache.repo("org/two").revision(FILES)
    for source in ("nowhere", "empty", "pipe", "cache", "notes.txt"):
        with pytest.raises(UsageError, match=source):
            pull(hub, tmp_path / "cache", sources=(str(tmp_path / source),))
    # What may be one and is damaged is named, and the hub sends everything.
    (tmp_path / "half.tar.gz").write_bytes(b"\x1f\x8b and no more")
    report = pull(hub, tmp_path / "cache", sources=(str(tmp_path / "half.tar.gz"),)).check()
    assert codes(report) == {"source-unusable"}


def test_a_name_that_is_almost_a_source_leads_to_it(
    hub: LoopbackHub, other: CacheBuilder, tmp_path: Path
) -> None:
    hints = {
        str(other.root.parent): None,
        str(other.root.parent / "hubb"): f"did you mean {other.root}?",
        str(tmp_path): "name the folder that holds models--owner--name, or the file of a backup",
        "box:9401": "did you mean http://box:9401?",
        str(tmp_path / "absent" / "hub"): "is its drive mounted?",
    }
    for source, hint in hints.items():
        if hint is None:
            assert pull(hub, tmp_path / "cache", sources=(source,)).problem is None
            continue
        with pytest.raises(UsageError) as raised:
            pull(hub, tmp_path / "cache", sources=(source,))
        assert raised.value.hint == hint
    (tmp_path / "drive").mkdir()
    os.rename(other.root, tmp_path / "drive" / "models-of-may")
    with pytest.raises(UsageError) as raised:
        pull(hub, tmp_path / "cache", sources=(str(tmp_path / "drive"),))
    assert raised.value.hint == f"did you mean {tmp_path}/drive/models-of-may?"


def test_a_model_that_no_source_has_is_reported_as_that_if_the_hub_is_away(
    hub: LoopbackHub, other: CacheBuilder, tmp_path: Path
) -> None:
    report = pull(
        hub,
        tmp_path / "cache",
        "nobody/nothing",
        sources=(str(other.root),),
        extra={"HF_HUB_OFFLINE": "1"},
    )
    assert report.problem is not None
    assert report.problem.message.startswith("no source has nobody/nothing, and HF_HUB_OFFLINE")


def test_a_source_of_the_configuration_that_is_away_is_a_warning(
    hub: LoopbackHub, other: CacheBuilder, tmp_path: Path
) -> None:
    settings = tmp_path / "own.yaml"
    settings.write_text(f"vlmcache:\n  min_free: 0\n  sources: [{tmp_path}/away, {other.root}]\n")
    done = subprocess.run(
        [sys.executable, "-m", "vlmcache", "pull", REPO, "--config", str(settings)],
        env=variables(hub, tmp_path / "cache"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert f"{tmp_path}/away cannot be used: no such file or folder" in said
    assert hub.bytes_sent() == 0


def test_links_pipes_and_damage_of_another_cache_lead_nowhere(
    hub: LoopbackHub, other: CacheBuilder, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(blob_of(other, "config.json").read_bytes())
    config = blob_of(other, "config.json")
    config.unlink()
    config.symlink_to(secret)
    tokenizer = blob_of(other, "tokenizer.json")
    tokenizer.unlink()
    os.mkfifo(tokenizer)
    # A partial download under the name of the blob is not what is listed.
    os.truncate(blob_of(other, WEIGHTS), SIZE // 2)
    cache = tmp_path / "cache"
    report = pull(hub, cache, sources=(str(other.root),)).check()
    assert set(origins(report).values()) == {"hub"}
    assert lies(cache) == []


def test_a_name_in_a_source_that_leaves_the_repo_is_refused(
    hub: LoopbackHub, other: CacheBuilder, tmp_path: Path
) -> None:
    tree = next(other.root.glob("models--*/trees/*"))
    tree.write_text(tree.read_text().replace('"config.json"', '"../../../escaped.json"'))
    cache = tmp_path / "cache"
    report = pull(hub, cache, sources=(str(other.root),), extra={"HF_HUB_OFFLINE": "1"})
    assert report.problem is not None
    assert not list(tmp_path.rglob("escaped.json"))


def test_the_token_of_the_hub_is_not_sent_to_a_server(hub: LoopbackHub, tmp_path: Path) -> None:
    with LoopbackHub() as server:
        token = {"HF_TOKEN": "hf_" + "secret" * 5}
        report = pull(hub, tmp_path / "cache", sources=(server.url,), extra=token)
        assert "VLMCACHE_SERVE_TOKEN" in (report.findings[0].remedy or "")
        assert server.requests == []


@pytest.mark.parametrize("kind", ["plain", "plain.gz"])
def test_restore_takes_a_tar_that_tar_made_of_a_cache(
    kind: str, other: CacheBuilder, tmp_path: Path, source_of: Callable[[str], str]
) -> None:
    other.repo("org/two").revision({"config.json": b"{}", "a/b.txt": b"b" * 50})
    source, cache = source_of(kind), tmp_path / "restored"
    report = vlmcache.Cache(cache).restore(source).check()
    assert report.form == kind.replace("plain", "tar")
    assert lies(cache) == []
    for name in ("models--org--name", "models--org--two"):
        for part in ("blobs", "snapshots", "refs"):
            got = fingerprint(cache / name / part)
            assert got == fingerprint(other.root / name / part)
    assert vlmcache.Cache(tmp_path / "one").restore(source, "org/two").check().ids == ["org/two"]


def test_a_tar_with_links_to_elsewhere_restores_nothing_of_them(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    packed = tmp_path / "hostile.tar"
    folder = "hub/models--org--name"
    with tarfile.open(packed, "w") as tar:
        for name, target in (
            (f"{folder}/blobs/{'a' * 64}", str(tmp_path / "secret")),
            (f"{folder}/snapshots/{'b' * 40}/config.json", f"../../blobs/{'a' * 64}"),
            (f"{folder}/blobs/../../../../escaped", "x"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        pipe = tarfile.TarInfo(f"{folder}/blobs/{'c' * 64}")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
    with pytest.raises(vlmcache.VlmcacheError, match="neither a backup of vlmcache nor a tar"):
        vlmcache.Cache(tmp_path / "cache").restore(packed)


def test_a_pull_that_was_killed_continues_from_another_source(
    hub: LoopbackHub, other: CacheBuilder, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    hub.fault(replace(slow(1_000_000), match=WEIGHTS))
    killed = subprocess.Popen(
        [sys.executable, "-m", "vlmcache", "pull", REPO, "-q"],
        env=variables(hub, cache),
        cwd=tmp_path,
    )
    weights = blob_of(other, WEIGHTS)
    partial = cache / "models--org--name" / "blobs" / f"{weights.name}.incomplete"
    while not (partial.exists() and partial.stat().st_size > 500_000):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    begun = partial.stat().st_size
    hub.clear_faults()
    hub.clear_requests()
    report = pull(hub, cache, sources=(str(other.root),)).check()
    assert origins(report)[WEIGHTS] == str(other.root)
    assert hub.bytes_sent(WEIGHTS) == 0
    assert report.sources[0].fetched < sum(file.size for file in report.models[0].origins)
    assert begun > 0
    pull(hub, tmp_path / "by-hub").check()
    assert content(cache) == content(tmp_path / "by-hub")


def test_a_drive_that_hangs_when_it_is_opened_is_given_up_and_the_hub_is_asked(
    hub: LoopbackHub, other: CacheBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()
    monkeypatch.setattr(sources, "SILENCE", 0.2)
    monkeypatch.setattr(sources, "holds_repos", lambda _: back.wait(60))
    quick = msgspec.structs.replace(STEADY, data_timeout=None)
    try:
        report = pull(hub, tmp_path / "cache", sources=(str(other.root),), patience=quick)
    finally:
        back.set()
    assert report.problem is None
    assert codes(report) == {"source-unusable"}
    assert "nothing was read for 0.2 s" in report.findings[0].detail
