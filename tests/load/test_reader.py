"""The page cache is emptied, measured and filled as asked, by threads and by a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit.disks import as_other_user, common_folder
from vlmcache.load import conditions, reader

linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux evicts files from memory on request"
)
SIZE = 40_000_123


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1_000_000) * 40 + b"x" * 123)
    return str(path)


@linux_only
def test_eviction_empties_and_reading_ahead_fills(weights: str) -> None:
    reader.evict([weights])
    assert reader.resident_bytes(weights) == 0
    reading = reader.ReadAhead([weights])
    reading.wait()
    assert reader.resident_bytes(weights) == SIZE
    assert reading.seconds is not None
    assert reading.seconds > 0


@linux_only
@pytest.mark.parametrize("limit", [0, 1_000_000, reader.CHUNK, 10**12])
def test_no_more_is_read_ahead_than_the_limit_says(weights: str, limit: int) -> None:
    reader.evict([weights])
    reader.ReadAhead([weights], limit).wait()
    # The kernel rounds up to what it reads at once.
    resident = reader.resident_bytes(weights)
    assert resident is not None
    assert min(limit, SIZE) <= resident <= min(limit + reader.CHUNK if limit else 0, SIZE)


@linux_only
def test_what_was_just_written_is_evicted_too(tmp_path: Path) -> None:
    path = tmp_path / "fresh"
    path.write_bytes(b"x" * 3_000_000)
    reader.evict([str(path)])
    assert reader.resident_fraction([str(path)]) == 0.0
    assert path.read_bytes() == b"x" * 3_000_000


@linux_only
def test_residency_counts_the_bytes_that_were_read(weights: str) -> None:
    reader.evict([weights])
    descriptor = os.open(weights, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(descriptor, 10 * reader.PAGE, 0)
    os.close(descriptor)
    assert reader.resident_bytes(weights) == 10 * reader.PAGE


def test_threads_read_every_byte_and_no_more_than_asked(weights: str) -> None:
    for limit, expected in ((None, SIZE), (1_000_000, 1_000_000), (10**12, SIZE)):
        readers = reader.Readers([weights], 3, limit)
        readers.start()
        readers.wait()
        assert readers.bytes == expected


def test_without_populating_the_same_bytes_are_read(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "libc", lambda: None)
    reader.evict([weights])
    readers = reader.Readers([weights])
    readers.start()
    readers.wait()
    assert readers.bytes == SIZE
    monkeypatch.undo()
    assert reader.resident_fraction([weights]) in (1.0, None)


def test_files_that_are_gone_or_shrink_are_left_to_the_loader(weights: str) -> None:
    readers = reader.Readers(["/nowhere/at/all", weights])
    os.truncate(weights, 1000)
    readers.start()
    readers.wait()
    assert readers.bytes <= SIZE


def test_halted_threads_read_no_further(weights: str) -> None:
    readers = reader.Readers([weights])
    readers.halt()
    readers.start()
    readers.wait()
    assert readers.bytes == 0


def test_halting_ends_the_process_that_reads(weights: str) -> None:
    reading = reader.ReadAhead([weights] * 500)
    process = reading._process
    assert process is not None
    reading.halt()
    assert process.returncode is not None
    reading.wait()
    assert reading.seconds is None


def test_an_application_that_embeds_python_reads_with_threads(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/app/server")
    reading = reader.ReadAhead([weights])
    assert reading._process is None
    assert reading._readers is not None
    reading.wait()
    assert reading._readers.bytes == SIZE


@linux_only
def test_the_process_that_reads_dies_with_the_one_that_asked(weights: str) -> None:
    code = (
        "import sys; from vlmcache.load.reader import ReadAhead; import time;"
        "r = ReadAhead(sys.argv[1:] * 10000); print(r._process.pid, flush=True);"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, weights], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        # The child asks for this first of all, but has to start for it.
        time.sleep(0.5)
        parent.kill()
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@linux_only
def test_the_speed_is_that_of_these_files(weights: str) -> None:
    disk = conditions.measure_disk([weights])
    assert disk is not None
    assert disk.sequential > 0
    assert disk.parallel > 0
    assert disk.bytes == 2 * SIZE


@linux_only
def test_residency_of_another_users_files_is_not_known() -> None:
    with common_folder() as folder:
        path = folder / "weights"
        path.write_bytes(b"x" * 100_000)
        path.chmod(0o644)
        code = Path(reader.__file__).read_text().partition("\nif __name__")[0]
        code += "\nprint(resident_bytes(sys.argv[1]))"
        done = as_other_user([sys.executable, "-c", code, path])
        assert done.stdout == "None\n", done.stderr


def test_an_empty_file_has_nothing_to_read(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert reader.resident_bytes(str(path)) in (0, None)
    assert reader.resident_fraction([str(path)]) in (0.0, None)
    reader.ReadAhead([str(path)]).wait()
