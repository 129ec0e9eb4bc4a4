"""What vlmcache remembers survives between runs, and its loss harms nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from tests.kit.disks import read_only_view, small_filesystem
from vlmcache.home.journal import FILE, Journal

KEY = ("model", "org/name", "c" * 40)


def remember(home: Path, at: float, what: str = "pull") -> None:
    with Journal(str(home)) as memory:
        memory.record_use("/cache", KEY, what, at)


def uses(home: Path) -> dict[tuple[str, str, str], float]:
    with Journal(str(home)) as memory:
        return memory.uses("/cache")


def test_the_latest_use_of_a_revision_is_remembered(tmp_path: Path) -> None:
    remember(tmp_path, 10.0)
    remember(tmp_path, 30.0, "load")
    remember(tmp_path, 20.0)
    remember(tmp_path, 5.0)
    assert uses(tmp_path) == {KEY: 30.0}


def test_caches_are_kept_apart_and_a_revision_can_be_forgotten(tmp_path: Path) -> None:
    remember(tmp_path, 10.0)
    with Journal(str(tmp_path)) as memory:
        assert memory.uses("/other") == {}
        memory.forget("/cache", (*KEY[:2], "d" * 40))
        assert memory.uses("/cache") == {KEY: 10.0}
        memory.forget("/cache", KEY)
        assert memory.uses("/cache") == {}


@pytest.mark.parametrize("odd", ["x", b"x", float("inf"), float("-inf"), -1.0, "9" * 1000])
def test_rows_of_others_are_passed_over(tmp_path: Path, odd: object) -> None:
    remember(tmp_path, 10.0)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as database, database:
        use = ("/cache", *KEY[:2], "d" * 40, "pull", odd)
        database.execute("INSERT INTO uses VALUES (?, ?, ?, ?, ?, ?)", use)
        database.execute("INSERT INTO loads VALUES (?, ?)", (1.0, "text"))
        database.execute("INSERT INTO loads VALUES (?, zeroblob(5000000))", (odd,))
        row = ("1", "2", 3, 4, 5, "a" * 64, odd)
        database.execute("INSERT INTO verified VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        wrong = (odd, odd, odd, odd, odd, "", 1.0)
        database.execute("INSERT INTO verified VALUES (?, ?, ?, ?, ?, ?, ?)", wrong)
    with Journal(str(tmp_path)) as memory:
        assert memory.uses("/cache") == {KEY: 10.0}
        assert memory.loads() == []
        assert {name for _, name in memory.verified()} <= {""}
        assert len(memory.damaged()) <= 1


def test_reading_creates_no_file(tmp_path: Path) -> None:
    assert uses(tmp_path / "own") == {}
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_damaged_file_fails_nothing_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert uses(tmp_path) == {}
    remember(tmp_path, 10.0)
    assert uses(tmp_path) == {KEY: 10.0}


def test_a_file_that_is_damaged_further_on_is_replaced(tmp_path: Path) -> None:
    remember(tmp_path, 10.0)
    content = bytearray((tmp_path / FILE).read_bytes())
    # The first page holds the tables' definitions, the rest the tables.
    content[4096:] = b"\xff" * (len(content) - 4096)
    (tmp_path / FILE).write_bytes(content)
    assert uses(tmp_path) == {}
    remember(tmp_path, 20.0)
    assert uses(tmp_path) == {KEY: 20.0}


def test_a_read_only_home_can_be_read_and_not_written(tmp_path: Path) -> None:
    home = tmp_path / "own"
    remember(home, 10.0)
    with read_only_view(home) as view:
        remember(view, 20.0)
        assert uses(view) == {KEY: 10.0}


def test_a_full_disk_fails_nothing() -> None:
    with small_filesystem(65536) as disk:
        (disk / "filler").write_bytes(b"x" * 60000)
        remember(disk / "own", 10.0)
        assert uses(disk / "own") in ({}, {KEY: 10.0})


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=remember, args=(tmp_path, float(n))) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert uses(tmp_path) == {KEY: 3.0}
