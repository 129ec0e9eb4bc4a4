"""Random removals, undos, moves and kills, and other programs that write: no good blob is lost."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.commands.remove.test_remove import Place
from tests.commands.trash.test_trash import BESIDE, described
from tests.kit.caches import CacheBuilder, du_allocated
from tests.kit.faulty import killed_at
from tests.kit.rooms import settle
from vlmcache.cache import layout
from vlmcache.cache.scan import scan
from vlmcache.cache.trash import EMPTIED, trash_size
from vlmcache.cache.usage import Usage
from vlmcache.change import known
from vlmcache.change.trash_room import take_back_blobs
from vlmcache.commands.move.move import move
from vlmcache.commands.remove import remove
from vlmcache.commands.remove.values import CleanOptions, RemoveOptions
from vlmcache.commands.trash.trash import trash
from vlmcache.commands.trash.undo import undo
from vlmcache.commands.trash.values import NameTakenError, NothingToUndoError
from vlmcache.errors import UnknownModelError, VlmcacheError

REPOS = ("org/one", "org/two")
POOL = {f"file{number}.dat": bytes([number]) * (3000 * number + 1) for number in range(1, 5)}
XET = {name: f"{number:064x}" for number, name in enumerate(POOL, 1)}
KILLS = st.integers(0, 30)

Described = dict[str, tuple[object, ...]]


class Commands(RuleBasedStateMachine):
    """good: hash of each content that somebody has downloaded and nobody has given up."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="machine-", dir=_memory()))
        self.place = Place(self.folder)
        self.cache = CacheBuilder(self.place.root)
        self.cache.root.mkdir(parents=True, exist_ok=True)
        self.there = self.folder / "elsewhere"
        self.there.mkdir()
        self.good: set[str] = set()
        self.done: list[tuple[Described, Described]] = []
        """Of the removals that can be undone: the cache before each, and after it."""
        self.step = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # What others do.

    @rule(
        name=st.sampled_from(REPOS),
        files=st.sets(st.sampled_from(sorted(POOL)), min_size=1),
        ref=st.sampled_from(["main", "v1", None]),
        shared=st.booleans(),
    )
    def download(self, name: str, files: set[str], ref: str | None, shared: bool) -> None:
        repo = self.cache.repo(name)
        if repo.folder.is_symlink():
            return
        self.step += 1
        contents = {file: POOL[file] for file in sorted(files)}
        contents["config.json"] = f"[{self.step}]".encode()
        repo.revision(
            contents,
            refs=() if ref is None else (ref,),
            shared=sorted(files) if shared else (),
            xet=XET,
        )
        settle(self.place.root)
        self.good |= {hashlib.sha256(content).hexdigest() for content in contents.values()}

    @rule(name=st.sampled_from(REPOS))
    def take_back(self, name: str) -> None:
        """What a pull does before it fetches anything."""
        files = [
            file
            for trashed in scan(self.place.root).repos
            if trashed.id == name
            for tree in trashed.trees.values()
            for file in tree.values()
        ]
        take_back_blobs(str(self.place.root), layout.folder_of(name), files)

    # What we do, completely or killed on the way.

    @rule(name=st.sampled_from(REPOS), part=st.sampled_from(["", "@main", "@v1"]), kill=KILLS)
    def remove_to_trash(self, name: str, part: str, kill: int) -> None:
        self.remove(name + part, trash=True, kill=kill)

    @rule(name=st.sampled_from(REPOS), part=st.sampled_from(["", "@main"]), kill=KILLS)
    def remove_for_good(self, name: str, part: str, kill: int) -> None:
        self.remove(name + part, trash=False, kill=kill)
        self.give_up()

    def remove(self, name: str, *, trash: bool, kill: int) -> None:
        before = described(self.place.root)

        def act() -> bool:
            try:
                options = RemoveOptions(trash=trash)
                done = remove.remove(self.place.session, [name], options)
            except UnknownModelError:
                return False
            assert done.receipt is not None
            assert done.receipt.whole, done.receipt
            return done.receipt.trash_id is not None

        if kill and killed_at(kill, act, self.folder):
            self.done.clear()
        elif not kill and act():
            self.done.append((before, described(self.place.root)))

    @rule(kill=KILLS)
    def undo(self, kill: int) -> None:
        def act() -> bool:
            try:
                undo(self.place.session)
            except (NothingToUndoError, NameTakenError):
                return False
            return True

        if kill:
            killed_at(kill, act, self.folder)
            self.done.clear()
            return
        now = described(self.place.root)
        if act() and self.done:
            before, after = self.done.pop()
            if now == after:
                assert described(self.place.root) == before
            else:
                self.done.clear()

    @rule()
    def clean(self) -> None:
        settle(self.place.root)
        named = self.named()
        self.place.clean()
        assert self.named() == named
        # What a newer revision has replaced, unless the trash needs it.
        self.give_up()

    @rule()
    def clean_to_trash(self) -> None:
        before = described(self.place.root)
        try:
            done = remove_all_old(self.place)
        except VlmcacheError:
            return
        if done:
            self.done.append((before, described(self.place.root)))

    @rule(kill=KILLS)
    def empty(self, kill: int) -> None:
        def act() -> None:
            trash(self.place.session, empty=True).check()

        if not (kill and killed_at(kill, act, self.folder)):
            act()
        self.done.clear()
        self.give_up()

    @precondition(lambda self: any(self.place.root.glob("models--*")))
    @rule(name=st.sampled_from(REPOS))
    def move(self, name: str) -> None:
        folder = self.place.root / layout.folder_of(name)
        if folder.is_dir() and not folder.is_symlink():
            try:
                move(self.place.session, str(self.there), [name])
            except VlmcacheError:
                return
            self.done.clear()

    # What holds.

    def named(self) -> set[str]:
        """Return what the models that a ref names consist of."""
        found: set[str] = set()
        for repo in self.place.root.glob("models--*"):
            for ref in (repo / "refs").glob("*"):
                for path in (repo / "snapshots" / ref.read_text()).rglob("*"):
                    if path.is_file():
                        found.add(hashlib.sha256(path.read_bytes()).hexdigest())
        return found

    def all_there_is(self) -> set[str]:
        return {
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            # What an interrupted removal for good, or emptying, has put aside was given up.
            if ".vlmcache-leftovers" not in path.parts
            if not any(part.endswith(EMPTIED) for part in path.parts)
            if path.is_file() and not path.is_symlink()
        }

    def give_up(self) -> None:
        """After an order to remove something for good, what is gone is not missed."""
        self.good &= self.all_there_is()

    @invariant()
    def no_good_content_is_lost(self) -> None:
        assert not self.good - self.all_there_is()

    @invariant()
    def every_ref_names_a_complete_snapshot(self) -> None:
        for repo in self.place.root.glob("models--*"):
            for ref in (repo / "refs").glob("*"):
                snapshot = repo / "snapshots" / ref.read_text()
                assert snapshot.is_dir(), f"{ref} lies"

    @invariant()
    def status_says_what_du_says(self) -> None:
        root = self.place.root
        assert scan(root).size_on_disk == du_allocated(root)
        beside = self.folder / BESIDE
        assert trash_size(str(root)) == (du_allocated(beside) if beside.exists() else 0)


def remove_all_old(place: Place) -> bool:
    done = place.clean(CleanOptions(older_than=0.0, trash=True))
    return done.receipt is not None and done.receipt.trash_id is not None


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


@pytest.mark.parametrize("examples", [12, pytest.param(300, marks=pytest.mark.full)])
def test_random_removals_undos_and_kills_lose_nothing_that_nobody_has_given_up(
    monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    monkeypatch.setattr(remove, "who_uses", lambda *_: Usage())
    monkeypatch.setattr(known, "who_uses", lambda *_: Usage())
    run_state_machine_as_test(
        Commands,
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),
        ),
    )
