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
from vlmcache.commands.status.steps import Advice, Evictable, PendingDownload, Planner, fetching
from vlmcache.commands.status.values import CacheSummary, Recommendation
from vlmcache.config import CacheLocation, Config, Limits, Session, read_environment
from vlmcache.units import parse_size

LOCATION = CacheLocation("/a b/hub", "--cache-dir")
CONFIG = Config("config.yaml", "./config.yaml", {}, Limits(0, 0))
SESSION = Session(read_environment({}), CONFIG, LOCATION)


@dataclass
class Held:
    """A repo of a cache that is but numbers: its bytes, its waste, and what it has to fetch."""

    name: str
    size: int
    waste: int
    pinned: bool
    begun: int = 0
    """Bytes of downloads that only `--partials` removes."""
    need: int | None = None
    """Bytes to fetch; -1 where nobody knows, `None` where nothing is missing."""
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
    repos: list[Held] = field(default_factory=list)

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
            Remove(f"/{one.name}/part", "partial", one.name, "left unfinished", one.waste, None)
            for one in self.repos
            if one.waste and one.name not in options.keep
        ]
        actions += (
            Remove(f"/{one.name}/begun", "partial", one.name, "begun", one.begun, None)
            for one in self.repos
            if one.begun and options.partials and one.name not in options.keep
        )
        frees = sum(action.frees for action in actions)
        for one in self.repos:
            if frees >= goal:
                break
            if one.size and not one.pinned and one.name not in options.keep:
                path = f"/{one.name}"
                actions.append(RemoveTree(path, "repo", one.name, "unused", one.size, None))
                frees += one.size
        return Plan(tuple(actions), frees=frees), max(0, goal - frees)

    def shortage(self, downloads: Sequence[PendingDownload]) -> Shortage | None:
        need = sum(one.plan.needs for one in downloads)
        if need <= 0 or need + self.min_free <= self.free:
            return None
        return Shortage("/", need, self.free, self.min_free)

    def on_cache_disk(self, shortage: Shortage) -> bool:
        return shortage.place == "/"

    def may_evict(self, shortage: Shortage) -> bool:
        return self.trusted

    def keepable(self, repos: Iterable[str]) -> tuple[str, ...]:
        wanted = set(repos)
        return tuple(one.name for one in self.repos if one.name in wanted)

    def locked_folder(self, plan: Plan) -> str | None:
        shut = {one.name for one in self.repos if one.shut}
        repos = [one.repo for one in plan.actions if isinstance(one, Remove | RemoveTree)]
        return next((f"/{name}" for name in repos if name in shut), None)

    def locked_for(self, download: PendingDownload) -> str | None:
        return next((f"/{o.name}" for o in self.repos if o.name == download.repo and o.shut), None)

    def is_running(self, download: PendingDownload) -> bool:
        return any(one.running for one in self.repos if one.name == download.repo)

    def is_read_only(self, folder: str) -> bool:
        return False

    def can_fetch(self, download: PendingDownload) -> bool:
        return self.locked_for(download) is None and not self.is_running(download)

    def evictable(self, pending: Collection[str]) -> Sequence[Evictable]:
        return [
            Evictable(
                one.name,
                one.name,
                one.size + one.waste + one.begun,
                "last used 3 days ago",
                recent=False,
                locked=f"/{one.name}" if one.shut else None,
            )
            for one in self.repos
            if one.size and not one.pinned and one.name not in pending
        ]

    def largest(self) -> str:
        return ", ".join(one.name for one in self.repos[:3])

    def downloads(self) -> list[PendingDownload]:
        return [
            PendingDownload(one.name, one.name, fetching(one.name, abs(one.need)), one.need >= 0)
            for one in self.repos
            if one.need is not None
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
        planner = cast("Planner", self)
        return choose(Advice(SESSION), planner, room, self.downloads())

    # What the commands do.

    def run(self, command: str) -> None:
        """Carry a recommended command out; nothing of it may fail or take what a pull needs."""
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
            (repo,) = [one for one in self.repos if one.name == action.repo]
            assert repo.need is None, "what a pull would use is removed"
            if action.kind == "repo":
                repo.size = 0
            elif action.reason == "begun":
                repo.begun = 0
            else:
                repo.waste = 0
            self.free += action.frees

    def run_rm(self, words: list[str]) -> None:
        (repo,) = [one for one in self.repos if one.name == words[0]]
        assert repo.size, "rm ends with 7"
        assert not repo.pinned
        assert not repo.shut
        self.free += repo.size + repo.waste + repo.begun
        repo.size = repo.waste = repo.begun = 0

    def run_pull(self, words: list[str]) -> None:
        names = [word for word in words if word != "--make-room"]
        pulled = [one for one in self.downloads() if one.name in names]
        assert len(pulled) == len(names)
        short = self.shortage(pulled)
        if short is not None and "--make-room" in words:
            assert self.trusted
            plan, missed = self.clean(CleanOptions(free=short.goal, keep=tuple(names)))
            assert not missed
            self.remove(plan)
            short = self.shortage(pulled)
        assert short is None, "pull ends with 9"
        assert not any(one.shut or one.running for one in self.repos if one.name in names)
        for one in self.repos:
            if one.name in names:
                self.free -= max(0, one.need or 0)
                one.size, one.need, one.pinned = one.size + max(0, one.need or 0), None, True


def words_of(step: Recommendation) -> list[str]:
    assert step.command is not None
    return shlex.split(step.command)


numbers = st.integers(0, 60)
held = st.builds(
    Held,
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
    repos = draw(st.lists(held, max_size=6))
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
            replace(disk, repos=[replace(one) for one in disk.repos]).run(step.command)
    for step in steps:
        if step.command is not None:
            disk.run(step.command)


@given(disks())
def test_a_full_disk_is_never_passed_over_in_silence(disk: Disk) -> None:
    if disk.free < disk.min_free and disk.size and disk.trusted:
        assert any(step.frees or step.command is None for step in disk.steps())


@given(disks())
def test_a_download_that_there_is_room_for_is_recommended_or_said_to_run(disk: Disk) -> None:
    commands = [step.command or "" for step in disk.steps()]
    pulled = {word for one in commands if " pull " in one for word in shlex.split(one)}
    open_to_us = [
        one for one in disk.repos if one.need is not None and not one.shut and not one.running
    ]
    if disk.shortage(disk.downloads()) is None:
        assert {one.name for one in open_to_us} <= pulled
    running = any(one.running and one.need is not None for one in disk.repos)
    assert any(" watch " in one for one in commands) == running


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
    unknown = {one.name for one in downloads if not one.known}
    others = {one.name for one in downloads} - unknown
    pulls = [words_of(step)[2:] for step in disk.steps() if " pull " in (step.command or "")]
    assert not any(unknown & set(words) and others & set(words) for words in pulls)
    if disk.shortage([one for one in downloads if disk.can_fetch(one)]) is not None:
        assert not any(unknown & set(words) for words in pulls)


def test_what_can_be_cleaned_is_recommended_with_what_another_user_holds_kept() -> None:
    mine = Held("org/mine", 10, waste=5, pinned=True)
    theirs = Held("org/theirs", 10, waste=5, pinned=True, shut=True)
    disk = Disk(100, 0, 0, None, trusted=True, repos=[mine, theirs])
    steps = disk.steps()
    assert [words_of(step)[1:4] for step in steps if step.command] == [
        ["clean", "--keep", "org/theirs"]
    ]
    assert any(step.text.startswith("/org/theirs cannot be changed") for step in steps)


def test_a_cache_over_its_limit_by_another_users_models_says_whose_they_are() -> None:
    theirs = Held("org/theirs", 10, waste=0, pinned=False, shut=True)
    steps = Disk(100, 0, 0, 5, trusted=True, repos=[theirs]).steps()
    assert all(step.command is None for step in steps)
    assert "belongs to another user: org/theirs" in steps[0].text
