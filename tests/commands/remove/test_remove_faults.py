"""Removals on a failing disk and in a killed process: waste at worst, and never a lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.remove.test_remove import Place
from tests.kit.caches import CacheBuilder, Entry, fingerprint
from tests.kit.faulty import FAULTS, Fault, Subject, fault_name, try_every
from tests.kit.rooms import LONG, OTHER, WEIGHTS
from tests.kit.rooms import settle as age
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.usage import Usage
from vlmcache.change import known
from vlmcache.commands.remove import remove
from vlmcache.commands.remove.values import CleanOptions, Removal
from vlmcache.errors import UnknownModelError

Action = Callable[[Place], Removal]
ACTIONS: dict[str, Action] = {
    "rm org/name": lambda place: place.rm("org/name"),
    "rm org/name@main": lambda place: place.rm("org/name@main"),
    "rm org/name --include": lambda place: place.rm("org/name", include=("v.bin", "config.json")),
    "clean": lambda place: place.clean(),
    "clean --all": lambda place: place.clean(CleanOptions(everything=True)),
}


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through all processes is most of the time here, and no part of what is tested."""
    monkeypatch.setattr(remove, "who_uses", lambda *_: Usage())
    monkeypatch.setattr(known, "who_uses", lambda *_: Usage())


def make(place: Place) -> None:
    """A small cache with everything that removals go through, and a repo that has to stay."""
    cache = CacheBuilder(place.root)
    repo = cache.repo("org/name")
    repo.revision(
        {"a/c.json": b"{}", "config.json": b"0", "model.safetensors": WEIGHTS},
        refs=(),
        shared=("model.safetensors",),
    )
    repo.revision(
        {"a/c.json": b"{1}", "config.json": b"1", "model.safetensors": WEIGHTS, "v.bin": OTHER},
        shared=("model.safetensors",),
    )
    repo.partial(age=LONG)
    repo.no_exist("absent.json")
    xet = repo.file("model.safetensors").xet_hash
    assert xet is not None
    other = cache.repo("org/other")
    other.revision(
        {"c.json": b"{2}", "model.safetensors": WEIGHTS},
        shared=("model.safetensors",),
        xet={"model.safetensors": xet},
    )
    age(place.root)


def check(place: Place) -> None:
    """Every snapshot that is there is whole, and what had to stay has stayed."""
    for folder in ("models--org--name", "models--org--other"):
        snapshots = place.root / folder / "snapshots"
        for snapshot in snapshots.iterdir() if snapshots.exists() else ():
            files = [path for path in snapshot.rglob("*") if not path.is_dir()]
            assert files, f"{snapshot} lost its files"
            assert all(path.read_bytes() for path in files)
            expected = {"model.safetensors"} | ({"a"} if folder.endswith("name") else {"c.json"})
            assert expected <= {path.name for path in snapshot.iterdir()}
    for refs in place.root.glob("models--*/refs/*"):
        assert (refs.parent.parent / "snapshots" / refs.read_text()).is_dir(), f"{refs} lies"


def other(place: Place) -> dict[str, Entry]:
    found = fingerprint(place.root / "models--org--other")
    return {**found, **{f"locks/{k}": v for k, v in fingerprint(_locks(place)).items()}}


def _locks(place: Place) -> Path:
    return place.root / ".locks" / "models--org--other"


def settle(place: Place) -> dict[str, Entry]:
    """Clean up and describe what is left.

    Left out are manifests, which may list what is gone, as the hub allows, and the empty files of
    locks, which stay for an hour.
    """
    # What lies next to a partial stays in the run that removes the partial.
    for _ in range(2):
        done = place.clean()
        assert done.receipt is not None
        assert done.receipt.whole, done.receipt
    found = fingerprint(place.root)
    return {
        name: entry
        for name, entry in found.items()
        if not name.endswith(".lock") and ".refs" not in name
    }


def allocated(root: Path) -> int:
    """Like `du`, without its process."""
    seen = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        seen[status.st_dev, status.st_ino] = allocated_bytes(status)
    return sum(seen.values())


def again(place: Place, action: Action) -> None:
    """The command once more: it finishes, or finds that only empty folders are left to do."""
    try:
        done = action(place)
    except UnknownModelError:
        left = place.root / ".vlmcache-leftovers"
        assert all(path.is_dir() for path in left.rglob("*"))
    else:
        assert done.receipt is not None
        assert done.receipt.whole, done.receipt


class Removing(Subject[Removal]):
    """A removal from a small cache with everything that removals go through."""

    def __init__(self, command: str, folder: Path) -> None:
        self.command = command
        self.action = ACTIONS[command]
        place = Place(folder)
        make(place)
        self.keeps = other(place)
        self.action(place)
        self.wanted = settle(place)
        self.before = 0

    def begin(self, place: Path) -> None:
        make(Place(place))
        self.before = allocated(place / "hub")

    def run(self, place: Path) -> Removal:
        return self.action(Place(place))

    def hold(self, place: Path, answer: Removal | None) -> None:
        self.check(Place(place))
        if answer is None:
            return
        assert answer.receipt is not None
        assert answer.receipt.freed == self.before - allocated(place / "hub")
        if answer.problem is None:
            assert not (place / "hub/.vlmcache-leftovers").exists()
            assert settle(Place(place)) == self.wanted

    def again(self, place: Path) -> None:
        # What was checked was read, and what was read is needed.
        age(Place(place).root)
        again(Place(place), self.action)
        self.check(Place(place))
        assert settle(Place(place)) == self.wanted

    def check(self, place: Place) -> None:
        check(place)
        if self.command != "clean --all":
            assert other(place) == self.keeps


@pytest.mark.faults
@pytest.mark.parametrize("command", ACTIONS)
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_call_of_a_removal_is_reported_and_a_second_run_finishes(
    tmp_path: Path, command: str, fault: Fault
) -> None:
    try_every(Removing(command, tmp_path), fault, at_least=20)
