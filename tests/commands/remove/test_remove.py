"""`rm` and `clean` on real caches: what goes, what stays, and what it gives back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, du_allocated, fingerprint, model_files
from tests.kit.rooms import ROOMS, WEIGHTS, base
from vlmcache.cache.completeness import judge
from vlmcache.cache.scan import scan
from vlmcache.change import known
from vlmcache.change.known import Known
from vlmcache.change.plan import Plan, RemoveTree
from vlmcache.commands.remove.clean import clean, plan_clean
from vlmcache.commands.remove.remove import remove
from vlmcache.commands.remove.values import CleanOptions, Removal, RemoveOptions
from vlmcache.commands.status.status import status
from vlmcache.config import CacheLocation, Config, Environment, Limits, ModelConfig, Session
from vlmcache.errors import ExitCode, UnknownModelError, UsageError
from vlmcache.home.journal import Journal


class Place:
    """A cache in a temporary folder, and the functions under test on it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "hub"
        self.environment = Environment(
            {"HF_HOME": str(folder / "hf"), "VLMCACHE_HOME": str(folder / "own")},
            frozenset(),
            str(folder),
        )
        self.config = Config("config.yaml", "--config", {}, Limits())
        self.location = CacheLocation(str(self.root), "--cache-dir")

    @property
    def session(self) -> Session:
        return Session(self.environment, self.config, self.location)

    def configure(self, **repos: str) -> None:
        models = {}
        for key, text in repos.items():
            repo, _, revision = text.partition("@")
            models[key] = ModelConfig(key, repo, revision or "main")
        self.config = Config("config.yaml", "--config", models, Limits())

    def rm(
        self,
        *names: str,
        revision: str | None = None,
        force: bool = False,
        include: tuple[str, ...] = (),
    ) -> Removal:
        return remove(self.session, names, RemoveOptions(revision, force, include))

    def plan(self, options: CleanOptions | None = None) -> Plan:
        known = Known(self.environment, scan(self.root))
        return plan_clean(known, self.config, options, known.usage)[0]

    def clean(self, options: CleanOptions | None = None) -> Removal:
        return clean(self.session, options)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def freed(removal: Removal) -> int:
    assert removal.receipt is not None
    assert removal.receipt.whole, removal.receipt
    return removal.receipt.freed


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("action", ["repo", "revision", "clean", "all"])
def test_freed_is_what_was_planned_and_what_du_measures(
    place: Place, room: str, action: str
) -> None:
    ROOMS[room](place.root)
    before = du_allocated(place.root)
    if action == "repo":
        done = place.rm("org/name")
    elif action == "revision":
        done = place.rm("org/name@main")
    elif action == "clean":
        done = place.clean()
    else:
        done = place.clean(CleanOptions(everything=True))

    assert freed(done) == before - du_allocated(place.root)
    assert freed(done) == done.plan.frees
    assert not (place.root / ".vlmcache-leftovers").exists() or room == "interrupted"
    assert (
        scan(place.root).repo("org/name") is None
        or action in ("revision", "clean")
        or (room in ("foreign", "waste"))
    )


@pytest.mark.parametrize("room", ROOMS)
def test_cleaning_again_finds_nothing_but_what_lay_next_to_a_partial(
    place: Place, room: str
) -> None:
    ROOMS[room](place.root)
    partials = any(repo.partials for repo in scan(place.root).repos)
    place.clean()
    if partials:
        place.clean()

    assert place.clean().plan.actions == ()


def test_rm_of_a_revision_keeps_the_blobs_of_the_other(place: Place) -> None:
    repo = base(place.root)
    first, second = repo.revisions
    kept = repo.pointer("model.safetensors", first)
    kept_files = fingerprint(repo.snapshots / first)

    place.rm("org/name", revision="main")

    assert not (repo.snapshots / second).exists()
    assert not (repo.refs / "main").exists()
    assert not (repo.refs / "pr" / "1").exists()
    assert not (repo.trees / f"{second}.json").exists()
    assert fingerprint(repo.snapshots / first) == kept_files
    assert kept.read_bytes() == WEIGHTS
    assert {blob.name for blob in repo.blobs.iterdir()} == {
        repo.file(name, first).etag for name in repo.revisions[first]
    }


def test_rm_of_the_last_revision_removes_the_complete_repo_and_its_locks(place: Place) -> None:
    repo = CacheBuilder(place.root).repo("org/name")
    repo.revision({"config.json": b"{}"})

    place.rm("org/name@main")

    assert not repo.folder.exists()
    assert not repo.locks.exists()


def test_a_configured_key_means_the_complete_repo(place: Place) -> None:
    repo = base(place.root)
    place.configure(mine="org/name")

    place.rm("mine")

    assert not repo.folder.exists()


def test_rm_of_what_is_not_there_names_the_nearest(place: Place) -> None:
    base(place.root)

    with pytest.raises(UnknownModelError) as error:
        place.rm("org/nane")

    assert error.value.exit_code == ExitCode.NO_MODEL
    assert "org/name" in str(error.value.hint)
    assert scan(place.root).repo("org/name") is not None


def test_a_shared_blob_stays_until_its_last_repo_is_removed(place: Place) -> None:
    ROOMS["shared"](place.root)
    cache = CacheBuilder(place.root)
    shared = cache.shared_blob("ab" * 32)

    place.rm("org/name")
    assert shared.read_bytes() == WEIGHTS
    manifest = shared.with_name(f"{shared.name}.refs")
    (line,) = manifest.read_text().splitlines()
    assert line.startswith("models--org--second/blobs/")
    assert not cache.shared_blob("cd" * 32).exists()

    place.rm("org/second")
    assert not shared.exists()
    assert not manifest.exists()


def test_detached_revisions_that_a_configured_model_pins_stay(place: Place) -> None:
    repo = base(place.root)
    detached = next(iter(repo.revisions))
    place.configure(mine=f"org/name@{detached[:9]}")

    done = place.clean()

    assert (repo.snapshots / detached).is_dir()
    assert [kept.path for kept in done.plan.kept] == [str(repo.snapshots / detached)]
    assert done.receipt is not None
    assert done.receipt.freed == 0


def test_foreign_entries_stay_unless_named(place: Place) -> None:
    ROOMS["foreign"](place.root)
    place.clean(CleanOptions(everything=True))
    assert (place.root / "notes.txt").exists()
    assert (place.root / "mine" / "deep" / "file.txt").exists()
    assert (place.root / "models--org--name" / "notes.txt").exists()

    place.rm("mine", str(place.root / "notes.txt"))

    assert not (place.root / "notes.txt").exists()
    assert not (place.root / "mine").exists()


def test_duplicates_are_removed_only_if_the_model_loads_without_them(place: Place) -> None:
    cache = CacheBuilder(place.root)
    whole, partly = cache.repo("org/whole"), cache.repo("org/partly")
    files = model_files(second_format=True)
    for repo in (whole, partly):
        repo.revision(files)
    partly.missing_blob("model.safetensors")
    partly.pointer("model.safetensors").unlink()
    before = du_allocated(place.root)

    done = place.clean(CleanOptions(duplicates=True))

    assert not whole.pointer("pytorch_model.bin").is_symlink()
    assert not whole.blob("pytorch_model.bin").exists()
    assert partly.pointer("pytorch_model.bin").exists()
    assert freed(done) == before - du_allocated(place.root) >= whole.file("pytorch_model.bin").size
    assert judge(scan(place.root).repo("org/whole"), "main").state == "cached"


def test_a_link_in_place_of_a_repo_is_removed_and_what_it_leads_to_stays(
    place: Place, tmp_path: Path
) -> None:
    repo = base(place.root)
    target = repo.moved_elsewhere(tmp_path / "drive")
    before = fingerprint(target)

    done = place.rm("org/name")

    assert not os.path.lexists(repo.folder)
    assert fingerprint(target) == before
    assert [kept.path for kept in done.plan.kept] == [str(target)]


def test_problem_is_none_where_all_went_well(place: Place) -> None:
    base(place.root)
    assert place.rm("org/name").problem is None


def test_a_lock_file_is_removed_although_it_was_written_to_since(place: Place) -> None:
    """Some versions of filelock write to a lock whenever they take it, and so may this very run."""
    repo = base(place.root)
    locks = repo.leftover_locks(3)
    for lock in locks:
        os.utime(lock, (0, 0))

    def take(_planned: Removal) -> bool:
        for lock in locks:
            os.utime(lock)
        return True

    done = clean(place.session, confirm=take)
    freed(done)
    assert not any(lock.exists() for lock in locks)


def test_a_model_is_configured_and_kept_in_whatever_case_its_repo_is_written(place: Place) -> None:
    cache = CacheBuilder(place.root)
    cache.repo("org/name").revision(model_files())
    place.configure(mine="ORG/NAME")
    assert place.clean(CleanOptions(max_size=1)).plan.actions == ()
    for name in ("mine", "ORG/NAME", "Org/name"):
        kept = CleanOptions(max_size=1, keep=(name,), evict=("mine",))
        assert place.clean(kept).plan.actions == (), name
    shown = status(place.session)
    assert [(one.repo, one.state) for one in shown.models] == [("org/name", "cached")]
    assert not any(one.command for one in shown.recommendations)
    assert place.rm("mine").receipt is not None
    assert not (place.root / "models--org--name").exists()


def test_of_repos_that_differ_by_case_only_the_exact_one_is_meant_or_all_are_kept(
    place: Place,
) -> None:
    cache = CacheBuilder(place.root)
    for name in ("org/name", "org/Name"):
        cache.repo(name).revision(model_files())
    place.configure(mine="org/name")
    gone = {
        one.repo
        for one in place.plan(CleanOptions(max_size=1)).actions
        if isinstance(one, RemoveTree)
    }
    assert gone == {"org/Name"}
    place.configure(mine="ORG/NAME")
    assert place.plan(CleanOptions(max_size=1)).actions == ()
    with pytest.raises(UsageError, match="org/Name or org/name"):
        place.rm("mine")


def test_a_key_that_is_spelled_like_a_cached_repo_or_its_folder_does_not_stand_for_it(
    place: Place,
) -> None:
    cache = CacheBuilder(place.root)
    for name in ("org/one", "org/two"):
        cache.repo(name).revision(model_files())
    key = "models--org--two"
    for target in ("org/one", "org/absent"):
        place.configure(**{key: target, "org/two": "org/absent"})
        for name in (key, "org/two"):
            kept = place.plan(CleanOptions(max_size=1, keep=(name,)))
            assert "org/two" not in {getattr(one, "repo", None) for one in kept.actions}
    place.rm(key)
    assert sorted(path.name for path in place.root.glob("models--*")) == ["models--org--one"]


def test_a_plan_with_repos_in_question_opens_the_journal_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    base(place.root)
    opened: list[str] = []

    def counted(home: str) -> Journal:
        opened.append(home)
        return Journal(home)

    monkeypatch.setattr(known, "Journal", counted)
    place.plan()
    assert len(opened) == 1
