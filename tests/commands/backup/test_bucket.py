"""Stores and tar streams in a bucket of a real server: OpenStack Swift with its S3 interface."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.buckets import Bucket, Gate, ObjectStore, object_store
from tests.kit.caches import CacheBuilder
from tests.kit.commands import Vlmcache, is_failure
from tests.kit.pulls import lies
from tests.kit.stores import restored, store_lies

WEIGHTS = "model.safetensors"
LENGTH = 20_000_000
"""Of two parts: what is longer than 16 MiB goes in several."""
FILES = {"config.json": b"{}", WEIGHTS: os.urandom(LENGTH)}
SMALL = {"config.json": b"{}", WEIGHTS: os.urandom(300_000)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("swift")) as running:
        yield running


@pytest.fixture
def bucket(server: ObjectStore) -> Bucket:
    return server.bucket()


@pytest.fixture
def run(vlmcache: Vlmcache, bucket: Bucket) -> Vlmcache:
    vlmcache.config("vlmcache: {min_free: 0}\n")
    variables = vlmcache.environment | bucket.variables
    # What the client's libraries warn of is not ours to mend.
    variables.pop("PYTHONWARNINGS")
    return Vlmcache(variables, vlmcache.folder)


def test_machines_share_a_bucket_and_only_what_is_missing_travels(
    cache: CacheBuilder, run: Vlmcache, bucket: Bucket, tmp_path: Path
) -> None:
    repo = cache.repo("org/name")
    repo.revision(SMALL)
    address = bucket.address("some/store")
    first = run("backup", address, "--json")
    assert first.code == 0, first.err
    assert first.document["uploaded"] == {"blobs": 2, "size": 300_000 + 2}
    other = CacheBuilder(tmp_path / "other")
    other.repo("org/other").revision(SMALL)
    other.repo("org/name").revision({**SMALL, "config.json": b"{2}"})
    with Gate(bucket.endpoint) as gate:
        second = run(
            "backup",
            address,
            "--json",
            "--cache-dir",
            str(other.root),
            AWS_ENDPOINT_URL=gate.endpoint,
        )
    assert second.code == 0, second.err
    assert second.document["uploaded"] == {"blobs": 1, "size": 3}
    assert second.document["skipped"] == {"blobs": 2, "size": 300_000 + 2}
    assert [one["ref"] for one in second.document["refs"]] == ["main", "main"]
    assert gate.count["sent"] < 100_000
    assert store_lies(bucket.contents("some/store/")) == []
    done = run("restore", address, "--json", "--cache-dir", str(tmp_path / "new"))
    assert done.code == 0, done.err
    assert done.document["receipt"]["fetched"] == 300_000 + 5
    assert lies(tmp_path / "new") == []
    there = restored(tmp_path / "new")
    assert restored(other.root).items() <= there.items()
    assert f"models--org--name/snapshots/{repo.latest}/{WEIGHTS}" in there


def test_a_backup_and_a_restore_killed_half_way_continue(
    cache: CacheBuilder, run: Vlmcache, bucket: Bucket, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(FILES)
    address = bucket.address("store")

    def killed(gate: Gate, *arguments: str) -> None:
        with run.start(*arguments, AWS_ENDPOINT_URL=gate.endpoint) as process:
            assert gate.shut.wait(60)
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL

    with Gate(bucket.endpoint, sent=LENGTH * 19 // 20) as gate:
        killed(gate, "backup", address)
    assert not [name for name in bucket.names("store/") if name.endswith(str(WEIGHTS))]
    assert store_lies(bucket.contents("store/")) == []
    assert bucket.names("store/repos/") == []
    assert run("backup", address).code == 0
    assert store_lies(bucket.contents("store/")) == []

    new = tmp_path / "new"
    with Gate(bucket.endpoint, received=LENGTH * 19 // 20) as gate:
        killed(gate, "restore", address, "--cache-dir", str(new))
    assert lies(new) == []
    with Gate(bucket.endpoint) as gate:
        done = run(
            "restore", address, "--cache-dir", str(new), "--json", AWS_ENDPOINT_URL=gate.endpoint
        )
    assert done.code == 0, done.err
    # It went on within the blob: what had been received by then is not sent again.
    assert done.document["receipt"]["fetched"] < LENGTH * 3 // 4
    assert gate.count["received"] < LENGTH * 3 // 4 + 100_000
    assert restored(new) == restored(cache.root)


def test_a_tar_stream_appears_in_a_bucket_when_it_is_complete(
    cache: CacheBuilder, run: Vlmcache, bucket: Bucket, tmp_path: Path
) -> None:
    repo = cache.repo("org/name")
    repo.revision(FILES)
    address = bucket.address("saved.tar")
    assert run("backup", address).code == 0
    new = tmp_path / "new"
    assert run("restore", address, "--cache-dir", str(new)).code == 0
    assert restored(new) == restored(cache.root)
    repo.flipped_bit(WEIGHTS, LENGTH - 1)
    failed = run("backup", bucket.address("other.tar"))
    assert failed.code == 4
    assert bucket.names() == ["saved.tar"]
    assert bucket.unfinished() == []


def test_what_a_bucket_refuses_is_reported_in_one_line(
    cache: CacheBuilder, run: Vlmcache, bucket: Bucket
) -> None:
    cache.repo("org/name").revision({"config.json": b"{}"})
    for address, variables, code, words in (
        (bucket.address("new"), {"AWS_SECRET_ACCESS_KEY": "x"}, 1, "not allowed"),
        ("s3://nowhere/store", {}, 1, "not found: s3://nowhere/store"),
    ):
        done = run("backup", address, **variables)
        assert done.code == code, done.err
        assert words in done.err
        assert is_failure(done.err), done.err


def test_a_pull_takes_contents_from_a_store_and_from_a_tar_in_a_bucket(
    cache: CacheBuilder, run: Vlmcache, bucket: Bucket, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(SMALL)
    for place in ("some/store", "some/models.tar"):
        address, target = bucket.address(place), tmp_path / place.replace("/", "-")
        assert run("backup", address).code == 0
        command = ("pull", "org/name", "--from", address, "--cache-dir", str(target), "--json")
        done = run(*command, HF_HUB_OFFLINE="1")
        assert done.code == 0, done.err
        (model,) = done.document["models"]
        assert {file["source"] for file in model["from"]} == {address}
        assert lies(target) == []
