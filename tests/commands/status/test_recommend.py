"""What `status` recommends, at the level of values: every command would succeed, in its order."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from vlmcache.cache.state import ByClass
from vlmcache.change.plan import Plan, Remove, RemoveTree
from vlmcache.commands.pull.room import Shortage
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.commands.status.choose import choose
from vlmcache.commands.status.steps import (
    Advice,
    CommandPlans,
    Evictable,
    PendingDownload,
    fetching,
)
from vlmcache.commands.status.values import CacheSummary, Recommendation
from vlmcache.config import CacheLocation, Config, Limits, Session, read_environment
from vlmcache.units import parse_size

LOCATION = CacheLocation("/a b/hub", "--cache-dir")
CONFIG = Config("config.yaml", "./config.yaml", {}, Limits(0, 0))
SESSION = Session(read_environment({}), CONFIG, LOCATION)


@dataclass
class SketchedRepo:
    """A repo of a cache that is only numbers: its bytes, its waste, and what it has to fetch."""

    name: str
    size: int
    waste: int
    pinned: bool
    begun: int = 0
    """Bytes of downloads that only `--partials` removes."""
    need: int | None = None
    """Bytes to fetch; -1 if unknown, `None` if nothing is missing."""
    shut: bool = False
    running: bool = False


@dataclass
class Disk:
    """A disk with such a cache, on which the recommended commands can be carried out."""

    free: int
    min_free: int
    comfortable: int
    max_size: int | None
    trusted: bool
    repos: list[SketchedRepo] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(repo.size + repo.waste + repo.begun for repo in self.repos)

    def clean(self, options: CleanOptions) -> tuple[Plan, int]:
        budget = options.max_size
        if budget is None and options.free is None:
            budget = self.max_size
        goal = 0 if budget is None else max(0, self.size - budget)
        goal = goal if options.free is None else max(goal, options.free - self.free)
        actions: list[Remove | RemoveTree] = [
            Remove(f"/{repo.name}/part", "partial", repo.name, "left unfinished", repo.waste, None)
            for repo in self.repos
            if repo.waste and repo.name not in options.keep
        ]
        actions += (
            Remove(f"/{repo.name}/begun", "partial", repo.name, "begun", repo.begun, None)
            for repo in self.repos
            if repo.begun and options.partials and repo.name not in options.keep
        )
        frees = sum(action.frees for action in actions)
        for repo in self.repos:
            if frees >= goal:
                break
            if repo.size and not repo.pinned and repo.name not in options.keep:
                path = f"/{repo.name}"
                actions.append(RemoveTree(path, "repo", repo.name, "unused", repo.size, None))
                frees += repo.size
        return Plan(tuple(actions), frees=frees), max(0, goal - frees)

    def shortage(self, downloads: Sequence[PendingDownload]) -> Shortage | None:
        need = sum(download.plan.needs for download in downloads)
        if need <= 0 or need + self.min_free <= self.free:
            return None
        return Shortage("/", need, self.free, self.min_free)

    def on_cache_disk(self, shortage: Shortage) -> bool:
        return shortage.place == "/"

    def may_evict(self, shortage: Shortage) -> bool:
        return self.trusted

    def keepable(self, repos: Iterable[str]) -> tuple[str, ...]:
        wanted = set(repos)
        return tuple(repo.name for repo in self.repos if repo.name in wanted)

    def locked_folder(self, plan: Plan) -> str | None:
        shut = {repo.name for repo in self.repos if repo.shut}
        repos = [action.repo for action in plan.actions if isinstance(action, Remove | RemoveTree)]
        return next((f"/{name}" for name in repos if name in shut), None)

    def locked_for(self, download: PendingDownload) -> str | None:
        return next((f"/{o.name}" for o in self.repos if o.name == download.repo and o.shut), None)

    def is_running(self, download: PendingDownload) -> bool:
        return any(repo.running for repo in self.repos if repo.name == download.repo)

    def is_read_only(self, folder: str) -> bool:
        return False

    def can_fetch(self, download: PendingDownload) -> bool:
        return self.locked_for(download) is None and not self.is_running(download)

    def evictable(self, pending: Collection[str]) -> Sequence[Evictable]:
        return [
            Evictable(
                repo.name,
                repo.name,
                repo.size + repo.waste + repo.begun,
                "last used 3 days ago",
                recent=False,
                locked=f"/{repo.name}" if repo.shut else None,
            )
            for repo in self.repos
            if repo.size and not repo.pinned and repo.name not in pending
        ]

    def largest(self) -> str:
        return ", ".join(repo.name for repo in self.repos[:3])

    def downloads(self) -> list[PendingDownload]:
        return [
            PendingDownload(
                repo.name, repo.name, fetching(repo.name, abs(repo.need)), repo.need >= 0
            )
            for repo in self.repos
            if repo.need is not None
        ]

    def steps(self) -> list[Recommendation]:
        own = (self.min_free, self.comfortable) if self.trusted else (0, 0)
        room = CacheSummary(
            dir=LOCATION.dir,
            source=LOCATION.source,
            exists=True,
            filesystem=None,
            access_times="unknown",
            size_on_disk=self.size,
            free=self.free,
            total=None,
            min_free=own[0],
            comfortable_free=own[1],
            max_size=self.max_size,
            by_class=ByClass(),
        )
        planner = cast("CommandPlans", self)
        return choose(Advice(SESSION), planner, room, self.downloads())

    # What the commands do.

    def run(self, command: str) -> None:
        """Carry a recommended command out; no step may fail or remove what a pull needs."""
        program, name, *words = shlex.split(command)
        assert program == "vlmcache"
        assert words[-2:] == ["--cache-dir", LOCATION.dir]
        getattr(self, f"run_{name}")(words[:-2])

    def run_watch(self, words: list[str]) -> None:
        assert not words

    def run_clean(self, words: list[str]) -> None:
        partials = "--partials" in words
        words = [word for word in words if word != "--partials"]
        pairs = list(zip(words[::2], words[1::2], strict=True))
        sizes = {name: parse_size(value) for name, value in pairs if name != "--keep"}
        options = CleanOptions(
            free=sizes.get("--free"),
            max_size=sizes.get("--max-size"),
            keep=tuple(value for name, value in pairs if name == "--keep"),
            partials=partials,
        )
        plan, missed = self.clean(options)
        assert not missed, "clean ends with 3"
        self.remove(plan)

    def remove(self, plan: Plan) -> None:
        assert self.locked_folder(plan) is None
        for action in plan.actions:
            assert isinstance(action, Remove | RemoveTree)
            (repo,) = [repo for repo in self.repos if repo.name == action.repo]
            assert repo.need is None, "what a pull would use is removed"
            if action.kind == "repo":
                repo.size = 0
            elif action.reason == "begun":
                repo.begun = 0
            else:
                repo.waste = 0
            self.free += action.frees

    def run_rm(self, words: list[str]) -> None:
        (repo,) = [repo for repo in self.repos if repo.name == words[0]]
        assert repo.size, "rm ends with 7"
        assert not repo.pinned
        assert not repo.shut
        self.free += repo.size + repo.waste + repo.begun
        repo.size = repo.waste = repo.begun = 0

    def run_pull(self, words: list[str]) -> None:
        names = [word for word in words if word != "--make-room"]
        pulled = [download for download in self.downloads() if download.name in names]
        assert len(pulled) == len(names)
        short = self.shortage(pulled)
        if short is not None and "--make-room" in words:
            assert self.trusted
            plan, missed = self.clean(CleanOptions(free=short.goal, keep=tuple(names)))
            assert not missed
            self.remove(plan)
            short = self.shortage(pulled)
        assert short is None, "pull ends with 9"
        assert not any(repo.shut or repo.running for repo in self.repos if repo.name in names)
        for repo in self.repos:
            if repo.name in names:
                self.free -= max(0, repo.need or 0)
                repo.size, repo.need, repo.pinned = repo.size + max(0, repo.need or 0), None, True


def words_of(step: Recommendation) -> list[str]:
    assert step.command is not None
    return shlex.split(step.command)


numbers = st.integers(0, 60)
sketched_repos = st.builds(
    SketchedRepo,
    st.just(""),
    size=numbers,
    waste=st.sampled_from([0, 0, 5, 30]),
    pinned=st.booleans(),
    begun=st.sampled_from([0, 0, 0, 20]),
    need=st.sampled_from([None, None, None, 0, 10, 40, -1]),
    shut=st.sampled_from([False] * 7 + [True]),
    running=st.sampled_from([False] * 7 + [True]),
)


@st.composite
def disks(draw: st.DrawFn) -> Disk:
    """Draw a disk whose cache may be too large, too full, unfinished or not this user's."""
    repos = draw(st.lists(sketched_repos, max_size=6))
    for number, repo in enumerate(repos):
        repo.name = f"org/model-{number}"
        # Configured models are what is pulled, and they are pinned.
        repo.pinned = repo.pinned or repo.need is not None
    min_free = draw(numbers)
    return Disk(
        free=draw(st.integers(0, 150)),
        min_free=min_free,
        comfortable=min_free + draw(numbers),
        max_size=draw(st.none() | st.integers(0, 200)),
        trusted=draw(st.booleans()),
        repos=repos,
    )


@given(disks())
def test_every_recommended_command_succeeds_alone_and_after_those_above_it(disk: Disk) -> None:
    steps = disk.steps()
    for step in steps:
        if step.command is not None:
            replace(disk, repos=[replace(repo) for repo in disk.repos]).run(step.command)
    for step in steps:
        if step.command is not None:
            disk.run(step.command)


@given(disks())
def test_a_full_disk_is_never_passed_over_in_silence(disk: Disk) -> None:
    if disk.free < disk.min_free and disk.size and disk.trusted:
        assert any(step.frees or step.command is None for step in disk.steps())


@given(disks())
def test_a_download_that_there_is_room_for_is_recommended_or_reported_as_running(
    disk: Disk,
) -> None:
    commands = [step.command or "" for step in disk.steps()]
    pulled = {word for command in commands if " pull " in command for word in shlex.split(command)}
    open_to_us = [
        repo for repo in disk.repos if repo.need is not None and not repo.shut and not repo.running
    ]
    if disk.shortage(disk.downloads()) is None:
        assert {repo.name for repo in open_to_us} <= pulled
    running = any(repo.running and repo.need is not None for repo in disk.repos)
    assert any(" watch " in command for command in commands) == running


@given(disks())
def test_at_most_five_models_are_named_for_removal(disk: Disk) -> None:
    removed = [step for step in disk.steps() if step.command and " rm " in step.command]
    assert len(removed) <= 5


@given(disks())
def test_limits_that_are_not_the_users_own_never_lead_to_removing(disk: Disk) -> None:
    disk.trusted, disk.max_size = False, None
    commands = [words_of(step) for step in disk.steps() if step.command]
    assert not any(words[1] == "rm" or "--free" in words for words in commands)
    assert not any("--partials" in words or "--make-room" in words for words in commands)


@given(disks())
def test_a_download_of_unknown_size_is_never_joined_with_others_nor_recommended_while_one_waits(
    disk: Disk,
) -> None:
    downloads = disk.downloads()
    unknown = {download.name for download in downloads if not download.known}
    others = {download.name for download in downloads} - unknown
    pulls = [words_of(step)[2:] for step in disk.steps() if " pull " in (step.command or "")]
    assert not any(unknown & set(words) and others & set(words) for words in pulls)
    if disk.shortage([download for download in downloads if disk.can_fetch(download)]) is not None:
        assert not any(unknown & set(words) for words in pulls)


def test_what_can_be_cleaned_is_recommended_with_what_another_user_holds_kept() -> None:
    mine = SketchedRepo("org/mine", 10, waste=5, pinned=True)
    theirs = SketchedRepo("org/theirs", 10, waste=5, pinned=True, shut=True)
    disk = Disk(100, 0, 0, None, trusted=True, repos=[mine, theirs])
    steps = disk.steps()
    assert [words_of(step)[1:4] for step in steps if step.command] == [
        ["clean", "--keep", "org/theirs"]
    ]
    assert any(step.text.startswith("/org/theirs cannot be changed") for step in steps)


def test_a_cache_over_its_limit_by_another_users_models_says_whose_they_are() -> None:
    theirs = SketchedRepo("org/theirs", 10, waste=0, pinned=False, shut=True)
    steps = Disk(100, 0, 0, 5, trusted=True, repos=[theirs]).steps()
    assert all(step.command is None for step in steps)
    assert "belongs to another user: org/theirs" in steps[0].text
