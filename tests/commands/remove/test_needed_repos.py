"""A repo that a model of the cache needs counts as used when the model is."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.kit.caches import CacheBuilder
from vlmcache.cache.scan import scan
from vlmcache.commands.move.move import move
from vlmcache.commands.remove.clean import clean
from vlmcache.commands.remove.remove import remove
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.commands.remove.view import show, show_plan
from vlmcache.config import CacheLocation, ModelConfig, Session, read_environment, shipped_config

ADAPTER = {
    "adapter_config.json": json.dumps({"base_model_name_or_path": "org/base"}).encode(),
    "adapter_model.safetensors": b"a" * 50_000,
}
BASE = {"config.json": b"{}", "model.safetensors": b"b" * 100_000}
OTHER = {"config.json": b"{}", "model.safetensors": b"o" * 90_000}


@pytest.fixture
def session(tmp_path: Path) -> Session:
    cache = CacheBuilder(tmp_path / "hub")
    # The base was downloaded long ago, and nothing shows when it was read.
    for age, name, files in ((90, "base", BASE), (60, "other", OTHER), (5, "adapter", ADAPTER)):
        repo = cache.repo(f"org/{name}")
        repo.revision(files)
        for path in (*repo.blobs.iterdir(), *repo.snapshots.rglob("*")):
            stat = path.lstat()
            at = stat.st_mtime_ns - age * 86400 * 10**9
            os.utime(path, ns=(at, at), follow_symlinks=False)
    environment = read_environment({"VLMCACHE_HOME": str(tmp_path / "own")}, str(tmp_path))
    config = msgspec.structs.replace(shipped_config(), models={})
    return Session(environment, config, CacheLocation(str(tmp_path / "hub"), "test"))


def left(session: Session) -> set[str]:
    return {repo.id for repo in scan(session.cache.dir).repos}


def test_what_is_evicted_first_is_not_what_a_newer_model_needs(session: Session) -> None:
    clean(session, CleanOptions(max_size=scan(session.cache.dir).size_on_disk - 1))
    assert left(session) == {"org/base", "org/adapter"}
    clean(session, CleanOptions(max_size=scan(session.cache.dir).size_on_disk - 1))
    assert left(session) == {"org/base"}


def test_what_was_not_used_for_a_long_time_stays_if_a_model_needs_it(session: Session) -> None:
    clean(session, CleanOptions(older_than=30 * 86400.0))
    assert left(session) == {"org/base", "org/adapter"}


def test_what_a_configured_model_needs_is_not_evicted(session: Session) -> None:
    config = msgspec.structs.replace(
        session.config, models={"mine": ModelConfig("mine", "org/adapter")}
    )
    removal = clean(session._replace(config=config), CleanOptions(max_size=1))
    assert left(session) == {"org/base", "org/adapter"}
    assert "org/adapter needs it" in [kept.reason for kept in removal.plan.kept]


@pytest.mark.parametrize("everything", [False, True])
def test_what_a_model_needs_that_is_kept_or_in_use_stays(
    session: Session, everything: bool
) -> None:
    options = CleanOptions(max_size=None if everything else 1, everything=everything)
    (config,) = Path(session.cache.dir).glob("models--org--adapter/snapshots/*/adapter_config.json")
    with open(config) as file:
        user = subprocess.Popen(["/bin/sleep", "60"], stdin=file)
    try:
        clean(session, options)
    finally:
        user.kill()
        user.wait()
    assert left(session) == {"org/base", "org/adapter"}
    clean(session, msgspec.structs.replace(options, keep=("org/adapter",)))
    assert left(session) == {"org/base", "org/adapter"}
    clean(session, options)
    assert left(session) == set()


def test_a_base_that_was_moved_stays_as_long_as_what_needs_it_is_kept(
    session: Session, tmp_path: Path
) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    move(session, str(drive / "hub"), ["org/base"])
    for options in (CleanOptions(older_than=1.0), CleanOptions(everything=True)):
        clean(session, msgspec.structs.replace(options, keep=("org/adapter",)))
        assert left(session) == {"org/base", "org/adapter"}
        assert list(drive.rglob("model.safetensors"))


def test_a_removal_names_the_models_that_need_what_is_removed(session: Session) -> None:
    removal = remove(session, ["org/base"], dry_run=True)
    (finding,) = removal.findings
    assert (finding.code, finding.repo) == ("still-needed", "org/base")
    assert finding.detail == "org/adapter needs it, and cannot be loaded without it"
    assert remove(session, ["org/base", "org/adapter"], dry_run=True).findings == ()
    assert remove(session, ["org/other"], dry_run=True).findings == ()


def test_the_question_before_a_removal_shows_who_needs_it(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(remove(session, ["org/base"], dry_run=True))
    assert "org/adapter needs it" in capsys.readouterr().out
    show(remove(session, ["org/base"]))
    assert "org/adapter needs it" in capsys.readouterr().out
