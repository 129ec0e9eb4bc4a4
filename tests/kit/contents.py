"""File contents as the hub sees them: size, hashes, and whether they are kept as LFS files."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".onnx", ".h5", ".pth", ".pt")
LFS_SIZE = 10_000_000
BLOCK = 8 << 20


@dataclass(frozen=True)
class Synthetic:
    """Bytes that look random and follow from size and seed alone, without being kept in memory."""

    size: int
    seed: int = 0

    def blocks(self) -> Iterator[bytes]:
        """Yield the content in order; no two blocks are the same."""
        # One random block is reused with its number stamped on, since drawing every byte
        # would be slower than the disk.
        base = random.Random(self.seed).randbytes(min(BLOCK, self.size))
        for start in range(0, self.size, BLOCK):
            block = start.to_bytes(8, "big") + base[8:]
            yield block[: self.size - start]

    def write(self, path: Path) -> None:
        """Write the content to a file."""
        with path.open("wb") as file:
            for block in self.blocks():
                file.write(block)


Content = bytes | Path | Synthetic


@dataclass(frozen=True)
class StoredFile:
    """One file of one revision, with the identities the hub gives it."""

    name: str
    size: int
    git_oid: str
    data: bytes | Path
    lfs_sha256: str | None = None
    xet_hash: str | None = None

    @property
    def etag(self) -> str:
        """The name of its blob in a cache: sha256 for LFS files, git blob sha1 for the rest."""
        return self.lfs_sha256 or self.git_oid

    @property
    def pointer_size(self) -> int:
        """The size of the LFS pointer that git holds instead of the content."""
        return len(lfs_pointer(self.lfs_sha256 or "", self.size))

    def read(self) -> bytes:
        """Return the complete content."""
        return self.data if isinstance(self.data, bytes) else self.data.read_bytes()


def git_blob_sha1(data: bytes) -> str:
    """Return what `git hash-object` prints for the bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the text that git stores in place of an LFS file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def is_lfs(name: str, size: int) -> bool:
    """Return whether the hub keeps such a file as LFS by default."""
    return name.endswith(LFS_SUFFIXES) or size > LFS_SIZE


def store(
    name: str,
    content: Content,
    folder: Path,
    *,
    lfs: Collection[str] | None = None,
    xet_hash: str | None = None,
) -> StoredFile:
    """Hash the content; synthetic content is written into the folder first."""
    data = _materialize(content, folder)
    size = len(data) if isinstance(data, bytes) else data.stat().st_size
    as_lfs = is_lfs(name, size) if lfs is None else name in lfs
    if not as_lfs:
        return StoredFile(name, size, _digest("sha1", b"blob %d\0" % size, data), data)
    sha256 = _digest("sha256", b"", data)
    git_oid = git_blob_sha1(lfs_pointer(sha256, size))
    return StoredFile(name, size, git_oid, data, lfs_sha256=sha256, xet_hash=xet_hash)


def store_all(
    files: Mapping[str, Content],
    folder: Path,
    *,
    lfs: Collection[str] | None = None,
    xet: Mapping[str, str] | None = None,
) -> dict[str, StoredFile]:
    """Hash every file of a revision; files are listed in the order of their names, as git does."""
    hashes = xet or {}
    return {
        name: store(name, files[name], folder, lfs=lfs, xet_hash=hashes.get(name))
        for name in sorted(files)
    }


def commit_id(files: Mapping[str, StoredFile]) -> str:
    """Return 40 hex digits that follow from the names and contents alone."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(files[name].etag.encode() + b"\0")
    return digest.hexdigest()


def _materialize(content: Content, folder: Path) -> bytes | Path:
    if not isinstance(content, Synthetic):
        return content
    path = folder / f"synthetic-{content.size}-{content.seed}"
    if not path.exists():
        content.write(path)
    return path


def _digest(algorithm: str, prefix: bytes, data: bytes | Path) -> str:
    digest = hashlib.new(algorithm, prefix)
    if isinstance(data, bytes):
        digest.update(data)
        return digest.hexdigest()
    with data.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
