"""Whichever call of a pull fails, or is its last: no lie in the cache, and running again finishes.

A failure that the disk reports is one line with its exit code; it never passes for success.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, Entry
from tests.kit.contents import Content, Synthetic
from tests.kit.faulty import FAULTS, Fault, Subject, fault_name, try_every
from tests.kit.hub_process import HubProcess, served
from tests.kit.pulls import REPO, content, expected, lies, pull
from vlmcache.cache import layout
from vlmcache.change import partials
from vlmcache.commands.pull import group
from vlmcache.commands.pull.plan import FileSelection
from vlmcache.commands.pull.values import PullReport
from vlmcache.errors import ExitCode

FILES: dict[str, Content] = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    "model.safetensors": Synthetic(150_000, 9),
    "sub/copy.json": b'{"model_type": "qwen2_vl"}',
}


MANY: dict[str, Content] = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    **{f"sub/{number}.json": b"%d" % number for number in range(4)},
}


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    with served({REPO: FILES, "org/many": MANY}) as hub:
        yield hub


def needed(found: Mapping[str, object]) -> dict[str, object]:
    """Return what is there without `sub`, which comes along in the first pull and never alone.

    Without it the listing has a name that the client does not read.
    """
    return {name: entry for name, entry in found.items() if not re.search("/sub|/trees/", name)}


class Pull(Subject[PullReport]):
    command = "pull"

    def __init__(self, hub: HubProcess, right: dict[str, Entry], fault: Fault) -> None:
        self.hub = hub
        # The tag only makes backup programs skip the cache; nothing is said if it is missing.
        self.right = {name: entry for name, entry in right.items() if name != layout.CACHE_TAG}
        self.wanted = ExitCode.SPACE if fault == errno.ENOSPC else ExitCode.FAILED

    def begin(self, place: Path) -> None:
        """An empty cache."""

    def run(self, place: Path) -> PullReport:
        return pull(self.hub, place / "cache", max_workers=1)

    def hold(self, place: Path, answer: PullReport | None) -> None:
        assert lies(place / "cache") == []
        if answer is None:
            return
        if answer.problem is None:
            # The failure was of no consequence: a folder that was there, the tag for backups.
            self.check_content(place)
            return
        assert answer.problem.exit_code == self.wanted
        assert "\n" not in answer.problem.message
        assert "internal" not in answer.problem.message

    def again(self, place: Path) -> None:
        assert self.run(place).problem is None
        self.check_content(place)

    def check_content(self, place: Path) -> None:
        found = content(place / "cache")
        found.pop(layout.CACHE_TAG, None)
        assert needed(found) == needed(self.right)


class PullOfBegun(Pull):
    """A pull of what another program has begun, and left behind."""

    command = "pull of what another program began"

    def begin(self, place: Path) -> None:
        weights = FILES["model.safetensors"]
        assert isinstance(weights, Synthetic)
        data = b"".join(weights.blocks())
        etag = hashlib.sha256(data).hexdigest()
        repo = CacheBuilder(place / "cache").repo(REPO)
        self.left = repo.partial(etag, data=data[:100_000], age=7200)

    def check_content(self, place: Path) -> None:
        assert self.left.stat().st_size == 100_000
        found = content(place / "cache")
        found.pop(layout.CACHE_TAG, None)
        assert [found.pop(name) for name in list(found) if name.endswith(self.left.name)]
        assert needed(found) == needed(self.right)


class PullOfOther(Pull):
    """A pull whose hub sends from the start what differs from what is there."""

    command = "pull of what the hub sends again and otherwise"

    def begin(self, place: Path) -> None:
        weights = FILES["model.safetensors"]
        assert isinstance(weights, Synthetic)
        data = bytearray(b"".join(weights.blocks()))
        etag = hashlib.sha256(data).hexdigest()
        data[40_000] ^= 0xFF
        repo = CacheBuilder(place / "cache").repo(REPO)
        repo.partial(etag, data=bytes(data[:100_000]), old_style=True)


class PullOfMany(Pull):
    """A pull of more small files than are published together."""

    command = "pull of many small files"

    def run(self, place: Path) -> PullReport:
        every = FileSelection(every=True)
        return pull(self.hub, place / "cache", "org/many", max_workers=1, selection=every)


@pytest.fixture(scope="module")
def hub_without_ranges() -> Iterator[HubProcess]:
    with served({REPO: FILES}, "--no-ranges") as hub:
        yield hub


@pytest.mark.faults
@pytest.mark.parametrize("kind", [Pull, PullOfBegun, PullOfOther, PullOfMany])
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_call_leaves_no_lie_and_the_next_pull_finishes(
    hub: HubProcess,
    hub_without_ranges: HubProcess,
    tmp_path: Path,
    fault: Fault,
    kind: type[Pull],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partials, "_boot_time", float)
    hub = hub_without_ranges if kind is PullOfOther else hub
    monkeypatch.setattr(group, "_MOST", 2)
    many = kind is PullOfMany
    expected(tmp_path / "right", MANY if many else FILES, repo="org/many" if many else REPO)
    try_every(kind(hub, content(tmp_path / "right"), fault), fault, at_least=30)
