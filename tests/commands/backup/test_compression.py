"""Compressed backups: read by any gzip, known by their bytes, and refused if anything is odd."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commands.backup.test_backup import FILES, WEIGHTS, bring, repo, save, session
from tests.kit.caches import CacheBuilder, CachedRepo
from tests.kit.commands import Vlmcache
from tests.kit.disks import small_filesystem
from tests.kit.pulls import content, lies
from vlmcache.commands.backup.backup import backup
from vlmcache.commands.backup.compression import (
    Compressed,
    Compression,
    Decompressed,
    compression_of,
    decompressed,
)
from vlmcache.commands.backup.tar import MANIFEST, Reader, TarManifest
from vlmcache.commands.backup.values import Backup, BackupError, BackupOptions
from vlmcache.errors import UsageError
from vlmcache.installing import install_package

__all__ = ["repo"]  # the fixture
HAS_ZSTD = any(map(importlib.util.find_spec, ["compression", "zstandard"]))
needs_zstd = pytest.mark.skipif(not HAS_ZSTD, reason="needs Python 3.14 or zstandard")
MAGIC = {".tar.gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".tar.zst": b"\x28\xb5\x2f\xfd"}
NAMES = [
    pytest.param(name, marks=needs_zstd if name.endswith("zst") else ()) for name in sorted(MAGIC)
]
FORMS = [pytest.param("gzip"), pytest.param("zstd", marks=needs_zstd)]


def verified(cache: CacheBuilder, path: Path) -> Backup:
    return backup(session(cache.root), str(path), (), BackupOptions(verify=True))


@pytest.mark.parametrize("suffix", NAMES)
def test_it_comes_back_as_it_was_whatever_its_file_is_called(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path, suffix: str
) -> None:
    path = save(cache, f"saved{suffix}")
    assert path.read_bytes().startswith(MAGIC[suffix])
    renamed = path.rename(tmp_path / "odd name.tar")
    value = bring(renamed, tmp_path / "new")
    assert value.problem is None
    assert value.form == ("tar.zst" if suffix == ".tar.zst" else "tar.gz")
    assert content(tmp_path / "new") == content(cache.root)
    assert lies(tmp_path / "new") == []


def test_any_tar_with_gzip_lists_it(cache: CacheBuilder, repo: CachedRepo) -> None:
    path = save(cache, "saved.tar.gz")
    names = subprocess.run(["tar", "-tzf", path], capture_output=True, text=True, check=True)
    assert names.stdout.splitlines()[0] == MANIFEST
    assert save(cache, "again.tgz").read_bytes() == path.read_bytes()


def damages(stream: bytes) -> Iterator[bytes]:
    """Yield a stream that ends too early, or of which a byte is another, at many places."""
    step = max(1, len(stream) // 40)
    for place in (*range(0, len(stream), step), *range(len(stream) - 12, len(stream))):
        yield stream[:place]
    for place in range(12, len(stream), step):
        yield stream[:place] + bytes([stream[place] ^ 0x55]) + stream[place + 1 :]
    yield stream + b"more"


@pytest.mark.parametrize("suffix", [".tar.gz", pytest.param(".tar.zst", marks=needs_zstd)])
def test_nothing_of_a_damaged_backup_is_half_restored(
    cache: CacheBuilder, tmp_path: Path, suffix: str
) -> None:
    cache.repo("org/name").revision({"config.json": b"{}", WEIGHTS: os.urandom(3000)})
    path = save(cache, f"saved{suffix}")
    good, whole = path.read_bytes(), content(cache.root)
    for number, damaged in enumerate(damages(good)):
        path.write_bytes(damaged)
        new = tmp_path / str(number)
        try:
            bring(path, new)
        except BackupError:
            assert lies(new) == []
            assert list(new.glob("*/refs/*")) == []
        else:
            # A byte that nothing depends on, such as one of the times in a header.
            assert content(new) == whole


def made_up(members: list[tuple[str, bytes]], promised: bytes, after: int = 0) -> io.BytesIO:
    """Return a compressed stream that holds what its manifest may not promise."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, data in [(MANIFEST, promised), *members]:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
    return io.BytesIO(gzip.compress(plain.getvalue() + bytes(after), 1))


EMPTY = {"type": "model", "id": "org/name", "snapshots": {}, "refs": {}, "trees": {}}
BLOB = "5" * 40


@pytest.mark.parametrize(
    ("blobs", "members", "after", "words"),
    [
        ({}, [], 50_000_000, "more than its manifest names"),
        ({}, [("x", bytes(50_000_000))], 0, "which its manifest does not name"),
        (
            {BLOB: {"size": 5, "hash": BLOB}},
            [(f"models--org--name/blobs/{BLOB}", bytes(50_000_000))],
            0,
            "length is different",
        ),
    ],
    ids=["after its end", "another member", "a longer member"],
)
def test_a_few_bytes_that_expand_to_many_are_not_unpacked_beyond_what_is_promised(
    blobs: dict[str, object], members: list[tuple[str, bytes]], after: int, words: str
) -> None:
    promised = {"format": "vlmcache.backup/1", "repos": [{**EMPTY, "blobs": blobs}]}
    stream = made_up(members, msgspec.json.encode(promised), after)
    reader = Reader(stream)
    assert isinstance(reader.manifest, TarManifest)
    with pytest.raises(BackupError, match=words):
        reader.check(lambda _name, _count: None)
    # A compressed member this long is not read to its end.
    assert stream.tell() < len(stream.getvalue()) or after or words.startswith("more")


@pytest.mark.parametrize("form", FORMS)
@given(blocks=st.lists(st.binary(max_size=3000), max_size=5), asked=st.integers(1, 5000))
def test_what_is_compressed_comes_back(form: Compression, blocks: list[bytes], asked: int) -> None:
    sink = io.BytesIO()
    compressed = Compressed(sink, form)
    for block in [*blocks, bytes(1024)]:
        assert compressed.write(block) == len(block)
    compressed.finish()
    stream, found = decompressed(io.BytesIO(sink.getvalue()))
    assert found == form
    assert isinstance(stream, Decompressed)
    assert b"".join(iter(lambda: stream.read(asked), b"")) == b"".join(blocks) + bytes(1024)
    stream.finish()


@pytest.mark.parametrize("suffix", [".tar", *NAMES])
def test_verify_leaves_a_good_one_alone_and_writes_a_damaged_one_again(
    cache: CacheBuilder, repo: CachedRepo, suffix: str
) -> None:
    path = cache.root.parent / f"saved{suffix}"
    assert verified(cache, path).uploaded.blobs > 0
    good, before = path.read_bytes(), path.stat().st_ino
    value = verified(cache, path)
    assert (value.uploaded.blobs, path.stat().st_ino) == (0, before)
    path.write_bytes(good[:2000] + b"?" + good[2001:])
    assert verified(cache, path).uploaded.blobs > 0
    assert path.read_bytes() == good
    cache.repo("org/other").revision(FILES)
    assert verified(cache, path).uploaded.blobs > 0


def test_without_zstandard_one_line_says_what_to_install(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(FILES)
    hidden = "import sys\nsys.modules['zstandard'] = sys.modules['compression.zstd'] = None\n"
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(hidden)
    vlmcache.environment["PYTHONPATH"] = str(tmp_path / "hidden")
    (vlmcache.folder / "there.tar").write_bytes(MAGIC[".tar.zst"] + b"x")
    for arguments in (["backup", "new.tar.zst"], ["restore", "there.tar"]):
        done = vlmcache(*arguments)
        assert done.code == 11
        assert done.err == (
            "error: Zstandard (.zst) needs Python 3.14 or the package zstandard\n"
            f"hint: {install_package('zstandard')}\n"
        )
    assert not (vlmcache.folder / "new.tar.zst").exists()


def test_a_backup_from_a_pipe_is_recognized_by_its_first_bytes(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(FILES)
    new = str(tmp_path / "new")
    saved = vlmcache("backup", "saved.tar.gz")
    line = "Saved org/name to the tar, compressed with gzip, saved.tar.gz: "
    assert saved.out.startswith(line)
    cat = ["cat", str(vlmcache.folder / "saved.tar.gz")]
    with subprocess.Popen(cat, stdout=subprocess.PIPE) as source:
        done = subprocess.run(
            [*vlmcache.command, "restore", "-", "--cache-dir", new],
            env=vlmcache.environment,
            cwd=vlmcache.folder,
            stdin=source.stdout,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    line = "Restored org/name from the tar, compressed with gzip, stdin: "
    assert done.stdout.startswith(line)
    assert lies(Path(new)) == []


@pytest.mark.parametrize("suffix", [".tar.gz", pytest.param(".tar.zst", marks=needs_zstd)])
def test_a_disk_that_fills_up_meanwhile_leaves_no_file(
    cache: CacheBuilder, vlmcache: Vlmcache, suffix: str
) -> None:
    cache.repo("org/name").revision({"config.json": b"{}", WEIGHTS: os.urandom(6_000_000)})
    with small_filesystem(4_000_000) as disk:
        done = vlmcache("backup", f"{disk}/saved{suffix}")
        assert done.code == 9, done.err
        assert done.err.startswith("error: the disk is full: ")
        assert os.listdir(disk) == []


def test_a_name_that_promises_another_form_is_refused(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    for name in ("x.tar.xz", "x.TXZ", "x.tar.bz2", "x.zip", "x.tar.Z", "x.7z", "x.tar.lz4"):
        with pytest.raises(UsageError, match="is not written as"):
            compression_of(name)
    cache.repo("org/name").revision(FILES)
    for name in ("x.tar.xz", "s3://bucket/x.tar.xz", "memory://x.tar.xz"):
        done = vlmcache("backup", name)
        assert done.code == 2
        assert done.err == (
            f"error: a backup is not written as .xz: '{name}'\n"
            "hint: name it .tar, .tar.gz or .tar.zst\n"
        )
    assert not (vlmcache.folder / "x.tar.xz").exists()
