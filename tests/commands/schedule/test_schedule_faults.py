"""Whatever fails while a schedule is written or removed, there is the old one or the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.faulty import FAULTS, Fault, Subject, fault_name, try_every
from tests.kit.timers import Machine, machine
from vlmcache.commands.schedule import timers, units
from vlmcache.commands.schedule.timers import Launchd, ProgramResult, Systemd
from vlmcache.commands.schedule.values import Schedule, When
from vlmcache.config import read_environment
from vlmcache.errors import VlmcacheError

__all__ = ["machine"]


def schedule_of(*words: str) -> Schedule:
    return Schedule("clean", ("/bin/echo",), words, When(86400, 7), {"A": "b"}, "/tmp/x.log")


OLD, NEW = schedule_of("clean"), schedule_of("clean", "--partials")


class OfSystemd(Subject[bool]):
    """A schedule in the place of another, or of none, or none in its place."""

    def __init__(self, old: Schedule | None, new: Schedule | None) -> None:
        self.command = "schedule" if new else "schedule --remove"
        self.command += "" if type(self) is OfSystemd else ", launchd"
        self.old, self.new = old, new

    def timers(self, place: Path) -> Systemd | Launchd:
        systemd = Systemd(read_environment())
        systemd.folder = str(place / "units")
        return systemd

    def begin(self, place: Path) -> None:
        (place / "units").mkdir()
        if self.old is not None:
            self.timers(place).set(self.old)

    def run(self, place: Path) -> bool:
        kept = self.timers(place)
        try:
            if self.new is None:
                return kept.remove("clean")
            kept.set(self.new)
        except VlmcacheError:
            return False
        return True

    def hold(self, place: Path, answer: bool | None) -> None:
        kept = self.timers(place)
        found = list(kept.schedules().values())
        here = found[0] if found else None
        assert len(found) < 2
        possible = {None: (self.old, self.new), True: (self.new,), False: (self.old,)}
        assert here in possible[answer], (answer, here)
        if here is not None:
            for file in kept.files(here):
                assert Path(file.path).read_text() == file.content
            self.wanted(place)

    def wanted(self, place: Path) -> None:
        link = place / "units/timers.target.wants" / units.timer_name("clean")
        assert link.resolve() == (place / "units" / units.timer_name("clean")).resolve()

    def again(self, place: Path) -> None:
        self.run(place)
        kept = self.timers(place)
        assert list(kept.schedules().values()) == ([self.new] if self.new else [])
        names = {path.name for path in (place / "units").iterdir() if path.is_file()}
        wanted = {Path(file.path).name for file in kept.files(self.new)} if self.new else set()
        assert {name for name in names if not name.endswith(".tmp")} == wanted


class OfLaunchd(OfSystemd):
    def timers(self, place: Path) -> Systemd | Launchd:
        launchd = Launchd()
        launchd.folder = str(place / "units")
        return launchd

    def wanted(self, place: Path) -> None:
        pass


@pytest.fixture(autouse=True)
def _programs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "run_program", lambda *_, **__: ProgramResult(0, "Version=1", ""))


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
@pytest.mark.parametrize("kind", [OfSystemd, OfLaunchd])
@pytest.mark.parametrize(("old", "new"), [(None, NEW), (OLD, NEW), (OLD, None)])
def test_a_failure_at_any_call_leaves_the_old_or_the_new_schedule(
    kind: type[OfSystemd], old: Schedule | None, new: Schedule | None, fault: Fault
) -> None:
    try_every(kind(old, new), fault, at_least=0 if new is None else 4, step=1)


@pytest.mark.parametrize("refused", ["daemon-reload", "restart"])
@pytest.mark.parametrize("old", [None, OLD])
def test_a_manager_that_refuses_leaves_the_old_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, old: Schedule | None
) -> None:
    subject = OfSystemd(old, NEW)
    subject.begin(tmp_path)
    before = {path for path in (tmp_path / "units").rglob("*") if not path.is_dir()}

    def answer(*words: str, **_: str | None) -> ProgramResult:
        return ProgramResult(int(refused in words), "", "it will not")

    with monkeypatch.context() as patch:
        patch.setattr(timers, "run_program", answer)
        assert subject.run(tmp_path) is False
    assert list(subject.timers(tmp_path).schedules().values()) == ([old] if old else [])
    assert {path for path in (tmp_path / "units").rglob("*") if not path.is_dir()} == before
