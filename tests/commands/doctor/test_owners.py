"""What root has left in a user's cache: its owner is named, and root gives it back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, fingerprint, model_files
from tests.kit.commands import Vlmcache
from tests.kit.disks import NOBODY, as_other_user, common_folder
from vlmcache.cache.owners import denial
from vlmcache.change.plan import SetAccess
from vlmcache.commands.doctor.permissions import set_access
from vlmcache.commands.doctor.sharing import check_owners, check_sharing

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="another user's files need root"
)
OTHER = NOBODY - 1


@pytest.fixture
def cache() -> Iterator[CacheBuilder]:
    """A user's own cache with one model."""
    with common_folder() as folder:
        cache = CacheBuilder(folder / "hub")
        cache.repo("org/name").revision(model_files())
        for path in (folder, cache.root, *cache.root.rglob("*")):
            os.lchown(path, NOBODY, NOBODY)
        cache.root.chmod(0o755)
        yield cache


def repo_of(cache: CacheBuilder) -> CachedRepo:
    repo = CachedRepo(cache, "org/name", "model")
    (snapshot,) = repo.snapshots.iterdir()
    repo.revisions[snapshot.name] = {}
    return repo


def give(paths: list[Path], owner: int = 0) -> None:
    for path in paths:
        os.lchown(path, owner, owner)
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)


def everything(cache: CacheBuilder) -> list[Path]:
    return [cache.root, *cache.root.rglob("*")]


def owners(cache: CacheBuilder) -> set[tuple[int, int]]:
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in everything(cache)}


def as_owner(cache: CacheBuilder, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "HF_HUB_CACHE": str(cache.root),
        "HOME": "/nonexistent",
        "HF_HOME": "/nonexistent",
    }
    return as_other_user(
        [sys.executable, "-m", "vlmcache", *command],
        environment=environment | {"PATH": os.environ["PATH"], "VLMCACHE_HOME": "/nonexistent"},
        folder=cache.root.parent,
    )


def fix_of(cache: CacheBuilder) -> str:
    return f"sudo vlmcache doctor --fix --cache-dir {cache.root}"


def test_doctor_says_what_is_roots_and_a_fix_by_root_gives_all_of_it_back(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    before = fingerprint(cache.root)
    give([path for path in everything(cache) if path != cache.root])
    (found,) = check_owners(str(cache.root))
    assert found.code == "wrong-owner"
    assert "belong to root, and the cache to nobody" in found.detail
    assert found.remedy == fix_of(cache)

    done = vlmcache("doctor", "--fix", "--cache-dir", str(cache.root))

    assert done.code == 0, done
    assert owners(cache) == {(NOBODY, NOBODY)}
    assert list(check_owners(str(cache.root))) == []
    content = {name: (kind, *rest) for name, (kind, _, *rest) in fingerprint(cache.root).items()}
    assert content == {name: (kind, *rest) for name, (kind, _, *rest) in before.items()}
    assert as_owner(cache, "verify").returncode == 0
    assert as_owner(cache, "rm", "org/name", "--yes").returncode == 0


def test_the_user_alone_cannot_give_it_back_and_reads_what_to_type(cache: CacheBuilder) -> None:
    give([repo_of(cache).blobs])
    done = as_owner(cache, "doctor", "--fix")
    assert done.returncode != 0
    assert fix_of(cache) in " ".join(done.stdout.split())
    assert repo_of(cache).blobs.stat().st_uid == 0


@pytest.mark.parametrize("mode", [0o755, 0o775])
def test_in_a_cache_that_others_share_only_what_is_roots_is_given_away(
    cache: CacheBuilder, mode: int
) -> None:
    cache.root.chmod(mode)
    repo = repo_of(cache)
    (ref,) = repo.refs.iterdir()
    give([ref], OTHER)
    give([repo.trees], 0)
    check_sharing(str(cache.root), None, fix=True)
    assert ref.stat().st_uid == (OTHER if mode == 0o775 else NOBODY)
    assert repo.trees.stat().st_uid == NOBODY


def test_roots_own_cache_stays_roots(cache: CacheBuilder) -> None:
    give(everything(cache), 0)
    (ref,) = repo_of(cache).refs.iterdir()
    give([ref], OTHER)
    cache.root.chmod(0o777)
    assert list(check_owners(str(cache.root))) == []


def test_links_are_never_followed_and_what_has_a_name_outside_is_left_alone(
    cache: CacheBuilder,
) -> None:
    repo = repo_of(cache)
    secret = cache.root.parent / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    (repo.refs / "odd").symlink_to(secret)
    os.link(secret, repo.refs / "hard")
    (cache.root / "models--org--linked").symlink_to(cache.root.parent)
    check_sharing(str(cache.root), None, fix=True)
    assert secret.stat().st_uid == 0
    assert (repo.refs / "odd").lstat().st_uid == NOBODY
    assert (cache.root / "models--org--linked").lstat().st_uid == 0


@pytest.mark.parametrize("swap", ["a link", "another file"])
def test_what_was_swapped_after_the_plan_is_not_given_away(cache: CacheBuilder, swap: str) -> None:
    repo = repo_of(cache)
    secret = cache.root.parent / "secret"
    secret.write_text("x")
    (ref,) = repo.refs.iterdir()
    give([ref], 0)
    plan = check_sharing(str(cache.root), None, fix=False).plan
    assert [action.path for action in plan.actions if isinstance(action, SetAccess)] == [str(ref)]
    if swap == "a link":
        ref.unlink()
        ref.symlink_to(secret)
    else:
        os.rename(repo.refs, repo.folder / "refs.old")
        repo.refs.symlink_to(cache.root.parent)
        secret.rename(cache.root.parent / ref.name)
        secret = cache.root.parent / ref.name
    (outcome,) = set_access(plan, str(cache.root)).outcomes
    assert outcome.result == "stale"
    assert secret.stat().st_uid == 0


HIDDEN: dict[str, Callable[[CachedRepo], list[Path]]] = {
    "a blob": lambda repo: [max(repo.blobs.iterdir(), key=lambda blob: blob.stat().st_size)],
    "every blob": lambda repo: list(repo.blobs.iterdir()),
    "the blobs": lambda repo: [repo.blobs],
    "a snapshot": lambda repo: list(repo.snapshots.iterdir()),
    "the snapshots": lambda repo: [repo.snapshots],
    "a ref": lambda repo: list(repo.refs.iterdir()),
    "the repo": lambda repo: [repo.folder],
}


@pytest.mark.parametrize("what", HIDDEN)
def test_verify_calls_nothing_damaged_or_missing_that_it_may_not_read(
    cache: CacheBuilder, what: str
) -> None:
    give(HIDDEN[what](repo_of(cache)))
    done = as_owner(cache, "verify", "--json")
    assert '"damaged": []' in done.stdout
    assert '"missing": []' in done.stdout
    assert done.returncode == 3, done.stdout
    assert "belongs to root, and you are nobody" in done.stdout
    assert fix_of(cache) in done.stdout


def test_a_listing_that_only_its_user_may_read_is_no_failure(cache: CacheBuilder) -> None:
    give(list(repo_of(cache).trees.iterdir()))
    assert as_owner(cache, "verify").returncode == 0


@pytest.mark.parametrize("what", ["the repo", "the blobs"])
def test_rm_says_who_owns_what_and_what_to_type(cache: CacheBuilder, what: str) -> None:
    repo = repo_of(cache)
    paths = {"the repo": [repo.folder, *repo.folder.iterdir()], "the blobs": [repo.blobs]}[what]
    for path in paths:
        os.chown(path, 0, 0)
    assert denial(str(repo.folder), str(cache.root), to_write=True) is None, "root may do all"
    done = as_owner(cache, "rm", "org/name", "--yes")
    assert "belongs to root, and you are nobody" in done.stderr
    assert fix_of(cache) in done.stderr


def test_in_anothers_cache_rm_names_the_owner_to_ask(cache: CacheBuilder) -> None:
    give(everything(cache), OTHER)
    for path in everything(cache):
        if not path.is_symlink():
            path.chmod(0o755)
    done = as_owner(cache, "rm", "org/name", "--yes")
    assert done.returncode == 1
    assert f"belongs to user {OTHER}, and you are nobody" in done.stderr
    assert f"ask user {OTHER} to do it, or to share it" in done.stderr
