"""What people see of `doctor`: one line for each check, those with problems first."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.kit.caches import CacheBuilder, model_files
from vlmcache.cache.state import Finding
from vlmcache.codes import CODES
from vlmcache.commands.doctor import view
from vlmcache.commands.doctor.doctor import diagnose
from vlmcache.commands.doctor.results import check_results, summary
from vlmcache.commands.doctor.values import Diagnosis, Filesystem, Offline, PathFact
from vlmcache.config import Session, load_config, locate_cache, read_environment

DISK = Filesystem("ext4", "/", False, 40 * 10**9, 10**11, True, True, True, True, "daily")


def diagnosis(*findings: Finding, missing: tuple[str, ...] = (), forced: bool = False) -> Diagnosis:
    return Diagnosis(
        paths=(
            PathFact("cache", "/a folder/hub", "HF_HOME", True, True, "ada, group vlm"),
            PathFact("config", "/home/ada/config.yaml", "user", True, True),
            PathFact("vlmcache", "/home/ada/.cache/vlmcache", "default", False, True),
            PathFact("huggingface", "/home/ada/hf", "default", True, True),
        ),
        variables={"HF_HOME": "/a folder"},
        filesystem=DISK,
        python="3.11.7 (/usr/bin/python)",
        platform="Linux",
        versions={"vlmcache": "1", "torch": "2", "bitsandbytes": None},
        devices=(),
        quantization=None,
        offline=Offline(not missing, missing, forced),
        findings=findings,
    )


def finding(code: str, severity: Any = "warning", detail: str = "odd", path: str = "/p") -> Finding:
    return Finding(code, severity, None, path, detail, "vlmcache doctor --fix")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    def show(value: Diagnosis, width: int = 80, *, verbose: bool = False) -> list[str]:
        stream = io.StringIO()
        out = Console(file=stream, width=width, force_terminal=True, color_system=None)
        monkeypatch.setattr(view, "console", lambda: out)
        view.show(value, verbose=verbose)
        return stream.getvalue().splitlines()

    return show


def test_without_problems_each_check_is_ok_and_has_its_fact(shown: Any) -> None:
    lines = shown(diagnosis(), 200)
    assert lines[0] == "all 13 checks ok"
    checks = lines[2:15]
    assert all(line.startswith("ok       ") for line in checks)
    names = [line.split()[1] for line in checks]
    assert len(set(names)) == 13
    assert "ok       cache         /a folder/hub (HF_HOME)" in checks
    assert "ok       permissions   belongs to ada, group vlm" in checks
    assert (
        "ok       home          /home/ada/.cache/vlmcache (default, does not exist yet)" in checks
    )
    assert lines[15:] == ["", "Settings", "  HF_HOME=/a folder"]
    assert "  huggingface: /home/ada/hf (default)" in shown(diagnosis(), 200, verbose=True)


def test_failed_checks_come_first_then_warnings_and_each_says_one_thing(shown: Any) -> None:
    value = diagnosis(
        finding("no-access-times", "info", "this mount keeps no access times"),
        finding("low-disk", detail="1 GB free, below the minimum"),
        finding("damaged-repos", "error", "1 error in the cache: org/a"),
        finding("no-locks", detail="this filesystem has no locks"),
        finding("something-new", detail="nobody has heard of it"),
    )
    lines = shown(value, 120)
    assert lines[0] == "1 failed, 3 warnings, 10 ok"
    assert [line.split()[0] for line in lines[2:] if line[:1].strip()][:4] == [
        "failed",
        "warning",
        "warning",
        "warning",
    ]
    assert lines[2] == "failed   contents      1 error in the cache: org/a [damaged-repos]"
    assert lines[3] == "                       vlmcache doctor --fix"
    text = "\n".join(lines)
    # What is wrong stands in place of the fact, and not next to it.
    assert "40 GB free" not in text
    assert "symbolic links" not in text
    assert "nothing is known to be damaged" not in text
    assert text.count(" filesystem  ") == 1
    assert text.index("no locks") < text.index("no access times")


def test_offline_is_a_warning_only_if_the_network_is_switched_off() -> None:
    for forced, outcome in ((False, "ok"), (True, "warning")):
        results = check_results(diagnosis(missing=("qwen_vl_2b",), forced=forced))
        offline = next(result for result in results if result.name == "offline")
        assert offline.outcome == outcome
        assert "qwen_vl_2b" in offline.fact


def test_what_is_odd_about_config_yaml_is_kept_apart_from_what_is_odd_about_the_hub() -> None:
    value = diagnosis(
        finding("configuration", path="/home/ada/config.yaml"),
        finding("configuration", "info", path="/work/.env"),
        finding("configuration", "error", path="/a folder/hub"),
    )
    results = {result.name: result for result in check_results(value)}
    assert (results["config"].outcome, len(results["config"].findings)) == ("warning", 2)
    assert (results["hub"].outcome, len(results["hub"].findings)) == ("failed", 1)


def test_every_code_of_a_check_is_in_the_register() -> None:
    from vlmcache.commands.doctor.results import _CHECKS

    codes = [code for codes in _CHECKS.values() for code in codes]
    assert len(codes) == len(set(codes))
    assert set(codes) <= CODES.keys()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_path_and_no_command_is_broken(shown: Any, width: int) -> None:
    path = "/a folder/" + "long/" * 30 + "hub"
    remedy = f"vlmcache doctor --fix --cache-dir '{path}'"
    odd = Finding("world-writable", "warning", None, path, "everybody can change it", remedy)
    lines = shown(diagnosis(odd), width)
    assert sum(remedy in line for line in lines) == 1
    assert sum("/a folder/hub" in line for line in lines) == 1
    others = [line for line in lines if remedy not in line]
    assert all(len(line) <= width for line in others)


def test_a_summary_counts() -> None:
    assert summary(check_results(diagnosis(finding("low-disk")))) == "1 warning, 12 ok"


def test_what_stands_where_a_lock_belongs_is_named_with_what_to_type(
    cache: CacheBuilder, tmp_path: Path
) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    odd = [repo.locks / "a b.lock", repo.locks / "folder.lock", repo.locks / "link.lock"]
    os.mkfifo(odd[0])
    odd[1].mkdir()
    odd[2].symlink_to(tmp_path)
    odd.append(repo.locks.with_name("models--org--other"))
    odd[3].write_text("")
    # What vlmcache itself keeps next to the locks is not odd.
    repo.locks.with_name("models--org--name.moved-here.json").write_text("{}")
    environment = read_environment(
        {"HOME": os.environ["HOME"], "PATH": "", "HF_HUB_CACHE": str(cache.root)}
    )
    location = locate_cache(None, environment)
    found = diagnose(Session(environment, load_config(None, environment), location))
    wrong = {f.path: f for f in found.findings if f.code == "wrong-lock"}
    assert wrong.keys() == set(map(str, odd))
    assert [wrong[str(path)].detail.partition(" is ")[0] for path in odd] == [
        "a pipe",
        "a folder",
        "a link",
        "a file",
    ]
    assert wrong[str(odd[0])].remedy == f"mv '{odd[0]}' '{odd[0]}.old'"
    assert not found.has_errors
