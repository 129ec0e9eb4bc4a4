"""Models on a drive that is away: every command says so, and none is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, du_allocated, fingerprint, model_files
from tests.kit.commands import Done, Vlmcache, run_here
from tests.kit.disks import NOBODY, RemovableDrive, removable_drive
from vlmcache import compat
from vlmcache.cache import mounts
from vlmcache.cache.completeness import judge, judge_repo
from vlmcache.cache.moved import move_record_path, read_moves, read_record
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.change.moved_note import write_record
from vlmcache.commands.move import move as move_command
from vlmcache.commands.move import values as move_values
from vlmcache.commands.move.values import MoveOptions, NotMovedError
from vlmcache.commands.remove import clean, remove, values
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.commands.status.status import status
from vlmcache.commands.watch.events import changes
from vlmcache.config import CacheLocation, Config, Environment, Limits, Session
from vlmcache.errors import ExitCode, UnknownModelError

NAME, FOLDER = "org/name", "models--org--name"
CONFIG = Config("config.yaml", "--config", {}, Limits(min_free=0))


@pytest.fixture
def drive() -> Iterator[RemovableDrive]:
    with removable_drive() as found:
        yield found


class Place:
    """A cache of two models, of which one was moved to a drive."""

    def __init__(self, root: Path, drive: Path) -> None:
        self.root = root
        self.other = drive / "models" / "hub"
        self.other.parent.mkdir(parents=True)
        self.link = root / FOLDER
        self.location = CacheLocation(str(root), "--cache-dir")
        self.environment = Environment({"VLMCACHE_HOME": str(root.parent / "own")}, frozenset(), "")
        self.session = Session(self.environment, CONFIG, self.location)
        cache = CacheBuilder(root)
        for name in (NAME, "org/stays"):
            cache.repo(name).revision(model_files())
        self.move()

    def move(self) -> None:
        done = move_command.move(self.session, str(self.other), [NAME])
        assert done.problem is None, done.problem

    @property
    def record(self) -> Path:
        return Path(move_record_path(str(self.root), FOLDER))

    def scan(self) -> CacheState:
        return scan(self.root)

    def repo(self) -> Repo:
        found = self.scan().repo(NAME)
        assert found is not None
        return found

    def rm(self) -> values.Removal:
        return remove.remove(Session(self.environment, CONFIG, self.location), [NAME])

    def relink(self, place: Path, *, dry_run: bool = False) -> move_values.MoveReport:
        return move_command.relink(self.session, str(place), dry_run=dry_run)


@pytest.fixture
def place(tmp_path: Path, drive: RemovableDrive) -> Place:
    return Place(tmp_path / "hub", drive.place)


@pytest.fixture
def known(drive: RemovableDrive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The system knows the drive by its UUID, as udev lets it."""
    folder = tmp_path / "by-uuid"
    folder.mkdir()
    (folder / drive.uuid).symlink_to(drive.device)
    monkeypatch.setattr(mounts, "BY_UUID", str(folder))
    return drive.uuid


# What is recorded, and what is made of it.


def test_a_move_records_where_the_model_went_by_the_uuid_of_the_drive(
    known: str, drive: RemovableDrive, place: Place
) -> None:
    record = read_record(str(place.root), FOLDER)
    assert record is not None
    assert (record.cache, record.destination) == (str(place.root), str(place.other))
    assert record.drive is not None
    assert (record.drive.uuid, record.drive.type) == (known, "ext4")
    assert (record.drive.mount_point, record.drive.source) == (str(drive.place), drive.device)
    state = place.scan()
    assert not state.strays
    assert state.size_on_disk == du_allocated(place.root)
    assert not [one for one in state.findings if one.severity != "info"]


def test_a_model_is_away_while_its_drive_is_not_mounted_and_back_with_it(
    known: str, drive: RemovableDrive, place: Place
) -> None:
    here = place.scan()
    drive.unmount()
    gone = place.scan()
    repo = place.repo()
    assert (judge(repo, "main").state, judge_repo(repo)) == ("away", "away")
    (finding,) = repo.findings
    assert (finding.code, finding.severity) == ("drive-away", "warning")
    assert finding.detail == f"away: it is at {place.other}, on a drive that is not mounted"
    assert finding.remedy == f"mount the drive with UUID {known} at {drive.place}"
    drive.mount()
    back = place.scan()
    assert judge(back.repo(NAME), "main").state == "cached"
    assert [event.kind for event in changes(here, gone)] == ["away"]
    assert changes(gone, place.scan())[0].kind == "back"
    assert [event.kind for event in changes(gone, back)] == ["back"]
    assert not changes(gone, gone)


def test_a_drive_without_a_uuid_is_known_by_its_device(drive: RemovableDrive, place: Place) -> None:
    drive.unmount()
    remedy = place.repo().findings[0].remedy
    assert remedy == f"mount {drive.device} (ext4) at {drive.place}"


def test_another_drive_at_the_mount_point_is_not_the_one_that_is_away(
    known: str, drive: RemovableDrive, place: Place
) -> None:
    drive.unmount()
    with removable_drive() as other:
        other.unmount()
        other.folder = drive.folder
        other.mount()
        assert place.repo().away is not None


@pytest.mark.parametrize("recorded", [True, False])
def test_a_mounted_drive_that_does_not_hold_the_model_is_damage(
    place: Place, recorded: bool
) -> None:
    if not recorded:
        place.record.unlink()
    place.other.rename(place.other.with_name("renamed"))
    repo = place.repo()
    assert judge_repo(repo) == "damaged"
    (finding,) = repo.findings
    assert finding.code == "dangling-link"
    assert "vlmcache move --relink FOLDER" in (finding.remedy or "")
    done = place.relink(place.other.with_name("renamed"))
    assert done.problem is None
    assert judge(place.repo(), "main").state == "cached"


def test_a_link_of_0_1_0_is_away_if_nothing_or_an_empty_folder_is_where_its_drive_belongs(
    drive: RemovableDrive, place: Place
) -> None:
    place.record.unlink()
    drive.unmount()
    repo = place.repo()
    assert judge_repo(repo) == "away"
    assert repo.findings[0].remedy == f"mount the drive that belongs at {place.other}"
    drive.place.rmdir()
    assert judge_repo(place.repo()) == "away"
    place.other.parent.mkdir(parents=True)
    assert judge_repo(place.repo()) == "away"
    (place.other.parent / "other").touch()
    assert judge_repo(place.repo()) == "damaged"
    shutil.rmtree(drive.place)
    place.link.unlink()
    place.link.symlink_to(Path("..") / "nowhere" / FOLDER)
    assert judge_repo(place.repo()) == "damaged"


@pytest.mark.parametrize("trick", ["a link", "another user's", "too long", "of another link"])
def test_a_record_that_cannot_be_trusted_says_nothing(
    drive: RemovableDrive, place: Place, trick: str, tmp_path: Path
) -> None:
    record = place.record
    if trick == "a link":
        record.rename(tmp_path / "elsewhere")
        record.symlink_to(tmp_path / "elsewhere")
    elif trick == "another user's":
        os.chown(record, NOBODY, NOBODY)
    elif trick == "too long":
        record.write_bytes(record.read_bytes() + b" " * 100_000)
    else:
        write_record(str(place.root), FOLDER, str(tmp_path))
    drive.unmount()
    away = place.repo().away
    assert away is not None
    assert away.drive is None


def test_a_record_of_a_model_without_a_link_is_waste(place: Place) -> None:
    place.link.unlink()
    os.utime(place.record, (1, 1))
    (stray,) = place.scan().strays
    assert (stray.path, stray.leftover) == (str(place.record), True)
    clean.clean(Session(place.environment, CONFIG, place.location))
    assert not place.record.exists()


def test_the_hubs_own_scan_does_not_warn_of_a_record(place: Place) -> None:
    import huggingface_hub

    assert place.record.exists()
    assert not huggingface_hub.scan_cache_dir(place.root).warnings


# Every command.

MOUNT = "the mount point"
THERE = "the archive"
TABLE: dict[str, tuple[list[str], int, str]] = {
    "status": (["status"], 0, MOUNT),
    "status --check": (["status", "--check"], 4, MOUNT),
    "status -v": (["status", "-v", "--all"], 0, MOUNT),
    "pull": (["pull", "small"], 4, MOUNT),
    "rm": (["rm", "small", "--dry-run"], 0, MOUNT),
    "rm of a revision": (["rm", "small", "--revision", "main", "--yes"], 4, MOUNT),
    "clean": (["clean", "--yes"], 0, ""),
    "clean --all": (["clean", "--all", "--keep", "org/stays", "--yes"], 0, ""),
    "clean --older-than": (
        ["clean", "--older-than", "0s", "small", "--keep", "org/stays", "--yes"],
        0,
        "",
    ),
    "verify": (["verify"], 0, MOUNT),
    "verify of it": (["verify", "small"], 4, MOUNT),
    "verify --repair": (["verify", "small", "--repair"], 4, MOUNT),
    "backup": (["backup", "all.tar"], 3, "not mounted"),
    "backup of it": (["backup", "one.tar", "small"], 4, MOUNT),
    "move": (["move", "elsewhere", "--dry-run"], 0, "away"),
    "move of it": (["move", "elsewhere", "small"], 4, MOUNT),
    "recall": (["recall", "small"], 4, MOUNT),
    "recall of all": (["recall", "org/*", "--dry-run"], 4, MOUNT),
    "clean --to": (["clean", "--max-size", "0", "--to", THERE, "--yes"], 4, MOUNT),
    "pull of all": (["pull", "--all"], 4, MOUNT),
    "serve": (["serve", "small"], 4, MOUNT),
    "warm": (["warm", "small"], 4, MOUNT),
    "load-test": (["load-test", "small"], 4, MOUNT),
    "quantize": (["quantize", "small"], 4, MOUNT),
    "watch": (["watch", "--once"], 0, "away"),
    "doctor": (["doctor"], 0, MOUNT),
}
"""What is typed, the exit code, and what is said of the model."""


@pytest.fixture
def typed(
    vlmcache: Vlmcache, tmp_path: Path, drive: RemovableDrive, monkeypatch: pytest.MonkeyPatch
) -> Place:
    place = Place(tmp_path / "hub", drive.place)
    vlmcache.config("models: {small: {repo: org/name}}\nvlmcache: {min_free: 0}\n")
    for name, value in vlmcache.environment.items():
        if name.startswith(("HF_", "VLMCACHE_", "HOME")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "400")
    return place


def test_every_command_says_in_one_sentence_that_it_is_away_and_changes_nothing_of_it(
    typed: Place, drive: RemovableDrive
) -> None:
    drive.unmount()
    away = {name: entry for name, entry in fingerprint(typed.root).items() if FOLDER in name}
    for what, (arguments, code, words) in TABLE.items():
        done = run_here(*(str(typed.other) if word is THERE else word for word in arguments))
        said = done.out + done.err
        assert done.code == code, (what, done)
        assert (str(drive.place) if words is MOUNT else words) in said, (what, done)
        assert "damaged" not in said, (what, done)
        assert "missing" not in said.replace("Damage or missing", ""), (what, done)
        now = {name: entry for name, entry in fingerprint(typed.root).items() if FOLDER in name}
        assert now == away, what
    ready, why = compat.check_model_cache("small")
    assert not ready
    assert why.startswith(f"{NAME} is away: it is at {typed.other}")
    drive.mount()
    assert run_here("status", "--check").code == 0


def test_a_recommendation_names_the_mount_and_no_command_that_removes_anything(
    known: str, place: Place, drive: RemovableDrive
) -> None:
    drive.unmount()
    found = status(Session(place.environment, CONFIG, place.location))
    steps = [one for one in found.recommendations if NAME in one.text]
    (step,) = steps
    assert step.command is None
    assert step.text == f"away: {NAME}; mount the drive with UUID {known} at {drive.place}"
    elsewhere = drive.mount("elsewhere") / "models" / "hub"
    found = status(Session(place.environment, CONFIG, place.location))
    (step,) = [one for one in found.recommendations if NAME in one.text]
    assert step.command is not None
    assert step.command.startswith(f"vlmcache move --relink {elsewhere} --cache-dir {place.root}")


def test_clean_of_everything_keeps_what_is_away_and_its_locks(
    place: Place, drive: RemovableDrive
) -> None:
    lock = place.root / ".locks" / FOLDER / "a.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    os.utime(lock, (1, 1))
    drive.unmount()
    for options in (
        CleanOptions(),
        CleanOptions(everything=True),
        CleanOptions(older_than=0.0),
        CleanOptions(max_size=0),
    ):
        clean.clean(Session(place.environment, CONFIG, place.location), options)
        assert place.link.is_symlink()
        assert place.record.exists()
        assert lock.exists()
    drive.mount()
    assert judge(place.repo(), "main").state == "cached"


def test_rm_removes_the_link_and_its_record_and_says_that_the_model_stays(
    typed: Place, drive: RemovableDrive
) -> None:
    before = fingerprint(typed.other)
    drive.unmount()
    used = du_allocated(typed.root)
    done: Done = run_here("rm", "small", "--yes")
    assert done.code == ExitCode.DONE, done
    assert "only the link is removed: the model stays on its drive, which is away" in done.out
    assert not typed.link.is_symlink()
    assert not typed.record.exists()
    drive.mount()
    assert fingerprint(typed.other) == before
    assert du_allocated(typed.root) < used


def test_the_receipt_of_rm_counts_the_record(place: Place, drive: RemovableDrive) -> None:
    drive.unmount()
    used = du_allocated(place.root)
    receipt = place.rm().receipt
    assert receipt is not None
    assert receipt.freed == used - du_allocated(place.root) > 0


def test_a_model_that_is_mounted_is_removed_with_its_record(place: Place) -> None:
    receipt = place.rm().receipt
    assert receipt is not None
    assert receipt.whole
    assert not place.record.exists()
    assert not (place.other / FOLDER).exists()


def test_a_model_that_is_moved_back_has_no_record_any_longer(place: Place) -> None:
    there = place.session._replace(cache=CacheLocation(str(place.other), "--cache-dir"))
    done = move_command.move(there, str(place.root), [NAME], MoveOptions(link=False))
    assert done.problem is None
    assert not place.link.is_symlink()
    assert not place.record.exists()


def test_nothing_is_moved_to_where_a_drive_is_away(place: Place, drive: RemovableDrive) -> None:
    """It would fill the disk below the mount point, and be hidden by the drive."""
    drive.unmount()
    place.other.parent.mkdir(parents=True)
    done = run_here("move", str(place.other), "--cache-dir", str(place.root))
    assert done.code == ExitCode.DAMAGE
    assert "is away" in done.err
    assert not place.other.exists()
    shutil.rmtree(place.other.parent)


# Links that lead to where the drive is now.


def test_a_drive_that_is_mounted_elsewhere_is_relinked(
    known: str, place: Place, drive: RemovableDrive
) -> None:
    drive.unmount()
    now = drive.mount("elsewhere") / "models" / "hub"
    away = place.repo().away
    assert away is not None
    assert away.found_at == str(now)
    before = fingerprint(place.root)
    planned = place.relink(now, dry_run=True)
    assert [repo.state for repo in planned.repos] == ["planned"]
    assert fingerprint(place.root) == before

    done = place.relink(now)

    assert [(repo.repo, repo.state) for repo in done.repos] == [(NAME, "relinked")]
    assert os.readlink(place.link) == str(now / FOLDER)
    assert judge(place.repo(), "main").state == "cached"
    record = read_record(str(place.root), FOLDER)
    assert record is not None
    assert record.drive is not None
    assert record.drive.mount_point == str(drive.folder / "elsewhere")
    assert not place.scan().strays
    again = place.relink(now)
    assert not again.repos
    assert again.problem is None
    assert place.rm().receipt is not None
    assert not (now / FOLDER).exists()


def test_a_link_that_is_replaced_while_relink_asks_is_left_alone_and_named(
    place: Place, drive: RemovableDrive
) -> None:
    assert move_command.move(place.session, str(place.other), ["org/stays"]).problem is None
    drive.unmount()
    now = drive.mount("elsewhere") / "models" / "hub"

    def replace(_: move_values.MoveReport) -> bool:
        place.link.unlink()
        place.link.mkdir()
        return True

    done = move_command.relink(place.session, str(now), confirm=replace)
    assert [repo.state for repo in done.repos] == ["failed", "relinked"]
    assert done.problem is not None
    assert done.problem.exit_code == ExitCode.PARTLY
    assert done.problem.message.startswith(f"not relinked: {NAME}: its link leads to a model now")
    assert not place.link.is_symlink()


def test_a_relink_that_was_interrupted_before_its_record_is_finished_by_the_next(
    place: Place, drive: RemovableDrive
) -> None:
    drive.unmount()
    now = drive.mount("elsewhere") / "models" / "hub"
    place.link.unlink()
    place.link.symlink_to(now / FOLDER)
    assert read_record(str(place.root), FOLDER) is None
    place.relink(now)
    assert read_record(str(place.root), FOLDER) is not None


@pytest.mark.parametrize(
    ("why", "error"),
    [("empty", UnknownModelError), ("not ours", NotMovedError), ("a link", NotMovedError)],
)
def test_a_folder_without_the_models_is_refused_with_why(
    place: Place, drive: RemovableDrive, tmp_path: Path, why: str, error: type[Exception]
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    if why == "not ours":
        CacheBuilder(folder).repo(NAME).revision(model_files())
    elif why == "a link":
        (folder / FOLDER).symlink_to(tmp_path)
        shutil.copytree(place.other / ".locks", folder / ".locks")
        assert FOLDER in read_moves(str(folder))
    drive.unmount()
    before = fingerprint(place.root)
    with pytest.raises(error, match="there"):
        place.relink(folder)
    assert fingerprint(place.root) == before


def test_relink_asks_and_accepts_nothing_but_its_folder(
    typed: Place, drive: RemovableDrive
) -> None:
    drive.unmount()
    now = str(drive.mount("elsewhere") / "models" / "hub")
    unasked = run_here("move", "--relink", now)
    assert unasked.code == ExitCode.UNCONFIRMED
    for wrong in (["dest"], ["--undo"], ["--no-link"]):
        assert run_here("move", "--relink", now, *wrong).code == ExitCode.USAGE
    assert run_here("move").code == ExitCode.USAGE
    done = run_here("move", "--relink", now, "--yes", "--json")
    assert done.code == ExitCode.DONE
    assert [repo["state"] for repo in done.document["repos"]] == ["relinked"]
    assert run_here("status", "--check").code == ExitCode.DONE
