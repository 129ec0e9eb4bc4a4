"""Root keeps nothing in a home that is somebody else's, and is led nowhere from there."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder
from vlmcache.cache.hashing import Identity
from vlmcache.commands.verify.verify import verify
from vlmcache.config import open_session
from vlmcache.home import copies
from vlmcache.home.journal import FILE, Journal
from vlmcache.load import scratch

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="another user's files need root"
)

USER = 4242
KEY = ("model", "org/name", "c" * 40)
IDENTITY = Identity(1, 2, 3, 4, 5)


def remember(home: Path, at: float = 10.0) -> None:
    with Journal(str(home)) as memory:
        memory.record_use("/cache", KEY, "pull", at)
        memory.record_verified([(IDENTITY, "a" * 64)], at)


def uses(home: Path) -> dict[tuple[str, str, str], float]:
    with Journal(str(home)) as memory:
        return memory.uses("/cache")


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """The home of a user."""
    (tmp_path / "user").mkdir()
    os.chown(tmp_path / "user", USER, USER)
    return tmp_path / "user"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of root's in which nothing may change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "kept").write_bytes(b"precious")
    yield folder
    assert os.listdir(folder) == ["kept"]
    assert (folder / "kept").read_bytes() == b"precious"


def test_nothing_is_left_in_a_users_home_and_the_log_says_so(
    user: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlmcache")
    remember(user / "below" / "vlmcache")
    remember(user / "below" / "vlmcache")
    assert os.listdir(user) == []
    said = [record.getMessage() for record in caplog.records if record.name == "vlmcache.journal"]
    assert len(said) == 1
    assert str(user) in said[0]


def test_a_command_works_without_the_memory(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CacheBuilder(tmp_path / "hub").repo("org/name").revision({"config.json": b"{}"})
    monkeypatch.setenv("VLMCACHE_HOME", str(user / "vlmcache"))
    for _ in range(2):
        assert verify(open_session(cache_dir=str(tmp_path / "hub"))).checked == 1
    assert os.listdir(user) == []


@pytest.mark.parametrize("below", ["", "vlmcache"])
def test_a_link_in_a_users_home_leads_nowhere(user: Path, outside: Path, below: str) -> None:
    (user / "link").symlink_to(outside)
    remember(user / "link" / below)
    assert uses(user / "link" / below) == {}


@pytest.mark.parametrize("target", ["kept", "new"])
def test_a_journal_that_is_a_link_or_anothers_is_not_written(
    tmp_path: Path, outside: Path, target: str
) -> None:
    home = tmp_path / "roots"
    home.mkdir()
    (home / FILE).symlink_to(outside / target)
    remember(home)
    (home / FILE).unlink()
    (home / FILE).touch()
    os.chown(home / FILE, USER, USER)
    remember(home)
    assert (home / FILE).stat().st_size == 0
    (home / FILE).unlink()
    os.mkfifo(home / FILE)
    remember(home)
    assert uses(home) == {}


def test_roots_own_home_is_remembered_in(tmp_path: Path) -> None:
    remember(tmp_path / "new" / "home")
    assert uses(tmp_path / "new" / "home") == {KEY: 10.0}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 reads nothing out of memory")
def test_what_a_user_has_used_is_read_and_what_was_verified_is_not_believed(user: Path) -> None:
    os.chown(user, 0, 0)
    remember(user)
    for path in (user, user / FILE):
        os.chown(path, USER, USER)
    before = (user / FILE).read_bytes()
    assert uses(user) == {KEY: 10.0}
    remember(user, 20.0)
    with Journal(str(user)) as memory:
        assert memory.verified() == {}
        memory.forget("/cache", KEY)
    assert (user / FILE).read_bytes() == before
    assert os.listdir(user) == [FILE]


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_users_damaged_journal_stays_as_it_is(user: Path, content: bytes) -> None:
    (user / FILE).write_bytes(content)
    os.chown(user / FILE, USER, USER)
    assert uses(user) == {}
    remember(user)
    assert (user / FILE).read_bytes() == content


def test_a_view_that_never_ends_is_not_asked(user: Path) -> None:
    with contextlib.closing(sqlite3.connect(user / FILE)) as database, database:
        database.execute(
            "CREATE VIEW uses AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
            "SELECT '/cache' AS cache, 'm' AS type, 'r' AS repo, x AS commit_hash, 1.0 AS at FROM n"
        )
    os.chown(user / FILE, USER, USER)
    assert uses(user) == {}


@pytest.mark.parametrize("odd", ["NULL", "9e999", "x'00'", "'x'"])
def test_a_table_of_a_users_own_making_makes_no_trouble(user: Path, odd: str) -> None:
    with contextlib.closing(sqlite3.connect(user / FILE)) as database, database:
        database.execute("CREATE TABLE verified (device, inode, size, mtime_ns, hash)")
        database.execute(f"INSERT INTO verified VALUES ({odd}, {odd}, {odd}, {odd}, '')")
    os.chown(user / FILE, USER, USER)
    with Journal(str(user)) as memory:
        assert memory.damaged() == set()


def test_no_copies_are_made_or_removed_in_a_users_home(user: Path, outside: Path) -> None:
    (user / copies.FOLDER).symlink_to(outside.parent)
    (outside.parent / "models--org--name" / "kept").mkdir(parents=True)
    assert copies.remove_copies(str(user), "org/name") == 0
    assert (outside.parent / "models--org--name" / "kept").exists()
    with (
        pytest.raises(PermissionError, match="VLMCACHE_HOME"),
        scratch.new_folder(str(user / "quantized-new")),
    ):
        pass
    assert os.listdir(user) == [copies.FOLDER]
