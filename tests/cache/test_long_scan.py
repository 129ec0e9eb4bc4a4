"""The scan of a very large cache says on a terminal how far it is, and clears that away again."""

from __future__ import annotations

import io
from itertools import count
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder
from vlmcache.cache import scan as scans
from vlmcache.progress import scanned
from vlmcache.show.progress import scan_line


@pytest.fixture
def cache(tmp_path: Path) -> CacheBuilder:
    built = CacheBuilder(tmp_path / "hub")
    for number in range(5):
        built.repo(f"org/model{number}").revision({"config.json": b"{}"})
    return built


def shown(cache: CacheBuilder, step: float) -> str:
    """Return what a terminal is sent on which each look at the clock takes so many seconds."""
    stream, ticks = io.StringIO(), count()
    with scan_line(stream, lambda: next(ticks) * step):
        scans.scan(cache.root)
    return stream.getvalue()


def test_a_long_scan_of_many_repos_shows_a_line_and_wipes_it(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "MANY_REPOS", 4)
    text = shown(cache, 0.6)
    assert "\rreading the cache: 2 of 5 repos\rreading the cache: 3 of 5 repos" in text
    assert text.endswith("\r" + " " * len("reading the cache: 3 of 5 repos") + "\r")
    assert "\x1b" not in text
    assert scanned.get() is None


def test_a_scan_that_ends_within_a_second_shows_nothing(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "MANY_REPOS", 4)
    assert shown(cache, 0.01) == ""


def test_a_scan_of_few_repos_shows_nothing_however_long_it_takes(cache: CacheBuilder) -> None:
    assert shown(cache, 60.0) == ""


def test_the_line_is_wiped_when_the_scan_fails(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "MANY_REPOS", 4)
    stream, ticks = io.StringIO(), count()

    def interrupted() -> None:
        with scan_line(stream, lambda: next(ticks) * 2.0):
            scans.scan(cache.root)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().endswith(" \r")
    assert scanned.get() is None
