"""Single files copied by the filesystem or by hand, hashed on the way, memory left as it was."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, fingerprint
from tests.kit.rooms import WEIGHTS
from vlmcache.cache import page_cache
from vlmcache.change.tree import Tree
from vlmcache.commands.move import move
from vlmcache.commands.move.files import OpenedFile, copy_file
from vlmcache.commands.move.values import SourceDamagedError
from vlmcache.config import CacheLocation, Config, Environment, Limits, Session
from vlmcache.errors import ExitCode

BLOCK = 8 << 20
CONTENT = bytes(range(256)) * 4096 * 17 + b"end"  # two blocks and a little more


def kernel(source: int, target: int, count: int) -> int:
    return os.sendfile(target, source, None, count)


def other_filesystem(*_: int) -> int:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def nothing_copied(*_: int) -> int:
    return 0


def one_block_only() -> Callable[[int, int, int], int]:
    left = [True]

    def call(source: int, target: int, count: int) -> int:
        if left:
            left.pop()
            return kernel(source, target, count)
        return other_filesystem()

    return call


def copied(
    source: Path, target: Path, wanted: str, tell: Callable[[str, int], None] = lambda *_: None
) -> None:
    tree = Tree(str(target.parent))
    opened = OpenedFile(str(source), tree.open(str(source)))
    copy_file(opened, tree, str(target), wanted, tell)


@pytest.mark.parametrize("copy", [kernel, other_filesystem, nothing_copied, one_block_only()])
def test_a_copy_is_the_same_whoever_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: Callable[[int, int, int], int]
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(CONTENT)
    wanted = hashlib.sha256(CONTENT).hexdigest()
    positions: list[int] = []
    monkeypatch.setattr(os, "copy_file_range", copy, raising=False)
    copied(source, target, wanted, lambda _, position: positions.append(position))
    assert target.read_bytes() == CONTENT
    assert positions[-1] == len(CONTENT)
    assert positions == sorted(positions)
    assert sorted(tmp_path.glob("s*")) == [source]


def test_a_copy_with_another_hash_does_not_appear(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(CONTENT)
    before = set(tmp_path.iterdir())
    with pytest.raises(SourceDamagedError, match="damaged"):
        copied(source, target, "0" * 64)
    assert set(tmp_path.iterdir()) == before


def test_a_copy_leaves_neither_file_in_memory_that_was_not_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(CONTENT)

    def resident(path: Path) -> bool | None:
        with path.open("rb") as file:
            blocks = page_cache.resident_blocks(file.fileno(), len(CONTENT), BLOCK)
            return None if blocks is None else any(blocks)

    with source.open("rb") as file:
        os.fsync(file.fileno())
        page_cache.give_back(file.fileno(), 0, len(CONTENT))
    if resident(source) is not False:
        pytest.skip("this filesystem keeps files in memory, or does not tell")
    wanted = hashlib.sha256(CONTENT).hexdigest()
    copied(source, target, wanted)
    assert not resident(source)
    assert not resident(target)


def test_a_strangers_folder_in_the_place_of_the_shared_store_is_left_alone(tmp_path: Path) -> None:
    repo = CacheBuilder(tmp_path / "hub").repo("org/name")
    repo.revision({"w.bin": WEIGHTS}, shared=("w.bin",))
    there = tmp_path / "there"
    (there / "blobs").mkdir(parents=True)
    (there / "blobs" / "mine.txt").write_text("mine")
    before = fingerprint(tmp_path / "hub"), fingerprint(there / "blobs")
    done = move.move(
        Session(
            Environment({}, frozenset(), ""),
            Config("config.yaml", "--config", {}, Limits(min_free=0)),
            CacheLocation(str(tmp_path / "hub"), "--cache-dir"),
        ),
        str(there),
    )
    error = done.problem
    assert error is not None
    assert error.exit_code == ExitCode.FAILED
    assert "store of shared blobs" in error.message
    assert (fingerprint(tmp_path / "hub"), fingerprint(there / "blobs")) == before
