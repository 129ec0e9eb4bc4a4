"""Random commands on one cache, to which another program writes too, compared with a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import vlmcache
from tests.kit.caches import CacheBuilder, du_allocated, fingerprint, safetensors
from tests.kit.counts import write_counts
from tests.kit.faulty import killed_at
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import lies
from tests.kit.rooms import LONG, settle
from vlmcache.cache.scan import scan

ON_HUB = ("org/one", "org/two")
ELSEWHERE = "org/three"
"""A repo that only the other program downloads, and that the hub does not have."""
REPOS = st.sampled_from((*ON_HUB, ELSEWHERE))
CONFIGURED = ("org/one", "v1")

WEIGHTS = "model.safetensors"

Key = tuple[str, str]
"""A repo and a commit."""

KILLS = st.one_of(st.just(0), st.integers(1, 60))
"""At which of its changes a command is killed and then run again, 0 for none."""


def files(number: int, weights: int) -> dict[str, bytes]:
    """Return the files of a small model; some revisions have the same weights."""
    return {
        "README.md": b"# A model\n",
        "config.json": json.dumps({"model_type": "llava", "number": number}).encode(),
        WEIGHTS: safetensors({"w": ([3000], bytes([weights]) * 6000)}),
    }


class AnyCommands(RuleBasedStateMachine):
    """What loads offline loads after any command that does not name it and has no limit.

    What is in the trash is lost by nothing but emptying it, bases are never changed, and the
    size of the cache is what du says.
    """

    hub: ClassVar[LoopbackHub]
    on_hub: ClassVar[dict[tuple[str, str], str]]
    """(repo, branch or tag) -> commit."""
    counts: ClassVar[Counter[str]]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="any-")).resolve()
        self.root, self.drive = self.folder / "hub", self.folder / "drive"
        (self.folder / "store").mkdir()
        self.slow = Path(tempfile.mkdtemp(prefix="any-", dir=another_disk(self.folder)))
        self.archive = self.slow / "archive"
        self.base = CacheBuilder(self.folder / "base")
        self.config = self.folder / "config.yaml"
        self.config.write_text(
            f"models: {{mine: {{repo: {CONFIGURED[0]}, revision: {CONFIGURED[1]}}}}}\n"
            "vlmcache: {min_free: 0}\n"
        )
        self.builder = CacheBuilder(self.root)
        self.contents = {
            (repo, commit): files(*number)
            for (repo, ref), commit in self.on_hub.items()
            for number in [NUMBERS[repo, ref]]
        }
        for key, wanted in sorted(self.contents.items())[::2]:
            self.base.repo(key[0]).revision(wanted, commit=key[1])
        self.base_content = fingerprint(self.base.root)
        self.saved: set[Key] = set()
        self.removed: list[set[Key]] = []
        """What each of the last removals that were kept has taken away, the latest last."""
        self.strangers: dict[Path, bytes] = {}
        self.damaged: set[str] = set()
        """The ends of the paths of blobs that are not what their names say."""
        self.readers: dict[Key, subprocess.Popen[bytes]] = {}
        self.step = 0
        self.environment = dict(os.environ)
        os.environ["VLMCACHE_HOME"] = str(self.folder / "own")
        os.environ["HF_HOME"] = str(self.folder / "hf")
        os.environ["HF_ENDPOINT"] = self.hub.url

    def teardown(self) -> None:
        for reader in self.readers.values():
            reader.kill()
            reader.wait()
        os.environ.clear()
        os.environ.update(self.environment)
        shutil.rmtree(self.folder)
        shutil.rmtree(self.slow)

    # What is there.

    def loads(self) -> set[Key]:
        """Return the revisions of which every file can be read and is right."""
        return {key for key, wanted in self.contents.items() if self.is_whole(key, wanted)}

    def is_whole(self, key: Key, wanted: dict[str, bytes]) -> bool:
        snapshot = self.repo_folder(key[0]) / "snapshots" / key[1]
        return all(read(snapshot / name) == content for name, content in wanted.items())

    def repo_folder(self, repo: str) -> Path:
        return self.root / f"models--{repo.replace('/', '--')}"

    def attached(self) -> set[Key]:
        """Return the revisions of which a file is in the base."""
        base = str(self.base.root) + os.sep
        return {
            (repo, commit)
            for repo, commit in self.contents
            for path in (self.repo_folder(repo) / "snapshots" / commit).rglob("*")
            if os.path.realpath(path).startswith(base)
        }

    def named(self, repo: str, ref: str | None) -> set[Key]:
        """Return what `repo` or `repo@ref` means here."""
        if ref is None:
            return {key for key in self.contents if key[0] == repo}
        path = self.repo_folder(repo) / "refs" / ref
        return {(repo, path.read_text())} if path.is_file() else set()

    def referenced(self) -> set[Key]:
        refs = self.root.glob("models--*/refs/*")
        return {("/".join(ref.parts[-3].split("--")[1:]), ref.read_text()) for ref in refs}

    def trashes(self) -> list[Path]:
        return [*self.folder.glob(".*.vlmcache-trash"), *self.slow.glob(".*.vlmcache-trash")]

    def occupied(self) -> tuple[int, int]:
        """Return the bytes on all disks without the records of moves, and with them."""
        records = [
            *self.root.glob(".locks/*.moved.json"),
            *self.drive.glob(".locks/*.moved-here.json"),
            *self.archive.glob(".locks/*.moved-here.json"),
        ]
        places = [self.root, self.drive, self.archive, *self.trashes()]
        there = [place for place in places if place.exists()]
        total = sum(map(du_allocated, there))
        return total - sum(map(du_allocated, records)), total

    def good_in_trash(self) -> set[bytes]:
        """Return what files of known models are in the trash."""
        wanted = {content for model in self.contents.values() for content in model.values()}
        return wanted & contents_below(self.trashes())

    # A command, and what must hold after each.

    def act(
        self,
        name: str,
        run: Callable[[vlmcache.Cache], Any],
        may_lose: set[Key],
        meanwhile: Callable[[], None] | None = None,
        cache_dir: Path | None = None,
        kill: int = 0,
        *,
        empties: bool = False,
    ) -> Any:
        """Run a command and return its report, or None if it was refused.

        Args:
            name: what it is called among the counts.
            run: runs it.
            may_lose: what need not load afterwards.
            meanwhile: what another program does between the plan and its execution.
            cache_dir: the cache to work on, if it is another one.
            kill: at which of its changes it is killed first, 0 for none.
            empties: whether the trash may be emptied.
        """
        before, in_trash = self.loads(), self.good_in_trash()
        cache = vlmcache.Cache(cache_dir=cache_dir or self.root, config=self.config)
        self.before_removal: tuple[int, int] | None = None

        def confirm(_plan: object) -> bool:
            if meanwhile is not None:
                meanwhile()
            self.before_removal = self.occupied()
            return True

        def refused_or_done() -> None:
            with contextlib.suppress(vlmcache.VlmcacheError):
                run(cache)

        may_lose = may_lose - set(self.readers)
        if kill:
            cache.confirm = lambda _plan: True
            if killed_at(kill, refused_or_done):
                self.counts[f"{name}: killed"] += 1
            self.removed.clear()
            self.check(f"{name}, killed", before - may_lose, set() if empties else in_trash)
        cache.confirm = confirm
        try:
            report = run(cache)
        except vlmcache.VlmcacheError as error:
            self.counts[f"{name}: refused ({error.code})"] += 1
            report = None
        else:
            self.counts[f"{name}: {'done' if report.problem is None else report.problem.code}"] += 1
        self.check(f"{name}: {report}", before - may_lose, set() if empties else in_trash)
        return report

    def check(self, name: str, loaded: set[Key], in_trash: set[bytes]) -> None:
        """Check what holds at any time.

        Args:
            name: what was done.
            loaded: what has to load.
            in_trash: what was in the trash and is still there, or in the cache, or in the base:
                `undo` leaves a link into it that has come in the place of a file.
        """
        lost = loaded - self.loads()
        assert not lost, (name, lost)
        for path, content in self.strangers.items():
            assert path.read_bytes() == content, (name, path)
        wrong = {lie for lie in lies(self.root) if not lie.endswith(tuple(self.damaged))}
        assert not wrong, (name, wrong)
        places = [self.root, self.drive, self.archive, self.base.root, *self.trashes()]
        assert not in_trash or not in_trash - contents_below(places), name
        assert fingerprint(self.base.root) == self.base_content, name
        if self.root.exists():
            assert scan(self.root).size_on_disk == du_allocated(self.root), name

    def check_receipt(self, report: Any) -> None:
        """What was removed without a problem is removed, and is what du says of the disk."""
        if report is None or report.receipt is None:
            return
        assert report.problem is not None or report.receipt.whole
        if self.before_removal is not None and not report.receipt.trash_id:
            models, total = map(int.__sub__, self.before_removal, self.occupied())
            # Records that are forgotten along with a model need not be counted.
            assert models <= report.receipt.freed <= total

    # Our commands.

    @rule(repo=st.sampled_from(ON_HUB), ref=st.sampled_from(["main", "v1"]), dry_run=st.booleans())
    def pull(self, repo: str, ref: str, dry_run: bool) -> None:
        before = fingerprint(self.root)
        report = self.act("pull", lambda cache: cache.pull(f"{repo}@{ref}", dry_run=dry_run), set())
        if dry_run:
            assert fingerprint(self.root) == before
        elif report is not None and report.problem is None:
            key = (repo, self.on_hub[repo, ref])
            # What no program loads is not fetched once more, such as after a `detach`.
            needed = {
                name: text for name, text in self.contents[key].items() if name != "README.md"
            }
            assert self.is_whole(key, needed) or self.is_damaged(key)
            again = self.act("pull again", lambda cache: cache.pull(f"{repo}@{ref}"), set())
            assert again.problem is None
            assert again.receipt is None or again.receipt.fetched == 0

    @rule(
        repo=REPOS,
        ref=st.sampled_from([None, "main", "v1"]),
        meanwhile=st.booleans(),
        trash=st.booleans(),
        kill=KILLS,
    )
    def rm(self, repo: str, ref: str | None, meanwhile: bool, trash: bool, kill: int) -> None:
        held = sorted({name for name, _ in self.loads()})
        if held and repo not in held:
            repo, ref = held[0], None  # most removals are of something
        named = self.named(repo, ref)
        text = repo if ref is None else f"{repo}@{ref}"
        during = self.something_between(repo) if meanwhile and not kill else None
        before = self.loads()
        report = self.act(
            "rm --trash" if trash else "rm",
            lambda cache: cache.remove(text, trash=trash),
            named,
            during,
            kill=kill,
        )
        self.check_receipt(report)
        if report is not None and report.problem is None:
            assert not named & self.loads()
        if report is not None and report.receipt is not None and report.receipt.trash_id:
            self.removed.append(before - self.loads())
            if report.problem is not None or kill:
                self.removed.clear()

    @rule(kill=KILLS)
    def undo(self, kill: int) -> None:
        report = self.act("undo", lambda cache: cache.undo(), set(), kill=kill)
        if report is None or kill:
            self.removed.clear()
        elif self.removed:
            back = self.removed.pop()
            if report.problem is None:
                assert {key for key in back if not self.is_damaged(key)} <= self.loads()

    @rule(kill=KILLS)
    def empty_trash(self, kill: int) -> None:
        self.act(
            "trash --empty", lambda cache: cache.trash(empty=True), set(), kill=kill, empties=True
        )
        self.removed.clear()

    @rule(
        options=st.fixed_dictionaries(
            {},
            optional={
                "older_than": st.sampled_from(["0", "1h", "30d"]),
                "max_size": st.sampled_from(["0", "20kB", "1GB"]),
                "free": st.sampled_from(["0", "1000TB"]),
                "all": st.just(True),
                "duplicates": st.just(True),
                "partials": st.just(True),
                "keep": REPOS,
                "trash": st.booleans(),
                "dry_run": st.just(True),
            },
        ),
        aged=st.booleans(),
        meanwhile=st.booleans(),
        repo=REPOS,
    )
    def clean(self, options: dict[str, Any], aged: bool, meanwhile: bool, repo: str) -> None:
        if aged:
            settle(self.root)
        referenced = self.referenced()
        replaced = {repo for repo, _ in referenced}
        may_lose = {key for key in self.contents if key not in referenced and key[0] in replaced}
        mine = (CONFIGURED[0], self.on_hub[CONFIGURED])
        if options.get("all"):
            may_lose = set(self.contents)
        elif options.keys() & {"older_than", "max_size", "free"}:
            may_lose = set(self.contents) - {mine}
        may_lose = {key for key in may_lose if key[0] != options.get("keep")}
        if options.get("dry_run"):
            may_lose = set()
        before, there = fingerprint(self.root), self.loads()
        during = self.something_between(repo) if meanwhile else None
        report = self.act(
            "clean",
            lambda cache: cache.clean(**options),
            may_lose,
            during,
            empties=bool(options.get("all")),
        )
        self.check_receipt(report)
        if options.get("all"):
            self.removed.clear()
        if report is not None and report.receipt is not None and report.receipt.trash_id:
            self.removed.append(there - self.loads())
            if report.problem is not None:
                self.removed.clear()
        if options.get("dry_run"):
            assert fingerprint(self.root) == before

    @rule(dry_run=st.booleans())
    def repair(self, dry_run: bool) -> None:
        report = self.act(
            "verify --repair", lambda cache: cache.repair(max_age=0, dry_run=dry_run), set()
        )
        if report is not None and report.problem is None and not dry_run:
            self.damaged.clear()
            assert not lies(self.root)
            assert self.act("verify", lambda cache: cache.verify(max_age=0), set()).problem is None

    @rule(repo=REPOS)
    def move(self, repo: str) -> None:
        before = self.loads()
        report = self.act("move", lambda cache: cache.move(self.drive, repo), set())
        if report is not None and report.problem is None:
            assert self.repo_folder(repo).is_symlink()
            assert self.loads() == before

    @precondition(lambda self: self.drive.exists())
    @rule(repo=REPOS)
    def move_back(self, repo: str) -> None:
        was_there = (self.drive / self.repo_folder(repo).name).is_dir()
        report = self.act(
            "move back",
            lambda cache: cache.move(self.root, repo, no_link=True),
            set(),
            cache_dir=self.drive,
        )
        if was_there and report is not None and report.problem is None:
            assert not self.repo_folder(repo).is_symlink()

    @rule(
        options=st.sampled_from(
            [{"older_than": "0"}, {"max_size": "0"}, {"max_size": "40kB"}, {"free": "1000TB"}]
        ),
        kill=KILLS,
    )
    def clean_to(self, options: dict[str, Any], kill: int) -> None:
        referenced = self.referenced()
        replaced = {repo for repo, _ in referenced}
        waste = {key for key in self.contents if key not in referenced and key[0] in replaced}
        attached = {repo for repo, _ in self.attached()}
        there = self.loads()
        self.act(
            "clean --to",
            lambda cache: cache.clean(to=self.archive, **options),
            waste,
            kill=kill,
        )
        assert not any(self.repo_folder(repo).is_symlink() for repo in attached)
        if there - self.loads():
            self.removed.clear()

    @rule(repo=REPOS, kill=KILLS)
    def recall(self, repo: str, kill: int) -> None:
        elsewhere = self.repo_folder(repo).is_symlink()
        report = self.act("recall", lambda cache: cache.recall(repo), set(), kill=kill)
        if report is not None and report.problem is None:
            assert not self.repo_folder(repo).is_symlink()
        assert elsewhere or not self.repo_folder(repo).is_symlink()

    @rule(dry_run=st.booleans(), kill=KILLS)
    def attach(self, dry_run: bool, kill: int) -> None:
        before = fingerprint(self.root)
        report = self.act(
            "attach",
            lambda cache: cache.attach(self.base.root, dry_run=dry_run),
            set(),
            kill=0 if dry_run else kill,
        )
        if dry_run:
            assert fingerprint(self.root) == before
        elif report is not None and report.problem is None:
            for path in self.base.root.glob("models--*/snapshots/*/config.json"):
                repo = self.root / path.relative_to(self.base.root).parts[0]
                here = self.root / path.relative_to(self.base.root)
                assert here.exists() or repo.is_symlink() or not path.exists()

    @rule(kill=KILLS)
    def detach(self, kill: int) -> None:
        report = self.act("detach", lambda cache: cache.detach(), self.attached(), kill=kill)
        if report is not None and report.problem is None:
            assert not self.attached()

    @precondition(lambda self: self.loads())
    @rule()
    def backup(self) -> None:
        there = self.loads()
        report = self.act("backup", lambda cache: cache.backup(self.folder / "store"), set())
        if report is not None and report.problem is None:
            self.saved |= there

    @precondition(lambda self: self.saved)
    @rule()
    def restore(self) -> None:
        report = self.act("restore", lambda cache: cache.restore(self.folder / "store"), set())
        if report is not None and report.problem is None:
            assert {key for key in self.saved if not self.is_damaged(key)} <= self.loads()

    # What another program does to the same cache.

    @rule(
        repo=REPOS,
        weights=st.integers(1, 3),
        refs=st.sampled_from([("main",), ("v1",), ()]),
        link=st.sampled_from(["symlink", "hardlink", "copy"]),
    )
    def other_downloads(self, repo: str, weights: int, refs: tuple[str, ...], link: str) -> None:
        self.step += 1
        wanted = files(self.step, weights)
        commit = self.builder.repo(repo).revision(wanted, refs=refs, link=link)  # type: ignore[arg-type]
        self.contents[repo, commit] = wanted

    @rule(repo=REPOS, age=st.sampled_from([0.0, LONG]))
    def other_is_interrupted(self, repo: str, age: float) -> None:
        self.step += 1
        path = self.builder.repo(repo).partial(age=age, number=self.step)
        if age:
            self.builder.repo(repo).orphan_blob(f"orphan {self.step}".encode())
        assert path.exists()

    @rule()
    def other_leaves_a_file(self) -> None:
        self.step += 1
        path = self.builder.stray_file(f"notes-{self.step}.txt", b"mine %d" % self.step)
        self.strangers[path] = path.read_bytes()

    @precondition(lambda self: self.loads() - set(self.readers))
    @rule(data=st.data())
    def other_damages_a_file(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.loads() - set(self.readers))))
        path = self.repo_folder(key[0]) / "snapshots" / key[1] / WEIGHTS
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        self.damaged.add(self.weights_blob(key))
        self.base_content = fingerprint(self.base.root)

    @precondition(lambda self: len(self.readers) < 2 and self.loads())
    @rule(data=st.data())
    def other_opens_a_file(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.loads())))
        path = self.repo_folder(key[0]) / "snapshots" / key[1] / WEIGHTS
        if key not in self.readers:
            with path.open("rb") as file:
                self.readers[key] = subprocess.Popen(["sleep", "600"], stdin=file)

    @precondition(lambda self: self.readers)
    @rule()
    def other_ends(self) -> None:
        _, reader = self.readers.popitem()
        reader.kill()
        reader.wait()

    def something_between(self, repo: str) -> Callable[[], None]:
        """Return what another program does between a plan and its execution: it downloads."""

        def download() -> None:
            self.other_downloads(repo, 2, ("main",), "symlink")
            self.other_is_interrupted(repo, 0.0)

        return download

    def weights_blob(self, key: Key) -> str:
        """Return the end of the path of the blob that a revision's weights should be in."""
        name = hashlib.sha256(self.contents[key][WEIGHTS]).hexdigest()
        return f"{self.repo_folder(key[0]).name}/blobs/{name}"

    def is_damaged(self, key: Key) -> bool:
        return self.weights_blob(key) in self.damaged


NUMBERS = {
    ("org/one", "main"): (101, 1),
    ("org/one", "v1"): (102, 1),
    ("org/two", "main"): (201, 1),
    ("org/two", "v1"): (202, 2),
}
"""(repo, branch or tag) -> what `files` makes its files of."""


def read(path: Path) -> bytes | None:
    """Return a file's content, `None` if it cannot be read; an access time would be a use."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOATIME", 0))
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        return file.read()


def contents_below(places: Iterable[Path]) -> set[bytes]:
    paths = (path for place in places for path in place.rglob("*") if not path.is_symlink())
    return {read(path) or b"" for path in paths if path.is_file()}


def another_disk(folder: Path) -> str | None:
    """Return a folder of another filesystem, `None` if there is none: then nothing is archived."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK | os.X_OK) and memory.stat().st_dev != folder.stat().st_dev:
        return str(memory)
    return None


@pytest.fixture
def machine() -> Iterator[type[AnyCommands]]:
    with LoopbackHub() as hub:
        repos = {name: hub.add_repo(name) for name in ON_HUB}
        AnyCommands.hub = hub
        AnyCommands.on_hub = {
            (repo, ref): repos[repo].commit(files(*number), ref)
            for (repo, ref), number in NUMBERS.items()
        }
        AnyCommands.counts = Counter()
        yield AnyCommands


def run(machine: type[AnyCommands], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),
        ),
    )


def test_random_commands_lose_nothing_that_nobody_named(machine: type[AnyCommands]) -> None:
    run(machine, 20, 12)


@pytest.mark.full
def test_of_hundreds_of_random_runs_none_loses_what_nobody_named(
    machine: type[AnyCommands],
) -> None:
    run(machine, 400, 30)
    lines = ["| command, and what became of it | times |", "|---|---:|"]
    lines += (f"| {name} | {count:,} |" for name, count in sorted(machine.counts.items()))
    write_counts("testing.md", "random commands", "\n".join([*lines, ""]))
