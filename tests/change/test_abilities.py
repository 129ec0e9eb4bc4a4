"""What a filesystem cannot do is found before anything is written to it, and said once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, fingerprint
from tests.kit.disks import FILESYSTEMS, filesystem, overlay, read_only_view
from tests.kit.pulls import config, lies
from vlmcache.cache import layout
from vlmcache.change import abilities
from vlmcache.change.abilities import Needs, check_filesystem, probe
from vlmcache.change.tree import Tree
from vlmcache.commands.backup.backup import backup
from vlmcache.commands.backup.restore import restore
from vlmcache.commands.doctor.sharing import check_sharing
from vlmcache.commands.move.move import move
from vlmcache.commands.verify.verify import verify
from vlmcache.config import CacheLocation, Environment, Session
from vlmcache.errors import CacheError

FILES = {"config.json": b"{}", "a/weights.bin": os.urandom(300_000), "same.bin": b"same" * 9}


def session(root: Path) -> Session:
    variables = {"VLMCACHE_HOME": str(root.parent / "own")}
    location = CacheLocation(str(root), "test")
    return Session(Environment(variables, frozenset(), ""), config(), location)


def refuse(
    monkeypatch: pytest.MonkeyPatch, name: str, reason: int, below: Path | None = None
) -> None:
    """Let a call of the system fail, on one filesystem if there is one to name."""
    original = getattr(os, name)

    def call(*arguments: Any, **options: Any) -> Any:
        folder = options.get("dir_fd") or options.get("dst_dir_fd")
        where = os.readlink(f"/proc/self/fd/{folder}") if folder else str(arguments[-1])
        if below is None or where.startswith(str(below)):
            raise OSError(reason, os.strerror(reason))
        return original(*arguments, **options)

    monkeypatch.setattr(os, name, call)


@pytest.fixture
def repo(cache: CacheBuilder) -> CachedRepo:
    repo = cache.repo("org/name")
    repo.revision({**FILES, "config.json": b"[1]"}, refs=["v1"])
    repo.revision({**FILES, "copy of same.bin": FILES["same.bin"]})
    return repo


@pytest.mark.parametrize(
    ("call", "ability"), [("symlink", "symlinks"), ("link", "hard_links"), ("fchmod", "modes")]
)
@pytest.mark.parametrize(
    ("reason", "able"), [("EPERM", False), ("ENOTSUP", False), ("ENOSYS", False), ("EIO", None)]
)
def test_only_a_refusal_that_says_so_means_that_a_filesystem_cannot(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    ability: str,
    reason: str,
    able: bool | None,
) -> None:
    assert set(probe(Tree(str(tmp_path)), str(tmp_path))) <= {True, None}
    before = fingerprint(tmp_path)
    refuse(monkeypatch, call, getattr(errno, reason))
    assert getattr(probe(Tree(str(tmp_path)), str(tmp_path)), ability) is able
    assert fingerprint(tmp_path) == before


def no_links(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    refuse(monkeypatch, "symlink", errno.EPERM, place)
    return "has no symbolic links"


def alike(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    takes = abilities._Trial.takes

    def fold(trial: abilities._Trial, name: str, other: str | None = None) -> bool:
        same = other is not None and name.casefold() == other.casefold()
        return takes(trial, name, name if same else None)

    monkeypatch.setattr(abilities._Trial, "takes", fold)
    return "cannot tell two names apart: 'README.md' and 'readme.md'"


def no_odd_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(abilities._Trial, "takes", lambda _, name, *_others: "?" not in name)
    return "cannot hold a file named 'what[?].json'"


def no_large_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    refuse(monkeypatch, "lseek", errno.EINVAL)
    monkeypatch.setattr(abilities, "LOCAL", frozenset())
    monkeypatch.setattr(abilities, "_LARGE", 1000)
    return "cannot hold files of 1 kB, and the longest has"


def long_paths(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(abilities, "_LONGEST_PATH", 100)
    return "it is too long"


TROUBLES: dict[str, Callable[[Path, pytest.MonkeyPatch], str]] = {
    "no symbolic links": no_links,
    "names that differ in case": alike,
    "odd names": no_odd_names,
    "long files": no_large_files,
    "long paths": long_paths,
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_move_that_the_destination_cannot_hold_copies_nothing(
    cache: CacheBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    files = {"README.md": b"1", "readme.md": b"2", "what?.json": b"3", "w.bin": bytes(5000)}
    cache.repo("org/name").revision(files)
    place = tmp_path / "elsewhere"
    before = fingerprint(tmp_path)
    words = TROUBLES[trouble](tmp_path, monkeypatch)
    with pytest.raises(CacheError, match=words) as refused:
        move(session(cache.root), str(place))
    assert "\n" not in refused.value.message
    assert refused.value.hint
    assert fingerprint(tmp_path) == before


def test_names_that_are_only_similar_are_no_trouble(tmp_path: Path) -> None:
    names = [
        "README.md",
        "readme.md",
        "n\u00e4he.json",
        "na\u0308he.json",
        "Stra\u00dfe",
        "strasse",
    ]
    check_filesystem(str(tmp_path / "new"), Needs([*names, "A/x", "a/x", "a b", "x" * 255]))
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("trouble", ["odd names", "long files", "long paths"])
def test_a_restore_that_the_cache_cannot_hold_writes_nothing(
    cache: CacheBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    cache.repo("org/name").revision({"what?.json": b"3", "w.bin": bytes(5000)})
    for saved in ("saved/", "saved.tar"):
        backup(session(cache.root), str(tmp_path / saved))
    new = tmp_path / "new"
    before = fingerprint(tmp_path)
    words = TROUBLES[trouble](tmp_path, monkeypatch)
    for saved in ("saved/", "saved.tar"):
        with pytest.raises(CacheError, match=words):
            restore(session(new), str(tmp_path / saved))
    assert fingerprint(tmp_path) == before


def test_a_read_only_place_is_named_by_every_command_before_it_writes(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    backup(session(cache.root), str(tmp_path / "saved.tar"))
    place = tmp_path / "place"
    place.mkdir()
    with read_only_view(place) as view:
        for work in (
            lambda: move(session(cache.root), str(view / "hub")),
            lambda: backup(session(cache.root), str(view / "saved.tar")),
            lambda: restore(session(view / "hub"), str(tmp_path / "saved.tar")),
        ):
            with pytest.raises(CacheError, match="is read-only"):
                work()


def test_hard_links_become_copies_where_there_are_none(
    cache: CacheBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.repo("org/name").revision(FILES, link="hardlink")
    refuse(monkeypatch, "link", errno.EPERM)
    moved = move(session(cache.root), str(tmp_path / "elsewhere"))
    assert moved.problem is None
    assert lies(tmp_path / "elsewhere") == []


def contents(root: Path) -> dict[str, bytes]:
    """Return what a loader reads: each file of each snapshot."""
    files = (path for path in root.glob("*/snapshots/**/*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("saved", ["saved/", "saved.tar"])
def test_a_restore_without_links_keeps_no_content_twice_that_one_file_needs(
    cache: CacheBuilder,
    repo: CachedRepo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved: str,
) -> None:
    backup(session(cache.root), str(tmp_path / saved))
    new = tmp_path / "new"
    refuse(monkeypatch, "symlink", errno.EPERM, new)
    restored = restore(session(new), str(tmp_path / saved))
    assert restored.problem is None
    assert contents(new) == contents(cache.root)
    assert not any((new / layout.repo_folder("model", "org/name") / "blobs").iterdir())
    assert lies(new) == []
    again = restore(session(new), str(tmp_path / saved))
    assert again.receipt is not None
    assert again.receipt.fetched == 0
    assert again.plan.needs == 0
    assert contents(new) == contents(cache.root)


def test_a_restore_makes_links_of_copies_where_links_can_be(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(session(cache.root), str(tmp_path / "saved/"))
    new = tmp_path / "new"
    with monkeypatch.context() as patch:
        refuse(patch, "symlink", errno.EPERM, new)
        restore(session(new), str(tmp_path / "saved/"))
    again = restore(session(new), str(tmp_path / "saved/"))
    assert again.receipt is not None
    assert again.receipt.fetched == 0
    assert fingerprint(new / "models--org--name/snapshots").keys() == (
        fingerprint(repo.snapshots).keys()
    )
    assert all(path.is_symlink() for path in new.glob("*/snapshots/*/*.json"))
    assert contents(new) == contents(cache.root)


def test_a_damaged_copy_is_restored_where_there_are_no_links(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(session(cache.root), str(tmp_path / "saved/"))
    new = tmp_path / "new"
    refuse(monkeypatch, "symlink", errno.EPERM, new)
    restore(session(new), str(tmp_path / "saved/"))
    for path in new.glob("*/snapshots/*/a/weights.bin"):
        path.write_bytes(bytes(path.stat().st_size))
    assert restore(session(new), str(tmp_path / "saved/")).problem is None
    assert contents(new) == contents(cache.root)


def test_what_an_overlay_has_from_below_is_refused_before_it_is_copied(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    with overlay(tmp_path) as view:
        before = fingerprint(view / "hub")
        with pytest.raises(CacheError, match="lower layer cannot be moved away"):
            move(session(view / "hub"), str(view / "elsewhere"))
        assert fingerprint(view / "hub") == before
        assert not (view / "elsewhere").exists()
        CacheBuilder(view / "hub").repo("org/upper").revision(FILES)
        moved = move(session(view / "hub"), str(view / "elsewhere"), ["org/upper"])
        assert moved.problem is None


def test_fix_reports_no_change_where_modes_are_forgotten(
    cache: CacheBuilder, repo: CachedRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.root.chmod(0o777)
    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, lambda *_, **__: None)
    access = check_sharing(str(cache.root), None, fix=True)
    assert access.receipt is not None
    assert access.receipt.outcomes == ()
    assert [finding.code for finding in access.findings] == ["no-modes"]
    monkeypatch.setattr("vlmcache.commands.doctor.sharing.keeps_modes", lambda *_: True)
    access = check_sharing(str(cache.root), None, fix=True)
    assert access.receipt is not None
    assert {outcome.result for outcome in access.receipt.outcomes} == {"failed"}


@pytest.mark.full
@pytest.mark.parametrize("kind", FILESYSTEMS)
def test_on_a_real_filesystem_each_command_works_or_refuses_at_once(
    kind: str, cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    backup(session(cache.root), str(tmp_path / "saved.tar"))
    with filesystem(kind) as place:
        able = probe(Tree(str(place)), str(place))
        check_filesystem(str(place), Needs(["models--org--name/snapshots/x/config.json"], 5))
        assert backup(session(cache.root), f"{place}/saved/").uploaded.blobs == 4
        new = place / "restored"
        for source in (f"{place}/saved/", str(tmp_path / "saved.tar")):
            restored = restore(session(new), source)
            assert restored.problem is None
            assert contents(new) == contents(cache.root)
        if able.symlinks is False:
            assert not any((new / "models--org--name/blobs").iterdir())
        assert verify(session(new)).problem is None
        access = check_sharing(str(new), None, fix=True)
        assert access.receipt is not None
        if able.modes is False:
            assert access.receipt.outcomes == ()
            assert [finding.code for finding in access.findings] == ["no-modes"]
        else:
            assert not access.receipt.undone
        if able.symlinks is False:
            with pytest.raises(CacheError, match="has no symbolic links"):
                move(session(cache.root), str(place / "moved"))
            assert not (place / "moved").exists()
        else:
            assert move(session(cache.root), str(place / "moved")).problem is None
            assert lies(place / "moved") == []
