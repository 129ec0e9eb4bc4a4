"""Plain `clean` on caches of every kind: whatever loaded offline before loads offline after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder, CachedRepo
from tests.kit.commands import Done, run_here

DAY = 86400.0
WEIGHTS = "model.safetensors"
NEEDED = ("config.json", WEIGHTS)
CONTENTS = [bytes([65 + number]) * (2000 + number) for number in range(3)]
"""Weights that revisions share or do not share."""


@dataclass(frozen=True)
class Version:
    """One revision: what it holds, and how long ago (in days) it was written and last read."""

    weights: int
    readme: int
    refs: tuple[str, ...]
    written: float
    read: float
    here: str
    """Which of its files are downloaded: all, the configuration alone, or all but the README."""
    tree: bool
    link: str
    folder: str | None = None
    """The name of its snapshot folder, if that is no commit."""


@dataclass(frozen=True)
class Part:
    """An unfinished download: who writes it, and for how many days nobody has."""

    suffix: str
    age: float
    finished: bool
    """Whether the blob that it becomes is there too."""


@dataclass(frozen=True)
class Plan:
    """One repo of a cache."""

    versions: tuple[Version, ...]
    parts: tuple[Part, ...]
    damage: str
    configured: bool
    place: str
    """Whether it is in the cache, on another drive, or on a drive that is away."""
    orphan: float | None
    """How many days ago a blob was written that nothing links to."""


# What happens to caches in the wild.


def _no_snapshots(repo: CachedRepo) -> None:
    shutil.rmtree(repo.snapshots)


def _no_refs(repo: CachedRepo) -> None:
    shutil.rmtree(repo.refs, ignore_errors=True)


def _each_link(repo: CachedRepo, change: Callable[[Path, str], object]) -> None:
    for path in repo.snapshots.rglob("*"):
        if path.is_symlink():
            target = os.readlink(path)
            path.unlink()
            change(path, target)


def _empty_files(repo: CachedRepo) -> None:
    _each_link(repo, lambda path, _: path.touch())


def _text_files(repo: CachedRepo) -> None:
    _each_link(repo, lambda path, target: path.write_text(target))


def _links_gone(repo: CachedRepo) -> None:
    _each_link(repo, lambda _path, _target: None)


def _absolute_links(repo: CachedRepo) -> None:
    _each_link(repo, lambda path, target: path.symlink_to(f"/old/place/{Path(target).name}"))


def _one_link_gone(repo: CachedRepo) -> None:
    for path in sorted(repo.snapshots.rglob(WEIGHTS))[:1]:
        path.unlink()


def _ref_of_nothing(repo: CachedRepo) -> None:
    repo.ref_to_missing_commit("next")


def _ref_with_newline(repo: CachedRepo) -> None:
    repo.ref_with_newline("main")


def _snapshots_elsewhere(repo: CachedRepo) -> None:
    hidden = repo.folder / "elsewhere"
    repo.snapshots.rename(hidden)
    repo.snapshots.symlink_to(hidden.name)


DAMAGES: dict[str, Callable[[CachedRepo], None]] = {
    "no snapshots": _no_snapshots,
    "refs purged": _no_refs,
    "links are empty files": _empty_files,
    "links are text files": _text_files,
    "links gone": _links_gone,
    "links are absolute": _absolute_links,
    "one link gone": _one_link_gone,
    "a ref of a commit that is not here": _ref_of_nothing,
    "a ref with a newline": _ref_with_newline,
    "snapshots is a link": _snapshots_elsewhere,
}


@st.composite
def _versions(draw: st.DrawFn) -> tuple[Version, ...]:
    found = []
    free = ["main", "v1"]
    for number in range(draw(st.integers(1, 3))):
        refs = tuple(ref for ref in list(free) if draw(st.booleans()))
        for ref in refs:
            free.remove(ref)
        written = draw(st.sampled_from([0.01, 2.0, 20.0, 45.0, 90.0]))
        found.append(
            Version(
                weights=draw(st.integers(0, 2)),
                readme=number,
                refs=refs,
                written=written,
                read=min(written, draw(st.sampled_from([0.01, 5.0, 40.0, 90.0]))),
                here=draw(st.sampled_from(["all", "all", "all", "config", "no readme"])),
                tree=draw(st.booleans()),
                link=draw(st.sampled_from(["symlink", "symlink", "symlink", "hardlink", "copy"])),
                folder="main" if number == 0 and not refs and draw(st.booleans()) else None,
            )
        )
    return tuple(found)


_PARTS = st.builds(
    Part,
    suffix=st.sampled_from(
        [".incomplete", ".0000abcd.incomplete", ".downloadInProgress", ".sync.part", ".odd"]
    ),
    age=st.sampled_from([0.01, 0.1, 2.0, 25.0, 40.0]),
    finished=st.booleans(),
)
_PLANS = st.builds(
    Plan,
    versions=_versions(),
    parts=st.lists(_PARTS, max_size=2).map(tuple),
    damage=st.sampled_from([*DAMAGES, *["none"] * len(DAMAGES)]),
    configured=st.booleans(),
    place=st.sampled_from(["here", "here", "here", "here", "moved", "away"]),
    orphan=st.sampled_from([None, None, 0.01, 50.0]),
)


# From a plan to files.


class Made:
    """A repo on disk, and what is known of it."""

    def __init__(self, cache: CacheBuilder, name: str, plan: Plan, now: float) -> None:
        self.plan = plan
        self.repo = cache.repo(name)
        self.weights: dict[str, bytes] = {}
        self.exempt: set[str] = set()
        self.partials: list[Path] = []
        names = [(self._write(version), version) for version in plan.versions]
        self._set_times(names, now)
        self._leave_partials(now)
        if plan.orphan is not None:
            _age(self.repo.orphan_blob(), now - plan.orphan * DAY)
        sound = _shape(self.repo.folder)
        if plan.damage != "none":
            DAMAGES[plan.damage](self.repo)
        # What happens to links does nothing to a repo that has none.
        if _shape(self.repo.folder) == sound:
            self.exempt = set(self._replaced(names))

    def _write(self, version: Version) -> str:
        files = {
            "README.md": f"readme {version.readme}".encode(),
            "config.json": json.dumps({"version": version.readme}).encode(),
            WEIGHTS: CONTENTS[version.weights],
        }
        here = {"all": list(files), "config": ["config.json"], "no readme": list(NEEDED)}
        commit = self.repo.revision(
            files,
            refs=version.refs,
            tree=version.tree,
            link=version.link,  # type: ignore[arg-type]
            downloaded=here[version.here],
        )
        if version.folder is not None:
            os.rename(self.repo.snapshots / commit, self.repo.snapshots / version.folder)
        name = version.folder or commit
        self.weights[name] = CONTENTS[version.weights]
        return name

    def _set_times(self, names: list[tuple[str, Version]], now: float) -> None:
        read: dict[Path, float] = {}
        written: dict[Path, float] = {}
        for name, version in names:
            folder = self.repo.snapshots / name
            for path in folder.rglob("*"):
                _age(path, now - version.written * DAY)
                if path.is_file():
                    blob = path.resolve()
                    read[blob] = max(read.get(blob, 0), now - version.read * DAY)
                    written[blob] = max(written.get(blob, 0), now - version.written * DAY)
            _age(folder, now - version.written * DAY)
            for ref in version.refs:
                _age(self.repo.refs / ref, now - version.written * DAY)
            tree = self.repo.trees / f"{name}.json"
            if tree.exists():
                _age(tree, now - version.written * DAY)
        for blob, at in read.items():
            os.utime(blob, (max(at, written[blob]), written[blob]))

    def _leave_partials(self, now: float) -> None:
        for number, part in enumerate(self.plan.parts):
            etag = f"{number + 7:064x}"
            path = self.repo.blobs / f"{etag}{part.suffix}"
            self.repo.blobs.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"begun" * 100)
            _age(path, now - part.age * DAY)
            if part.finished:
                (self.repo.blobs / etag).write_bytes(b"begun" * 200)
                _age(self.repo.blobs / etag, now - part.age * DAY)
            if (not part.finished and part.age < 30) or part.age < 1 / 24 or part.suffix == ".odd":
                self.partials.append(path)

    def _replaced(self, names: list[tuple[str, Version]]) -> Iterator[str]:
        """Yield the revisions that a newer complete one has replaced and nobody has used."""
        for name, old in names:
            if old.refs or old.folder is not None or old.read < 30 or old.written < 30:
                continue
            if any(
                new.refs and new.here != "config" and new.written < old.written for _, new in names
            ):
                yield name

    def revisions(self) -> list[str]:
        """Return what may be given as `revision=`: refs, and the names of snapshots."""
        root = self.repo.refs
        refs = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
        return sorted({*refs, *(self.weights if self.repo.folder.exists() else ())})

    def loads(self, revision: str) -> bool:
        """Return whether the revision's configuration and right weights can be read offline."""
        ref = self.repo.refs / revision
        name = ref.read_text() if ref.is_file() else revision
        folder = self.repo.snapshots / name
        try:
            json.loads(_read(folder / "config.json"))
            return _read(folder / WEIGHTS) == self.weights.get(name)
        except (OSError, ValueError):
            return False

    def name_of(self, revision: str) -> str:
        """Return the name of the snapshot that a revision means."""
        ref = self.repo.refs / revision
        return ref.read_text() if ref.is_file() else revision


def _read(path: Path) -> bytes:
    """Return a file's content; an access time would be a use to `clean`."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOATIME)) as file:
        return file.read()


def _shape(folder: Path) -> set[tuple[Path, int, int]]:
    """Return what is below a folder without opening any of it, which would be a use."""
    found = [(path, path.lstat()) for path in folder.rglob("*")]
    return {(path, status.st_mode, status.st_size) for path, status in found}


def _age(path: Path, at: float) -> None:
    os.utime(path, (at, at), follow_symlinks=False)


def _listed_blobs(repo: CachedRepo) -> set[Path]:
    """Return the blobs here that the listing of a commit names which a ref or a folder names."""
    refs = [p for p in repo.refs.rglob("*") if p.is_file()] if repo.refs.is_dir() else []
    commits = {path.read_text().strip() for path in refs}
    found = set()
    for tree in repo.trees.glob("*.json") if repo.trees.is_dir() else ():
        if tree.stem in commits:
            files = json.loads(tree.read_text())["files"]
            etags = (file.get("lfs_sha256") or file["blob_id"] for file in files.values())
            found |= {repo.blobs / etag for etag in etags if (repo.blobs / etag).exists()}
    return found


@contextmanager
def _cache_of(plans: list[Plan]) -> Iterator[list[Made]]:
    """A cache made to order, as the process's own; drives that are away come back at the end."""
    before = dict(os.environ)
    folder = Path(tempfile.mkdtemp(prefix="needed-"))
    here = os.getcwd()
    try:
        (folder / "work").mkdir()
        os.chdir(folder / "work")
        os.environ |= {"HF_HUB_CACHE": str(folder / "hub"), "VLMCACHE_HOME": str(folder / "own")}
        cache = CacheBuilder(folder / "hub")
        now = time.time()
        made = [Made(cache, f"org/m{number}", plan, now) for number, plan in enumerate(plans)]
        lines = ["models:", "  other: {repo: org/other}"]
        for number, plan in enumerate(plans):
            if plan.configured:
                lines.append(f"  m{number}: {{repo: org/m{number}}}")
        Path("config.yaml").write_text("\n".join(lines) + "\n")
        yield made
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(folder)


def _move(one: Made, drive: Path) -> bool:
    done = run_here("move", str(drive / "hub"), one.repo.id, "--yes")
    return done.code == 0


def _clean() -> Done:
    done = run_here("clean", "--yes", "--json")
    assert done.code in (0, 3), done
    return done


def _check(plans: list[Plan]) -> None:
    """Make a cache of each repo, clean it, and see that what was needed is still there."""
    with _cache_of(plans) as made:
        drive = made[0].repo.cache.root.parent / "drive"
        away = drive.with_name("unplugged")
        drive.mkdir()
        for one in made:
            one.plan.place != "here" and _move(one, drive)
        before = {
            (number, revision): one.name_of(revision)
            for number, one in enumerate(made)
            for revision in one.revisions()
            if one.loads(revision)
        }
        partials = [path for one in made for path in one.partials if path.exists()]
        listed = {path for one in made for path in _listed_blobs(one.repo)}
        if any(one.plan.place == "away" for one in made):
            drive.rename(away)
        done = _clean()
        if away.exists():
            away.rename(drive)
        for (number, revision), name in before.items():
            one = made[number]
            if name not in one.exempt:
                assert one.loads(revision), (one.plan, revision, done.out)
        for path in partials:
            assert path.exists(), (path, done.out)
        for path in listed:
            assert path.exists(), (path, done.out)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans=st.lists(_PLANS, min_size=1, max_size=2))
def test_what_loaded_offline_before_a_plain_clean_loads_offline_after(plans: list[Plan]) -> None:
    _check(plans)


@pytest.mark.full
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans=st.lists(_PLANS, min_size=1, max_size=3))
def test_of_two_thousand_caches_none_loses_what_loaded_offline(plans: list[Plan]) -> None:
    _check(plans)


def test_an_old_revision_that_nobody_used_is_removed(tmp_path: Path) -> None:
    """The property above says nothing if `clean` removes nothing."""
    old = Version(0, 0, (), 90.0, 90.0, "all", True, "symlink")
    new = Version(1, 1, ("main",), 40.0, 5.0, "all", True, "symlink")
    plan = Plan((old, new), (), "none", False, "here", None)
    with _cache_of([plan]) as (one,):
        (name,) = one.exempt
        assert one.loads(name)
        _clean()
        assert not one.loads(name)
        assert one.loads("main")


NAMES = ("org/m0", "org/m1", "org/m2", "org/m3")


@dataclass(frozen=True)
class Needing:
    """A model that needs others: as its base, or for code that its configuration names."""

    base: int | None
    code: int | None
    age: float
    """How many days ago it was written and last read."""
    stays_by: str
    """Why it stays: because of --keep, the configuration or a process, or because of nothing."""
    detached: bool = False
    """Whether what others need of it is a revision that a newer one has replaced."""


@st.composite
def _needing(draw: st.DrawFn) -> list[Needing]:
    # Each needs only what comes later, so nothing needs itself.
    return [
        Needing(
            draw(st.sampled_from([None, *later])),
            draw(st.sampled_from([None, None, *later])),
            draw(st.sampled_from([2.0, 45.0, 90.0])),
            draw(st.sampled_from(["", "", "keep", "config", "use"])),
            draw(st.booleans()),
        )
        for number in range(len(NAMES))
        for later in [range(number + 1, len(NAMES))]
    ]


def _make_needing(cache: CacheBuilder, models: list[Needing], now: float) -> list[Path]:
    """Make the models, the last first, and return their snapshots that others need."""
    commits: dict[int, Path] = {}
    for number, model in reversed(list(enumerate(models))):
        config: dict[str, object] = {"model_type": "qwen2", "name": number}
        if model.code is not None:
            config["auto_map"] = {"AutoModel": f"{NAMES[model.code]}--modeling.Model"}
        weights = CONTENTS[0] + bytes([number]) * 20_000
        files = {"config.json": json.dumps(config).encode(), WEIGHTS: weights}
        files["modeling.py"] = b"class Model: number = %d\n" % number
        if model.base is not None:
            adapter = {"peft_type": "LORA", "base_model_name_or_path": NAMES[model.base]}
            adapter["revision"] = commits[model.base].name
            files["adapter_config.json"] = json.dumps(adapter).encode()
            files["adapter_model.safetensors"] = weights + b"lora"
        repo = cache.repo(NAMES[number])
        commit = repo.revision(files, refs=() if model.detached else ("main",))
        commits[number] = repo.snapshots / commit
        ages = [(repo.snapshots / commit, model.age)]
        if model.detached:
            newer = repo.revision(files | {"README.md": b"newer"}, refs=("main",))
            ages.append((repo.snapshots / newer, model.age / 2))
        for snapshot, age in ages:
            for path in (*snapshot.rglob("*"), snapshot):
                _age(path, now - age * DAY)
        for blob in repo.blobs.iterdir():
            _age(blob, now - model.age * DAY)
        _age(repo.refs / "main", now - model.age / 2 * DAY)
    return [commits[number] for number in range(len(models))]


@pytest.mark.parametrize(
    "options",
    [(), ("--max-size", "1kB"), ("--older-than", "1d"), ("--free", "900TB"), ("--all",)],
    ids=["plain", "max-size", "older-than", "free", "all"],
)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(models=_needing())
def test_what_a_model_needs_stays_as_long_as_the_model_does(
    options: tuple[str, ...], models: list[Needing]
) -> None:
    with _cache_of([]) as _:
        cache = CacheBuilder(Path(os.environ["HF_HUB_CACHE"]))
        snapshots = _make_needing(cache, models, time.time())
        lines = [
            f"  m{number}: {{repo: {NAMES[number]}, revision: {snapshots[number].name}}}"
            for number, model in enumerate(models)
            if model.stays_by == "config"
        ]
        Path("config.yaml").write_text("\n".join(["models:", "  other: {repo: org/o}", *lines]))
        words = [*options]
        users = []
        for number, model in enumerate(models):
            if model.stays_by == "keep":
                words += ["--keep", f"{NAMES[number]}@{snapshots[number].name}"]
            if model.stays_by == "use":
                with open(snapshots[number] / "config.json") as file:
                    users.append(subprocess.Popen(["/bin/sleep", "60"], stdin=file))
        try:
            done = run_here("clean", "--yes", "--json", *words)
        finally:
            for user in users:
                user.kill()
                user.wait()
        for number, model in enumerate(models):
            here = snapshots[number].exists()
            # What is configured is removed too by --all, as its help says.
            if model.stays_by in ("keep", "use") or (model.stays_by and options != ("--all",)):
                assert here, (number, models, done.out)
            for need in (model.base, model.code) if here else ():
                if need is not None:
                    assert (snapshots[need] / WEIGHTS).exists(), (number, need, models, done.out)


@pytest.mark.parametrize("damage", DAMAGES)
def test_in_a_repo_whose_links_or_refs_were_lost_no_blob_is_removed(damage: str) -> None:
    old = Version(0, 0, (), 90.0, 90.0, "all", True, "symlink")
    new = Version(1, 1, ("main",), 40.0, 40.0, "all", True, "symlink")
    with _cache_of([Plan((old, new), (), damage, False, "here", 50.0)]) as (one,):
        before = sorted(one.repo.blobs.iterdir())
        done = _clean()
        assert sorted(one.repo.blobs.iterdir()) == before, done.out
