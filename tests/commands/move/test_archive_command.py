"""`vlmcache clean --to` and `vlmcache recall` as a user and as a script meet them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated, model_files
from tests.kit.commands import Vlmcache
from tests.kit.disks import NOBODY, as_other_user, common_folder, small_filesystem
from vlmcache.errors import ExitCode

CONFIG = "models:\n  small: {{model_path: org/name}}\nvlmcache: {{min_free: 0, archive: {there}}}\n"


@pytest.fixture
def drive() -> Iterator[Path]:
    with small_filesystem(64_000_000) as place:
        yield place


@pytest.fixture
def repo(cache: CacheBuilder, vlmcache: Vlmcache, drive: Path) -> CachedRepo:
    vlmcache.config(CONFIG.format(there=drive / "hub"))
    # In a working folder, nobody's file may say where models go.
    vlmcache.environment["VLMCACHE_CONFIG"] = "config.yaml"
    found = cache.repo("org/name")
    found.revision(model_files())
    cache.repo("org/second").revision(model_files(kind="qwen2_5_vl"))
    return found


def test_the_documents_are_as_their_schemas_say(
    vlmcache: Vlmcache, repo: CachedRepo, drive: Path
) -> None:
    before = du_allocated(repo.cache.root)
    cleaned, recalled = (vlmcache("schema", name).document for name in ("clean", "recall"))
    planned = vlmcache("clean", "--max-size", "0", "--dry-run", "--json")
    done = vlmcache("clean", "--max-size", "0", "--json", "--yes")
    for one in (planned, done):
        assert one.code == ExitCode.DONE, one
        jsonschema.validate(one.document, cleaned)
    assert [action["action"] for action in done.document["plan"]["actions"]][:2] == ["move", "move"]
    archive = done.document["archive"]
    assert [(one["repo"], one["state"]) for one in archive["repos"]] == [
        ("org/second", "moved"),
        ("org/name", "moved"),
    ]
    assert archive["destination"] == str(drive / "hub")
    assert done.document["receipt"]["freed"] == before - du_allocated(repo.cache.root)
    shown = vlmcache("status", "--json").document
    assert shown["models"][0]["linked_to"] == str(drive / "hub" / repo.folder.name)
    assert shown["models"][0]["state"] == "cached"
    assert sorted(shown["elsewhere"][0]["repos"]) == ["org/name", "org/second"]
    for arguments in (("--dry-run",), ()):
        back = vlmcache("recall", "small", "org/sec*", "--json", *arguments)
        assert back.code == ExitCode.DONE, back
        jsonschema.validate(back.document, recalled)
    assert {one["state"] for one in back.document["repos"]} == {"recalled"}
    assert not repo.folder.is_symlink()


def test_it_says_what_is_moved_where_and_what_each_drive_has_then(
    vlmcache: Vlmcache, repo: CachedRepo, drive: Path
) -> None:
    unasked = vlmcache("clean", "--max-size", "0")
    assert unasked.code == ExitCode.UNCONFIRMED
    assert "2 models would be moved" in unasked.err
    assert "removed" not in unasked.err
    planned = vlmcache("clean", "--max-size", "0", "--dry-run").out
    assert f"at {drive / 'hub'}" in planned
    assert "REMOVES" not in planned
    quiet = vlmcache("clean", "--max-size", "0", "-q", "--yes").out
    assert sorted(quiet.split()) == ["org/name", "org/second"]
    assert f"are at {drive / 'hub'}" in vlmcache("status").out
    back = vlmcache("recall", "small")
    assert back.code == ExitCode.DONE
    assert "back in the cache" in back.out
    assert vlmcache("recall", "org/second", "-q").out == "org/second\n"
    again = vlmcache("clean", "--max-size", "0", "--yes")
    assert "Moved 2 models." in again.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("clean", "--to", "/dev/shm/x"), ExitCode.USAGE, "how much"),
        (("clean", "--all", "--to", "/dev/shm/x"), ExitCode.USAGE, "--all"),
        (("clean", "--max-size", "0", "--to", ""), ExitCode.USAGE, "empty"),
        (("recall",), ExitCode.USAGE, "MODEL"),
        (("recall", "nobody/nothing"), ExitCode.NO_MODEL, "nothing like"),
        (("recall", "zz*"), ExitCode.NO_MODEL, "nothing matches"),
        (("recall", "small@main"), ExitCode.USAGE, "not a complete model"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    vlmcache: Vlmcache, repo: CachedRepo, arguments: tuple[str, ...], code: ExitCode, words: str
) -> None:
    done = vlmcache(*arguments)
    assert done.code == code
    assert words in done.err
    assert done.out == ""
    assert repo.folder.is_dir()


def test_an_archive_of_another_user_is_refused_before_anything_is_done() -> None:
    """And a cache of another user stays as it is: what is moved has to leave it."""
    with common_folder() as home, small_filesystem(16_000_000) as drive:
        (drive / "closed").mkdir(mode=0o755)
        cache = CacheBuilder(home / "hub")
        repo = cache.repo("org/name")
        repo.revision(model_files())
        old = time.time() - 86400
        os.chown(home, NOBODY, NOBODY)
        for path in (cache.root, *cache.root.rglob("*")):
            os.utime(path, (old, old), follow_symlinks=False)
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        variables = {"HOME": str(home), "HF_HUB_CACHE": str(cache.root), "PATH": os.environ["PATH"]}

        def clean(place: Path) -> tuple[int, str]:
            arguments = ["clean", "--max-size", "0", "--to", str(place), "--yes"]
            done = as_other_user(
                [sys.executable, "-m", "vlmcache", *arguments],
                environment=variables,
                folder=home,
            )
            return done.returncode, done.stderr

        code, said = clean(drive / "closed" / "hub")
        assert (code, "cannot be written" in said) == (ExitCode.FAILED, True), said
        assert "root" in said
        assert not repo.folder.is_symlink()
        (drive / "mine").mkdir()
        os.chown(drive / "mine", NOBODY, NOBODY)
        assert clean(drive / "mine" / "hub")[0] == ExitCode.DONE
        assert repo.folder.is_symlink()
        assert (drive / "mine" / "hub").stat().st_uid == NOBODY
