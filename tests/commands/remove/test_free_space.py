"""`clean --free` stops evicting once the disk gets nothing back, and receipts say what is free."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from tests.commands.remove.test_remove import Place
from tests.kit.caches import CacheBuilder
from tests.kit.disks import common_folder
from vlmcache.cache.usage import find_users
from vlmcache.change import space
from vlmcache.change.plan import Receipt
from vlmcache.change.space import FreeSpace, Reclaim, free_bytes, free_words, shared_bytes
from vlmcache.commands.backup.backup import backup
from vlmcache.commands.backup.restore import restore
from vlmcache.commands.move.move import move
from vlmcache.commands.remove.plan import LINKED_OUTSIDE
from vlmcache.commands.remove.values import CleanOptions, Removal
from vlmcache.errors import ExitCode, PartlyError

MB = 1_000_000
GB = 1000 * MB
MODELS = ("org/oldest", "org/older", "org/old")


class Usage(NamedTuple):
    """What `shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


class Disk:
    """A disk whose free bytes and whose clock are what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        self.now = 0.0
        self.written_per_second = 0
        """What another program writes while we wait."""
        self.due: list[tuple[float, int]] = []
        """(when, bytes) that come back late."""
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(space, "time", clock)
        monkeypatch.setattr(shutil, "disk_usage", self.usage)

    def usage(self, path: str) -> Usage:
        late = sum(size for when, size in self.due if when <= self.now)
        free = self.free + late - int(self.written_per_second * self.now)
        return Usage(10**15, 0, free)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def models(place: Path, size: int = MB) -> None:
    """Three models that were last used 30, 20 and 10 days ago."""
    cache = CacheBuilder(place)
    for number, name in enumerate(MODELS):
        repo = cache.repo(name)
        repo.revision({"config.json": b"{}", "model.safetensors": os.urandom(size)})
        then = time.time() - (30 - 10 * number) * 86400
        for path in repo.folder.rglob("*"):
            os.utime(path, (then, then), follow_symlinks=False)


def weights(root: Path, name: str) -> Path:
    """The blob of a model that has its weights."""
    blobs = root / f"models--{name.replace('/', '--')}" / "blobs"
    return max(blobs.iterdir(), key=lambda path: path.stat().st_size)


def left(root: Path) -> list[str]:
    return sorted(path.name.rpartition("--")[2] for path in root.glob("models--*"))


def problem_of(removal: Removal) -> PartlyError:
    problem = removal.problem
    assert isinstance(problem, PartlyError)
    assert problem.exit_code == ExitCode.PARTLY
    return problem


def test_when_nothing_comes_back_the_rest_of_the_models_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models(tmp_path / "hub")
    disk = Disk(monkeypatch, free=7 * MB)
    removal = Place(tmp_path).clean(CleanOptions(free=10 * MB))

    assert left(tmp_path / "hub") == ["old", "older"]
    assert removal.receipt is not None
    assert (removal.receipt.free_before, removal.receipt.free_after) == (7 * MB, 7 * MB)
    assert removal.receipt.freed >= MB
    words = problem_of(removal).message
    assert "the disk has only 0 B more free: snapshots or an open file keep it" in words
    assert words.endswith("2 models of the plan stayed")
    assert disk.now >= space.WAIT_SECONDS


def test_what_comes_back_late_is_waited_for_and_all_is_evicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models(tmp_path / "hub")
    disk = Disk(monkeypatch, free=0)
    disk.due = [(space.WAIT_SECONDS * number - 1, MB) for number in (1, 2, 3)]
    removal = Place(tmp_path).clean(CleanOptions(free=2 * MB + MB // 2))
    assert left(tmp_path / "hub") == []
    assert removal.receipt is not None
    assert removal.receipt.stopped is None


def test_another_writer_explains_what_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, free=GB)
    disk.written_per_second = 10 * MB
    reclaim = Reclaim(str(tmp_path), 2 * GB)
    disk.now = 60.0
    disk.free += 600 * MB
    assert reclaim.why_stop(600 * MB) is None


def test_a_trickle_of_others_explains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, free=GB)
    disk.written_per_second = 4096
    reclaim = Reclaim(str(tmp_path), 2 * GB)
    disk.now = 60.0
    assert "stopped: 600 MB of files were removed" in str(reclaim.why_stop(600 * MB))


@pytest.mark.parametrize(
    ("asked", "counted", "judged"),
    [
        (100 * GB, GB, True),
        (100 * GB, GB - 1, False),
        (2 * GB, GB // 2, True),
        (2 * GB, GB // 2 - 1, False),
    ],
)
def test_it_is_judged_at_a_quarter_of_what_was_asked_for_or_one_gigabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, counted: int, judged: bool
) -> None:
    Disk(monkeypatch, free=0)
    assert (Reclaim(str(tmp_path), asked).why_stop(counted) is not None) == judged


def test_what_was_counted_adds_up_over_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, free=0)
    reclaim = Reclaim(str(tmp_path), 4 * GB)
    assert [reclaim.why_stop(GB // 3) is not None for _ in range(4)] == [False] * 3 + [True]


def test_an_open_file_is_named_as_the_reason_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, free=0)
    file = tmp_path / "blob"
    file.write_bytes(b"x")
    status = file.stat()
    reclaim = Reclaim(str(tmp_path), GB)
    reclaim.expect({(status.st_dev, status.st_ino): str(file)})
    wait = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", wait, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        file.unlink()
        words = reclaim.why_stop(GB)
        child.communicate()
    assert f"what was removed is in use by PID {child.pid}" in str(words)


@pytest.mark.parametrize("use", ["file", "mmap.mmap(file.fileno(), 0)"])
def test_a_new_file_in_the_inode_of_a_removed_one_is_no_reason(tmp_path: Path, use: str) -> None:
    file = tmp_path / "blob"
    file.write_bytes(b"x")
    status = file.stat()
    content = {(status.st_dev, status.st_ino): str(file)}
    hold = f"import mmap, sys; file = open(sys.argv[1], 'r+b'); kept = {use}; print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", hold + "; sys.stdin.read()", str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        before = find_users(content, removed=True).files
        file.unlink()
        after = find_users(content, removed=True).files
        child.communicate()
    assert not before
    assert [user.pid for users in after.values() for user in users] == [child.pid]


def test_models_with_hard_links_outside_stay_and_are_named_as_the_reason(tmp_path: Path) -> None:
    models(tmp_path / "hub")
    for name in MODELS[:2]:
        os.link(weights(tmp_path / "hub", name), tmp_path / name.replace("/", "-"))
    free = free_bytes(str(tmp_path))
    assert free is not None

    removal = Place(tmp_path).clean(CleanOptions(free=free + GB))

    assert left(tmp_path / "hub") == ["older", "oldest"]
    assert [kept.reason for kept in removal.plan.kept] == [LINKED_OUTSIDE] * 2
    assert LINKED_OUTSIDE in problem_of(removal).message


def test_models_that_share_hard_links_within_the_cache_are_evicted(tmp_path: Path) -> None:
    models(tmp_path / "hub")
    first, second = (weights(tmp_path / "hub", name) for name in MODELS[:2])
    second.unlink()
    os.link(first, second)
    free = free_bytes(str(tmp_path))
    assert free is not None
    Place(tmp_path).clean(CleanOptions(free=free + GB))
    assert left(tmp_path / "hub") == []


def test_a_shared_blob_is_freed_with_the_last_of_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CacheBuilder(tmp_path / "hub")
    data = os.urandom(MB)
    for number, name in enumerate(MODELS):
        content = {"config.json": bytes([number]), "model.safetensors": data}
        shared = {"model.safetensors": "a" * 64}
        cache.repo(name).revision(content, shared=list(shared), xet=shared)
    for path in (tmp_path / "hub").rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    removal = Place(tmp_path).clean(CleanOptions(free=10**15))
    assert left(tmp_path / "hub") == []
    assert not cache.shared_blob("a" * 64).exists()
    assert removal.receipt is not None
    assert removal.receipt.freed == removal.plan.frees


def test_a_receipt_has_the_free_bytes_before_and_after(tmp_path: Path) -> None:
    models(tmp_path / "hub")
    removal = Place(tmp_path).rm("org/old")
    assert removal.receipt is not None
    assert removal.receipt.free_before is not None
    assert removal.receipt.free_after is not None


def test_receipts_of_restore_and_move_have_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models(tmp_path / "hub", 1000)
    place = Place(tmp_path)
    saved = tmp_path / "saved.tar"
    backup(place.session, str(saved))
    Disk(monkeypatch, free=GB)
    restored = restore(Place(tmp_path / "new").session, str(saved)).receipt
    moved = move(place.session, str(tmp_path / "moved")).receipt
    nothing = place.clean().receipt
    for receipt in (restored, moved, nothing):
        assert receipt is not None
        assert (receipt.free_before, receipt.free_after) == (GB, GB)


@pytest.mark.parametrize(
    ("receipt", "said"),
    [
        (Receipt((), 10 * MB, 0, 0, 10 * MB), False),
        (Receipt((), 10 * MB, 0, 0, 5 * MB), False),
        (Receipt((), 10 * MB, 0, 0, 5 * MB - 1), True),
        (Receipt((), 10 * MB, 0, 0, -MB), True),
        (Receipt((), 10 * MB, 10 * MB, 0, 0), False),
        (Receipt((), MB // 2, 0, 0, 0), False),
        (Receipt((), 10 * MB), False),
    ],
)
def test_people_see_the_free_space_if_it_differs_much_from_what_was_freed(
    receipt: Receipt, said: bool
) -> None:
    assert (free_words(receipt) is not None) == said


@pytest.fixture(params=["btrfs", "xfs"])
def disk_with_reflinks(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A filesystem in a file; skipped where it cannot be made or mounted."""
    kind = request.param
    if os.geteuid() != 0 or shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mounting {kind} needs root and mkfs.{kind}")
    with common_folder() as folder:
        image, place = folder / "image", folder / "mounted"
        with image.open("wb") as file:
            file.truncate(320 * MB)
        subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, capture_output=True)
        place.mkdir()
        done = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"cannot mount {kind} here: {done.stderr.strip()}")
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)


def test_of_models_with_reflinks_one_is_evicted_and_the_rest_stays(
    disk_with_reflinks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = disk_with_reflinks
    models(disk / "hub", 4 * MB)
    copies = disk / "copies"
    subprocess.run(["cp", "-a", "--reflink=always", str(disk / "hub"), str(copies)], check=True)
    free = free_bytes(str(disk))
    assert free is not None
    now = iter(range(10**6))
    clock = SimpleNamespace(monotonic=lambda: float(next(now)), sleep=lambda seconds: None)
    monkeypatch.setattr(space, "time", clock)

    removal = Place(disk).clean(CleanOptions(free=free + 12 * MB))

    assert left(disk / "hub") == ["old", "older"]
    assert "other files or snapshots share its blocks (reflinks)" in problem_of(removal).message
    fresh = disk / "fresh"
    fresh.write_bytes(os.urandom(4 * MB))
    assert shared_bytes(str(weights(disk / "hub", "org/old"))) >= 4 * MB
    assert shared_bytes(str(fresh)) == 0


def test_on_such_a_disk_models_without_reflinks_are_evicted(disk_with_reflinks: Path) -> None:
    disk = disk_with_reflinks
    models(disk / "hub", 4 * MB)
    os.sync()
    free = FreeSpace(str(disk)).before
    assert free is not None
    removal = Place(disk).clean(CleanOptions(free=free + 11 * MB))
    assert left(disk / "hub") == []
    assert removal.receipt is not None
    assert removal.receipt.stopped is None
