"""Locks: what the hub's client sees of ours and we of its, and what no lock file may be."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
from huggingface_hub.utils._fixes import WeakFileLock

from tests.kit.caches import CacheBuilder
from vlmcache.cache.locks import SOFT_SECONDS, lock_held
from vlmcache.cache.owners import owner_name
from vlmcache.cache.scan import scan
from vlmcache.cache.tree import StaleError
from vlmcache.cache.usage import who_uses
from vlmcache.change import locks
from vlmcache.change.locks import Lock
from vlmcache.change.shared_store import SharedStore
from vlmcache.change.tree import Tree
from vlmcache.cli.main import main
from vlmcache.errors import ExitCode, InUseError
from vlmcache.hub.locks import blob_lock
from vlmcache.progress import StopToken

ETAG = "e" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "hub/.locks/models--org--name"
    folder.mkdir(parents=True)
    return folder / f"{ETAG}.lock"


def tree_of(path: Path, patience: float = 0.3) -> Tree:
    return Tree(str(path.parents[2]), patience=patience)


@contextlib.contextmanager
def held(path: Path, patience: float = 0.3) -> Iterator[Lock]:
    lock = Lock(tree_of(path, patience), str(path))
    lock.take()
    try:
        yield lock
    finally:
        lock.release()


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without flock."""

    def refused(_descriptor: int, _kind: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)


def age(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at), follow_symlinks=False)


def test_the_hubs_client_waits_for_our_lock_and_we_for_its(path: Path) -> None:
    with held(path), pytest.raises(filelock.Timeout), WeakFileLock(path, timeout=0.2):
        pass
    with WeakFileLock(path, timeout=0.2), pytest.raises(InUseError), held(path):
        pass
    with WeakFileLock(path, timeout=0.2):
        assert lock_held(str(path))
    with held(path):
        assert lock_held(str(path))
    assert not lock_held(str(path))


def test_a_held_lock_is_refused_after_the_patience_with_its_holder_and_exit_6(path: Path) -> None:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InUseError) as refused, held(path):
            pass
    assert refused.value.exit_code == ExitCode.BUSY
    assert f"process {os.getpid()} (" in refused.value.message
    assert str(path) in refused.value.message


def test_the_patience_of_one_command_is_shared_by_all_its_locks(path: Path) -> None:
    tree = tree_of(path, 0.5)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for _ in range(3):
            with pytest.raises(InUseError):
                Lock(tree, str(path)).take()
    assert tree.patience < 0.1


def test_an_existing_lock_is_neither_written_to_nor_given_another_mode(path: Path) -> None:
    path.write_text("whose it is")
    path.chmod(0o640)
    age(path, 100)
    before = path.stat()
    with held(path):
        pass
    after = path.stat()
    assert path.read_text() == "whose it is"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_a_lock_that_is_made_can_be_locked_by_the_group_whatever_the_umask(path: Path) -> None:
    before = os.umask(0o077)
    try:
        with held(path):
            assert path.stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _link(path: Path) -> None:
    target = path.parents[3] / "secret"
    target.write_text("secret")
    path.symlink_to(target)


def _dangling_link(path: Path) -> None:
    path.symlink_to(path.parents[3] / "made-through-a-link")


def _socket(path: Path) -> None:
    where = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(where)


def _second_name(path: Path) -> None:
    target = path.parents[3] / "secret"
    target.write_text("secret")
    os.link(target, path)


MAKERS = [_fifo, _folder, _link, _dangling_link, _socket, _second_name]


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_no_plain_lock_file_is_one_refusal_and_stays_as_it_is(
    path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    before = sorted(os.listdir(path.parents[3])), path.lstat()
    with pytest.raises(StaleError, match="in the place of"), held(path):
        pass
    after = sorted(os.listdir(path.parents[3])), path.lstat()
    assert after == before


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_no_plain_lock_file_stops_no_scan(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    cache = CacheBuilder(tmp_path / "hub")
    repo = cache.repo("org/name")
    repo.revision({"config.json": b"{}"})
    repo.partial(ETAG, data=b"begun", old_style=True, age=7200)
    repo.locks.mkdir(parents=True, exist_ok=True)
    make(repo.locks / f"{ETAG}.lock")
    state = scan(cache.root)
    who_uses(state)
    assert [partial.etag for partial in state.repos[0].partials] == [ETAG]


def test_a_lock_that_is_replaced_while_it_is_waited_for_is_opened_again(path: Path) -> None:
    path.touch()
    with path.open() as old:
        fcntl.flock(old, fcntl.LOCK_EX)

        def replace() -> None:
            path.unlink()
            path.touch()

        timer = threading.Timer(0.3, replace)
        timer.start()
        # Ours is the one that others find by its name.
        with held(path, patience=20), path.open() as new, pytest.raises(BlockingIOError):
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
        timer.join()


def test_a_folder_of_locks_that_becomes_a_link_meanwhile_leads_nowhere(
    path: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def swap() -> None:
            path.parent.rename(tmp_path / "aside")
            path.parent.symlink_to(outside)
            fcntl.flock(file, fcntl.LOCK_UN)

        timer = threading.Timer(0.2, swap)
        timer.start()
        with pytest.raises(StaleError), held(path, patience=20):
            pass
        timer.join()
    assert list(outside.iterdir()) == []


def test_a_pull_waits_as_long_as_the_other_download_grows_and_no_longer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmcache.hub.locks._GROWTH_SECONDS", 0.3)
    seen: list[int] = []

    def arrived() -> int:
        seen.append(min(len(seen), 8))
        return seen[-1]

    holders: list[str | None] = []
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(InUseError, match="is held by process"),
            blob_lock(tree_of(path), str(path), StopToken(), holders.append, arrived),
        ):
            pass
    assert 8 in seen
    assert holders[0] is not None
    assert holders[0].startswith(f"process {os.getpid()} ({owner_name(os.geteuid())}: ")
    assert holders[1:] == [None]


def test_another_download_that_grows_is_waited_for_as_long_as_was_asked(path: Path) -> None:
    grows = iter(range(1_000_000))
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(InUseError) as failed,
            blob_lock(
                tree_of(path), str(path), StopToken(), lambda _: None, lambda: next(grows), 0.3
            ),
        ):
            pass
    assert failed.value.hint == "pull again later, or wait longer with --max-wait"


def test_a_lock_that_root_makes_belongs_to_the_cache(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.chown(path.parents[2], 4321, 4322)
    path.parents[2].chmod(0o2770)
    path.parent.rmdir()
    path.parent.parent.rmdir()
    tree = tree_of(path)
    tree.make_folders(str(path.parent))
    with held(path):
        for made in (path, path.parent, path.parent.parent):
            status = made.stat()
            assert (status.st_uid, status.st_gid) == (4321, 4322)
        assert path.parent.stat().st_mode & 0o7777 == 0o2770


# Where there are no locks.


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_lock_is_held_while_its_file_is_there_and_removed_after(
    path: Path,
) -> None:
    with held(path):
        assert lock_held(str(path))
        with pytest.raises(InUseError), held(path):
            pass
        with pytest.raises(filelock.Timeout), filelock.SoftFileLock(path, timeout=0):
            pass
    assert not path.exists()
    with filelock.SoftFileLock(path, timeout=0):
        assert lock_held(str(path))
        with pytest.raises(InUseError), held(path):
            pass
    assert sorted(path.parent.iterdir()) == []


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_lock_that_was_not_written_within_the_hour_is_taken_over(
    path: Path,
) -> None:
    path.touch()
    age(path, SOFT_SECONDS + 10)
    assert not lock_held(str(path))
    with held(path):
        assert lock_held(str(path))
    assert sorted(path.parent.iterdir()) == []


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_held_lock_is_touched_from_time_to_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_TOUCH_SECONDS", 0.05)
    monkeypatch.setattr(locks, "_TOUCHER", threading.Thread(target=locks._touch_soft, daemon=True))
    with held(path):
        age(path, 7200)
        until = time.monotonic() + 30
        while not lock_held(str(path)) and time.monotonic() < until:
            time.sleep(0.05)
        assert lock_held(str(path))
    monkeypatch.setattr(locks, "_TOUCH_SECONDS", 600.0)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_partial_that_was_written_within_the_hour_is_in_use(
    tmp_path: Path,
) -> None:
    cache = CacheBuilder(tmp_path / "hub")
    repo = cache.repo("org/name")
    repo.revision({"config.json": b"{}"})
    partial = repo.partial(ETAG, data=b"begun", old_style=True, age=60)
    assert scan(cache.root).repos[0].partials[0].locked
    age(partial, SOFT_SECONDS + 10)
    assert not scan(cache.root).repos[0].partials[0].locked


@pytest.mark.usefixtures("no_locks")
def test_that_a_filesystem_has_no_locks_is_reported_once_for_people_and_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlmcache.cache.locks._LOCKLESS", {})
    cache = CacheBuilder(tmp_path / "hub")
    for name in ("org/one", "org/other"):
        cache.repo(name).revision({"config.json": b"{}"})
    known = ["--yes", "--cache-dir", str(cache.root)]
    with pytest.raises(SystemExit):
        main(["rm", "org/one", *known])
    assert capsys.readouterr().err.count("this filesystem has no locks") == 1
    with pytest.raises(SystemExit):
        main(["rm", "org/other", "--json", *known])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["code"] for finding in found] == ["no-locks"]
    assert found[0]["path"].startswith(str(cache.root))


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_shared_blob_is_held_by_the_file_that_older_clients_make_too(
    tmp_path: Path,
) -> None:
    store = SharedStore(str(tmp_path))
    store.tree.patience = 0.3
    blob = store.path_of("a" * 64)
    store.tree.make_folders(os.path.dirname(blob))
    client = filelock.SoftFileLock(f"{blob}.lock.soft", timeout=0)
    with store.held(blob), pytest.raises(filelock.Timeout), client:
        pass
    with client, pytest.raises(InUseError), store.held(blob):
        pass
    with store.held(blob):
        pass
    assert list(Path(blob).parent.iterdir()) == []
