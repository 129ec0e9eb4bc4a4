"""One tar stream whose first member says what follows, with the hash of every blob.

The other members mirror the cache, so that any tar can list and unpack it. A restore accepts only
the members that the manifest promises, in its order, and only content that matches its hash.
"""

from __future__ import annotations

import errno
import hashlib
import io
import operator
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import IO, Any, Literal, NamedTuple

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.hashing import BLOCK, new_hash
from vlmcache.cache.reading import JSON_ERRORS
from vlmcache.change import place
from vlmcache.commands.backup.arrivals import Arrivals
from vlmcache.commands.backup.compression import Compressed, Compression, Decompressed, decompressed
from vlmcache.commands.backup.contents import SavedBlob, SavedRepo, Saving, restore_problem
from vlmcache.commands.backup.values import BackupError, Form, damaged
from vlmcache.errors import reason_of
from vlmcache.units import short_text

MANIFEST = "vlmcache-backup.json"
FORMAT = "vlmcache.backup/1"
_MANIFEST_HASH = "VLMCACHE.sha256"
"""The extended header with the manifest's own hash: in a compressed stream, one wrong byte can
change both the manifest and what it promises."""
_MANIFEST_LIMIT = 256_000_000
_HEADER_LIMIT = 16_384
"""The most bytes of an extended header: several times the longest name, and quickly searched."""
_MOST_EXTENDED = 8
"""The most extended headers of one member; tarfile reads each within the one before."""
_EXTENDED = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError)
"""What tarfile raises for damage; the last two for numbers and letters of a header."""


class TarManifest(msgspec.Struct, frozen=True):
    """What a backup holds."""

    format: str
    repos: tuple[SavedRepo, ...]


FORMS: dict[Compression | None, Form] = {None: "tar", "gzip": "tar.gz", "zstd": "tar.zst"}


def manifest_of(parts: list[Saving]) -> TarManifest:
    """Return the manifest of a backup of some repos."""
    return TarManifest(FORMAT, tuple(part.saved for part in parts))


def write_tar(
    stream: IO[bytes],
    parts: list[Saving],
    moved: Callable[[str, int], None],
    compression: Compression | None = None,
) -> None:
    """Write a backup.

    Args:
        stream: the stream to write to, which need not be seekable.
        parts: the repos, in the order of their folders.
        moved: is called with blob paths and how many of their bytes are written.
        compression: how to compress the stream; it is not compressed if `None`.

    Raises:
        BackupError: a blob is not what its hash says.
        OSError: the system refuses.
    """
    manifest = manifest_of(parts)
    sources = {
        _member_name(layout.blob_path(part.saved.folder, name)): (path, part.opener)
        for part in parts
        for name, path in part.sources.items()
    }
    compressed = None if compression is None else Compressed(stream, compression)
    # tarfile needs no more than this, although its type says so.
    sink: Any = _Sink(stream if compressed is None else compressed)
    with (
        tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ThreadPoolExecutor(1) as pool,
    ):
        tar.copybufsize = BLOCK  # type: ignore[attr-defined]
        content = msgspec.json.encode(manifest)
        first = _info(MANIFEST, len(content))
        first.pax_headers = {_MANIFEST_HASH: _sha256(content)}
        tar.addfile(first, io.BytesIO(content))
        for member in _members(manifest):
            if member.hash is None:
                tar.addfile(member.info, io.BytesIO(member.content or b""))
            else:
                path, opener = sources[member.info.name]
                with os.fdopen(opener(path), "rb", buffering=0) as file:
                    source = _Hashed(file, member, pool, partial(moved, path))
                    try:
                        tar.addfile(member.info, source)
                    except OSError as error:
                        if error.errno is not None:
                            raise
                        raise damaged(path) from error
                    if source.hash() != member.hash or file.read(1):
                        raise damaged(path)
    if compressed is not None:
        compressed.finish()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Sink:
    """A stream that is not seekable, to which tarfile writes without a buffer of its own."""

    def __init__(self, stream: IO[bytes] | Compressed) -> None:
        self.write = stream.write

    def tell(self) -> int:
        """Return where the archive begins; tarfile asks for nothing else."""
        return 0


class _Hashed:
    """Reads a stream and hashes it while the reader works with it."""

    def __init__(
        self,
        stream: IO[bytes],
        member: _Member,
        pool: ThreadPoolExecutor,
        moved: Callable[[int], None],
    ) -> None:
        self._stream = stream
        self._digest = new_hash(member.hash or "", member.info.size)
        self._pool = pool
        self._moved = moved
        self._pending: Future[None] | None = None
        self.position = 0

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes; fewer than asked for only at the end."""
        block = self._stream.read(count)
        while block and 0 < len(block) < count and (more := self._stream.read(count - len(block))):
            block += more
        self._settle()
        self._pending = self._pool.submit(self._digest.update, block)
        self.position += len(block)
        self._moved(self.position)
        return block

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def hash(self) -> str:
        """Return the hash of all that was read."""
        self._settle()
        return self._digest.hexdigest()


class _Member(NamedTuple):
    """One member after the manifest: a blob by its hash, a small file, or a link."""

    info: tarfile.TarInfo
    hash: str | None = None
    content: bytes | None = None


def _members(manifest: TarManifest) -> Iterator[_Member]:
    for repo in manifest.repos:
        for name, blob in repo.blobs.items():
            yield _Member(_info(layout.blob_path(repo.folder, name), blob.size), blob.hash)
        for commit, files in repo.trees.items():
            complete = files.keys() <= repo.snapshots.get(commit, {}).keys()
            path = layout.tree_path(repo.folder, commit, own=not complete)
            yield _small(path, place.tree_text(files).encode())
        for commit, links in repo.snapshots.items():
            for file, blob_name in links.items():
                snapshot = layout.snapshot_path(repo.folder, commit)
                info = _info(layout.file_path(snapshot, file), 0)
                info.type = tarfile.SYMTYPE
                info.linkname = layout.link_target(blob_name, file.count("/"))
                yield _Member(info)
        for ref, commit in repo.refs.items():
            yield _small(layout.ref_path(repo.folder, ref), commit.encode())


def _small(path: str, content: bytes) -> _Member:
    return _Member(_info(path, len(content)), content=content)


def _member_name(path: str) -> str:
    """Return a path in a cache with forward slashes, as in archives on every system."""
    return path.replace(os.sep, "/")


def _info(path: str, size: int) -> tarfile.TarInfo:
    # Owner, mode and times mean nothing on another machine, and would make each backup different.
    info = tarfile.TarInfo(_member_name(path))
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info


def _not_ours(problem: str) -> BackupError:
    """Return the error of a tar stream that another program may have made."""
    error = BackupError(problem)
    error.foreign = True
    return error


class LimitedArchive(tarfile.TarFile):
    """An archive whose headers are limited to what a backup can need."""

    extensions = 0
    """Extended headers that were read for the next member."""

    def next(self) -> tarfile.TarInfo | None:
        """Return the next member; Python 3.10 fails at the end of an archive of one block."""
        try:
            return super().next()
        except OSError as error:
            if error.errno != errno.EINVAL or self.offset:
                raise
            return None


class LimitedHeader(tarfile.TarInfo):
    """A header of an archive; tarfile itself reads extended ones of any length into memory."""

    def _proc_member(self, archive: LimitedArchive) -> tarfile.TarInfo:
        if self.type in _EXTENDED:
            archive.extensions += 1
            if not 0 <= self.size <= _HEADER_LIMIT or archive.extensions > _MOST_EXTENDED:
                raise BackupError("the backup is damaged: a header in it is too long")
        else:
            self._check_kind()
            archive.extensions = 0
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]

    def _check_kind(self) -> None:
        if self.type not in tarfile.REGULAR_TYPES and self.type != tarfile.SYMTYPE:
            raise _not_ours(f"the backup holds {short_text(self.name)}, which is not a file")

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise BackupError(f"the backup holds {short_text(self.name)}, which has holes")


def member_content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    """Yield the content of the member that was read last; nothing if it has none.

    Raises:
        BackupError: the archive ends within it.
    """
    stream = archive.extractfile(info)
    if stream is None:
        return
    try:
        yield from iter(partial(stream.read, BLOCK), b"")
    except tarfile.TarError as error:
        raise BackupError(f"the tar ends within {short_text(info.name)}") from error


class Reader:
    """A backup that is read once, from beginning to end. Close it afterwards.

    Args:
        stream: the backup, which need not be seekable.

    Raises:
        BackupError: it is not a backup, or holds what must not be restored.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._content_stream, compression = decompressed(stream)
        self.form = FORMS[compression]
        """The kind of tar stream."""
        stream = self._content_stream
        try:
            # In a seekable stream, members that need not be restored are skipped.
            mode: Literal["r:", "r|"] = "r:" if stream.seekable() else "r|"
            self._tar = LimitedArchive.open(
                fileobj=stream, mode=mode, bufsize=BLOCK, tarinfo=LimitedHeader
            )
            first = self._tar.next()
            if first is None or first.name != MANIFEST or not first.isreg():
                raise _not_ours("not a backup of vlmcache: its first member is not a manifest")
            if first.size > _MANIFEST_LIMIT:
                raise BackupError("not a backup that makes sense: its manifest is too long")
            content = b"".join(member_content(self._tar, first))
            if first.pax_headers.get(_MANIFEST_HASH, digest := _sha256(content)) != digest:
                raise BackupError("the backup is damaged: its manifest is not what its hash says")
            self.manifest = msgspec.json.decode(content, type=TarManifest)
        except (*TAR_ERRORS, *JSON_ERRORS) as error:
            raise BackupError(f"not a backup of vlmcache: {reason_of(error)}") from error
        if self.manifest.format != FORMAT:
            raise BackupError(f"a backup of another form: {self.manifest.format}")
        folders = [repo.folder.casefold() for repo in self.manifest.repos]
        if len(set(folders)) < len(folders):
            raise BackupError("the backup names a repo twice")
        for problem in filter(None, map(restore_problem, self.manifest.repos)):
            raise BackupError(f"the backup must not be restored: {problem}")

    def restore(
        self,
        repo: SavedRepo,
        arrivals: Arrivals | None,
        wanted: frozenset[str],
        moved: Callable[[str, int], None],
    ) -> dict[str, int]:
        """Read the members of the next repo, and restore those that are asked for.

        Args:
            repo: the repo, of the manifest and in its order.
            arrivals: the parts that are asked for, and where they go; `None` if none are.
            wanted: names of the blobs that are not there yet.
            moved: is called with blob paths and how many of their bytes are there.

        Returns:
            Blob name -> how many bytes of it were taken from the backup.

        Raises:
            BackupError: a member is not what the manifest promises.
            OSError: the system refuses.
        """
        taken: dict[str, int] = {}
        if arrivals is not None:
            arrivals.prepare()
        for member, info in self._promised(repo):
            name = info.name.rpartition("/")[2]
            if member.hash and arrivals is not None and name in arrivals.repo.blobs:
                taken[name] = arrivals.fetch(
                    name,
                    partial(self._from_beginning, info),
                    partial(moved, arrivals.path(name)),
                    distrusted=name in wanted,
                    resumed=False,
                )
        return taken

    def check(self, moved: Callable[[str, int], None]) -> None:
        """Read all of the backup, and compare every blob with its hash.

        Args:
            moved: is called with the names of blobs in the archive and how many bytes were read.

        Raises:
            BackupError: something is not what the manifest promises.
            OSError: it cannot be read.
        """
        for repo in self.manifest.repos:
            for member, info in self._promised(repo):
                if member.hash is None:
                    continue
                digest, count = new_hash(member.hash, info.size), 0
                for block in self.blocks(info):
                    digest.update(block)
                    count += len(block)
                    moved(info.name, count)
                if digest.hexdigest() != member.hash:
                    raise BackupError(
                        f"the backup is damaged: {short_text(info.name)} is not what its hash says"
                    )

    def numbers(self) -> Iterator[tuple[int, SavedBlob]]:
        """Yield the number of each member with a blob that the manifest promises, and the blob."""
        blobs = {blob.hash: blob for repo in self.manifest.repos for blob in repo.blobs.values()}
        for number, member in enumerate(_members(self.manifest)):
            if member.hash is not None:
                yield number, blobs[member.hash]

    def contents(self) -> Iterator[tuple[str | None, tarfile.TarInfo]]:
        """Yield each member with the hash of its content, `None` for one that is not a blob.

        Raises:
            BackupError: a member is not what the manifest promises.
        """
        for repo in self.manifest.repos:
            for member, info in self._promised(repo):
                yield member.hash, info

    def blocks(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        """Yield the content of the member that came last.

        Raises:
            BackupError: the stream ends within it.
        """
        return member_content(self._tar, info)

    def _promised(self, repo: SavedRepo) -> Iterator[tuple[_Member, tarfile.TarInfo]]:
        """Yield the members of a repo as they come, compared with what the manifest promises."""
        for member in _members(TarManifest(FORMAT, (repo,))):
            info = self._next()
            if info is None:
                raise BackupError(f"the backup ends before {short_text(member.info.name)}")
            _compare(info, member.info)
            if member.content is not None and b"".join(self.blocks(info)) != member.content:
                raise BackupError(f"not what the manifest promises: {short_text(info.name)}")
            yield member, info
        if repo is not self.manifest.repos[-1]:
            return
        # Members that the manifest does not promise are refused.
        info = self._next()
        if info is not None:
            raise BackupError(
                f"the backup holds {short_text(info.name)}, which its manifest does not name"
            )
        if isinstance(self._content_stream, Decompressed):
            self._content_stream.finish()

    def _next(self) -> tarfile.TarInfo | None:
        try:
            return self._tar.next()
        except TAR_ERRORS as error:
            raise BackupError(f"the backup is damaged: {reason_of(error)}") from error

    def _from_beginning(self, info: tarfile.TarInfo, start: int) -> Iterator[bytes]:
        assert start == 0, "a blob from a stream is never resumed"
        return self.blocks(info)

    def close(self) -> None:
        """Leave the stream alone from here on."""
        self._tar.close()


def _compare(info: tarfile.TarInfo, promised: tarfile.TarInfo) -> None:
    facts = operator.attrgetter("name", "size", "type", "linkname")
    if facts(info) == facts(promised) and not info.issparse():
        return
    words = f"its manifest promises {short_text(promised.name)}"
    if info.name == promised.name:
        raise BackupError(f"{words}, but its kind or length is different")
    raise BackupError(f"the backup holds {short_text(info.name)} where {words}")
