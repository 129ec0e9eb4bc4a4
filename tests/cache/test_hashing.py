"""Hashing: correct, on several threads, stoppable, and gentle to the page cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from tests.kit.contents import git_blob_sha1
from vlmcache.cache import page_cache
from vlmcache.cache.hashing import BLOCK, Check, hash_all, hash_file


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 5])
def test_hashes_are_those_of_the_hub(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert hash_file(str(path), "0" * 64) == hashlib.sha256(data).hexdigest()
    assert hash_file(str(path), "0" * 40) == git_blob_sha1(data)


def test_every_file_is_judged_once_whatever_the_number_of_threads(tmp_path: Path) -> None:
    checks = []
    for number in range(40):
        data = os.urandom(number * 1000)
        path = tmp_path / str(number)
        path.write_bytes(data)
        checks.append(Check(str(path), hashlib.sha256(data).hexdigest()))
    checks.append(Check(str(tmp_path / "absent"), "0" * 64))
    os.mkfifo(tmp_path / "pipe")
    checks.append(Check(str(tmp_path / "pipe"), "0" * 64))
    for workers in (1, 3, 16):
        results = list(hash_all(checks, workers))
        paths = sorted(judged.check.path for judged in results)
        assert paths == sorted(check.path for check in checks)
        bad = [judged for judged in results if not judged.good]
        assert {Path(judged.check.path).name for judged in bad} == {"absent", "pipe"}
        assert all(judged.problem for judged in bad)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 5 * BLOCK, 9 * BLOCK + 5])
def test_a_file_of_any_length_has_the_hashes_of_the_hub(tmp_path: Path, size: int) -> None:
    """Alone with more threads than files, and next to another file."""
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    expected = (hashlib.sha256(data).hexdigest(), git_blob_sha1(data))
    checks = [Check(str(tmp_path / "file"), digest) for digest in expected]
    for check in checks:
        (judged,) = hash_all([check], 2)
        assert judged.good
    assert all(judged.good for judged in hash_all(checks, 4))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fails_in_the_middle_of_a_file_is_a_problem_of_that_file(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(FileIO):
        reads = 0

        def readinto(self, buffer: object, /) -> int | None:
            self.reads += 1
            if self.reads > 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(buffer)  # type: ignore[arg-type]

    (tmp_path / "file").write_bytes(b"x" * (9 * BLOCK))
    monkeypatch.setattr(os, "fdopen", lambda descriptor, *_, **__: Failing(descriptor))
    before = threading.active_count()
    (judged,) = hash_all([Check(str(tmp_path / "file"), "0" * 64)], workers)
    assert judged.problem == "it cannot be read: Input/output error"
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_ends_at_the_length_of_each_file(tmp_path: Path, workers: int) -> None:
    (tmp_path / "long").write_bytes(b"x" * (20 * BLOCK))
    positions: list[int] = []
    list(
        hash_all(
            [Check(str(tmp_path / "long"), "0" * 64)], workers, lambda _, at: positions.append(at)
        )
    )
    assert positions == sorted(positions)
    assert len(positions) > 2
    assert positions[-1] == 20 * BLOCK


@pytest.mark.parametrize("workers", [2, 8])
def test_closing_stops_the_threads(tmp_path: Path, workers: int) -> None:
    (tmp_path / "long").write_bytes(b"x" * (64 * BLOCK))
    before = threading.active_count()
    results = hash_all([Check(str(tmp_path / "long"), "0" * 64)] * 5, workers)
    next(results)
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_is_written_to_meanwhile_is_not_called_damaged(
    tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (16 * BLOCK))

    def write(check: Check, position: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    (judged,) = hash_all([Check(str(path), "0" * 64)], workers, write)
    assert judged.actual is None
    assert judged.problem == "it changed while it was read"


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder on a disk: files on a filesystem in memory cannot leave memory."""
    folder = Path(__file__).parents[2] / f".page-cache-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux shows the page cache")
@pytest.mark.parametrize("kernel", ["with cachestat", "without cachestat"])
def test_cold_parts_of_a_file_are_left_cold_and_resident_ones_stay(
    on_disk: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "without cachestat":
        monkeypatch.setattr(page_cache, "_CACHESTAT", 100_000)
    stretch = 8 * BLOCK
    path = on_disk / "file"
    path.write_bytes(os.urandom(BLOCK) * 48)
    subprocess.run(["sync", str(path)], check=True)
    with path.open("rb", buffering=0) as file:
        number, size = file.fileno(), 48 * BLOCK
        page_cache.give_back(number, 0, size)
        if any(page_cache.resident_blocks(number, size, stretch) or [True]):
            pytest.skip("this filesystem keeps what it is asked to forget")
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(number, 4096, 2 * stretch)
        before = page_cache.resident_blocks(number, size, stretch)
        assert before == [False, False, True, False, False, False]
        with contextlib.closing(hash_all([Check(str(path), "0" * 64)], 1)) as results:
            next(results)
        assert page_cache.resident_blocks(number, size, stretch) == before


def test_access_times_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3 * BLOCK)
    os.utime(path, (0, 0))
    hash_file(str(path), "0" * 64)
    assert path.stat().st_atime == 0
