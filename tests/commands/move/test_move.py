"""Models on another drive: moved completely or refused, and followed there by every command."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.kit import pulls
from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated, fingerprint, model_files
from tests.kit.disks import read_only_view, small_filesystem
from tests.kit.faulty import Subject, try_every
from tests.kit.hub import LoopbackHub
from tests.kit.rooms import LONG, OTHER, WEIGHTS, settle
from vlmcache.cache.completeness import judge
from vlmcache.cache.moved import MoveRecord, Note, note_path, read_moves
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.usage import Usage
from vlmcache.change import known
from vlmcache.change.moved_note import write_moves
from vlmcache.change.plan import Kept, Move, RemoveTree
from vlmcache.commands.backup.backup import backup
from vlmcache.commands.backup.restore import restore
from vlmcache.commands.move import apply, survey, values
from vlmcache.commands.move import move as move_command
from vlmcache.commands.move.plan import Destination
from vlmcache.commands.move.values import MoveOptions, MoveReport, SourceDamagedError
from vlmcache.commands.remove import clean as remove_clean
from vlmcache.commands.remove import remove
from vlmcache.commands.remove.values import CleanOptions, Removal
from vlmcache.commands.status.status import status
from vlmcache.commands.verify.repair import repair
from vlmcache.commands.verify.values import VerifyOptions
from vlmcache.commands.verify.verify import verify
from vlmcache.config import CacheLocation, Config, Environment, Limits, Session
from vlmcache.errors import (
    CacheError,
    ExitCode,
    SpaceError,
    UnknownModelError,
    UsageError,
    VlmcacheError,
)
from vlmcache.progress import Progress

NAME, FOLDER = "org/name", "models--org--name"
XET = "ab" * 32


@pytest.fixture(scope="module")
def drive() -> Iterator[Path]:
    with small_filesystem(64_000_000) as place:
        yield place


class Place:
    """A cache, another drive, and the functions under test."""

    def __init__(self, folder: Path, drive: Path) -> None:
        self.root = folder / "hub"
        self.other = drive / "hub"
        shutil.rmtree(self.other, ignore_errors=True)
        self.cache = CacheBuilder(self.root)
        variables = {"VLMCACHE_HOME": str(folder / "own"), "HF_HOME": str(folder / "hf")}
        self.environment = Environment(variables, frozenset(), str(folder))
        self.config = Config("config.yaml", "--config", {}, Limits(min_free=0))
        self.location = CacheLocation(str(self.root), "--cache-dir")
        self.session = Session(self.environment, self.config, self.location)

    def repo(self, name: str = NAME) -> CachedRepo:
        """A repo with a file in the shared store, and one of its own."""
        repo = self.cache.repo(name)
        content = {"config.json": name.encode(), "a/w.bin": WEIGHTS, "v.bin": OTHER}
        repo.revision(content, shared=("a/w.bin",), xet={"a/w.bin": XET})
        settle(self.root)
        return repo

    def move(
        self, *names: str, to: Path | None = None, link: bool = True, dry_run: bool = False
    ) -> MoveReport:
        where = str(self.other if to is None else to)
        return move_command.move(self.session, where, names, MoveOptions(link, dry_run))

    def session_at(self, root: Path) -> Session:
        return self.session._replace(cache=CacheLocation(str(root), "--cache-dir"))

    def undo(self) -> MoveReport:
        return move_command.undo_move(self.session, str(self.other))

    def moved(self, *names: str, link: bool = True) -> MoveReport:
        done = self.move(*names, link=link)
        assert done.problem is None, done.problem
        return done

    def rm(self, *names: str) -> Removal:
        return remove.remove(Session(self.environment, self.config, self.location), names)

    def clean(self, options: CleanOptions | None = None) -> Removal:
        return remove_clean.clean(Session(self.environment, self.config, self.location), options)


@pytest.fixture
def place(tmp_path: Path, drive: Path) -> Place:
    return Place(tmp_path, drive)


def contents(repo: Path) -> dict[str, bytes]:
    """What a loader reads: each file of each snapshot, through its links."""
    return {
        str(path.relative_to(repo)): path.read_bytes()
        for path in repo.glob("snapshots/**/*")
        if path.is_file()
    }


# What a move does.


def test_a_complete_cache_is_afterwards_there_what_it_was_here(place: Place) -> None:
    for name in (NAME, "org/second"):
        place.repo(name)
    place.cache.repo("org/table", "dataset").revision({"x.csv": b"1,2"})
    before = {path.name: contents(path) for path in place.root.glob("*--*")}
    own = fingerprint(place.root / FOLDER)
    used = du_allocated(place.root)

    done = place.moved()

    assert {repo.repo for repo in done.repos} == {NAME, "org/second", "org/table"}
    assert done.receipt is not None
    assert done.receipt.freed == used - du_allocated(place.root)
    assert done.setting == f"export HF_HUB_CACHE={place.other}"
    for root in (place.root, place.other):
        assert {path.name: contents(path) for path in root.glob("*--*")} == before
    assert all(path.is_symlink() for path in place.root.glob("*--*"))
    assert fingerprint(place.other / FOLDER) == own
    shared = place.other / "blobs" / XET[:2]
    assert (shared / f"{XET}.refs").read_text().splitlines() == [
        str(path.relative_to(place.other))
        for path in sorted(place.other.glob("models--*/blobs/*"))
        if path.is_symlink()
    ]
    assert not (place.root / "blobs" / XET[:2] / XET).exists()
    assert not scan(place.other).findings
    assert not (place.other / ".vlmcache-moving").exists()
    assert not (place.root / ".vlmcache-leftovers").exists()
    times = [path.stat().st_mtime_ns for path in (place.other / FOLDER).rglob("v.bin")]
    assert times == [path.stat().st_mtime_ns for path in (place.root / FOLDER).rglob("v.bin")]
    assert place.moved().repos == ()


def test_a_shared_blob_that_a_repo_here_needs_stays_here_too(place: Place) -> None:
    place.repo()
    second = place.repo("org/second")
    place.moved(NAME)
    assert contents(second.folder)
    assert scan(place.root).shared[XET].users == (
        f"models--org--second/blobs/{second.file('a/w.bin').etag}",
    )
    assert contents(place.root / FOLDER)
    place.moved("org/second")
    assert not (place.root / "blobs" / XET[:2] / XET).exists()
    assert contents(place.root / FOLDER)
    assert contents(second.folder)


def test_without_links_nothing_is_left_here_and_the_line_to_set_is_shown(place: Place) -> None:
    place.repo()
    done = place.moved(link=False)
    assert not list(place.root.glob("*--*"))
    assert not (place.root / ".locks" / FOLDER).exists()
    assert contents(place.other / FOLDER)
    assert not read_moves(str(place.other))
    assert not done.link
    assert done.setting.startswith("export HF_HUB_CACHE=")


def test_on_the_same_disk_nothing_is_copied(place: Place, tmp_path: Path) -> None:
    repo = place.repo()
    inode = repo.blob("v.bin").stat().st_ino
    used = du_allocated(tmp_path)
    done = place.move(to=tmp_path / "beside")
    assert done.problem is None
    assert done.plan.needs == 0
    assert done.copied < 2000
    assert (tmp_path / "beside" / FOLDER / "blobs" / repo.blob("v.bin").name).stat().st_ino == inode
    assert not (place.root / "blobs" / XET[:2] / XET).exists()
    assert contents(repo.folder)
    assert du_allocated(tmp_path) < used + 100_000
    back = remove.remove(Session(place.environment, place.config, place.location), [NAME])
    assert back.receipt is not None
    assert back.receipt.freed >= len(OTHER) + len(WEIGHTS)


def test_hard_links_partials_and_strangers_come_along(place: Place) -> None:
    repo = place.cache.repo(NAME)
    repo.revision({"config.json": b"{}", "w.bin": WEIGHTS}, link="hardlink")
    repo.partial(data=b"begun")
    repo.stray_file()
    repo.no_exist("absent.json")
    settle(place.root)
    before = fingerprint(repo.folder)
    place.moved()
    assert fingerprint(place.other / FOLDER) == before
    blob = place.other / FOLDER / "blobs" / repo.file("w.bin").etag
    assert blob.stat().st_nlink == 2


def test_a_dry_run_shows_the_plan_and_changes_nothing(place: Place) -> None:
    place.repo()
    before = fingerprint(place.root)
    done = place.move(dry_run=True)
    assert done.receipt is None
    assert [type(action) for action in done.plan.actions[:2]] == [Move, RemoveTree]
    assert done.plan.needs >= len(WEIGHTS) + len(OTHER)
    assert done.plan.frees == du_allocated(place.root) - du_allocated_left(place)
    assert fingerprint(place.root) == before
    assert not place.other.exists()


def du_allocated_left(place: Place) -> int:
    """Return the bytes that stay here when everything is moved."""
    place_again = Path(str(place.root) + "-again")
    subprocess.run(["cp", "-a", place.root, place_again], check=True)
    for path in (place_again / FOLDER, place_again / "blobs" / XET[:2] / XET):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (place_again / "blobs" / XET[:2] / f"{XET}.refs").unlink()
    left = du_allocated(place_again)
    shutil.rmtree(place_again)
    return left


def test_what_a_killed_move_has_copied_is_not_copied_again(place: Place) -> None:
    place.repo()

    class Killer(Progress):
        def moved(self, repo: str, *_: object) -> None:
            if repo != NAME:
                os._exit(0)

    place.repo("org/second")
    child = os.fork()
    if child == 0:
        move_command.move(place.session, str(place.other), progress=Killer())
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert (place.root / FOLDER).is_symlink()
    again = place.move(dry_run=True)
    (action,) = [one for one in again.plan.actions if isinstance(one, Move)]
    assert action.have == len(WEIGHTS), "the shared blob is there already"
    done = place.moved()
    assert [repo.repo for repo in done.repos] == ["org/second", NAME]
    assert done.copied < len(WEIGHTS) + len(OTHER)


# What is refused, in one line and before anything is touched.


def test_a_destination_that_cannot_be_one_is_refused(place: Place, tmp_path: Path) -> None:
    place.repo()
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "link").symlink_to(place.root)
    for to in (
        place.root,
        tmp_path / "link",
        place.root / "below",
        tmp_path,
        file,
        tmp_path / "no" / "such",
    ):
        with pytest.raises(UsageError):
            place.move(to=to)


def test_what_the_destination_has_already_is_left_alone(place: Place) -> None:
    repo = place.repo()
    own = CacheBuilder(place.other).repo(NAME)
    own.revision({"config.json": b"another"})
    before = fingerprint(place.other), fingerprint(place.root)
    with pytest.raises(UsageError, match="has org/name already"):
        place.move()
    write_moves(str(place.other), {FOLDER: MoveRecord(str(place.root), finished=True)})
    with pytest.raises(UsageError, match="has org/name already"):
        place.move()
    write_moves(str(place.other), {FOLDER: MoveRecord(str(place.root), finished=False)})
    failed = place.move().problem
    assert failed is not None
    assert "its own copy" in failed.message
    write_moves(str(place.other), {})
    assert before[1] == fingerprint(place.root)
    assert contents(own.folder)
    assert repo.folder.is_dir()


def test_a_name_that_means_no_complete_model_is_refused(place: Place) -> None:
    place.repo()
    with pytest.raises(UsageError, match="not a complete model"):
        place.move(f"{NAME}@main")
    with pytest.raises(UnknownModelError):
        place.move("org/nothing")


@pytest.mark.parametrize("seen", [True, False], ids=["by the scan", "by its hash"])
def test_a_damaged_model_stays_where_it_is(place: Place, seen: bool) -> None:
    repo = place.repo()
    if seen:
        repo.truncated_blob("v.bin")
    else:
        repo.flipped_bit("v.bin")
    before = fingerprint(place.root)
    if seen:
        with pytest.raises(SourceDamagedError, match="is damaged"):
            place.move()
    else:
        error = place.move().problem
        assert error is not None
        assert error.exit_code == ExitCode.DAMAGE
        assert "verify --repair" in (error.hint or "")
    assert fingerprint(place.root) == before
    assert not (place.other / FOLDER).exists()


def test_a_damaged_dataset_is_refused_with_the_command_that_repairs_it(place: Place) -> None:
    repo = place.cache.repo("org/table", "dataset")
    repo.revision({"x.csv": WEIGHTS})
    repo.truncated_blob("x.csv")
    with pytest.raises(SourceDamagedError) as caught:
        place.move()
    assert caught.value.hint == "vlmcache verify datasets/org/table --repair"


def test_a_link_out_of_the_cache_is_refused(place: Place, tmp_path: Path) -> None:
    repo = place.repo()
    (tmp_path / "elsewhere").write_bytes(WEIGHTS)
    (repo.blobs / ("d" * 64)).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="out of the cache"):
        place.move()


def test_what_a_process_has_open_or_locked_is_refused_with_its_id(place: Place) -> None:
    repo = place.repo()
    lock = repo.locks / f"{repo.file('v.bin').etag}.lock"
    holding = "import fcntl, sys\nf = open(sys.argv[1])\n"
    holding += "if sys.argv[1].endswith('.lock'): fcntl.flock(f, fcntl.LOCK_EX)\n"
    holding += "print('held', flush=True)\nsys.stdin.read()"
    before = fingerprint(place.root)
    for path in (repo.blob("a/w.bin"), lock):
        with subprocess.Popen(
            [sys.executable, "-c", holding, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline()
            done = place.move()
            error = done.problem
            child.communicate()
        assert error is not None
        assert error.exit_code == ExitCode.BUSY
        assert f"PID {child.pid}" in error.message
    assert fingerprint(place.root) == before
    assert not place.other.exists()


def test_a_model_that_changes_while_it_is_copied_stays(place: Place) -> None:
    repo = place.repo()

    class Writer(Progress):
        def started(self, *_: object) -> None:
            repo.orphan_blob()

    where = str(place.other)
    done = move_command.move(place.session, where, progress=Writer())
    error = done.problem
    assert error is not None
    assert error.exit_code == ExitCode.CHANGED
    assert repo.folder.is_dir()
    assert not repo.folder.is_symlink()
    assert not (place.other / FOLDER).exists()
    place.moved()


def test_too_little_room_is_reported_before_anything_is_written(place: Place) -> None:
    place.repo()
    with small_filesystem(16_000) as small:
        with pytest.raises(SpaceError, match="short"):
            place.move(to=small / "hub")
        assert not list(small.iterdir())


def test_a_disk_that_fills_up_all_the_same_is_reported_and_undo_empties_it(place: Place) -> None:
    place.repo()
    before = fingerprint(place.root)
    with small_filesystem(1_000_000, inodes=24) as small:
        error = place.move(to=small / "hub").problem
        assert error is not None
        assert error.exit_code == ExitCode.SPACE
        assert fingerprint(place.root) == before
        undone = move_command.undo_move(place.session, str(small / "hub"))
        assert undone.problem is None
        left = {path.name for path in (small / "hub").rglob("*") if path.is_file()}
        assert left <= {".huggingface-shared-blobs", f"{XET}.lock"}
    assert fingerprint(place.root) == before


def test_a_read_only_destination_is_reported(place: Place) -> None:
    place.repo()
    place.other.mkdir()
    before = fingerprint(place.root)
    with read_only_view(place.other) as view, pytest.raises(CacheError, match="is read-only"):
        place.move(to=view)
    assert fingerprint(place.root) == before


@pytest.mark.parametrize("link", [True, False])
def test_a_source_that_cannot_be_changed_is_refused_before_anything_is_written(
    place: Place, link: bool
) -> None:
    place.repo()
    with read_only_view(place.root) as view, pytest.raises(CacheError, match="cannot be changed"):
        move_command.move(place.session_at(view), str(place.other), (), MoveOptions(link))
    assert not place.other.exists()


def test_a_model_that_was_not_moved_is_named_once_with_why(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_state: CacheState, repos: Sequence[Repo], _usage: Usage) -> tuple[Kept, ...]:
        return tuple(Kept(repo.path, repo.id, "in use") for repo in repos if repo.id == NAME)

    for name in (NAME, "org/second"):
        place.cache.repo(name).revision(model_files())
    monkeypatch.setattr(apply, "repos_in_use", busy)
    problem = place.move().problem
    assert problem is not None
    assert problem.message.startswith(f"not moved: {NAME} is being downloaded")
    assert problem.message.count(NAME) == problem.message.count("not moved") == 1


def test_two_moves_to_one_place_do_not_meet(place: Place) -> None:
    import filelock

    place.repo()
    folder = place.other / ".vlmcache-moving"
    folder.mkdir(parents=True)
    with (
        filelock.FileLock(folder / ".lock"),
        pytest.raises(values.BusyError, match="another process"),
    ):
        place.move()
    place.moved()


def test_a_plan_that_another_move_has_overtaken_harms_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens between the plan and the lock, the model stays complete and linked."""
    repo = place.repo()
    before = contents(repo.folder)
    read = survey.read_destination

    def overtaken(state: CacheState, there: str) -> Destination:
        found = read(state, there)
        monkeypatch.setattr(move_command, "read_destination", read)
        place.moved()
        return found

    monkeypatch.setattr(move_command, "read_destination", overtaken)
    error = place.move().problem
    assert error is not None
    assert error.exit_code == ExitCode.CHANGED
    assert repo.folder.is_symlink()
    assert contents(repo.folder) == before
    assert place.undo().repos == ()
    assert contents(repo.folder) == before


# Links that a move has left are followed; others are not.


def test_rm_frees_a_moved_model_where_it_is(place: Place) -> None:
    place.repo()
    place.repo("org/second")
    place.moved()
    stranger = CacheBuilder(place.other).repo("org/stranger")
    stranger.revision({"w.bin": OTHER})
    kept = fingerprint(stranger.folder)
    here, there = du_allocated(place.root), du_allocated(place.other)

    done = place.rm(NAME)

    assert done.problem is None, done
    assert done.receipt is not None
    after = du_allocated(place.root), du_allocated(place.other)
    assert done.receipt.freed == done.plan.frees == here + there - sum(after)
    assert any(
        f"it lies at {place.other}" in getattr(one, "reason", "") for one in done.plan.actions
    )
    assert not os.path.lexists(place.root / FOLDER)
    assert not (place.other / FOLDER).exists()
    assert set(read_moves(str(place.other))) == {"models--org--second"}
    assert fingerprint(stranger.folder) == kept
    assert contents(place.root / "models--org--second")


def test_rm_of_one_revision_goes_through_the_link_and_the_last_takes_the_link_along(
    place: Place,
) -> None:
    repo = place.repo()
    repo.revision({"config.json": b"{2}", "v.bin": OTHER}, refs=("v2",))
    place.moved()
    done = place.rm(f"{NAME}@main")
    assert done.problem is None
    assert [path.name for path in (place.other / FOLDER / "snapshots").iterdir()] == [repo.latest]
    assert (place.root / FOLDER).is_symlink()
    assert place.rm(f"{NAME}@v2").problem is None
    assert not os.path.lexists(place.root / FOLDER)
    assert not (place.other / FOLDER).exists()


def test_the_one_note_of_older_versions_still_counts_and_gives_way_to_one_for_each_repo(
    place: Place,
) -> None:
    place.repo()
    place.repo("org/second")
    place.moved()
    older = place.other / ".vlmcache-moved.json"
    notes = read_moves(str(place.other))
    for folder in notes:
        os.unlink(note_path(str(place.other), folder))
    older.write_bytes(msgspec.json.encode(Note("vlmcache.moved/1", notes)))
    assert read_moves(str(place.other)) == notes
    assert place.rm(NAME).problem is None
    assert not (place.other / FOLDER).exists()
    assert not older.exists()
    assert set(read_moves(str(place.other))) == {"models--org--second"}


@pytest.mark.parametrize("proof", ["none", "of another cache", "a link", "another's"])
def test_a_link_that_no_move_has_left_is_never_followed(
    place: Place, proof: str, tmp_path: Path
) -> None:
    repo = place.repo()
    repo.moved_elsewhere(place.other)
    if proof == "of another cache":
        write_moves(str(place.other), {FOLDER: MoveRecord("/some/cache", finished=True)})
    elif proof != "none":
        write_moves(str(place.other), {FOLDER: MoveRecord(str(place.root), finished=True)})
        note = Path(note_path(str(place.other), FOLDER))
        if proof == "a link":
            shutil.move(note, tmp_path / "note")
            note.symlink_to(tmp_path / "note")
        else:
            if os.geteuid() != 0:
                pytest.skip("giving a file away needs root")
            os.chown(note, 12345, 12345)
    before = fingerprint(place.other)
    done = place.rm(NAME)
    assert done.receipt is not None
    assert done.receipt.whole
    assert not os.path.lexists(place.root / FOLDER)
    assert fingerprint(place.other) == before
    assert "never followed" in done.plan.kept[0].reason


def lay_out(patterns: dict[Path, Path]) -> None:
    """Let folders be as their patterns are."""
    for root, pattern in patterns.items():
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(pattern, root, symlinks=True)


class RemovingMoved(Subject[Removal | VlmcacheError]):
    """A model with a shared blob goes, which lies on another drive."""

    command = "rm, moved"
    everywhere = True

    def __init__(self, moved: Place, patterns: dict[Path, Path]) -> None:
        self.moved = moved
        self.patterns = patterns

    def begin(self, place: Path) -> None:
        lay_out(self.patterns)

    def run(self, place: Path) -> Removal | VlmcacheError:
        try:
            return self.moved.rm(NAME)
        except VlmcacheError as error:
            return error

    def hold(self, place: Path, answer: Removal | VlmcacheError | None) -> None:
        if isinstance(answer, Removal) and answer.problem is None:
            self.check_gone()

    def again(self, place: Path) -> None:
        if os.path.lexists(self.moved.root / FOLDER):
            answer = self.run(place)
            assert isinstance(answer, Removal), answer
            assert answer.problem is None, answer
        self.check_gone()

    def check_gone(self) -> None:
        assert not os.path.lexists(self.moved.root / FOLDER)
        assert not [
            path
            for root in self.patterns
            for path in root.rglob("*")
            if path.is_file() and path.stat().st_size == len(WEIGHTS)
        ]


@pytest.mark.faults
def test_rm_of_a_moved_model_that_is_killed_anywhere_is_finished_by_the_next(
    drive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remove, "who_uses", lambda *_: Usage())
    monkeypatch.setattr(known, "who_uses", lambda *_: Usage())
    monkeypatch.setattr(move_command, "who_uses", lambda *_: Usage())
    monkeypatch.setattr(apply, "who_uses", lambda *_: Usage())
    second = drive / "pattern"
    shutil.rmtree(second, ignore_errors=True)
    with small_filesystem(8_000_000) as first:
        place = Place(first, drive)
        place.cache.repo(NAME).revision({"w.bin": WEIGHTS}, shared=("w.bin",))
        settle(place.root)
        place.moved()
        patterns = {place.root: first / "pattern", place.other: second}
        for root, pattern in patterns.items():
            shutil.copytree(root, pattern, symlinks=True)
        try_every(RemovingMoved(place, patterns), "kill", at_least=10)


@pytest.mark.parametrize("link", [False, True])
def test_a_moved_model_comes_back_into_the_place_of_its_link(place: Place, link: bool) -> None:
    place.repo()
    before = fingerprint(place.root / FOLDER)
    right = contents(place.root / FOLDER)
    place.moved(NAME)
    away = place.session_at(place.other)
    done = move_command.move(away, str(place.root), [NAME], MoveOptions(link=link))
    assert done.problem is None
    assert not (place.root / FOLDER).is_symlink()
    assert fingerprint(place.root / FOLDER) == before
    assert (place.other / FOLDER).is_symlink() == link
    assert os.path.lexists(place.other / FOLDER) == link
    assert FOLDER not in read_moves(str(place.other))
    # And away again, which finds what the first way has left.
    place.moved(NAME)
    assert (place.root / FOLDER).is_symlink()
    assert contents(place.other / FOLDER) == right


class ComingBack(Subject[None]):
    """A moved model comes back into the place of its link, and is killed on its way."""

    command = "move, back"
    everywhere = True

    def __init__(self, place: Place, patterns: dict[Path, Path], right: dict[str, bytes]) -> None:
        self.drives = place
        self.patterns = patterns
        self.right = right

    def begin(self, place: Path) -> None:
        lay_out(self.patterns)

    def run(self, place: Path) -> None:
        away = self.drives.session_at(self.drives.other)
        with contextlib.suppress(UnknownModelError):
            back = move_command.move(away, str(self.drives.root), [NAME], MoveOptions(link=False))
            assert back.problem is None, back.problem

    def hold(self, place: Path, answer: None) -> None:
        whole = [contents(root / FOLDER) == self.right for root in self.patterns]
        assert any(whole)

    def again(self, place: Path) -> None:
        self.run(place)
        assert contents(self.drives.root / FOLDER) == self.right
        assert not (self.drives.root / FOLDER).is_symlink()
        assert not os.path.lexists(self.drives.other / FOLDER)


@pytest.mark.faults
def test_a_way_back_that_is_killed_anywhere_is_finished_by_the_next(
    drive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move_command, "who_uses", lambda *_: Usage())
    monkeypatch.setattr(apply, "who_uses", lambda *_: Usage())
    second = drive / "pattern"
    shutil.rmtree(second, ignore_errors=True)
    with small_filesystem(8_000_000) as first:
        place = Place(first, drive)
        place.cache.repo(NAME).revision({"w.bin": WEIGHTS}, shared=("w.bin",))
        settle(place.root)
        right = contents(place.root / FOLDER)
        place.moved()
        patterns = {place.root: first / "pattern", place.other: second}
        for root, pattern in patterns.items():
            shutil.copytree(root, pattern, symlinks=True)
        try_every(ComingBack(place, patterns, right), "kill", at_least=30)


def test_clean_removes_waste_of_moved_models_and_nothing_else_there(place: Place) -> None:
    repo = place.repo()
    repo.orphan_blob(b"waste" * 2000)
    repo.partial(size=5000, age=LONG)
    place.moved()
    stranger = CacheBuilder(place.other).repo("org/stranger")
    stranger.revision({"w.bin": OTHER})
    stranger.orphan_blob()
    stranger.partial(age=LONG)
    kept = fingerprint(stranger.folder)
    before = du_allocated(place.other)

    done = place.clean()

    assert done.receipt is not None
    assert done.receipt.whole
    assert before - du_allocated(place.other) == done.receipt.freed > 5000
    assert fingerprint(stranger.folder) == kept
    assert set(contents(place.root / FOLDER).values()) == {NAME.encode(), WEIGHTS, OTHER}

    everything = place.clean(CleanOptions(everything=True))
    assert everything.receipt is not None
    assert everything.receipt.whole, everything.receipt
    assert not os.path.lexists(place.root / FOLDER)
    assert not (place.other / FOLDER).exists()
    assert fingerprint(stranger.folder) == kept


def test_status_shows_where_moved_models_are_and_counts_them_separately(place: Place) -> None:
    place.repo()
    place.moved()
    found = status(Session(place.environment, place.config, place.location))
    (elsewhere,) = found.elsewhere
    assert found.cache.size_on_disk == du_allocated(place.root)
    assert (elsewhere.path, elsewhere.repos, elsewhere.moved) == (str(place.other), (NAME,), True)
    store = place.other / "blobs" / XET[:2] / XET
    assert elsewhere.size_on_disk == du_allocated(place.other / FOLDER) + du_allocated(store)
    assert elsewhere.free is not None
    shutil.rmtree(place.other)
    gone = status(Session(place.environment, place.config, place.location))
    assert [one.code for one in gone.findings] == ["dangling-link"]


def test_verify_and_backup_read_moved_models(place: Place, tmp_path: Path) -> None:
    repo = place.repo()
    place.moved()
    assert not verify(place.session).damaged
    saved = backup(place.session, str(tmp_path / "b.tar"), [NAME])
    assert saved.blobs == 3
    restore(place.session_at(tmp_path / "new"), str(tmp_path / "b.tar"))
    assert contents(tmp_path / "new" / FOLDER) == contents(repo.folder)
    blob = place.other / FOLDER / "blobs" / repo.file("v.bin").etag
    blob.write_bytes(b"wrong" + OTHER[5:])
    (damaged,) = verify(place.session, options=VerifyOptions(max_age=0)).damaged
    assert damaged.path == str(repo.blob("v.bin"))


def test_pull_and_repair_write_where_the_model_is(tmp_path: Path, drive: Path) -> None:
    place = Place(tmp_path, drive)
    with LoopbackHub() as hub:
        model = hub.add_repo(pulls.REPO)
        model.commit(model_files())
        assert pulls.pull(hub, place.root).problem is None
        place.moved()
        used = du_allocated(place.root)
        newer = model_files(parameters=30_000)
        model.commit(newer)
        etag = model.file("model.safetensors").etag
        begun = newer["model.safetensors"][:9000]
        (place.other / FOLDER / "blobs" / f"{etag}.incomplete").write_bytes(begun)

        run = pulls.pull(hub, place.root)

        assert run.problem is None
        (fetched,) = [one for one in pulls.fetches(run).values() if one.etag == etag]
        assert fetched.have == 9000
        assert du_allocated(place.root) == used
        repo = scan(place.root).repo(pulls.REPO)
        assert judge(repo, "main").state == "cached"
        blob = place.other / FOLDER / "blobs" / etag
        blob.write_bytes(bytes([begun[0] ^ 1]) + newer["model.safetensors"][1:])
        (place.other / FOLDER / "blobs" / ("e" * 64)).write_bytes(b"nobody links here")
        session = Session(pulls.environment(hub, place.root), place.config, place.location)
        repaired = repair(session, options=VerifyOptions(max_age=0), patience=pulls.QUICK)
        assert repaired.problem is None
        assert blob.read_bytes() == newer["model.safetensors"]
        assert not (place.other / FOLDER / "blobs" / ("e" * 64)).exists()
        assert du_allocated(place.root) == used
        assert not pulls.lies(place.other)
        place.other.rename(drive / "away")
        error = pulls.pull(hub, place.root).problem
        assert error is not None
        assert "mount that drive" in (error.hint or "")
        assert not place.other.exists()
        shutil.rmtree(drive / "away")


CLIENT = """
import sys
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
from transformers import AutoConfig
here, there = sys.argv[1:]
for cache in (here, there):
    found = scan_cache_dir(cache)
    (repo,) = found.repos
    (revision,) = repo.revisions
    assert revision.refs == {"main"}, found
    assert repo.repo_id == "org/name", found
    path = hf_hub_download("org/name", "model.safetensors", cache_dir=cache)
    assert len(open(path, "rb").read()) > 1000
    assert snapshot_download("org/name", cache_dir=cache)
    assert AutoConfig.from_pretrained("org/name", cache_dir=cache).model_type == "qwen2_vl"
assert not scan_cache_dir(here).warnings
"""


def test_the_real_client_and_transformers_find_a_moved_model_offline(place: Place) -> None:
    pytest.importorskip("transformers")
    place.cache.repo(NAME).revision(model_files(), shared=("model.safetensors",))
    place.moved()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLIENT, place.root, place.other],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_an_interrupted_move_set_aside_is_not_put_back_without_its_shared_blob(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its links would lead nowhere, and the copy at the destination would go."""
    place.repo()
    place.repo("org/second")
    before = contents(place.root / FOLDER)
    rename = os.rename

    def interrupt(source: str, *arguments: Any, **folders: Any) -> None:
        if str(source).startswith("link-"):
            raise KeyboardInterrupt
        rename(source, *arguments, **folders)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            place.move(NAME)
    assert not os.path.lexists(place.root / FOLDER)
    assert place.rm("org/second").problem is None

    with contextlib.suppress(VlmcacheError):
        place.undo()

    assert before in [contents(root / FOLDER) for root in (place.root, place.other)]


@pytest.mark.parametrize("name", [NAME, "datasets/org/name"])
def test_an_interrupted_move_without_links_continues_with_the_same_names(
    place: Place, name: str
) -> None:
    place.repo()
    place.repo("org/second")
    place.cache.repo(NAME, "dataset").revision({"x.csv": b"1,2"})
    place.moved(name, link=False)
    done = place.moved(name, "org/second", link=False)
    assert [repo.repo for repo in done.repos] == ["org/second"]
    assert [kept.reason for kept in done.plan.kept] == ["is there already"]


def test_an_empty_destination_is_refused(place: Place) -> None:
    place.repo()
    with pytest.raises(UsageError, match="the destination is empty"):
        move_command.move(place.session, "")


@pytest.mark.parametrize("link", [True, False])
def test_an_interruption_names_the_commands_that_continue_and_undo_on_the_same_cache(
    place: Place, link: bool
) -> None:
    class Impatient(Progress):
        def planned(self, done: str, sizes: Mapping[str, int], have: Mapping[str, int]) -> None:
            raise KeyboardInterrupt

    place.repo()
    at_root = place.session_at(place.root)
    with pytest.raises(KeyboardInterrupt) as raised:
        move_command.move(at_root, str(place.other), [NAME], MoveOptions(link), Impatient())
    again, back = f"vlmcache move {place.other} {NAME}", f"vlmcache move {place.other} --undo"
    same = f"--cache-dir {place.root} --config config.yaml"
    assert raised.value.args[0] == (
        f"'{again}{'' if link else ' --no-link'} {same}' continues, '{back} {same}' takes it back"
    )
