"""Many small files: published in groups, with what a crash may not undo in the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.caches import fingerprint
from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub, cut, reset, status, wrong_bytes
from tests.kit.pulls import REPO, Listener, expected, lies, pull
from vlmcache.cache import layout
from vlmcache.cache.locks import check_lock
from vlmcache.change.locks import Lock
from vlmcache.change.tree import Tree
from vlmcache.commands.pull import group
from vlmcache.commands.pull.plan import FileSelection

EVERY = FileSelection(every=True)
FILES: dict[str, Content] = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    **{f"part{number % 3}/{number:03}.json": b"[%d]" % number * 500 for number in range(60)},
}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


class Disk:
    """What of a folder would be left if the power failed now, as the calls made so far say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unsynced: set[str] = set()
        """Files with bytes, and folders with entries, that are not on the disk for sure."""
        self.broken: list[str] = []
        self.links = 0
        for name in ("write", "fsync", "fdatasync", "replace", "symlink", "mkdir"):
            monkeypatch.setattr(os, name, self._noting(getattr(self, name), getattr(os, name)))

    def _noting(self, note: Any, call: Any) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            result = call(*arguments, **options)
            note(*arguments, **options)
            return result

        return noted

    def path(self, place: int | str, folder: int | None = None) -> str:
        if isinstance(place, int):
            return os.readlink(f"/proc/self/fd/{place}")
        return place if folder is None else os.path.join(self.path(folder), place)

    def write(self, descriptor: int, _: object) -> None:
        self.unsynced.add(self.path(descriptor))

    def fsync(self, descriptor: int) -> None:
        self.unsynced.discard(self.path(descriptor))

    fdatasync = fsync

    def mkdir(self, name: str, _: int = 0, dir_fd: int | None = None) -> None:
        self.unsynced.add(os.path.dirname(self.path(name, dir_fd)))

    def replace(self, name: str, new: str, src_dir_fd: int, dst_dir_fd: int) -> None:
        source, target = self.path(name, src_dir_fd), self.path(new, dst_dir_fd)
        if source in self.unsynced:
            self.broken.append(f"{target} has its name before its bytes are on the disk")
        repo = os.path.dirname(os.path.dirname(target))
        if os.path.basename(os.path.dirname(target)) == layout.REFS:
            self.broken += [
                f"the ref is written before {place} is on the disk"
                for place in self.unsynced
                if place.startswith((f"{repo}/blobs", f"{repo}/snapshots"))
            ]
        self.unsynced.add(os.path.dirname(target))

    def symlink(self, target: str, name: str, dir_fd: int | None = None) -> None:
        link = self.path(name, dir_fd)
        blob = os.path.normpath(os.path.join(os.path.dirname(link), target))
        self.links += 1
        for place in (blob, os.path.dirname(blob)):
            if place in self.unsynced:
                self.broken.append(f"{link} is made before {place} is on the disk")
        self.unsynced.add(os.path.dirname(link))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("most", [1, 7, 64])
def test_a_link_leads_to_what_is_on_the_disk_and_a_ref_comes_after_everything(
    hub: LoopbackHub, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "_MOST", most)
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        # One thread: what the others do meanwhile would have to be kept apart.
        run = pull(hub, tmp_path / "cache", selection=EVERY, max_workers=1)
    assert run.problem is None
    assert disk.broken == []
    assert disk.links == len(FILES)
    assert fingerprint(tmp_path / "cache") == expected(tmp_path / "right", FILES)


def test_each_small_file_is_one_request_over_connections_that_are_used_again(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    assert pull(hub, tmp_path / "cache", selection=EVERY, max_workers=4).problem is None
    assert hub.count(contains="/part") == len(FILES) - 1
    assert hub.connections <= 6


def test_a_redirect_costs_no_connection(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.redirect = "same-host"
    hub.add_repo("org/lfs").commit(FILES, lfs=FILES.keys())
    assert pull(hub, tmp_path / "cache", "org/lfs", selection=EVERY, max_workers=4).problem is None
    assert hub.count("GET") > 2 * len(FILES)
    assert hub.connections <= 6


@pytest.mark.parametrize(
    "fault", [wrong_bytes(5), cut(3), reset(), status(503), status(403)], ids=lambda f: str(f.kind)
)
def test_a_small_file_that_does_not_arrive_at_once_is_fetched_as_any_other(
    hub: LoopbackHub, tmp_path: Path, fault: Any
) -> None:
    for name in ("part0/000.json", "part1/031.json"):
        hub.fault(fault.on(name))
    assert pull(hub, tmp_path / "cache", selection=EVERY).problem is None
    assert fingerprint(tmp_path / "cache") == expected(tmp_path / "right", FILES)


def test_no_lock_is_waited_for_while_others_are_held(hub: LoopbackHub, tmp_path: Path) -> None:
    cache, repo = tmp_path / "cache", layout.repo_folder("model", REPO)
    etag = hub._repos["model", REPO].file("part2/002.json").etag
    (cache / layout.LOCKS / repo).mkdir(parents=True)
    lock = Lock(Tree(str(cache)), layout.lock_path(str(cache), repo, etag))
    lock.take()
    held: list[bool] = []

    class Waiting(Listener):
        def note(self, text: str) -> None:
            super().note(text)
            others = set((cache / layout.LOCKS / repo).iterdir()) - {Path(lock.path)}
            held.extend(check_lock(Tree(str(cache)), str(other)) for other in others)
            lock.release()

    waiting = Waiting()
    run = pull(hub, cache, selection=EVERY, max_workers=1, progress=waiting)
    assert run.problem is None
    assert "downloads the same file" in waiting.notes[0]
    assert len(held) >= 50, "longer files come first"
    assert not any(held)
    assert lies(cache) == []
    assert fingerprint(cache) == expected(tmp_path / "right", FILES)
