"""Metrics are what Prometheus reads, complete at every moment, answered only where asked for."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from datetime import datetime, timezone
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.caches import CacheBuilder, model_files
from vlmcache.addresses import parse_address
from vlmcache.cache.state import ByClass
from vlmcache.commands.status.values import CacheSummary
from vlmcache.commands.watch import metrics
from vlmcache.commands.watch.values import (
    Download,
    Event,
    Observation,
    Program,
    Snapshot,
    WatchedModel,
)
from vlmcache.errors import UsageError

AWKWARD = 'a"b\\c\nd\udce9.bin'


def a_check(*events: str) -> Observation:
    cache = CacheSummary(
        "/c",
        "--cache-dir",
        True,
        "ext4",
        "daily",
        30,
        5,
        100,
        10,
        20,
        None,
        ByClass(10, partial=20),
    )
    model = WatchedModel("k", "org/m", "model", "main", "partial", 30, 40, (Program(1, "hf"),))
    twin = WatchedModel("k2", "org/m", "model", "main", "partial", 30, 40, ())
    download = Download(
        "org/m", "model", AWKWARD, "e", "/c/e.incomplete", "running", 20, 40, 2.5, 8.0, None
    )
    snapshot = Snapshot(
        datetime(2026, 1, 1, tzinfo=timezone.utc),
        cache,
        None,
        None,
        True,
        True,
        (model, twin),
        (download,),
        {"error": 1, "warning": 0, "info": 2},
    )
    return Observation(snapshot, tuple(Event(kind=kind) for kind in events))  # type: ignore[arg-type]


def values(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in samples
            samples[key] = sample.value
    return samples


def test_prometheus_reads_the_text_and_its_awkward_names() -> None:
    exposition = metrics.Exposition()
    exposition.update(a_check("downloaded"))
    samples = values(exposition.update(a_check("downloaded", "removed")))

    def value(name: str, **labels: str) -> float:
        return samples[f"vlmcache_{name}", frozenset(labels.items())]

    assert value("cache_bytes", **{"class": "partial"}) == 20
    assert value("filesystem_free_bytes") == 5
    assert value("low_space") == 1
    assert value("findings", severity="error") == 1
    model = {"repo": "org/m", "type": "model", "revision": "main"}
    assert value("model_state", state="partial", **model) == 1
    assert value("model_state", state="cached", **model) == 0
    assert value("downloads", state="running") == 1
    download = {"repo": "org/m", "type": "model", "partial": "e.incomplete"}
    name = AWKWARD.replace("\udce9", "\ufffd")
    assert value("download_received_bytes", file=name, **download) == 20
    assert value("download_bytes_per_second", file=name, **download) == 2.5
    assert value("events_total", kind="downloaded") == 2
    assert value("events_total", kind="removed") == 1
    assert value("events_total", kind="damaged") == 0


def test_a_reader_of_the_file_never_sees_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "collector" / "vlmcache.prom"
    path.parent.mkdir()
    texts = ["a" * 100_000, "b" * 100_000]
    metrics.write_metrics(str(path), texts[0])
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        metrics.write_metrics(str(path), texts[number % 2])
    stop.set()
    reader.join()
    assert seen <= set(texts)
    assert os.listdir(path.parent) == [path.name]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "collector" / "vlmcache.prom"
    path.parent.mkdir()
    file = metrics.MetricsFile(str(path), 0)
    assert file.update("one") is None

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert file.update("two") == f"cannot write {path}: No space left on device"
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == [path.name]
    with pytest.raises(metrics.MetricsError):
        metrics.MetricsFile(str(path), 0).update("three")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9400", ("127.0.0.1", 9400)),
        (":9400", ("127.0.0.1", 9400)),
        ("0.0.0.0:9400", ("0.0.0.0", 9400)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9400", ("::1", 9400)),
    ],
)
def test_an_address_without_a_host_is_the_loopback(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "x",
        "host:",
        "::1:9400",
        "1:70000",
        "h:-1",
        "²",
        pytest.param("9" * 5000, id="long"),
    ],
)
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        parse_address(text)


def ask(url: str, path: str, method: str = "GET") -> tuple[int, str | None, str]:
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()
    finally:
        connection.close()


def test_metrics_are_answered_and_nothing_else_is() -> None:
    exposition = metrics.Exposition()
    text = exposition.update(a_check())
    with metrics.endpoint(exposition, "127.0.0.1", 0) as url:
        assert ask(url, "/metrics") == (200, metrics.CONTENT_TYPE, text)
        assert ask(url, "/")[0] == 404
        assert ask(url, "/metrics", "POST")[0] == 501
        port = int(url.split(":")[2].split("/")[0])
        with (
            pytest.raises(metrics.MetricsError, match="cannot listen"),
            metrics.endpoint(exposition, "127.0.0.1", port),
        ):
            pass


def talk(url: str, request: bytes) -> bytes:
    """Return all that is answered to bytes as they are."""
    host, port = url.split("/")[2].rsplit(":", 1)
    with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def status_of(url: str, *lines: str) -> int:
    answer = talk(url, "".join(f"{line}\r\n" for line in (*lines, "")).encode())
    return int(answer.split()[1])


NAMES = {
    "127.0.0.1": {
        "127.0.0.1": 200,
        "127.0.0.1:9400": 200,
        "LocalHost:1": 200,
        "localhost.": 200,
        socket.gethostname(): 200,
        "evil.example": 421,
        "127.0.0.1.evil.example:9400": 421,
        "localhost.evil.example": 421,
        "10.0.0.1": 421,
        "[::1]": 421,
        "": 421,
    },
    "localhost": {"localhost": 200, "evil.example": 421},
    "0.0.0.0": {"192.0.2.7:9400": 200, "evil.example": 421},
}
"""Address that is listened on -> what a Host header holds, and the status of the answer."""


@pytest.mark.parametrize("listened_on", NAMES)
def test_only_who_names_what_it_listens_on_is_answered(listened_on: str) -> None:
    exposition = metrics.Exposition()
    exposition.update(a_check())
    with metrics.endpoint(exposition, listened_on, 0) as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        for host, status in NAMES[listened_on].items():
            assert status_of(url, "GET /metrics HTTP/1.1", f"Host: {host}") == status, host


def test_odd_heads_of_requests_are_refused() -> None:
    exposition = metrics.Exposition()
    exposition.update(a_check())
    with metrics.endpoint(exposition, "127.0.0.1", 0) as url:
        first, host = "GET /metrics HTTP/1.1", "Host: localhost"
        assert status_of(url, "GET /metrics HTTP/1.0") == 200
        assert status_of(url, first) == 400
        assert status_of(url, first, host, "Host: evil.example") == 400
        assert status_of(url, first, host, f"X: {'x' * metrics.HEAD_LIMIT}") == 431


def test_a_client_that_sends_drop_by_drop_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics._Handler, "timeout", 0.2)
    with (
        metrics.endpoint(metrics.Exposition(), "127.0.0.1", 0) as url,
        socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))) as slow,
    ):
        slow.settimeout(0.05)
        for _ in range(10_000):
            try:
                slow.sendall(b"x")
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("it was listened to for ever")


def test_more_connections_than_are_answered_at_a_time_are_closed_and_room_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exposition = metrics.Exposition()
    exposition.update(a_check())
    monkeypatch.setattr(metrics, "CONNECTIONS", 2)
    with metrics.endpoint(exposition, "127.0.0.1", 0) as url:
        address = "127.0.0.1", int(url.split(":")[2].split("/")[0])
        idle = [socket.create_connection(address) for _ in range(2)]
        with socket.create_connection(address, timeout=10) as third:
            assert third.recv(1) == b""
        for connection in idle:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"200" in connection.recv(4096)
            while connection.recv(4096):
                pass
            connection.close()
        # A slot is free an instant after its connection was closed.
        answers = (talk(url, b"GET /metrics HTTP/1.0\r\n\r\n") for _ in range(10_000))
        assert b"200" in next(filter(None, answers))


def test_the_metrics_of_a_real_cache_are_read(tmp_path: Path) -> None:
    from tests.kit.pulls import config
    from vlmcache.commands.watch.watch import watch
    from vlmcache.config import CacheLocation, Session, read_environment

    CacheBuilder(tmp_path / "hub").repo("org/name").revision(model_files())
    location = CacheLocation(str(tmp_path / "hub"), "x")
    session = Session(read_environment({}), config(), location)
    check = next(watch(session, notify=False))
    samples = values(metrics.Exposition().update(check))
    states = [key for key, value in samples.items() if key[0] == "vlmcache_model_state" and value]
    assert len(states) == 4
