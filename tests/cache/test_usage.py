"""Who uses a cache now, when a revision was last used, and what access times are worth."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.change.test_removal_hazards import holding
from tests.kit.caches import CacheBuilder
from tests.kit.disks import NOBODY, as_other_user, common_folder
from tests.kit.rooms import ROOMS, base
from vlmcache.cache import mounts, usage
from vlmcache.cache.locks import lock_held
from vlmcache.cache.mounts import Mount, mount_of
from vlmcache.cache.reach import Reach
from vlmcache.cache.scan import scan
from vlmcache.cache.usage import LastUse, last_uses, who_uses, without_secrets


def test_a_lock_is_held_exactly_while_somebody_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "blob.lock"
    assert not lock_held(str(path))
    with open(path, "w") as file:
        assert not lock_held(str(path))
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock_held(str(path))
    assert not lock_held(str(path))


def test_trying_a_lock_that_is_absent_creates_nothing(tmp_path: Path) -> None:
    assert not lock_held(str(tmp_path / "blob.lock"))
    assert not (tmp_path / "blob.lock").exists()


def test_a_lock_that_is_a_link_is_not_followed_and_counts_as_held(tmp_path: Path) -> None:
    (tmp_path / "blob.lock").symlink_to("/dev/null")
    assert lock_held(str(tmp_path / "blob.lock"))


@pytest.mark.parametrize(
    ("options", "worth"),
    [
        ({"rw", "noatime"}, "never"),
        ({"ro", "relatime"}, "never"),
        ({"rw", "relatime"}, "daily"),
        ({"rw", "strictatime"}, "exact"),
    ],
)
def test_access_times_are_worth_what_the_mount_options_say(options: set[str], worth: str) -> None:
    assert Mount("/", "ext4", frozenset(options)).access_times == worth


@pytest.mark.parametrize(("kind", "network"), [("nfs4", True), ("cifs", True), ("ext4", False)])
def test_network_filesystems_are_known_by_their_type(kind: str, network: bool) -> None:
    assert Mount("/", kind, frozenset()).network is network


def test_every_path_here_has_a_mount(tmp_path: Path) -> None:
    mount = mount_of(str(tmp_path))
    assert mount is not None
    assert str(tmp_path).startswith(mount.point)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("hf download a/b --token hf_abcDEF123", "hf download a/b --token ***"),
        ("hf download --token=secret a/b", "hf download --token=*** a/b"),
        ("serve.py hf_abcDEF123 x", "serve.py hf_*** x"),
        ("python train.py --steps 3", "python train.py --steps 3"),
    ],
)
def test_a_command_line_is_shown_without_its_tokens(command: str, shown: str) -> None:
    assert without_secrets(command) == shown


@pytest.mark.parametrize("finder", ["_find_by_proc", "_find_by_psutil"])
@pytest.mark.parametrize("how", ["open", "mapped"])
def test_both_ways_of_looking_find_who_holds_a_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finder: str, how: str
) -> None:
    ROOMS["shared"](tmp_path)
    blob = CacheBuilder(tmp_path).shared_blob("ab" * 32)
    state = scan(tmp_path)
    monkeypatch.setattr(usage, "_find_by_proc", getattr(usage, finder))
    with holding(how, blob) as child:
        found = who_uses(state)
        repo = state.repo("org/second")
        assert repo is not None
        users = found.of_repo(state, repo)

    assert users is not None
    assert [(user.pid, user.how) for user in users] == [(child.pid, how)]
    assert who_uses(state).files == {}


def test_a_lock_names_its_holder_and_a_free_one_nobody(tmp_path: Path) -> None:
    repo = base(tmp_path)
    state = scan(tmp_path)
    lock = repo.locks / f"{repo.blob('config.json').name}.lock"
    with holding("open", lock):
        assert who_uses(state).locks == {}
    with holding("lock", lock) as child:
        found = who_uses(state)
        ((name, users),) = found.locks.items()
        assert name == f"{repo.folder.name}/{lock.name}"
        assert [(user.pid, user.how) for user in users] == [(child.pid, "lock")]
        assert who_uses(state, ["models--org--other"]).locks == {}


def test_our_own_process_is_never_among_the_users(tmp_path: Path) -> None:
    repo = base(tmp_path)
    with (
        repo.blob("model.safetensors").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ),
    ):
        assert who_uses(scan(tmp_path)).files == {}


LOOK = """
import sys
from vlmcache.cache.scan import scan
from vlmcache.cache.usage import who_uses
found = who_uses(scan(sys.argv[1]))
print(len(found.files), found.hidden)
"""


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs two users")
def test_processes_that_may_not_be_inspected_are_counted() -> None:
    with common_folder() as folder:
        repo = base(folder / "hub")
        with holding("mapped", repo.blob("model.safetensors")):
            result = as_other_user(
                [sys.executable, "-c", LOOK, folder / "hub"],
                environment={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(sys.path)},
                folder=folder,
            )
    assert result.returncode == 0, result.stderr
    users, hidden = map(int, result.stdout.split())
    assert users == 0
    assert hidden > 0


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs two users")
@pytest.mark.parametrize("closed", ["the cache", "a folder above it"])
def test_processes_of_users_that_cannot_get_at_the_cache_are_not_counted(closed: str) -> None:
    with common_folder() as folder:
        above = folder / "home"
        repo = base(above / "hub")
        shut = above / "hub" if closed == "the cache" else above
        subprocess.run(["chown", "-R", str(NOBODY), above], check=True)
        shut.chmod(0o700)
        with holding("mapped", repo.blob("model.safetensors")):
            result = as_other_user(
                [sys.executable, "-c", LOOK, above / "hub"],
                environment={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(sys.path)},
                folder=folder,
            )
    assert (result.returncode, result.stdout) == (0, "0 0\n"), result.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs modes")
@pytest.mark.parametrize(
    ("mode", "mine", "group", "others"),
    [
        (0o700, True, False, False),
        (0o750, True, True, False),
        (0o705, True, False, True),
        (0o755, True, True, True),
        (0o070, False, True, False),
    ],
)
def test_the_modes_of_folders_say_who_gets_at_files(
    mode: int, mine: bool, group: bool, others: bool
) -> None:
    with common_folder() as folder:
        folder.chmod(mode)
        status = folder.stat()
        reach = Reach([str(folder / "x"), str(folder / "y")])
        user, other = status.st_uid, status.st_uid + 1
        answers = (
            reach.lets_in(user, frozenset()),
            reach.lets_in(other, frozenset({status.st_gid})),
            reach.lets_in(other, frozenset({status.st_gid + 1})),
        )
        assert reach.lets_in(other, None) == (group or others)
        folder.chmod(0o700)
    assert answers == (mine, group, others)


def test_last_use_is_the_latest_of_journal_and_access_and_honest_without_either(
    tmp_path: Path,
) -> None:
    repo = CacheBuilder(tmp_path).repo("org/name")
    commit = repo.revision({"config.json": b"{}"})
    os.utime(repo.blob("config.json"), (2000, 1000))
    for path in (repo.snapshots / commit, repo.pointer("config.json")):
        os.utime(path, (500, 500), follow_symlinks=False)
    state = scan(tmp_path)
    key = repo.folder.name, commit

    def used(journal: dict[tuple[str, str, str], float], worth: mounts.AccessTimes) -> LastUse:
        return last_uses(state, journal, worth)[key]

    noted = ("model", "org/name", commit)
    assert used({}, "daily") == LastUse(2000, "access")
    assert used({noted: 1500}, "daily") == LastUse(2000, "access")
    assert used({noted: 3000}, "daily") == LastUse(3000, "journal")
    assert used({}, "never") == LastUse(1000, "written")
    assert used({noted: 1500}, "never") == LastUse(1500, "journal")
