"""`clean --to` and `recall` on failing disks and in killed processes: each model stays complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.commands.move.test_move_faults import (
    CONFIG,
    FOLDER,
    REPO,
    Place,
    allocated,
    is_whole,
)
from tests.kit.caches import CacheBuilder, Entry
from tests.kit.disks import small_filesystem
from tests.kit.faulty import ERRORS, Fault, Subject, fault_name, try_every
from vlmcache.cache import layout
from vlmcache.cache.moved import read_record
from vlmcache.cache.usage import Usage
from vlmcache.change import known
from vlmcache.commands.move import apply, archive, recall
from vlmcache.commands.move import move as move_command
from vlmcache.commands.move.values import RecallReport
from vlmcache.commands.remove.values import CleanOptions, Removal
from vlmcache.config import CacheLocation, Environment, Session
from vlmcache.errors import VlmcacheError


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through all processes is most of the time here, and no part of what is tested."""
    for module in (move_command, apply, known, recall):
        monkeypatch.setattr(module, "who_uses", lambda *_: Usage())
    monkeypatch.setattr(archive, "users_of", lambda *_: Usage())


@pytest.fixture(scope="module")
def drives() -> Iterator[tuple[Path, Path]]:
    with small_filesystem(64_000_000) as first, small_filesystem(64_000_000) as second:
        yield first, second


class ArchivePlace(Place):
    """A cache with a model to archive, which has waste in it too, and one that is to stay."""

    def __init__(self, first: Path, second: Path) -> None:
        super().__init__(first, second, link=True)
        variables = {"VLMCACHE_HOME": str(first / "own"), "HF_HOME": str(first / "hf")}
        self.session = Session(
            Environment(variables, frozenset(), str(first)),
            msgspec.structs.replace(CONFIG, archive=str(self.other)),
            CacheLocation(str(self.root), "--cache-dir"),
        )
        (first / "own").mkdir(exist_ok=True)
        CacheBuilder(self.pattern).repo(REPO).orphan_blob(age=9_000_000)

    def left(self) -> dict[str, Entry]:
        """Return what is on both drives, without waste that a fault leaves for a later `clean`.

        That is what was tried of a filesystem, and a shared blob at the archive that nothing needs.
        """
        there = "there/blobs/"
        if any(name.startswith(f"there/{FOLDER}") for name in super().left()):
            there = "-"
        return {
            name: entry
            for name, entry in super().left().items()
            if "/.trial." not in name and not name.startswith(there)
        }

    def clean(self) -> Removal:
        options = CleanOptions(older_than=0.0, keep=("org/stays",), to=str(self.other))
        return archive.clean_to(self.session, options)

    def recall(self) -> RecallReport:
        return recall.recall(self.session, [REPO])


class Archiving(Subject[Removal | VlmcacheError]):
    """Waste of a model is removed, and the model goes to the archive; links stay."""

    command = "clean --to"
    everywhere = True

    def __init__(self, drives: tuple[Path, Path]) -> None:
        self.drives = ArchivePlace(*drives)
        self.drives.make()
        done = self.drives.clean()
        assert done.problem is None, done.problem
        self.wanted = self.drives.left()
        assert not [name for name in self.wanted if ".vlmcache-" in name]
        self.before = 0
        self.killed = False

    def begin(self, place: Path) -> None:
        self.drives.make()
        self.before = allocated(self.drives.root)

    def run(self, place: Path) -> Removal | VlmcacheError:
        try:
            return self.drives.clean()
        except VlmcacheError as error:
            return error

    def hold(self, place: Path, answer: Removal | VlmcacheError | None) -> None:
        self.killed = answer is None
        self.drives.check()
        if answer is not None:
            # It loads from where programs look for it, whatever failed.
            assert is_whole(self.drives.root / FOLDER)
        if isinstance(answer, Removal):
            assert answer.receipt is not None
            assert answer.receipt.freed == self.before - allocated(self.drives.root)
            if answer.problem is None:
                assert self.drives.left() == self.wanted

    def again(self, place: Path) -> None:
        done = self.drives.clean()
        assert done.problem is None, done.problem
        self.drives.check()
        assert (self.drives.root / FOLDER).is_symlink()
        left = self.drives.left()
        # A kill between the making of a link and its renaming leaves it for `clean`.
        waste = {name for name in left if "/.vlmcache-leftovers/link-" in name and self.killed}
        assert {name: entry for name, entry in left.items() if name not in waste} == self.wanted


class Recalling(Subject[RecallReport | VlmcacheError]):
    """A model that was archived comes back into the place of its link."""

    command = "recall"
    everywhere = True

    def __init__(self, drives: tuple[Path, Path]) -> None:
        self.drives = ArchivePlace(*drives)
        self.patterns = {
            self.drives.root: drives[0] / "archived",
            self.drives.other: drives[1] / "archived",
        }
        self.drives.make()
        assert self.drives.clean().problem is None
        for root, pattern in self.patterns.items():
            shutil.rmtree(pattern, ignore_errors=True)
            shutil.copytree(root, pattern, symlinks=True)
        assert self.drives.recall().problem is None
        self.wanted = self.drives.left()

    def begin(self, place: Path) -> None:
        for root, pattern in self.patterns.items():
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(pattern, root, symlinks=True)

    def run(self, place: Path) -> RecallReport | VlmcacheError:
        try:
            return self.drives.recall()
        except VlmcacheError as error:
            return error

    def hold(self, place: Path, answer: RecallReport | VlmcacheError | None) -> None:
        self.drives.check()
        if answer is not None:
            assert is_whole(self.drives.root / FOLDER)
        if isinstance(answer, RecallReport) and answer.problem is None:
            self.check_back()

    def again(self, place: Path) -> None:
        done = self.run(place)
        assert isinstance(done, RecallReport), done
        assert done.problem is None, done.problem
        self.check_back()

    def check_back(self) -> None:
        here = self.drives.root / FOLDER
        assert is_whole(here)
        assert not here.is_symlink()
        assert not os.path.lexists(self.drives.other / FOLDER)
        assert read_record(str(self.drives.root), FOLDER) is None
        # A note or a record that is left says nothing of what is not there, and is waste.
        waste = (layout.NOTE_SUFFIX, layout.RECORD_SUFFIX)
        left = self.drives.left().items()
        assert {name: entry for name, entry in left if not name.endswith(waste)} == self.wanted


@pytest.mark.faults
@pytest.mark.parametrize("fault", [*ERRORS, "kill"], ids=fault_name)
def test_after_a_fault_at_any_call_an_archived_model_still_loads_and_the_next_run_finishes(
    drives: tuple[Path, Path], fault: Fault
) -> None:
    try_every(Archiving(drives), fault, at_least=40)


@pytest.mark.faults
@pytest.mark.parametrize("fault", [*ERRORS, "kill"], ids=fault_name)
def test_after_a_fault_at_any_call_a_recalled_model_still_loads_and_the_next_run_finishes(
    drives: tuple[Path, Path], fault: Fault
) -> None:
    try_every(Recalling(drives), fault, at_least=40)
