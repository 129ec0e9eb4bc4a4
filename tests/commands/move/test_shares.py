"""What root's `move` makes in a folder that several users share, and what a fix leaves to whom."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, model_files
from tests.kit.disks import NOBODY, as_other_user, common_folder, read_only_view
from tests.kit.hub import LoopbackHub
from vlmcache.commands.doctor.sharing import check_owners, check_sharing
from vlmcache.commands.move.move import move
from vlmcache.config import CacheLocation, Config, Environment, Limits, Session

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="another user's files need root"
)
OTHER = NOBODY - 1
"""Owns a repo; the group of the cache is that of `NOBODY`, who owns another one."""
REPOS = {"org/mine": NOBODY, "org/other": OTHER}


@pytest.fixture
def cache() -> Iterator[CacheBuilder]:
    """A cache of root's that a group shares, with a model of each of two members."""
    with common_folder() as folder:
        cache = CacheBuilder(folder / "hub")
        for name, owner in REPOS.items():
            repo = cache.repo(name)
            repo.revision(model_files())
            for path in (repo.folder, *repo.folder.rglob("*")):
                give(path, owner)
        for path in (cache.root, cache.root / ".locks", *(cache.root / ".locks").rglob("*")):
            if path.exists():
                give(path, 0)
        yield cache


def give(path: Path, owner: int) -> None:
    os.lchown(path, owner, NOBODY)
    if not path.is_symlink():
        path.chmod(0o2775 if path.is_dir() else 0o664)


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def move_all(cache: CacheBuilder) -> Path:
    """Move everything to a folder that is made for it, as root, and return it."""
    place = cache.root.parent / "moved"
    environment = Environment(
        {"VLMCACHE_HOME": str(cache.root.parent / "own")}, frozenset(), str(cache.root.parent)
    )
    config = Config("config.yaml", "--config", {}, Limits(min_free=0))
    session = Session(environment, config, CacheLocation(str(cache.root), "--cache-dir"))
    done = move(session, str(place))
    assert done.problem is None, done.problem
    return place


def test_what_roots_move_makes_is_shared_as_the_cache_is(cache: CacheBuilder) -> None:
    before = {
        path.relative_to(cache.root): owner_and_mode(path)
        for repo in cache.root.glob("models--*")
        for path in (repo, *repo.rglob("*"))
    }
    place = move_all(cache)
    after = {
        path.relative_to(place): owner_and_mode(path)
        for repo in place.glob("models--*")
        for path in (repo, *repo.rglob("*"))
    }
    assert after == before
    for made in (place, place / ".locks"):
        assert owner_and_mode(made) == (0, NOBODY, 0o2775)
    notes = list((place / ".locks").glob("*.moved-here.json"))
    assert len(notes) == len(REPOS)
    assert {note.stat().st_uid for note in notes} == {0}


@pytest.mark.parametrize("at_destination", [False, True])
def test_members_pull_into_and_remove_from_what_root_has_moved(
    cache: CacheBuilder, at_destination: bool
) -> None:
    place = move_all(cache)
    home = cache.root.parent / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    hub = LoopbackHub()
    try:
        hub.add_repo("org/new").commit({"config.json": b"{}"})
        known = hub.environment(place if at_destination else cache.root)
        own = {
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "VLMCACHE_HOME": str(home / "own"),
            "PATH": os.environ["PATH"],
        }
        for command in (["pull", "org/new", "--yes"], ["rm", "org/mine", "--yes"]):
            done = as_other_user(
                [sys.executable, "-m", "vlmcache", *command],
                environment=known | own,
                folder=cache.root.parent,
            )
            assert done.returncode == 0, done.stderr
    finally:
        hub.close()
    assert not (place / "models--org--mine").exists()


@pytest.mark.parametrize("owner", [0, NOBODY])
def test_a_fix_takes_no_members_repo_away_whatever_the_folders_mode(
    cache: CacheBuilder, owner: int
) -> None:
    cache.root.chmod(0o755)
    os.chown(cache.root, owner, owner)
    listing = next(cache.root.glob("models--org--other/trees"))
    os.chown(listing, 0, 0)
    lost = [finding.detail for finding in check_owners(str(cache.root))]
    assert len(lost) == (1 if owner else 0)
    check_sharing(str(cache.root), None, fix=True)
    for name, member in REPOS.items():
        repo = cache.root / f"models--{name.replace('/', '--')}"
        owners = {path.lstat().st_uid for path in (repo, *repo.rglob("*")) if path != listing}
        assert owners == {member}
    assert listing.stat().st_uid == owner


def test_a_fix_of_what_is_read_only_names_the_path_and_why_and_no_sudo(cache: CacheBuilder) -> None:
    os.chown(cache.root, NOBODY, NOBODY)
    with read_only_view(cache.root) as view:
        problem = check_sharing(str(view), None, fix=True).problem
        assert problem is not None
        assert f"Read-only file system: {view}/" in problem.message
    assert problem.hint is None
