"""Trash and undo on a failing disk and in a killed process: each thing is in one of the two."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.remove.test_remove import Place
from tests.commands.remove.test_remove_faults import check, make, nobody_else
from tests.kit.caches import Entry, fingerprint
from tests.kit.faulty import FAULTS, Fault, Subject, fault_name, try_every
from vlmcache.commands.remove.remove import remove
from vlmcache.commands.remove.values import RemoveOptions
from vlmcache.commands.trash.trash import trash
from vlmcache.commands.trash.undo import undo
from vlmcache.commands.trash.values import NothingToUndoError
from vlmcache.errors import CacheError, SpaceError, UnknownModelError
from vlmcache.report import Report

__all__ = ["nobody_else"]

Action = Callable[[Place], Report]


def keep(place: Place, name: str, *include: str) -> Report:
    return remove(place.session, [name], RemoveOptions(include=include, trash=True))


REMOVALS: dict[str, Action] = {
    "rm --trash org/name": lambda place: keep(place, "org/name"),
    "rm --trash org/name@main": lambda place: keep(place, "org/name@main"),
    "rm --trash --include": lambda place: keep(place, "org/name", "v.bin", "config.json"),
    "rm --trash of two": lambda place: remove(
        place.session, ["org/name", "org/other"], RemoveOptions(trash=True)
    ),
}


def cache_of(place: Place) -> dict[str, Entry]:
    """Describe the cache without locks, of which new ones may stay."""
    found = fingerprint(place.root)
    return {
        name: entry
        for name, entry in found.items()
        if not name.endswith(".lock") and not name.startswith((".locks", ".vlmcache-trash"))
    }


def contents(folder: Path) -> Counter[str]:
    """Return the hashes of the files below a folder that are anybody's weights or configs."""
    found: Counter[str] = Counter()
    for path in folder.rglob("*"):
        if stat.S_ISREG(path.lstat().st_mode) and "record.json" not in path.name:
            found[hashlib.sha256(path.read_bytes()).hexdigest()] += 1
    return found


class Keeping(Subject[Report | None]):
    """A removal that is kept, and undone after whatever befell it."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.action = REMOVALS[command]
        self.wanted: dict[str, Entry] = {}
        self.content: Counter[str] = Counter()

    def begin(self, place: Path) -> None:
        make(Place(place))
        self.wanted = cache_of(Place(place))
        self.content = contents(place)

    def run(self, place: Path) -> Report | None:
        try:
            return self.action(Place(place))
        except (CacheError, SpaceError):
            return None  # The trash could not be written, and nothing was changed.

    def hold(self, place: Path, answer: Report | None) -> None:
        check(Place(place))
        assert not self.content - contents(place), "something is in neither of the two"

    def again(self, place: Path) -> None:
        if int(place.name) % 2:
            try:
                assert self.run(place) is not None
            except UnknownModelError:
                pass
            self.hold(place, None)
        undo_all(Place(place))
        assert cache_of(Place(place)) == self.wanted
        assert not trash(Place(place).session).removals


def undo_all(place: Place) -> None:
    for _ in range(4):
        try:
            undo(place.session).check()
        except NothingToUndoError:
            return
    raise AssertionError("more removals than there were")


class Undoing(Keeping):
    """Undoing a removal, and undoing it again after whatever befell that."""

    def __init__(self, removal: str) -> None:
        super().__init__(removal)
        self.command = f"undo after {removal}"

    def begin(self, place: Path) -> None:
        super().begin(place)
        self.action(Place(place)).check()

    def run(self, place: Path) -> Report | None:
        return undo(Place(place).session)

    def again(self, place: Path) -> None:
        undo_all(Place(place))
        assert cache_of(Place(place)) == self.wanted


class Emptying(Subject[Report]):
    """Emptying the trash: what stays is found by the next run, and nothing of it is restored."""

    command = "trash --empty"

    def begin(self, place: Path) -> None:
        make(Place(place))
        keep(Place(place), "org/name@main").check()
        keep(Place(place), "org/other").check()
        self.wanted = without_manifests(cache_of(Place(place)))

    def run(self, place: Path) -> Report:
        return trash(Place(place).session, empty=True)

    def hold(self, place: Path, answer: Report | None) -> None:
        check(Place(place))
        if answer is not None and answer.problem is None:
            assert not trash(Place(place).session).removals

    def again(self, place: Path) -> None:
        self.run(place).check()
        assert not [path for path in os.listdir(place) if path.startswith(".hub")]
        assert without_manifests(cache_of(Place(place))) == self.wanted


def without_manifests(found: dict[str, Entry]) -> dict[str, Entry]:
    """Leave out manifests, which may list what is gone, as the hub allows."""
    return {name: entry for name, entry in found.items() if ".refs" not in name}


@pytest.mark.faults
@pytest.mark.parametrize("command", REMOVALS)
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_call_of_a_kept_removal_leaves_all_in_the_cache_or_the_trash(
    command: str, fault: Fault
) -> None:
    try_every(Keeping(command), fault, at_least=10)


@pytest.mark.faults
@pytest.mark.parametrize("command", REMOVALS)
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_call_of_undo_loses_nothing_and_a_second_run_finishes(
    command: str, fault: Fault
) -> None:
    try_every(Undoing(command), fault, at_least=5)


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_call_of_emptying_the_trash_restores_nothing_half(fault: Fault) -> None:
    subject: Subject[Any] = Emptying()
    try_every(subject, fault, at_least=5)
