"""A tar of a hub cache made by tar itself: without a manifest, and with blobs named by hashes.

It is read from beginning to end, and nothing in it is used as a path: names are compared with the
layout of a cache, links with the members that they would lead to.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from typing import IO, Literal, NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.hashing import BLOCK
from vlmcache.cache.reading import JSON_ERRORS
from vlmcache.cache.scan_repo import parse_listing
from vlmcache.cache.state import TreeFile
from vlmcache.commands.backup.compression import decompressed
from vlmcache.commands.backup.contents import SavedBlob, SavedRepo, restore_problem
from vlmcache.commands.backup.tar import (
    FORMS,
    TAR_ERRORS,
    LimitedArchive,
    LimitedHeader,
    member_content,
)
from vlmcache.commands.backup.values import BackupError
from vlmcache.errors import reason_of
from vlmcache.units import short_text

_MOST_MEMBERS = 2_000_000
_REF_LIMIT = 100
_LISTING_LIMIT = 64_000_000
_LISTINGS_LIMIT = 256_000_000
"""Bytes of all listings and refs together."""
_FOLDERS = [[layout.BLOBS], [layout.REFS], [layout.TREES], [layout.SNAPSHOTS]]
"""Folders in a repo's own folder, which are not in the folder of its locks."""
_LINKS = frozenset({tarfile.SYMTYPE, tarfile.LNKTYPE})


class _AnyHeader(LimitedHeader):
    """A header of an archive that may hold folders, pipes and the like; they are left out."""

    def _check_kind(self) -> None:
        pass


class Where(NamedTuple):
    """Where a content is in a tar."""

    number: int
    """Number of its member, from 0."""
    offset: int
    """Offset of its first byte in a tar that is not compressed."""
    size: int
    """Its bytes."""


class PlainReader:
    """A tar that is read once. Use it as a context manager.

    Args:
        stream: the tar, which need not be seekable.

    Raises:
        BackupError: it is not a tar.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        stream, compression = decompressed(stream)
        self.form = FORMS[compression]
        self._stream = stream
        mode: Literal["r:", "r|"] = "r:" if stream.seekable() else "r|"
        try:
            self._tar = LimitedArchive.open(
                fileobj=stream, mode=mode, bufsize=BLOCK, tarinfo=_AnyHeader
            )
        except TAR_ERRORS as error:
            raise BackupError(f"not a tar: {reason_of(error)}") from error

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Yield the members in their order.

        Raises:
            BackupError: it is damaged, or has too many.
        """
        for number in range(_MOST_MEMBERS + 1):
            try:
                info = self._tar.next()
            except TAR_ERRORS as error:
                raise BackupError(f"the tar is damaged: {reason_of(error)}") from error
            if info is None:
                self._check_end()
                return
            if number == _MOST_MEMBERS:
                raise BackupError(f"the tar has more than {_MOST_MEMBERS:,} members")
            # tarfile keeps them all, and a tar can have any number of them.
            self._tar.members.clear()  # type: ignore[attr-defined]
            yield info

    def _check_end(self) -> None:
        # tarfile does not notice that a tar ends too early; the compression does, if there is one.
        if self._stream.seekable():
            self._stream.seek(self._tar.offset)
            if self._stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise BackupError("the tar is damaged: it ends too early")

    def blocks(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        """Yield the content of the member that came last.

        Raises:
            BackupError: the tar ends within it.
        """
        return member_content(self._tar, info)

    def close(self) -> None:
        """Leave the stream alone from here on."""
        self._tar.close()


class _Repo:
    """The parts of a repo that a tar holds."""

    def __init__(self) -> None:
        self.refs: dict[str, str] = {}
        self.trees: dict[str, dict[str, TreeFile]] = {}
        self.links: dict[str, dict[str, str]] = {}
        """Commit -> file name -> blob that its link names."""
        self.copies: dict[str, dict[str, Where]] = {}
        """Commit -> name of a file in the place of a link -> where its content is."""
        self.blobs: dict[str, str] = {}
        """Etag -> name of the member."""


class PlainIndex:
    """The contents of a tar of a hub cache, from one reading of it.

    Args:
        reader: the tar, at its beginning.

    Raises:
        BackupError: it holds no hub cache, or what must not be restored.
    """

    def __init__(self, reader: PlainReader) -> None:
        self._files: dict[str, Where] = {}
        self._links: dict[str, str] = {}
        """Name of a member that is a link -> name of the one that it leads to."""
        self._roots: dict[str, str] = {}
        """Folder of a repo -> the folder in the tar that it is in."""
        self._repos: dict[str, _Repo] = {}
        self._read = 0
        """Bytes of refs and listings that were read."""
        self.where: dict[str, Where] = {}
        """Hash -> where the content with it should be."""
        for number, info in enumerate(reader.members()):
            self._add(number, info, reader)
        self.repos = tuple(
            saved
            for folder, repo in sorted(self._repos.items())
            if (saved := self._saved(folder, repo)) is not None
        )
        if not self.repos:
            raise BackupError("neither a backup of vlmcache nor a tar of a hub cache")
        for problem in filter(None, map(restore_problem, self.repos)):
            raise BackupError(f"the tar must not be restored: {problem}")

    def _add(self, number: int, info: tarfile.TarInfo, reader: PlainReader) -> None:
        name = posixpath.normpath(info.name)
        parts = name.split("/")
        if info.issparse() or ".." in parts:
            return
        where = Where(number, info.offset_data, info.size)
        if info.isreg():
            self._files[name] = where
        elif info.type in _LINKS:
            base = posixpath.dirname(name) if info.issym() else ""
            self._links[name] = posixpath.normpath(posixpath.join(base, info.linkname))
        else:
            return
        for at, part in enumerate(parts):
            kind = layout.parse_repo_folder(part)
            below = parts[at + 1 : at + 2]
            if kind is None or not layout.is_repo_id(kind[1]) or below not in _FOLDERS:
                continue
            # If two caches in one tar have the same repo, the first one counts.
            if self._roots.setdefault(part, "/".join(parts[:at])) == "/".join(parts[:at]):
                repo = self._repos.setdefault(part, _Repo())
                self._add_to(repo, parts[at + 1 :], info, where, reader)
            return

    def _add_to(
        self,
        repo: _Repo,
        parts: list[str],
        info: tarfile.TarInfo,
        where: Where,
        reader: PlainReader,
    ) -> None:
        folder, rest = (parts or [""])[0], "/".join(parts[1:])
        if folder == layout.BLOBS and layout.is_etag(rest):
            repo.blobs[rest] = posixpath.normpath(info.name)
        elif folder == layout.REFS and rest and info.isreg():
            commit = self._content(info, _REF_LIMIT, reader).decode("ascii", "replace").strip()
            if layout.COMMIT.fullmatch(commit) is not None and layout.is_revision(rest):
                repo.refs[rest] = commit
        elif folder == layout.TREES and rest.endswith(".json") and info.isreg():
            own = rest.endswith(layout.OWN_TREE)
            commit = rest.removesuffix(layout.OWN_TREE if own else ".json")
            try:
                files = parse_listing(self._content(info, _LISTING_LIMIT, reader))
            except JSON_ERRORS:
                files = {}
            if files and layout.COMMIT.fullmatch(commit) is not None:
                repo.trees[commit] = files
        elif folder == layout.SNAPSHOTS and len(parts) > 2:
            commit, file = parts[1], "/".join(parts[2:])
            if info.issym():
                blob = info.linkname.rpartition("/")[2]
                if info.linkname == layout.link_target(blob, file.count("/")):
                    repo.links.setdefault(commit, {})[file] = blob
            elif info.isreg():
                repo.copies.setdefault(commit, {})[file] = where

    def _content(self, info: tarfile.TarInfo, limit: int, reader: PlainReader) -> bytes:
        self._read += info.size
        if info.size > limit or self._read > _LISTINGS_LIMIT:
            raise BackupError(f"too long to make sense: {short_text(info.name)}")
        return b"".join(reader.blocks(info))

    def _target(self, name: str) -> Where | None:
        """Return where the content of a member is, or of the member that a few links lead to."""
        for _ in range(4):
            if name in self._files:
                return self._files[name]
            name = self._links.get(name, "")
        return None

    def _saved(self, folder: str, repo: _Repo) -> SavedRepo | None:
        kind = layout.parse_repo_folder(folder)
        assert kind is not None
        places = {etag: where for etag, name in repo.blobs.items() if (where := self._target(name))}
        snapshots: dict[str, dict[str, str]] = {}
        for commit in sorted(repo.links.keys() | repo.copies.keys()):
            files = dict(repo.links.get(commit, {}))
            for file, where in repo.copies.get(commit, {}).items():
                # Without links, a listing is what says which content a file should have.
                listed = repo.trees.get(commit, {}).get(file)
                if listed is not None and layout.is_etag(listed.etag):
                    places.setdefault(listed.etag, where)
                    files[file] = listed.etag
            present = {file: etag for file, etag in sorted(files.items()) if etag in places}
            if present and layout.COMMIT.fullmatch(commit) is not None:
                snapshots[commit] = present
        for etag, where in places.items():
            self.where.setdefault(etag, where)
        if not snapshots:
            return None
        needed = {etag for files in snapshots.values() for etag in files.values()}
        return SavedRepo(
            *kind,
            {etag: SavedBlob(places[etag].size, etag) for etag in sorted(needed)},
            snapshots,
            {ref: commit for ref, commit in sorted(repo.refs.items()) if commit in snapshots},
            {commit: files for commit, files in repo.trees.items() if commit in snapshots},
        )
