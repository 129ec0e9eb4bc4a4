"""`vlmcache move` as a user and as a script meet it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated, fingerprint, model_files
from tests.kit.commands import Vlmcache, is_failure
from tests.kit.disks import small_filesystem
from vlmcache.errors import ExitCode

SMALL = "models:\n  small: {model_path: org/name}\nvlmcache: {min_free: 0}\n"


@pytest.fixture
def drive() -> Iterator[Path]:
    with small_filesystem(64_000_000) as place:
        yield place


@pytest.fixture
def repo(cache: CacheBuilder, vlmcache: Vlmcache) -> CachedRepo:
    vlmcache.config(SMALL)
    found = cache.repo("org/name")
    found.revision(model_files())
    return found


def test_the_document_is_as_its_schema_says(
    vlmcache: Vlmcache, repo: CachedRepo, drive: Path
) -> None:
    schema = vlmcache("schema", "move").document
    before = du_allocated(repo.cache.root)
    planned = vlmcache("move", str(drive / "hub"), "small", "--dry-run", "--json")
    done = vlmcache("move", str(drive / "hub"), "small", "--json")
    for one in (planned, done):
        assert one.code == ExitCode.DONE, one
        jsonschema.validate(one.document, schema)
    assert "receipt" not in planned.document or planned.document["receipt"] is None
    plan, receipt = done.document["plan"], done.document["receipt"]
    assert [action["action"] for action in plan["actions"]] == ["move", "remove-tree"]
    assert plan["needs"] > 0
    assert receipt["freed"] == before - du_allocated(repo.cache.root)
    assert {one["result"] for one in receipt["outcomes"]} == {"done"}
    assert done.document["repos"][0]["state"] == "moved"


def test_it_says_where_the_model_is_and_what_to_set(
    vlmcache: Vlmcache, repo: CachedRepo, drive: Path
) -> None:
    done = vlmcache("move", str(drive / "hub"))
    assert done.code == ExitCode.DONE
    assert "org/name" in done.out
    assert f"export HF_HUB_CACHE={drive / 'hub'}" in done.out
    assert repo.folder.is_symlink()
    shown = vlmcache("status")
    assert f"org/name is at {drive / 'hub'}" in shown.out
    assert "cached" in shown.out
    plan = vlmcache("rm", "small", "--dry-run")
    assert f"it lies at {drive / 'hub'}" in " ".join(plan.out.split())
    assert vlmcache("move", str(drive / "hub"), "-q").out == ""


def test_quiet_prints_the_repos(vlmcache: Vlmcache, repo: CachedRepo, drive: Path) -> None:
    assert vlmcache("move", str(drive / "hub"), "-q", "--no-link").out == "org/name\n"
    assert not os.path.lexists(repo.folder)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--undo", "small"), ExitCode.USAGE, "no MODEL"),
        (("nothing/such",), ExitCode.NO_MODEL, "nothing like"),
        (("small@main",), ExitCode.USAGE, "not a complete model"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    vlmcache: Vlmcache,
    repo: CachedRepo,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: ExitCode,
    words: str,
) -> None:
    done = vlmcache("move", str(tmp_path / "there"), *arguments)
    assert done.code == code
    assert words in done.err
    assert is_failure(done.err)
    assert done.out == ""
    assert repo.folder.is_dir()


def test_ctrl_c_shows_how_to_continue_and_how_to_take_it_back(
    vlmcache: Vlmcache, cache: CacheBuilder
) -> None:
    vlmcache.config(SMALL)
    repo = cache.repo("org/name")
    big = cache.root.parent / "big"
    with big.open("wb") as file:
        for number in range(24):
            file.write(bytes([number]) * (8 << 20))
    repo.revision({"config.json": b"{}", "model.safetensors": big})
    before = fingerprint(repo.folder)
    with small_filesystem(256_000_000) as drive:
        there = str(drive / "hub")
        child = vlmcache.start("move", there)
        copying = drive / "hub" / ".vlmcache-moving" / repo.folder.name
        while child.poll() is None and not list(copying.glob("blobs/*.copying")):
            pass
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
        if child.returncode == ExitCode.DONE:
            pytest.skip("it was done before it could be interrupted")
        assert child.returncode == ExitCode.INTERRUPTED, said
        assert f"'vlmcache move {there}' continues" in said.decode()
        assert "Traceback" not in said.decode()
        assert fingerprint(repo.folder) == before
        undone = vlmcache("move", there, "--undo")
        assert undone.code == ExitCode.DONE
        assert "taken back" in undone.out
        assert fingerprint(repo.folder) == before
        assert du_allocated(drive) < 100_000
