"""The page cache is emptied, measured and filled as asked, by threads and by a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.kit.disks import as_other_user, common_folder
from vlmcache.cache import page_cache
from vlmcache.cache.mounts import drive_of, mount_of
from vlmcache.home.journal import Journal
from vlmcache.load import disk, reader
from vlmcache.load.report import Disk

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
    assert (reader.resident_bytes(weights) or 0) >= 0.9 * SIZE
    assert reading.seconds is not None
    assert reading.seconds > 0


@linux_only
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("limit", [0, 1_000_000, reader.STEP, 10**12])
def test_no_more_is_read_ahead_than_the_limit_says(weights: str, limit: int, count: int) -> None:
    reader.evict([weights])
    reader.ReadAhead([weights], limit, count).wait()
    # What is in memory is whole pages, and the kernel may have taken a few back.
    resident = reader.resident_bytes(weights)
    assert resident is not None
    assert 0.9 * min(limit, SIZE) <= resident <= min(-(-limit // reader.PAGE) * reader.PAGE, SIZE)


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
    monkeypatch.setattr(page_cache, "libc", lambda: None)
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
        # The child asks for this first of all, then to come after others.
        niced = min(19, os.nice(0) + reader._NICE)
        while os.getpriority(os.PRIO_PROCESS, child) != niced:
            time.sleep(0.01)
        parent.kill()
    deadline = time.monotonic() + 60
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
    measured = disk.measure_disk([weights])
    assert measured is not None
    assert measured.sequential > 0
    assert measured.parallel > 0
    assert measured.bytes == 3 * SIZE
    assert measured.readers in (1, 2, 4)


@linux_only
def test_more_readers_are_kept_only_where_they_are_faster(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for speeds, best in (
        ((2.0, 2.0, 2.0), 1),
        ((2.0, 2.05, 2.08), 1),
        ((1.0, 2.0, 2.05), 2),
        ((1.0, 1.5, 2.0), 4),
        ((2.0, 1.5, 1.0), 1),
    ):
        given = dict(zip((1, 2, 4), speeds, strict=True))
        monkeypatch.setattr(disk, "_timed", lambda _, count, given=given: (given[count], 10**9))
        measured = disk.measure_disk([weights])
        assert measured is not None
        assert measured.readers == best


def test_what_was_measured_on_a_disk_is_remembered(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = str(tmp_path / "home")
    monkeypatch.setattr(disk, "is_rotational", lambda _: False)
    default = disk.readers_for(home, [weights])
    other = 4 if default != 4 else 1
    # What was read of a small model tells nothing of a large one.
    disk.remember_readers(home, [weights], Disk(1.0, 1.0, 1000, other))
    assert disk.readers_for(home, [weights]) == default
    disk.remember_readers(home, [weights], Disk(1.0, 1.0, 10**10, other))
    assert disk.readers_for(home, [weights]) == (other if drive_of(weights) else default)
    assert disk.readers_for(str(tmp_path / "another"), [weights]) == default
    assert disk.readers_for(home, []) == reader.READERS


@linux_only
def test_a_number_of_readers_that_nobody_would_measure_does_not_count(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "is_rotational", lambda _: False)
    name = disk._identity(weights)
    assert name is not None
    default = disk.readers_for(str(tmp_path), [weights])
    for count in (0, -1, 3, 10**9):
        with Journal(str(tmp_path)) as memory:
            memory.record_readers(name, count)
        assert disk.readers_for(str(tmp_path), [weights]) == default


@linux_only
def test_rotational_disks_get_one_reader_and_networks_several(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = mount_of(weights)
    assert mount is not None
    for kind, turns, expected in (("ext4", True, 1), ("ext4", False, 2), ("nfs4", False, 4)):
        there = msgspec.structs.replace(mount, type=kind)
        monkeypatch.setattr(disk, "mount_of", lambda _, there=there: there)
        monkeypatch.setattr(disk, "is_rotational", lambda _, turns=turns: turns)
        assert disk.readers_for(str(tmp_path), [weights]) == expected


@pytest.mark.parametrize(
    ("device", "flag", "turns"),
    [
        ("pci/ata1/block/sda", "1", True),
        ("pci/nvme/nvme0n1", "0", False),
        ("pci/virtio1/block/vda", "1", False),
        ("virtual/block/dm-0", "1", True),
    ],
)
@pytest.mark.parametrize("partition", [False, True])
@linux_only
def test_the_kernel_says_which_disks_are_rotational(
    device: str, flag: str, turns: bool, partition: bool, tmp_path: Path
) -> None:
    block = tmp_path / "devices" / device
    (block / "queue").mkdir(parents=True)
    (block / "queue" / "rotational").write_text(f"{flag}\n")
    target = block / "part1" if partition else block
    target.mkdir(exist_ok=True)
    status = tmp_path.stat()
    sysfs = tmp_path / "block"
    sysfs.mkdir()
    (sysfs / f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}").symlink_to(target)
    assert disk.is_rotational(str(tmp_path), str(sysfs)) is turns


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_each_reader_reads_one_part_of_each_file_and_together_they_read_it_all(count: int) -> None:
    huge = page_cache.HUGE_PAGE
    files = [("a", 10 * huge + 123), ("b", 5), ("c", 0), ("d", 3 * huge), ("e", 99 * huge - 1)]
    given = [(name, size, name == "e") for name, size in files]
    taken: dict[str, list[tuple[int, int]]] = {name: [] for name, _ in files}
    for number in range(count):
        names = []
        for name, begin, end, limit in reader._parts(given, number, count):
            assert begin % huge == 0
            assert limit == (files[-1][1] if name == "e" else None)
            taken[name].append((begin, end))
            names.append(name)
        assert len(set(names)) == len(names)
    for name, size in files:
        parts = [0, *(edge for part in sorted(taken[name]) for edge in part), size]
        assert parts[::2] == parts[1::2]


@linux_only
@pytest.mark.parametrize("kernel", ["with cachestat", "without cachestat"])
def test_both_ways_to_ask_count_the_same(
    weights: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "without cachestat":
        monkeypatch.setattr(page_cache, "_CACHESTAT", 100_000)
    assert reader.resident_bytes(weights) == SIZE
    reader.evict([weights])
    with Path(weights).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.seek(SIZE - 10)
        file.read()
    assert reader.resident_bytes(weights) == SIZE % reader.PAGE


@linux_only
def test_residency_of_another_users_files_is_not_known() -> None:
    with common_folder() as folder:
        path = folder / "weights"
        path.write_bytes(b"x" * 100_000)
        path.chmod(0o644)
        code = "import sys\n" + Path(page_cache.__file__).read_text().replace(
            "from __future__ import annotations\n", ""
        )
        code += "\nprint(resident_bytes(sys.argv[1]))"
        done = as_other_user([sys.executable, "-c", code, path])
        assert done.stdout == "None\n", done.stderr


def test_an_empty_file_has_nothing_to_read(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert reader.resident_bytes(str(path)) in (0, None)
    assert reader.resident_fraction([str(path)]) in (0.0, None)
    reader.ReadAhead([str(path)]).wait()


def test_files_of_which_a_limit_left_out_a_part_are_not_all_read(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(100_000))
    for limit, complete in ((None, True), (100_000, True), (99_999, False)):
        reading = reader.ReadAhead([str(path)], limit)
        assert reading._process is not None
        reading._process.wait()
        assert reading.is_done() == complete
        reading.wait()
