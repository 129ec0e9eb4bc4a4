"""Each control group above a process limits the memory that it can take, in both versions."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmcache.cache.free_memory import _VERSIONS, _rooms, available_memory, group_rooms

GB = 10**9
UNLIMITED_V1 = 9223372036854771712


class Groups:
    """A tree of control groups and the process that is in one of them, as files."""

    def __init__(self, root: Path, version: int, own: str, *, mounted: str = "/") -> None:
        self.version = version
        self.process = root / "process"
        self.point = root / "cgroup groups"
        self.process.mkdir()
        self.point.mkdir()
        line = f"0::{own}\n" if version == 2 else f"5:cpu:/other\n4:memory:{own}\n"
        (self.process / "cgroup").write_text(f"9:name=systemd:/\n{line}")
        point = str(self.point).replace(" ", r"\040")
        kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", "rw,memory")
        (self.process / "mountinfo").write_text(
            "20 1 0:19 / / rw - ext4 /dev/vda rw\n"
            f"21 20 0:20 / {point}-cpu rw - cgroup cgroup rw,cpu\n"
            f"22 20 0:21 {mounted} {point} rw - {kind} {kind} {options}\n"
        )

    def group(
        self, path: str, limit: int | str | None, used: int, *, high: int | None = None, **stat: int
    ) -> None:
        """Add a group: its limit, what it uses, and lines of memory.stat by their names in v2."""
        folder = self.point / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        limits = {2: "memory.max", 1: "memory.limit_in_bytes"}
        usage = {2: "memory.current", 1: "memory.usage_in_bytes"}
        if limit is not None:
            (folder / limits[self.version]).write_text(f"{limit}\n")
        if high is not None:
            (folder / "memory.high").write_text(f"{high}\n")
        (folder / usage[self.version]).write_text(f"{used}\n")
        names = stat
        if self.version == 1:
            # What is in the group itself, without the groups below it, must not be taken.
            names = {f"total_{name.removeprefix('file_')}": size for name, size in stat.items()}
            names |= {"inactive_file": 1, "active_file": 1}
        lines = [f"{name} {size}" for name, size in names.items()]
        (folder / "memory.stat").write_text("\n".join(["anon 5", *lines]) + "\n")

    @property
    def rooms(self) -> list[int]:
        return sorted(group_rooms(str(self.process)))


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_clean_files_in_memory_count_as_free_active_ones_too(tmp_path: Path, version: int) -> None:
    groups = Groups(tmp_path, version, "/box")
    groups.group("box", 3 * GB, 2 * GB, inactive_file=GB, active_file=GB // 2)
    assert groups.rooms == [5 * GB // 2]


def test_what_is_dirty_or_being_written_does_not_count_as_free(
    tmp_path: Path, version: int
) -> None:
    groups = Groups(tmp_path, version, "/box")
    files = {"inactive_file": GB, "file_dirty": GB // 4, "file_writeback": GB // 4}
    groups.group("box", 3 * GB, 2 * GB, **files)
    assert groups.rooms == [3 * GB // 2]


def test_what_is_shared_memory_or_locked_does_not_count_as_free(
    tmp_path: Path, version: int
) -> None:
    groups = Groups(tmp_path, version, "/box")
    groups.group("box", 3 * GB, 2 * GB, shmem=GB, unevictable=GB, file_mapped=GB, inactive_anon=GB)
    assert groups.rooms == [GB]


def test_the_groups_above_have_limits_too(tmp_path: Path, version: int) -> None:
    groups = Groups(tmp_path, version, "/out/mid/in")
    groups.group("out", 4 * GB, 3 * GB, inactive_file=GB // 2)
    groups.group("out/mid", "max" if version == 2 else UNLIMITED_V1, 2 * GB)
    groups.group("out/mid/in", 3 * GB, GB)
    groups.group("out/other", 1, 1)
    assert [room for room in groups.rooms if room < 10 * GB] == [3 * GB // 2, 2 * GB]


def test_no_limit_limits_nothing(tmp_path: Path, version: int) -> None:
    groups = Groups(tmp_path, version, "/box")
    groups.group("box", "max" if version == 2 else UNLIMITED_V1, 2 * GB)
    assert min(groups.rooms, default=10**18) > 10**17


def test_the_limit_that_slows_down_counts(tmp_path: Path) -> None:
    groups = Groups(tmp_path, 2, "/box")
    groups.group("box", 3 * GB, GB, high=2 * GB)
    assert groups.rooms == [GB, 2 * GB]


@pytest.mark.parametrize(
    ("own", "mounted"),
    [
        ("/docker/1234", "/docker/1234"),
        ("/", "/"),
        ("/docker/1234", "/"),
        ("/../other", "/"),
        ("/", "/docker/1234"),
    ],
    ids=["bind", "namespace", "hidden", "outside", "moved"],
)
def test_a_container_has_its_limits_where_its_groups_are_mounted(
    tmp_path: Path, version: int, own: str, mounted: str
) -> None:
    groups = Groups(tmp_path, version, own, mounted=mounted)
    groups.group("", 2 * GB, GB, active_file=GB // 2)
    assert groups.rooms == [3 * GB // 2]


def test_a_group_below_the_one_that_a_container_sees_is_found(tmp_path: Path, version: int) -> None:
    groups = Groups(tmp_path, version, "/docker/1234/in", mounted="/docker/1234")
    groups.group("", 4 * GB, GB)
    groups.group("in", 2 * GB, GB)
    assert groups.rooms == [GB, 3 * GB]


def test_without_groups_the_machine_and_the_process_limit(tmp_path: Path) -> None:
    assert list(group_rooms(str(tmp_path))) == []
    assert 0 < available_memory(str(tmp_path)) <= psutil.virtual_memory().total


def test_a_group_that_uses_more_than_its_limit_leaves_nothing(tmp_path: Path, version: int) -> None:
    groups = Groups(tmp_path, version, "/box")
    groups.group("box", GB, 2 * GB)
    assert groups.rooms == [0]
    assert available_memory(str(groups.process)) == 0


@given(st.dictionaries(st.sampled_from(["memory.max", "memory.current", "memory.stat"]), st.text()))
def test_whatever_the_files_say_no_room_is_negative(files: dict[str, str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8", errors="replace")
        assert all(room >= 0 for room in _rooms(folder, _VERSIONS["cgroup2"]))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of addresses are Linux's")
def test_a_limit_of_addresses_counts_less_what_the_process_has() -> None:
    code = (
        "import resource; limit = 4 << 30; resource.setrlimit(resource.RLIMIT_AS, (limit, limit));"
        "from vlmcache.cache.free_memory import available_memory; print(available_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 4 << 30
    assert resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
