"""A scan opens files and folders, and nothing else that somebody has put in their place."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.caches import CacheBuilder, CachedRepo
from vlmcache.cache import reading
from vlmcache.cache.completeness import judge_content
from vlmcache.cache.scan import scan

PLACES: dict[str, Callable[[CachedRepo], Path]] = {
    "ref": lambda repo: repo.refs / "main",
    "listing": lambda repo: next(repo.trees.glob("*.json")),
    "file": lambda repo: repo.pointer("config.json"),
    "weights": lambda repo: repo.pointer("model.safetensors"),
    "blob": lambda repo: repo.blob("config.json"),
    "marker": lambda repo: repo.cache.shared_store / ".huggingface-shared-blobs",
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
@pytest.mark.parametrize("linked", [True, False], ids=["link", "pipe"])
@pytest.mark.parametrize("place", PLACES)
def test_no_pipe_is_opened_by_a_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, linked: bool
) -> None:
    repo = CacheBuilder(tmp_path / "hub").repo("org/name")
    files = {"config.json": b"{}", "model.safetensors": b"weights", "shared.bin": b"shared"}
    repo.revision(files, shared=["shared.bin"])
    path = PLACES[place](repo)
    path.unlink()
    pipe = tmp_path / "pipe" if linked else path
    os.mkfifo(pipe)
    if linked:
        path.symlink_to(pipe)
    opened: list[Any] = []
    real = os.open

    def watched(name: Any, *args: Any, **options: Any) -> int:
        descriptor = real(name, *args, **options)
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            opened.append(name)
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    state = scan(str(tmp_path / "hub"))
    for revision in state.repos[0].revisions:
        judge_content(state.repos[0], revision)
    assert opened == []


def test_a_ref_or_listing_is_not_read_through_a_link(tmp_path: Path) -> None:
    repo = CacheBuilder(tmp_path / "hub").repo("org/name")
    repo.revision({"config.json": b"{}"})
    for path in (repo.refs / "main", next(repo.trees.glob("*.json"))):
        elsewhere = path.rename(tmp_path / path.name)
        path.symlink_to(elsewhere)
    found = scan(str(tmp_path / "hub")).repos[0]
    assert (found.refs, found.trees) == ({}, {})
    assert "unreadable-ref" in {finding.code for finding in found.findings}


def test_what_is_followed_has_to_be_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(os.devnull)
    for follow in (True, False):
        with pytest.raises(OSError, match=r"not a regular file|not followed"):
            reading.open_quietly(str(tmp_path / "link"), follow=follow)
