"""What adds to a cache: blobs, links, refs and listings."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from pathlib import Path

import pytest

from tests.kit.disks import small_filesystem
from vlmcache.cache.base_record import BaseAt
from vlmcache.cache.moved import MoveRecord
from vlmcache.change import place
from vlmcache.change.base import record_bases
from vlmcache.change.moved_note import write_moves
from vlmcache.change.tree import Tree
from vlmcache.errors import CacheError

COMMIT = "0" * 40


def test_a_snapshot_that_is_a_link_is_replaced_even_if_another_thread_was_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / COMMIT
    snapshot.parent.mkdir()
    snapshot.symlink_to(tmp_path)
    unlink = os.unlink

    def late(path: str, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        os.mkdir(path, dir_fd=dir_fd)
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", late)
    place.prepare_snapshot(Tree(str(tmp_path)), str(tmp_path), COMMIT, "config.json")
    assert snapshot.is_dir()
    assert not snapshot.is_symlink()


@pytest.mark.parametrize(("folder", "file"), [(0o755, 0o600), (0o2775, 0o644)])
def test_listings_are_for_their_user_alone_but_in_a_shared_cache(
    tmp_path: Path, folder: int, file: int
) -> None:
    trees = tmp_path / "trees"
    trees.mkdir()
    trees.chmod(folder)
    before = os.umask(0o022)
    try:
        place.write_tree(Tree(str(tmp_path)), str(tmp_path), COMMIT, {}, complete=True)
    finally:
        os.umask(before)
    assert (trees / f"{COMMIT}.json").stat().st_mode & 0o777 == file


def test_a_link_that_finds_no_free_inode_is_reported_with_its_own_path_and_why() -> None:
    with small_filesystem(2_000_000, inodes=20) as disk:
        tree, path = Tree(str(disk)), str(disk / "file")
        with contextlib.suppress(OSError):
            for number in itertools.count():
                (disk / str(number)).touch()
        for target in ("../../blobs/0", "/elsewhere"):
            with pytest.raises(OSError, match="No space") as refused:
                tree.symlink(target, path)
            problem = place.disk_failure(refused.value, str(disk))
            assert problem.message == f"the disk is full, no inode is free: {path}"


def test_a_quota_that_is_used_up_is_named_and_not_the_disk(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    problem = place.disk_failure(OSError(errno.EDQUOT, "Disk quota exceeded", path), "/elsewhere")
    assert problem.message == f"your quota on this disk is used up: {path}"
    assert problem.exit_code == 9


def test_a_disk_without_a_free_byte_is_full() -> None:
    with small_filesystem(200_000, inodes=20) as disk:
        path = str(disk / "file")
        with pytest.raises(OSError, match="No space") as refused:
            Tree(str(disk)).write(path, bytes(400_000))
        problem = place.disk_failure(refused.value, path)
        assert problem.message == f"the disk is full: {path}"


def test_a_folder_whose_name_is_not_text_is_refused_before_anything_is_recorded(
    tmp_path: Path,
) -> None:
    odd = os.fsdecode(b"/caf\xe9")
    with pytest.raises(CacheError, match="not valid UTF-8"):
        write_moves(str(tmp_path), {"models--org--name": MoveRecord(odd, finished=True)})
    with pytest.raises(CacheError, match="not valid UTF-8"):
        record_bases(Tree(str(tmp_path)), "models--org--name", [BaseAt(odd)])
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
