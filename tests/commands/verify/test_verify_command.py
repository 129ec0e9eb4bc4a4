"""`vlmcache verify` as a process."""

from __future__ import annotations

import json
import os
import signal
import time

import jsonschema

from tests.kit.caches import CacheBuilder, CachedRepo
from tests.kit.commands import Vlmcache, is_failure
from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import vlmcache as run

FILES: dict[str, Content] = {"config.json": b"{}", "pytorch_model.bin": b"weights" * 1000}


def whole(cache: CacheBuilder) -> CachedRepo:
    repo = cache.repo("org/name")
    repo.revision(FILES)
    return repo


def test_damage_is_exit_4_and_named_with_both_hashes(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    repo = whole(cache)
    assert vlmcache("verify").code == 0
    repo.flipped_bit("pytorch_model.bin")
    done = vlmcache("verify")
    assert done.code == 4
    etag = repo.file("pytorch_model.bin").etag
    assert f"expected {etag}" in done.out
    assert "pytorch_model.bin has other content than its hash says" in done.out
    assert is_failure(done.err)
    assert vlmcache("verify", "-q").out == "org/name\n"


def test_the_document_keeps_to_its_schema(cache: CacheBuilder, vlmcache: Vlmcache) -> None:
    repo = whole(cache)
    repo.flipped_bit("pytorch_model.bin")
    done = vlmcache("verify", "--json")
    document = done.document
    schema = json.loads(vlmcache("schema", "verify").out)
    jsonschema.validate(document, schema)
    assert document["exit_code"] == done.code == 4
    assert document["damaged"][0]["repo"] == "org/name"
    assert {"checked", "bytes", "seconds", "unverifiable"} <= document.keys()


def test_a_second_run_reads_nothing_unless_asked_to(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    whole(cache)
    counts = [
        vlmcache("verify", "--json", *options).document["checked"]
        for options in ((), (), ("--max-age", "0"), ("--max-age", "30d"))
    ]
    assert counts == [2, 0, 2, 0]


def test_wrong_options_and_names_are_reported_in_one_line(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    whole(cache)
    for arguments, code in (
        (("--max-age", "soon"), 2),
        (("--workers", "0"), 2),
        (("org/nothing",), 7),
        (("got_ocr",), 4),
    ):
        done = vlmcache("verify", *arguments)
        assert done.code == code, done.err
        assert is_failure(done.err)


def test_names_from_the_disk_are_escaped(cache: CacheBuilder, vlmcache: Vlmcache) -> None:
    repo = cache.repo("org/name")
    repo.revision({"config.json": b"{}", "a\x1b[31m.bin": b"x" * 100})
    repo.flipped_bit("a\x1b[31m.bin")
    done = vlmcache("verify")
    assert done.code == 4
    assert "\x1b" not in done.out + done.err
    assert "a\\x1b[31m.bin" in done.out


def test_an_interruption_ends_it_at_once_and_with_130(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    repo = cache.repo("org/name")
    repo.blobs.mkdir(parents=True)
    # A sparse file is long to hash and quick to make.
    with (repo.blobs / ("a" * 64)).open("wb") as file:
        file.truncate(20 << 30)
    listed = {"size": 9, "blob_id": "b" * 40, "lfs_sha256": "a" * 64, "lfs_size": 20 << 30}
    repo.trees.mkdir()
    listing = {"format_version": 1, "files": {"weights.bin": listed}}
    (repo.trees / f"{'c' * 40}.json").write_text(json.dumps(listing))
    process = vlmcache.start("verify")
    deadline = time.monotonic() + 20
    while not _has_open(process.pid, "a" * 64) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert is_failure(errors)


def _has_open(pid: int, name: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        return any(name in os.readlink(f"{folder}/{one}") for one in os.listdir(folder))
    except OSError:
        return False


def test_repair_is_planned_carried_out_and_reported(cache: CacheBuilder) -> None:
    with LoopbackHub() as hub:
        hub.add_repo("org/name").commit(FILES)
        repo = whole(cache)
        repo.flipped_bit("pytorch_model.bin")
        plain = run(hub, cache.root, "verify")
        assert plain.returncode == 4
        assert "--repair" in plain.stderr
        alone = run(hub, cache.root, "verify", "--dry-run")
        assert alone.returncode == 2
        planned = run(hub, cache.root, "verify", "--repair", "--dry-run")
        assert planned.returncode == 0
        assert "fetch 7 kB" in planned.stdout
        done = json.loads(run(hub, cache.root, "verify", "--repair", "--json").stdout)
        assert done["exit_code"] == 0
        assert [action["action"] for action in done["plan"]["actions"]] == ["fetch"]
        assert done["plan"]["needs"] == done["receipt"]["fetched"] == 7000
        jsonschema.validate(done, json.loads(run(hub, cache.root, "schema", "verify").stdout))
        assert "Nothing to repair" in run(hub, cache.root, "verify", "--repair").stdout
