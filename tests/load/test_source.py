"""Finding the files of models reads as little of the cache as that takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import vlmcache
from tests.kit.caches import CacheBuilder, model_files
from vlmcache.cache.scan import Scanner
from vlmcache.cache.scan_repo import read_repo
from vlmcache.load import quantized

MODELS = ["org/a", "org/b", "org/c"]


class Reached(Exception):  # noqa: N818
    """Ends a load at the place to which a test follows it."""


@pytest.fixture
def scans(cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the cache was scanned, and how often each repo, from now on."""
    counts = {"cache": 0}
    for model in (*MODELS, "org/other"):
        cache.repo(model).revision(model_files())
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.root))
    Path("config.yaml").write_text("models: {a: {repo: org/a}}\nvlmcache: {min_free: 0}\n")
    scan = Scanner.scan

    def counted_scan(scanner: Scanner, *arguments: Any, **options: Any) -> Any:
        counts["cache"] += 1
        return scan(scanner, *arguments, **options)

    def counted_read(content: Any, now: float) -> Any:
        repo = read_repo(content, now)
        counts[repo.id] = counts.get(repo.id, 0) + 1
        return repo

    monkeypatch.setattr(Scanner, "scan", counted_scan)
    monkeypatch.setattr("vlmcache.cache.scan.read_repo", counted_read)
    return counts


def reached(*_: object) -> None:
    raise Reached


def test_a_load_test_of_three_models_at_three_precisions_scans_each_of_them_once(
    scans: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmcache.load.bench.require_packages", lambda: None)
    asked: list[dict[str, Any]] = []

    def child(request: dict[str, Any], *_: object) -> dict[str, Any]:
        asked.append(request)
        refusal = {"code": "unsupported-precision", "message": "no", "hint": None}
        refused = dict.fromkeys(request["precisions"], refusal)
        machine = {"accelerators": [], "versions": {}, "bytecode": True}
        return {"device": "cpu", "free": None, "refused": refused} | machine

    monkeypatch.setattr("vlmcache.load.bench.run_child", child)
    report = vlmcache.Cache().load_test(MODELS, precision="fp32,bf16,int8")
    assert len(report.failures) == 9
    assert [request["task"] for request in asked] == ["facts"]
    assert scans == {"cache": 1, **dict.fromkeys(MODELS, 1)}


def test_a_load_test_without_names_scans_the_configured_models_only(
    scans: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmcache.load.bench.require_packages", reached)
    with pytest.raises(Reached):
        vlmcache.Cache().load_test()
    assert scans == {"cache": 1, "org/a": 1}


@pytest.mark.parametrize("name", ["org/b", "a", "ORG/B"])
def test_load_model_scans_the_repo_that_it_loads_and_no_other(
    scans: dict[str, int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("vlmcache.loading.require_packages", lambda: None)
    monkeypatch.setattr(quantized, "preferred", reached)
    with pytest.raises(Reached):
        vlmcache.load_model(name)
    assert scans == {"cache": 1, "org/a" if name == "a" else "org/b": 1}


def test_quantize_scans_the_repo_that_it_quantizes_and_no_other(scans: dict[str, int]) -> None:
    plan = vlmcache.Cache().quantize("org/c", dry_run=True).check()
    assert (plan.made, os.path.basename(plan.path)[:5]) == (False, "int8-")
    assert scans == {"cache": 1, "org/c": 1}
