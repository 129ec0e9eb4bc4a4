"""Room without deleting: `clean --to` moves models to an archive, `recall` brings them back."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated, fingerprint, model_files
from tests.kit.disks import (
    RemovableDrive,
    fill_disk,
    read_only_view,
    removable_drive,
    small_filesystem,
)
from tests.kit.faulty import failing
from vlmcache.api import Cache
from vlmcache.cache.completeness import judge, judge_repo
from vlmcache.cache.moved import note_path
from vlmcache.cache.scan import scan
from vlmcache.cache.trash import has_trash
from vlmcache.change.plan import Move
from vlmcache.commands.move.values import SourceDamagedError
from vlmcache.commands.remove.values import Removal
from vlmcache.config import CacheLocation, Config, Environment, Limits, ModelConfig, Session
from vlmcache.errors import (
    AwayError,
    CacheError,
    ExitCode,
    SpaceError,
    UnconfirmedError,
    UnknownModelError,
    UsageError,
)

SIZE = 400_000
NAMES = ("org/oldest", "org/older", "org/newer", "org/newest")
DAY = 86400.0


def folder_of(name: str) -> str:
    return "models--" + name.replace("/", "--")


def unread(path: Path) -> bytes:
    """Return the content of a file without leaving a time of use."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOATIME", 0))
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


class Room:
    """A cache of four models, used 400, 300, 200 and 100 days ago, and a place on another drive."""

    def __init__(self, folder: Path, drive: Path) -> None:
        self.root = folder / "hub"
        self.drive = drive
        self.there = drive / "hub"
        shutil.rmtree(self.there, ignore_errors=True)
        self.builder = CacheBuilder(self.root)
        for number, name in enumerate(NAMES):
            self.add(name, (400 - 100 * number) * DAY, bytes([number]) * SIZE)
        variables = {"VLMCACHE_HOME": str(folder / "own"), "HF_HOME": str(folder / "hf")}
        self.session = Session(
            Environment(variables, frozenset(), str(folder)),
            Config("config.yaml", "--config", {}, Limits(min_free=0)),
            CacheLocation(str(self.root), "--cache-dir"),
        )

    def add(self, name: str, age: float, content: bytes) -> CachedRepo:
        repo = self.builder.repo(name)
        repo.revision({"config.json": name.encode(), "w.bin": content})
        at = time.time() - age
        for path in repo.folder.rglob("*"):
            os.utime(path, (at, at), follow_symlinks=False)
        return repo

    @property
    def cache(self) -> Cache:
        return Cache(session=self.session)

    def configure(self, *names: str, archived: bool = False, max_size: int | None = None) -> None:
        models = {name[4:]: ModelConfig(name[4:], name) for name in names}
        self.session = self.session._replace(
            config=msgspec.structs.replace(
                self.session.config,
                models=models,
                limits=Limits(min_free=0, max_size=max_size),
                archive=str(self.there) if archived else None,
            )
        )

    def clean(
        self, *models: str, dry_run: bool = False, to: Path | None = None, **asked: object
    ) -> Removal:
        return self.cache.clean(models, to=to or self.there, dry_run=dry_run, **asked)  # type: ignore[arg-type]

    def goal(self, count: int) -> int:
        """Return the size of the cache without so many models."""
        each = du_allocated(self.root / folder_of(NAMES[0]))
        return du_allocated(self.root) - count * each + 16384 * count

    @property
    def archived(self) -> list[str]:
        return [name for name in NAMES if (self.root / folder_of(name)).is_symlink()]

    def check(self) -> None:
        """Every model loads from where programs look for it."""
        state = scan(self.root)
        for number, name in enumerate(NAMES):
            (found,) = (self.root / folder_of(name)).glob("snapshots/*/w.bin")
            assert unread(found) == bytes([number]) * SIZE
            assert judge(state.repo(name), "main").state == "cached"


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with small_filesystem(32_000_000) as drive:
        yield Room(tmp_path, drive)


@pytest.fixture
def unplugged(tmp_path: Path) -> Iterator[tuple[Room, RemovableDrive]]:
    with removable_drive() as drive:
        yield Room(tmp_path, drive.place), drive


# What is moved, and what stays.


def test_the_least_recently_used_models_are_moved_until_the_cache_is_small_enough(
    room: Room,
) -> None:
    goal, before = room.goal(2), du_allocated(room.root)
    planned = room.clean(max_size=goal, dry_run=True)
    assert not room.there.exists()
    done = room.clean(max_size=goal)
    assert (done.problem, done.missed_by) == (None, 0)
    assert room.archived == list(NAMES[:2])
    room.check()
    assert du_allocated(room.root) <= goal
    assert planned.plan.actions == done.plan.actions
    assert done.archive is not None
    assert [(repo.repo, repo.state) for repo in done.archive.repos] == [
        (name, "moved") for name in NAMES[:2]
    ]
    assert done.receipt is not None
    assert done.receipt.freed == before - du_allocated(room.root)
    here, there = done.archive.drives
    assert (here.path, here.freed, here.copied) == (str(room.root), done.receipt.freed, 0)
    assert (there.path, there.freed) == (str(room.there), 0)
    assert there.copied >= 2 * SIZE
    again = room.clean(max_size=goal)
    assert (again.plan.actions, again.problem) == ((), None)


def test_a_configured_model_is_moved_last_and_one_that_is_kept_not_at_all(room: Room) -> None:
    room.configure("org/oldest")
    planned = room.clean(max_size=0, keep="org/older", dry_run=True)
    moves = [action.repo for action in planned.plan.actions if isinstance(action, Move)]
    assert moves == ["org/newer", "org/newest", "org/oldest"]
    stays = {kept.repo: kept.reason for kept in planned.plan.kept}
    assert stays == {"org/older": "kept by --keep org/older"}
    done = room.clean(max_size=room.goal(3), keep="org/older")
    assert done.problem is None
    assert "org/older" not in room.archived
    assert "org/oldest" in room.archived
    room.check()


def test_a_configured_model_that_is_named_is_moved_like_any_other(room: Room) -> None:
    room.configure("org/oldest")
    done = room.clean("oldest", max_size=room.goal(1))
    assert done.problem is None
    assert room.archived == ["org/oldest"]


def test_what_does_not_fit_stays_and_nothing_is_deleted(tmp_path: Path) -> None:
    with small_filesystem(1_100_000) as drive:
        room = Room(tmp_path, drive)
        done = room.clean(max_size=0)
        assert done.problem is not None
        assert done.problem.exit_code == ExitCode.PARTLY
        assert "does not fit" in done.problem.message
        assert str(room.there) in (done.problem.hint or "")
        assert len(room.archived) == 2
        room.check()
        aged = room.clean(older_than="30d")
        assert aged.problem is not None
        assert aged.problem.exit_code == ExitCode.PARTLY
        assert len(room.archived) == 2


def test_what_was_not_used_for_so_long_is_moved(room: Room) -> None:
    done = room.clean(older_than="250d")
    assert done.problem is None
    assert room.archived == list(NAMES[:2])
    room.check()


def test_free_space_is_a_goal_too(tmp_path: Path, room: Room) -> None:
    with small_filesystem(8_000_000) as fast:
        small = Room(fast, room.drive)
        goal = shutil.disk_usage(fast).free + SIZE // 2
        done = small.clean(free=goal)
        assert done.problem is None
        assert small.archived == [NAMES[0]]
        assert shutil.disk_usage(fast).free >= goal
        assert not small.clean(free=goal).plan.actions


def test_waste_is_removed_as_by_plain_clean_and_models_never(room: Room) -> None:
    repo = room.builder.repo("org/waste")
    repo.revision(model_files())
    at = time.time() - 500 * DAY
    for path in repo.folder.rglob("*"):
        os.utime(path, (at, at), follow_symlinks=False)
    orphan = repo.orphan_blob(age=9_000_000)
    done = room.clean(older_than="350d")
    assert done.problem is None
    assert not orphan.exists()
    assert room.archived == [NAMES[0]]
    assert repo.folder.is_symlink()
    assert not list(room.there.glob(f"*/blobs/{orphan.name}"))
    room.check()
    kinds = {getattr(action, "kind", "move") for action in done.removals}
    assert kinds == {"blob"}


def test_what_is_in_use_or_being_downloaded_stays(room: Room) -> None:
    blob = next((room.root / folder_of(NAMES[0])).glob("snapshots/*/w.bin"))
    code = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(blob)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert reader.stdout is not None
        reader.stdout.readline()
        room.builder.repo(NAMES[1]).partial("a" * 64, data=b"begun")
        done = room.clean(max_size=room.goal(2))
        reasons = {kept.repo: kept for kept in done.in_use}
        assert reasons[NAMES[0]].processes[0].pid == reader.pid
        assert room.archived == list(NAMES[2:])
        with contextlib.suppress(Exception):
            room.cache.recall(NAMES[0])
    finally:
        reader.communicate()
    room.check()


def test_a_damaged_model_stays_and_the_others_are_moved(room: Room) -> None:
    (room.root / folder_of(NAMES[0]) / "refs" / "main").write_text("0" * 40)
    next((room.root / folder_of(NAMES[1])).glob("blobs/*")).unlink()
    done = room.clean(older_than="1d")
    assert NAMES[1] not in room.archived
    assert NAMES[3] in room.archived
    assert done.problem is None
    assert any("damaged" in kept.reason for kept in done.plan.kept)


def test_without_an_answer_nothing_is_moved(room: Room) -> None:
    cache = room.cache
    cache.confirm = lambda _: False
    before = fingerprint(room.root)
    with pytest.raises(UnconfirmedError):
        cache.clean(max_size=0, to=room.there)
    assert fingerprint(room.root) == before
    assert not room.there.exists()


def test_what_changed_while_the_question_was_open_stays(room: Room) -> None:
    cache = room.cache

    def use(_: Removal) -> bool:
        room.builder.repo(NAMES[0]).revision({"config.json": b"new"})
        return True

    cache.confirm = use
    done = cache.clean(max_size=room.goal(2), to=room.there)
    assert done.problem is not None
    assert done.problem.exit_code == ExitCode.PARTLY
    assert "changed" in done.problem.message
    assert room.archived == [NAMES[1]]


# Where to.


def test_the_archive_of_the_configuration_counts_and_plain_clean_does_not_need_it(
    room: Room,
) -> None:
    room.configure(archived=True, max_size=room.goal(1))
    done = room.cache.clean()
    assert done.problem is None
    assert room.archived == [NAMES[0]]
    room.check()
    room.configure(archived=True)
    assert room.cache.clean().archive is None
    room.cache.clean(all=True)
    assert not [path for path in room.root.glob("models--*") if not path.is_symlink()]


def test_a_configured_archive_that_is_away_is_needed_only_if_something_has_to_move(
    room: Room,
) -> None:
    room.configure(archived=True, max_size=10 * du_allocated(room.root))
    room.session = room.session._replace(
        config=msgspec.structs.replace(room.session.config, archive="/no/such/drive")
    )
    orphan = room.builder.repo("org/waste")
    orphan.revision(model_files())
    assert room.cache.clean().problem is None
    with pytest.raises(UsageError, match="no such folder"):
        room.cache.clean(max_size=0)


def test_an_archive_without_a_size_or_an_age_is_refused(room: Room) -> None:
    with pytest.raises(UsageError, match="how much"):
        room.clean()
    with pytest.raises(UsageError, match="--all"):
        room.clean(all=True)


def test_a_folder_that_gains_nothing_or_cannot_be_one_is_refused(
    room: Room, tmp_path: Path
) -> None:
    before = fingerprint(room.root)
    (tmp_path / "file").touch()
    refused = {
        tmp_path / "beside": "same filesystem",
        room.root / "below": "in the cache",
        room.root: "the cache itself",
        tmp_path / "file": "not a folder",
        room.drive / "no" / "such": "no such folder",
    }
    for place, words in refused.items():
        with pytest.raises(UsageError, match=words):
            room.clean(max_size=0, to=place)
    with read_only_view(room.drive) as view, pytest.raises(CacheError, match="cannot be written"):
        room.clean(max_size=0, to=view / "hub")
    assert fingerprint(room.root) == before


def test_a_link_to_a_folder_on_another_drive_is_followed(room: Room, tmp_path: Path) -> None:
    (tmp_path / "archive").symlink_to(room.there)
    room.there.mkdir()
    done = room.clean(max_size=room.goal(1), to=tmp_path / "archive")
    assert done.problem is None
    assert os.readlink(room.root / folder_of(NAMES[0])) == str(room.there / folder_of(NAMES[0]))


# A drive that is full, disappears, and comes back.


@pytest.mark.parametrize("nth", [20, 60, 75])
def test_an_archive_that_fills_up_in_the_middle_leaves_the_rest_here(room: Room, nth: int) -> None:
    with failing(nth, lambda: fill_disk(room.drive / "other"), room.drive):
        done = room.clean(max_size=0)
    assert done.problem is not None
    assert done.problem.exit_code == ExitCode.PARTLY
    assert len(room.archived) < 4
    room.check()
    (room.drive / "other").unlink()
    assert room.clean(max_size=0, dry_run=True).archive is not None
    room.clean(max_size=0)
    assert room.archived == list(NAMES)
    room.check()


@pytest.mark.parametrize("nth", [2, 40, 70, 75, 80, 100])
def test_a_drive_that_disappears_meanwhile_takes_no_model_with_it(
    unplugged: tuple[Room, RemovableDrive], nth: int
) -> None:
    room, drive = unplugged

    def unplug() -> None:
        subprocess.run(["umount", "-l", str(drive.place)], check=True)
        drive.mounted = None

    with failing(nth, unplug):
        try:
            done = room.clean(older_than="1d")
        except CacheError:
            done = None
    if done is not None and drive.mounted is None:
        assert done.problem is not None
        assert done.problem.exit_code == ExitCode.PARTLY
    for repo in scan(room.root).repos:
        assert judge_repo(repo) in ("cached", "away")
    assert not room.there.exists()
    drive.mount()
    room.check()
    again = room.clean(older_than="1d")
    assert again.problem is None
    assert room.archived == list(NAMES)
    room.check()


def test_a_drive_that_comes_back_elsewhere_is_relinked_and_its_models_are_recalled(
    unplugged: tuple[Room, RemovableDrive],
) -> None:
    room, drive = unplugged
    assert room.clean(older_than="250d").problem is None
    drive.unmount()
    with pytest.raises(AwayError):
        room.cache.recall("org/oldest")
    with pytest.raises((AwayError, UsageError)):
        room.clean(max_size=0)
    drive.place.joinpath("hub").mkdir()
    with pytest.raises(AwayError):
        room.clean(max_size=0)
    drive.place.joinpath("hub").rmdir()
    now = drive.mount("elsewhere") / "hub"
    assert room.cache.move(relink=now).problem is None
    room.check()
    assert room.cache.recall("org/*").problem is None
    assert room.archived == []
    room.check()
    drive.unmount()


# Coming back.


def test_a_recalled_model_is_as_it_was_and_no_longer_there(room: Room) -> None:
    before = {name: fingerprint(room.root / folder_of(name)) for name in NAMES}
    assert room.clean(max_size=0).problem is None
    planned = room.cache.recall([NAMES[0], NAMES[1]], dry_run=True)
    assert [(repo.repo, repo.state) for repo in planned.repos] == [
        (NAMES[0], "planned"),
        (NAMES[1], "planned"),
    ]
    done = room.cache.recall([NAMES[0], NAMES[1]])
    assert done.problem is None
    assert [repo.state for repo in done.repos] == ["recalled", "recalled"]
    for name in NAMES[:2]:
        assert fingerprint(room.root / folder_of(name)) == before[name]
        assert not os.path.lexists(room.there / folder_of(name))
        assert not os.path.lexists(note_path(str(room.there), folder_of(name)))
    here, there = done.drives
    assert here.copied >= 2 * SIZE
    assert there.freed >= 2 * SIZE
    assert done.ids == list(NAMES[:2])
    again = room.cache.recall(NAMES[0])
    assert (again.problem, again.repos) == (None, ())
    assert again.plan.kept[0].reason == "is in the cache already"
    room.check()


def test_what_is_in_use_or_downloaded_into_is_not_recalled(room: Room) -> None:
    """Through its link a program takes the locks of the cache, and opens the files there."""
    assert room.clean(max_size=0).problem is None
    lock = room.root / ".locks" / folder_of(NAMES[0]) / ("a" * 64 + ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print(flush=True); sys.stdin.read()"
    )
    blob = next((room.root / folder_of(NAMES[1])).glob("snapshots/*/w.bin"))
    for name, path in ((NAMES[0], lock), (NAMES[1], blob)):
        user = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert user.stdout is not None
            user.stdout.readline()
            done = room.cache.recall(name)
        finally:
            user.communicate()
        assert done.problem is not None
        assert (done.problem.exit_code, done.receipt) == (ExitCode.BUSY, None)
        assert str(user.pid) in done.problem.message
        assert name in room.archived
    room.check()


def test_a_load_test_says_where_it_reads_from(room: Room) -> None:
    from vlmcache.load.finder import ModelFinder

    room.builder.repo("org/model").revision(model_files())
    here = ModelFinder(room.session, ["org/model"]).find("org/model")[1].origin
    assert (here["elsewhere"], here["repo"]) == (None, "org/model")
    assert room.cache.move(room.there, "org/model").problem is None
    moved = ModelFinder(room.session, ["org/model"]).find("org/model")[1].origin
    assert moved["elsewhere"] == str(room.there)
    assert moved["path"].startswith(f"{room.there}/models--org--model/snapshots/")


def test_a_recall_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    with small_filesystem(4_000_000) as fast, small_filesystem(8_000_000) as slow:
        room = Room(fast, slow)
        assert room.clean(max_size=0).problem is None
        (fast / "full").write_bytes(bytes(shutil.disk_usage(fast).free - SIZE))
        before = fingerprint(room.root)
        with pytest.raises(SpaceError):
            room.cache.recall(NAMES)
        assert fingerprint(room.root) == before
        (fast / "full").unlink()
        assert room.cache.recall(NAMES).problem is None
        room.check()


def test_a_recall_empties_the_trash_if_it_needs_the_room(tmp_path: Path) -> None:
    with small_filesystem(4_000_000) as fast, small_filesystem(8_000_000) as slow:
        room = Room(fast, slow)
        assert room.clean(max_size=0).problem is None
        room.add("org/waste", 0.0, bytes(shutil.disk_usage(fast).free - SIZE))
        assert room.cache.remove("org/waste", trash=True).problem is None
        assert has_trash(str(room.root))
        planned = room.cache.recall(NAMES, dry_run=True)
        assert planned.plan.needs > shutil.disk_usage(fast).free
        assert has_trash(str(room.root))
        assert room.cache.recall(NAMES).problem is None
        assert not has_trash(str(room.root))
        room.check()


def test_what_cannot_be_recalled_is_refused(room: Room, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        room.cache.recall("nobody/nothing")
    with pytest.raises(UsageError):
        room.cache.recall([])
    with pytest.raises(UsageError, match="not a complete model"):
        room.cache.recall("org/newer@main")
    assert room.clean(max_size=0).problem is None
    # A link that no note speaks of is somebody else's.
    os.unlink(note_path(str(room.there), folder_of(NAMES[0])))
    with pytest.raises(UsageError, match="was not left by"):
        room.cache.recall(NAMES[0])
    blob = next((room.there / folder_of(NAMES[1])).glob("snapshots/*/w.bin")).resolve()
    blob.write_bytes(b"x" * SIZE)
    assert isinstance(room.cache.recall(NAMES[1]).problem, SourceDamagedError)
    assert (room.root / folder_of(NAMES[1])).is_symlink()


def test_a_note_that_the_archive_does_not_confirm_brings_nothing(
    room: Room, tmp_path: Path
) -> None:
    """Whoever may write a note into the cache must not lead a recall to another user's cache."""
    from vlmcache.cache.moved import MoveRecord
    from vlmcache.change.moved_note import write_moves

    secret = CacheBuilder(tmp_path / "private")
    secret.repo("org/secret").revision({"config.json": b"secret"})
    note = MoveRecord(str(secret.root), finished=False)
    write_moves(str(room.root), {"models--org--secret": note})
    with pytest.raises(UnknownModelError):
        room.cache.recall("org/secret")
    assert not (room.root / "models--org--secret").exists()
