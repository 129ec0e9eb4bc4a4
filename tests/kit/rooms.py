"""Caches of many kinds, for the tests of removals."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.kit.caches import CacheBuilder, CachedRepo

OLD = 7200.0
LONG = 40 * 86400.0
"""Seconds after which something that nobody used or continued is waste, unless it is needed."""
WEIGHTS = bytes(range(256)) * 40
OTHER = b"other weights" * 1000


def settle(root: Path) -> None:
    """Make all content old, and let only the content of revisions with a ref be read now.

    Files written within the last hour could be a download.
    """
    for repo in root.glob("*--*"):
        refs = [path for path in (repo / "refs").rglob("*") if path.is_file()]
        named = {path.read_text(errors="replace") for path in refs}
        content: dict[str, float] = {}
        for blob in (repo / "blobs").glob("*"):
            if blob.name.isalnum():
                content[os.path.realpath(blob)] = 0
                if blob.is_symlink():
                    os.utime(blob, (0, 0), follow_symlinks=False)
        for path in (repo / "snapshots").rglob("*"):
            used = path.relative_to(repo / "snapshots").parts[0] in named
            if used and path.is_file():
                content[os.path.realpath(path)] = time.time()
            os.utime(path, (0, 0), follow_symlinks=False)
        for name, read in content.items():
            if os.path.isfile(name):
                os.utime(name, (read, 0))
        for folder in ("snapshots", "trees", ".no_exist"):
            for path in (repo / folder).glob("*"):
                os.utime(path, (0, 0), follow_symlinks=False)


def base(root: Path) -> CachedRepo:
    """A repo with two revisions that share a blob, one of them detached."""
    repo = CacheBuilder(root).repo("org/name")
    repo.revision({"config.json": b"{}", "model.safetensors": WEIGHTS, "a/b.txt": b"x"}, refs=())
    repo.revision({"config.json": b"[1]", "model.safetensors": WEIGHTS}, refs=("main", "pr/1"))
    settle(root)
    return repo


def _plain(root: Path) -> None:
    base(root)


def _hard_links(root: Path) -> None:
    repo = CacheBuilder(root).repo("org/name")
    repo.revision({"config.json": b"{}", "w.bin": WEIGHTS}, link="hardlink", refs=())
    repo.revision({"config.json": b"[1]", "w.bin": WEIGHTS}, link="hardlink")
    settle(root)


def _copies(root: Path) -> None:
    repo = CacheBuilder(root).repo("org/name")
    repo.revision({"config.json": b"{}", "w.bin": WEIGHTS}, link="copy", refs=())
    repo.revision({"config.json": b"[1]", "w.bin": OTHER}, link="move")
    settle(root)


def _shared(root: Path) -> None:
    cache = CacheBuilder(root)
    for name, refs in (("org/name", ()), ("org/name", ("main",)), ("org/second", ("main",))):
        cache.repo(name).revision(
            {"config.json": f"{name} {refs}".encode(), "w.bin": WEIGHTS},
            refs=refs,
            shared=("w.bin",),
            xet={"w.bin": "ab" * 32},
        )
    cache.repo("org/name").revision(
        {"config.json": b"9", "v.bin": OTHER},
        refs=(),
        shared=("v.bin",),
        xet={"v.bin": "cd" * 32},
    )
    settle(root)


def _no_manifest(root: Path) -> None:
    _shared(root)
    for manifest in (root / "blobs").glob("*/*.refs"):
        manifest.unlink()


def _waste(root: Path) -> None:
    repo = base(root)
    repo.orphan_blob()
    repo.partial(size=5000, age=LONG)
    repo.cache.repo("org/begun").partial(size=100, number=7)
    repo.no_exist("absent.json")
    for lock in repo.leftover_locks(3):
        os.utime(lock, (0, 0))
    stale = repo.blobs / "tmp_12345678-1234-1234-1234-123456789abc"
    stale.write_bytes(b"left" * 3000)
    os.utime(stale, (0, 0))


def _damaged(root: Path) -> None:
    repo = base(root)
    repo.dangling_link("config.json")
    repo.link_loop()
    repo.ref_to_missing_commit("gone")
    repo.empty_snapshot()
    settle(root)


def _interrupted(root: Path) -> None:
    repo = base(root)
    (root / ".vlmcache-leftovers" / "repo-ab").mkdir(parents=True)
    other = CacheBuilder(root).repo("org/half")
    other.revision({"config.json": b"{}", "w.bin": OTHER})
    other.folder.rename(root / ".vlmcache-leftovers" / "repo-ab" / other.folder.name)
    repo.orphan_blob()


def _foreign(root: Path) -> None:
    repo = base(root)
    repo.stray_file()
    repo.cache.stray_file()
    repo.cache.stray_file("mine/deep/file.txt")


ROOMS: dict[str, Callable[[Path], None]] = {
    "plain": _plain,
    "hard links": _hard_links,
    "copies": _copies,
    "shared": _shared,
    "no manifest": _no_manifest,
    "waste": _waste,
    "damaged": _damaged,
    "interrupted": _interrupted,
    "foreign": _foreign,
}
"""What a cache can look like -> how to make it in a folder; `org/name` is in each."""
