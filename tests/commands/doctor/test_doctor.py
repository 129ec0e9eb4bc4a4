"""`doctor`: every fact from the machine itself, every problem with its remedy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, fingerprint, model_files
from tests.kit.commands import Vlmcache
from tests.kit.disks import as_other_user, common_folder
from vlmcache.commands.doctor.doctor import diagnose
from vlmcache.commands.doctor.values import Diagnosis
from vlmcache.config import Session, load_config, locate_cache, read_environment


def diagnosed(**variables: str) -> Diagnosis:
    environment = read_environment({"HOME": os.environ["HOME"], "PATH": ""} | variables)
    location = locate_cache(None, environment)
    return diagnose(Session(environment, load_config(None, environment), location))


def codes(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings}


def test_each_path_names_the_setting_that_chose_it(cache: CacheBuilder) -> None:
    found = {fact.name: fact for fact in diagnosed(HF_HUB_CACHE=str(cache.root)).paths}
    assert (found["cache"].path, found["cache"].source) == (str(cache.root), "HF_HUB_CACHE")
    assert found["cache"].exists
    assert found["config"].source == "shipped"


def test_variables_that_disagree_and_a_second_cache_are_reported(
    cache: CacheBuilder, tmp_path: Path
) -> None:
    CacheBuilder(tmp_path / "hf" / "hub").repo("org/name").revision(model_files())
    found = diagnosed(HF_HUB_CACHE=str(cache.root), HF_HOME=str(tmp_path / "hf"))
    assert {"conflicting-settings", "second-cache"} <= codes(found)
    (second,) = [finding for finding in found.findings if finding.code == "second-cache"]
    assert second.path == str(tmp_path / "hf" / "hub")


def test_the_filesystems_abilities_are_tried_and_nothing_is_left_behind(
    cache: CacheBuilder,
) -> None:
    before = fingerprint(cache.root)
    filesystem = diagnosed(HF_HUB_CACHE=str(cache.root)).filesystem
    assert (filesystem.symlinks, filesystem.hard_links, filesystem.locks) == (True, True, True)
    assert filesystem.case_sensitive
    assert filesystem.free
    assert fingerprint(cache.root) == before


def test_secrets_are_never_repeated(cache: CacheBuilder) -> None:
    found = diagnosed(
        HF_HUB_CACHE=str(cache.root),
        HF_TOKEN="hf_abcdef",
        HUGGING_FACE_HUB_TOKEN="hf_abcdef",
        HF_ENDPOINT="https://user:hf_abcdef@mirror.example",
    )
    assert "hf_abcdef" not in repr(found)
    assert found.variables["HF_TOKEN"] == "(set)"
    assert found.variables["HF_ENDPOINT"] == "https://mirror.example"


def test_offline_readiness_is_that_every_configured_model_is_cached(cache: CacheBuilder) -> None:
    Path("config.yaml").write_text("models: {a: {repo: org/a}, b: {repo: org/b}}")
    cache.repo("org/a").revision(model_files())
    assert diagnosed(HF_HUB_CACHE=str(cache.root)).offline.lacking == ("b",)
    cache.repo("org/b").revision(model_files())
    found = diagnosed(HF_HUB_CACHE=str(cache.root), HF_HUB_OFFLINE="1").offline
    assert (found.ready, found.forced) == (True, True)


def test_damage_in_the_cache_is_an_error_and_exit_4(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    assert vlmcache("doctor").code == 0
    repo.dangling_link("config.json")
    done = vlmcache("doctor", "--json")
    assert done.code == 4
    assert "damaged-repos" in {finding["code"] for finding in done.document["findings"]}


def test_a_cache_path_that_is_a_file_is_reported_and_not_fatal(
    vlmcache: Vlmcache, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    done = vlmcache("doctor", "--cache-dir", str(tmp_path / "file"), "--json")
    assert done.code == 4
    assert "cache-path" in {finding["code"] for finding in done.document["findings"]}


def test_a_low_disk_is_reported(cache: CacheBuilder) -> None:
    Path("config.yaml").write_text("vlmcache: {min_free: 900PB}")
    found = diagnosed(HF_HUB_CACHE=str(cache.root))
    (low,) = [finding for finding in found.findings if finding.code == "low-disk"]
    assert low.remedy == "vlmcache status --all --sort size"


def test_a_driver_that_does_not_answer_is_reported(cache: CacheBuilder, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    program.chmod(0o755)
    os.environ["PATH"] = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    found = diagnosed(HF_HUB_CACHE=str(cache.root))
    assert "gpu-driver" in codes(found)
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 570.1'\necho 'X, [N/A], 1'\n")
    devices = diagnosed(HF_HUB_CACHE=str(cache.root)).devices
    assert [(device.name, device.memory) for device in devices] == [
        ("NVIDIA H200", 143771 * 1024 * 1024),
        ("X", None),
    ]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])


def test_a_cache_that_others_may_change_and_one_that_cannot_be_written_are_told() -> None:
    program = (
        "import sys; from vlmcache.cli.main import main;"
        "main(['doctor', '--json', '--cache-dir', sys.argv[1]])"
    )
    with common_folder() as folder:
        cache = CacheBuilder(folder / "hub")
        cache.repo("org/name").revision(model_files())
        cache.root.chmod(0o755)
        done = as_other_user([sys.executable, "-c", program, str(cache.root)])
        assert '"cache-read-only"' in done.stdout, done.stderr
        cache.root.chmod(0o777)
        done = as_other_user([sys.executable, "-c", program, str(cache.root)])
        assert '"world-writable"' in done.stdout, done.stderr
