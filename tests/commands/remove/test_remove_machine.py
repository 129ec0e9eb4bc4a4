"""Random commands on one cache, compared with a model of what should be in it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
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
from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated
from tests.kit.faulty import killed_at
from tests.kit.rooms import LONG, settle
from vlmcache.cache.scan import scan
from vlmcache.cache.usage import Usage
from vlmcache.change import known
from vlmcache.commands.remove import remove
from vlmcache.commands.remove.values import CleanOptions, Removal
from vlmcache.errors import UnknownModelError

REPOS = ("org/one", "org/two")
POOL = {f"file{number}.dat": bytes([number]) * (3000 * number + 1) for number in range(5)}
XET = {name: f"{number:064x}" for number, name in enumerate(POOL, 1)}

Key = tuple[str, str]


class Commands(RuleBasedStateMachine):
    """held: (repo, commit) -> file names; refs: (repo, ref) -> commit."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.place = Place(self.folder)
        self.cache = CacheBuilder(self.place.root)
        self.repos = {name: self.cache.repo(name) for name in REPOS}
        self.held: dict[Key, set[str]] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.step = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # What others do to the cache.

    @rule(
        repo=st.sampled_from(REPOS),
        files=st.sets(st.sampled_from(sorted(POOL)), min_size=1),
        ref=st.sampled_from(["main", "v1", None]),
        shared=st.booleans(),
    )
    def download(self, repo: str, files: set[str], ref: str | None, shared: bool) -> None:
        self.step += 1
        contents = {name: POOL[name] for name in sorted(files)}
        contents["config.json"] = f"[{self.step}]".encode()
        commit = self.repos[repo].revision(
            contents,
            refs=() if ref is None else (ref,),
            shared=sorted(files) if shared else (),
            xet=XET,
        )
        settle(self.place.root)
        self.held[repo, commit] = set(contents)
        if ref is not None:
            self.refs[repo, ref] = commit

    @rule(repo=st.sampled_from(REPOS), age=st.sampled_from([0.0, LONG]))
    def leave_waste(self, repo: str, age: float) -> None:
        self.step += 1
        self.repos[repo].snapshots.mkdir(parents=True, exist_ok=True)
        self.repos[repo].partial(age=age, number=self.step)
        self.repos[repo].orphan_blob(f"orphan {self.step}".encode())

    # What we do, whole or killed on the way and then done again.

    def run(self, action: str, argument: str, kill: int) -> Removal | None:
        def act() -> Removal | None:
            if action == "clean":
                wishes = CleanOptions(everything=True) if argument == "all" else None
                return self.place.clean(wishes)
            try:
                return self.place.rm(argument)
            except UnknownModelError:
                return None

        if kill:
            killed_at(kill, act)
        before = du_allocated(self.place.root)
        done = act()
        if done is None:
            return None
        assert done.receipt is not None
        assert done.receipt.whole, done.receipt
        assert done.receipt.freed == before - du_allocated(self.place.root)
        return done

    @rule(repo=st.sampled_from(REPOS), kill=st.integers(0, 25))
    def remove_repo(self, repo: str, kill: int) -> None:
        there = self.repos[repo].folder.exists()
        done = self.run("rm", repo, kill)
        assert there or done is None
        assert not self.repos[repo].folder.exists()
        self.forget({key for key in self.held if key[0] == repo})

    @precondition(lambda self: self.held)
    @rule(data=st.data(), kill=st.integers(0, 25))
    def remove_revision(self, data: st.DataObject, kill: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        assert self.run("rm", "@".join(key), kill) is not None or kill
        assert not (self.repos[key[0]].snapshots / key[1]).exists()
        self.forget({key})

    @rule(kill=st.integers(0, 25))
    def clean(self, kill: int) -> None:
        settle(self.place.root)
        self.run("clean", "", kill)
        self.run("clean", "", 0)  # what lay next to a partial that was removed
        named = {(repo, commit) for (repo, _), commit in self.refs.items()}
        state = scan(self.place.root)
        there = {(repo.id, held.commit) for repo in state.repos for held in repo.revisions}
        unnamed = set(self.held) - named
        replaced = {repo for repo, _ in named}
        assert {repo for repo, _ in unnamed - there} <= replaced
        self.forget(unnamed - there)
        # Where a download is going on, nothing else of the repo is waste.
        for repo in state.repos:
            if repo.id in replaced and not repo.partials:
                assert all(revision.refs for revision in repo.revisions)
                assert not repo.by_class.orphan
        assert not (self.place.root / ".vlmcache-leftovers").exists()
        if all(repo.id in replaced for repo in state.repos):
            assert all(shared.users for shared in state.shared.values())
        assert not self.place.clean().plan.actions

    @rule(kill=st.integers(0, 25))
    def clean_all(self, kill: int) -> None:
        self.run("clean", "all", kill)
        assert not any(repo.folder.exists() for repo in self.repos.values())
        assert not scan(self.place.root).shared
        self.forget(set(self.held))

    def forget(self, keys: set[Key]) -> None:
        self.held = {key: files for key, files in self.held.items() if key not in keys}
        self.refs = {
            (repo, ref): commit
            for (repo, ref), commit in self.refs.items()
            if (repo, commit) not in keys
        }

    @invariant()
    def everything_held_can_be_read(self) -> None:
        for (name, commit), files in self.held.items():
            repo: CachedRepo = self.repos[name]
            for file in files:
                expected = POOL.get(file)
                content = repo.pointer(file, commit).read_bytes()
                assert expected is None or content == expected
        for (name, ref), commit in self.refs.items():
            assert (self.repos[name].refs / ref).read_text() == commit


@pytest.mark.parametrize("examples", [15, pytest.param(200, marks=pytest.mark.full)])
def test_random_commands_and_kills_keep_what_they_should(
    monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    monkeypatch.setattr(remove, "who_uses", lambda *_: Usage())
    monkeypatch.setattr(known, "who_uses", lambda *_: Usage())
    run_state_machine_as_test(
        Commands,
        settings=settings(
            max_examples=examples,
            stateful_step_count=10,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
