"""Moves on failing disks and in killed processes: each model is complete somewhere, always."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, Entry, fingerprint
from tests.kit.contents import Content
from tests.kit.disks import small_filesystem
from tests.kit.faulty import ERRORS, Fault, Subject, fault_name, try_every
from tests.kit.rooms import WEIGHTS, settle
from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.moved import read_record
from vlmcache.cache.scan import scan
from vlmcache.cache.usage import Usage
from vlmcache.commands.move import apply
from vlmcache.commands.move import move as move_command
from vlmcache.commands.move.values import MoveOptions, MoveReport
from vlmcache.config import CacheLocation, Config, Environment, Limits, Session
from vlmcache.errors import UnknownModelError, VlmcacheError

REPO, FOLDER = "org/name", "models--org--name"
FILES: dict[str, Content] = {"a/c.json": b"{}", "w.bin": WEIGHTS}
CONFIG = Config("config.yaml", "--config", {}, Limits(min_free=0))


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through all processes is most of the time here, and no part of what is tested."""
    monkeypatch.setattr(move_command, "who_uses", lambda *_: Usage())
    monkeypatch.setattr(apply, "who_uses", lambda *_: Usage())


@pytest.fixture(scope="module")
def drives() -> Iterator[tuple[Path, Path]]:
    with small_filesystem(64_000_000) as first, small_filesystem(64_000_000) as second:
        yield first, second


class Place:
    """A cache on one drive, and another drive to move to."""

    def __init__(self, first: Path, second: Path, *, link: bool) -> None:
        self.root = first / "hub"
        self.other = second / "hub"
        location = CacheLocation(str(self.root), "--cache-dir")
        self.session = Session(Environment({}, frozenset(), ""), CONFIG, location)
        self.link = link
        self.pattern = first / "pattern"
        shutil.rmtree(self.pattern, ignore_errors=True)
        cache = CacheBuilder(self.pattern)
        repo = cache.repo(REPO)
        repo.revision(FILES, shared=("w.bin",))
        xet = repo.file("w.bin").xet_hash
        assert xet is not None
        stays = cache.repo("org/stays")
        stays.revision({"w.bin": WEIGHTS}, shared=("w.bin",), xet={"w.bin": xet})
        settle(self.pattern)

    def make(self) -> None:
        for folder in (self.root, self.other):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.pattern, self.root, symlinks=True)

    def move(self) -> MoveReport:
        return move_command.move(self.session, str(self.other), [REPO], MoveOptions(link=self.link))

    def undo(self) -> MoveReport:
        return move_command.undo_move(self.session, str(self.other))

    def again(self) -> None:
        """Move once more: it finishes, or finds that the repo is complete at the other place."""
        try:
            done = self.move()
        except UnknownModelError:
            assert not self.link
            assert is_whole(self.other / FOLDER)
            assert not os.path.lexists(self.root / FOLDER)
        else:
            assert done.problem is None, done.problem

    def check(self) -> None:
        """Check that the repo is complete at the old or the new place, and what stays is as it was.

        A link of it is there only once it is recorded where it leads.
        """
        if (self.root / FOLDER).is_symlink():
            assert read_record(str(self.root), FOLDER) is not None
        places = [self.root / FOLDER, self.other / FOLDER]
        places += self.root.glob(f".vlmcache-leftovers/*/{FOLDER}")
        assert any(is_whole(place) for place in places), list(map(listed, places))
        here = self.root / FOLDER
        if here.exists():
            assert is_whole(here), listed(here)
        if (self.other / FOLDER).exists():
            assert is_whole(self.other / FOLDER)
        stays = self.root / "models--org--stays"
        assert {path.read_bytes() for path in stays.glob("snapshots/*/*")} == {WEIGHTS}

    def left(self) -> dict[str, Entry]:
        """Return what is on both drives.

        Left out are the empty files of locks, manifests, which may list what is gone, as the hub
        allows, and empty folders, which the next run removes.
        """
        found = {f"here/{name}": entry for name, entry in fingerprint(self.root).items()}
        if self.other.exists():
            found |= {f"there/{name}": entry for name, entry in fingerprint(self.other).items()}
        return {
            name: entry
            for name, entry in found.items()
            if not name.endswith((".lock", "CACHEDIR.TAG"))
            and ".refs" not in name
            and (".locks" not in name or name.endswith((layout.RECORD_SUFFIX, layout.NOTE_SUFFIX)))
            and not (".vlmcache-" in name and entry[0] == "folder")
        }


def listed(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]


def is_whole(repo: Path) -> bool:
    """Return whether every file of the snapshot is read through its link, and the ref names it."""
    with contextlib.suppress(OSError):
        snapshot = repo / "snapshots" / (repo / "refs" / "main").read_text()
        tree = repo / "trees" / f"{snapshot.name}.json"
        return tree.exists() and all(
            (snapshot / name).read_bytes() == content for name, content in FILES.items()
        )
    return False


def allocated(*roots: Path) -> int:
    found = {
        (status.st_dev, status.st_ino): allocated_bytes(status)
        for root in roots
        for path in (root, *root.rglob("*"))
        if path.exists() or path.is_symlink()
        for status in [path.lstat()]
    }
    return sum(found.values())


class Moving(Subject[MoveReport | VlmcacheError]):
    """A model with a shared blob, which another model shares, goes to another drive."""

    everywhere = True

    def __init__(self, drives: tuple[Path, Path], *, link: bool) -> None:
        self.command = "move" if link else "move --no-link"
        self.drives = Place(*drives, link=link)
        self.drives.make()
        assert self.drives.move().problem is None
        self.wanted = self.drives.left()
        self.before = 0
        self.killed = False

    def begin(self, place: Path) -> None:
        self.drives.make()
        self.before = allocated(self.drives.root)

    def run(self, place: Path) -> MoveReport | VlmcacheError:
        try:
            return self.drives.move()
        except VlmcacheError as error:
            return error

    def hold(self, place: Path, answer: MoveReport | VlmcacheError | None) -> None:
        self.killed = answer is None
        self.drives.check()
        if isinstance(answer, MoveReport):
            if answer.receipt is not None:
                assert answer.receipt.freed == self.before - allocated(self.drives.root)
            if answer.problem is None:
                assert self.drives.left() == self.wanted

    def again(self, place: Path) -> None:
        self.drives.again()
        self.drives.check()
        assert (self.drives.root / FOLDER).is_symlink() == self.drives.link
        left = self.drives.left()
        # A kill between the making of a link and its renaming leaves it for `clean`.
        waste = {name for name in left if "/.vlmcache-leftovers/link-" in name and self.killed}
        assert {name: entry for name, entry in left.items() if name not in waste} == self.wanted


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault", "link"),
    [
        *((error, error in (errno.ENOSPC, errno.EACCES)) for error in ERRORS),
        ("kill", True),
        ("kill", False),
    ],
    ids=lambda value: fault_name(value) if not isinstance(value, bool) else f"link-{value}",
)
def test_after_a_fault_at_any_call_each_model_is_complete_and_the_same_move_again_finishes(
    drives: tuple[Path, Path], fault: Fault, link: bool
) -> None:
    try_every(Moving(drives, link=link), fault, at_least=40)


class Undoing(Moving):
    """A move that was killed is taken back, or was done; then it is made again."""

    def __init__(self, drives: tuple[Path, Path]) -> None:
        super().__init__(drives, link=True)
        self.command = "move, then --undo"
        self.drives.make()
        self.first = self.here()
        self.back = self.done = 0

    def hold(self, place: Path, answer: MoveReport | VlmcacheError | None) -> None:
        self.killed = True
        assert self.drives.undo().problem is None
        self.drives.check()
        if (self.drives.root / FOLDER).is_symlink():
            self.done += 1
            assert read_record(str(self.drives.root), FOLDER) is not None
            assert is_whole(self.drives.other / FOLDER)
            return
        self.back += 1
        assert self.here() == self.first
        assert not scan(self.drives.other).repos
        assert not scan(self.drives.other).shared

    def here(self) -> dict[str, Entry]:
        """What is in the cache, without leftovers."""
        return {
            name: entry
            for name, entry in self.drives.left().items()
            if name.startswith("here/") and "leftovers" not in name
        }


class Relinking(Subject[MoveReport | VlmcacheError]):
    """The folder to which a model was moved has another name by now, and its link follows."""

    command = "move --relink"
    everywhere = True

    def __init__(self, drives: tuple[Path, Path]) -> None:
        self.drives = Place(*drives, link=True)
        self.now = drives[1] / "renamed"

    def begin(self, place: Path) -> None:
        self.drives.make()
        shutil.rmtree(self.now, ignore_errors=True)
        assert self.drives.move().problem is None
        self.drives.other.rename(self.now)

    def run(self, place: Path) -> MoveReport | VlmcacheError:
        try:
            return move_command.relink(self.drives.session, str(self.now))
        except VlmcacheError as error:
            return error

    def hold(self, place: Path, answer: MoveReport | VlmcacheError | None) -> None:
        target = os.readlink(self.drives.root / FOLDER)
        assert target in {str(root / FOLDER) for root in (self.drives.other, self.now)}
        assert is_whole(self.now / FOLDER)

    def again(self, place: Path) -> None:
        done = self.run(place)
        assert isinstance(done, MoveReport), done
        assert done.problem is None
        assert is_whole(self.drives.root / FOLDER)
        record = read_record(str(self.drives.root), FOLDER)
        assert record is not None
        assert record.destination == str(self.now)


@pytest.mark.faults
@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES, "kill"], ids=fault_name)
def test_after_a_fault_at_any_call_each_link_leads_to_one_of_the_places(
    drives: tuple[Path, Path], fault: Fault
) -> None:
    try_every(Relinking(drives), fault, at_least=5)


@pytest.mark.faults
def test_after_a_kill_at_any_call_undo_takes_the_move_back_or_it_was_done(
    drives: tuple[Path, Path],
) -> None:
    subject = Undoing(drives)
    try_every(subject, "kill", at_least=40)
    assert subject.back > 5
    assert subject.done
