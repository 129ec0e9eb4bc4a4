"""A store: contents by their hashes, and the files of each revision, shared by many machines.

    vlmcache-store.json                             marks a store, and names its form
    blobs/<hh>/<hash>                               contents; hh is the beginning of the hash
    repos/<folder>/<commit>/<sha256 of it>.json     files of a revision that some machine had
    repos/<folder>/refs/<ref>                       a commit; the ref's name percent-encoded

Nothing but a ref ever changes, and nothing is removed. A revision is the union of its manifests, so
that two machines can save different files of it at the same time without knowing of each other.
Contents come first, then manifests, then refs: an interrupted backup leaves waste, but no error.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.hashing import BLOCK, Opener, new_hash
from vlmcache.cache.reading import JSON_ERRORS
from vlmcache.cache.state import TreeFile
from vlmcache.commands.backup.contents import (
    RestoreSelection,
    SavedBlob,
    SavedRepo,
    restore_problem,
)
from vlmcache.commands.backup.nearby import backups_near
from vlmcache.commands.backup.places import Folder
from vlmcache.commands.backup.remote import Place
from vlmcache.commands.backup.values import MARKER, BackupError, damaged
from vlmcache.errors import UsageError, reason_of
from vlmcache.progress import StopToken
from vlmcache.threads import each
from vlmcache.units import shell_words

FORMAT = "vlmcache.store/1"
BLOBS = "blobs"
REPOS = "repos"
_MARKER_LIMIT = 10_000
_MANIFEST_LIMIT = 64_000_000
_MANIFESTS_LIMIT = 1_000_000_000
"""Bytes of all manifests that are read at once."""
_REF_LIMIT = 100
_LONGEST_NAME = 240
"""Bytes of a file's name that every filesystem takes, a temporary's ending included."""
_SMALL = 8
"""How many small files are read or written at once, if the place can do several."""
_BLOB = re.compile(r"blobs/([0-9a-f]{2})/(\1(?:[0-9a-f]{38}|[0-9a-f]{62}))")
_MANIFEST = re.compile(r"repos/([^/]+)/([0-9a-f]{40})/([0-9a-f]{64})\.json")
_REF = re.compile(r"repos/([^/]+)/refs/([^/]+)")


class StoredFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file of a revision."""

    size: int
    hash: str
    blob: str | None = None
    """The name of its blob in a cache, if that is not the hash."""


class RevisionManifest(msgspec.Struct, frozen=True):
    """The files of a revision that one machine had."""

    type: str
    id: str
    commit: str
    files: dict[str, StoredFile]
    """File name -> file."""
    tree: dict[str, TreeFile] | None
    """The Hub's listing of the revision, if the machine had it."""

    def encode(self) -> bytes:
        """Return the bytes that are stored, which are the same on every machine."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1)

    @property
    def folder(self) -> str:
        """The name of the repo's folder in a cache."""
        return layout.repo_folder(self.type, self.id)

    def covers(self, other: RevisionManifest) -> bool:
        """Return whether this one holds everything that another one does."""
        same_tree = other.tree is None or other.tree == self.tree
        return same_tree and other.files.items() <= self.files.items()


class _Marker(msgspec.Struct):
    format: str


class Upload(NamedTuple):
    """A content to be saved, and a file that has it."""

    blob: SavedBlob
    source: str
    opener: Opener


def blob_name(blob_hash: str) -> str:
    """Return the name under which the content with a hash is stored."""
    return f"{BLOBS}/{blob_hash[:2]}/{blob_hash}"


class Store:
    """A store in some place.

    Args:
        place: the place that it is in.
        stop_token: stops the work.
    """

    def __init__(self, place: Place, stop_token: StopToken) -> None:
        self.place = place
        self.stop_token = stop_token

    def check(self) -> None:
        """Make sure that the place holds a store.

        Raises:
            UsageError: it does not.
            BackupError: the store is of another form.
        """
        if not self._is_marked():
            near = None
            if isinstance(self.place, Folder):
                near = backups_near(self.place.shown)
            raise UsageError(
                f"not a store of vlmcache: {self.place.shown}", near or f"{MARKER} is missing"
            )

    def create(self, *, dry_run: bool) -> None:
        """Make sure that the place holds a store; make one if the place is empty.

        Args:
            dry_run: write nothing.

        Raises:
            UsageError: the place holds something else.
            BackupError: the store is of another form.
        """
        if self._is_marked():
            if not dry_run:
                self.place.tidy()
            return
        # Another machine may have made the store in between.
        if not self.place.is_empty() and not self._is_marked():
            inside = shell_words(f"{self.place.shown.rstrip('/')}/vlmcache/")
            raise UsageError(
                f"neither a store nor empty: {self.place.shown}",
                f"name a new folder in it, such as {inside}",
            )
        if not dry_run:
            self._write(MARKER, msgspec.json.encode(_Marker(FORMAT)) + b"\n")

    def _is_marked(self) -> bool:
        content = self.place.read(MARKER, _MARKER_LIMIT)
        if content is None:
            return False
        try:
            form = msgspec.json.decode(content, type=_Marker).format
        except JSON_ERRORS as error:
            raise BackupError(
                f"not a store's {MARKER}: {self.place.shown}: {reason_of(error)}"
            ) from error
        if form != FORMAT:
            raise BackupError(f"a store of another form: {form}", "a newer vlmcache may know it")
        return True

    # Reading.

    def _files(self, folder: str, form: re.Pattern[str]) -> Iterator[tuple[re.Match[str], int]]:
        """Yield the name, matched, and the length of each file of a form below a folder."""
        for name, size in self.place.names(folder).items():
            match = form.fullmatch(name)
            if match is not None:
                yield match, size

    def blobs(self) -> dict[str, int]:
        """Return hash -> length in bytes of all contents."""
        return {match[2]: size for match, size in self._files(BLOBS, _BLOB)}

    def folders(self) -> list[str]:
        """Return the folders of the repos in the store."""
        return sorted({match[1] for match, _ in self._files(REPOS, _MANIFEST)})

    def refs(self, folders: Collection[str]) -> dict[str, dict[str, str]]:
        """Return folder -> ref -> commit.

        Raises:
            BackupError: a ref is damaged.
        """
        names = {
            match.string: (match[1], unquote(match[2], errors="replace"))
            for match, _ in self._files(REPOS, _REF)
            if match[1] in folders
        }
        by_folder: dict[str, dict[str, str]] = {folder: {} for folder in folders}

        def read(name: str) -> None:
            content = self.place.read(name, _REF_LIMIT) or b""
            folder, ref = names[name]
            commit = content.decode("ascii", "replace").strip()
            if not layout.is_revision(ref) or layout.COMMIT.fullmatch(commit) is None:
                raise BackupError(f"the store is damaged: not a ref: {self.place.shown}: {name}")
            by_folder[folder][ref] = commit

        self._each(names, read)
        return {folder: dict(sorted(refs.items())) for folder, refs in by_folder.items()}

    def manifests(self, folders: Collection[str]) -> dict[str, list[RevisionManifest]]:
        """Return folder -> the manifests of its revisions.

        Raises:
            BackupError: one does not match its own name and its folder's.
        """
        names = {}
        total = 0
        for match, size in self._files(REPOS, _MANIFEST):
            if match[1] in folders:
                names[match.string] = match
                total += size
                if size > _MANIFEST_LIMIT or total > _MANIFESTS_LIMIT:
                    kind = "a manifest" if size > _MANIFEST_LIMIT else "manifests, with the others"
                    raise BackupError(f"too long for {kind}: {self.place.shown}: {match.string}")
        manifests: dict[str, RevisionManifest] = {}

        def read(name: str) -> None:
            folder, commit, digest = names[name].groups()
            content = self.place.read(name, _MANIFEST_LIMIT) or b""
            try:
                if hashlib.sha256(content).hexdigest() != digest:
                    raise ValueError("not what its hash says")
                manifest = msgspec.json.decode(content, type=RevisionManifest)
                if (manifest.folder, manifest.commit) != (folder, commit):
                    raise ValueError("of another revision")
            except (*JSON_ERRORS, ValueError) as error:
                raise BackupError(
                    f"the store is damaged: {self.place.shown}: {name}: {reason_of(error)}",
                    "other models can be restored by name",
                ) from error
            manifests[name] = manifest

        self._each(names, read)
        grouped: dict[str, list[RevisionManifest]] = {folder: [] for folder in folders}
        for name, manifest in sorted(manifests.items()):
            grouped[names[name][1]].append(manifest)
        return grouped

    def _each(self, names: Iterable[str], work: Callable[[str], None]) -> None:
        each(names, work, 1 if self.place.workers == 1 else _SMALL, self.stop_token)

    def repos(self, selection: RestoreSelection) -> list[SavedRepo]:
        """Return some repos as they are in the store.

        Args:
            selection: the repos, by their folders.

        Raises:
            BackupError: one must not be restored.
        """
        # Refs first: the manifests of their commits were there before them.
        refs = self.refs(list(selection))
        manifests = self.manifests(list(selection))
        repos = [union(manifests[folder], refs[folder]) for folder in selection]
        for problem in filter(None, map(restore_problem, repos)):
            raise BackupError(
                f"the store must not be restored: {problem}",
                "other models can be restored by name",
            )
        return repos

    # Adding.

    def save(self, uploads: Sequence[Upload], moved: Callable[[str, int], None]) -> None:
        """Save contents, each of which is hashed on the way.

        Args:
            uploads: the contents.
            moved: is called with paths of sources and how many of their bytes were saved.

        Raises:
            BackupError: a file is not what its hash says; nothing is saved under that hash.
            OSError: a file cannot be read.
            PlaceError: the place cannot be written.
        """

        def save(upload: Upload) -> None:
            blob = upload.blob
            with (
                os.fdopen(upload.opener(upload.source), "rb", buffering=0) as file,
                self.place.writing(blob_name(blob.hash), blob.size) as stream,
            ):
                if not self._is_good(file, blob, partial(moved, upload.source), stream):
                    raise damaged(upload.source)

        longest_first = sorted(uploads, key=lambda upload: -upload.blob.size)
        each(longest_first, save, self.place.workers, self.stop_token)

    def is_good(self, blob: SavedBlob, moved: Callable[[int], None]) -> bool:
        """Return whether a stored content is what its hash says; all of it is read.

        Raises:
            PlaceError: it cannot be reached.
        """
        with self.place.reading(blob_name(blob.hash), blob.size) as stream:
            return self._is_good(stream, blob, moved)

    def _is_good(
        self,
        source: IO[bytes],
        blob: SavedBlob,
        moved: Callable[[int], None],
        copy: IO[bytes] | None = None,
    ) -> bool:
        """Return whether a source's content is what the hash says, and write it to a copy."""
        digest = new_hash(blob.hash, blob.size)
        position = 0
        # A file that grows as fast as it is read would never end.
        while position <= blob.size and (block := source.read(BLOCK)):
            self.stop_token.check()
            digest.update(block)
            if copy is not None:
                copy.write(block)
            position += len(block)
            moved(position)
        return position == blob.size and digest.hexdigest() == blob.hash

    def describe(self, manifests: Iterable[RevisionManifest]) -> None:
        """Write manifests whose contents are all in the store.

        Raises:
            PlaceError: the place cannot be written.
        """
        names = {}
        for manifest in manifests:
            content = manifest.encode()
            digest = hashlib.sha256(content).hexdigest()
            names[f"{REPOS}/{manifest.folder}/{manifest.commit}/{digest}.json"] = content
        self._each(names, lambda name: self._write(name, names[name]))

    def _write(self, name: str, content: bytes) -> None:
        with self.place.writing(name, len(content)) as stream:
            stream.write(content)

    def write_ref(self, folder: str, ref: str, commit: str) -> None:
        """Let a ref name a commit whose manifests are in the store.

        Raises:
            PlaceError: the place cannot be written.
        """
        self._write(_ref_path(folder, ref), commit.encode() + b"\n")


def _ref_path(folder: str, ref: str) -> str:
    name = quote(ref, safe="")
    if len(name) > _LONGEST_NAME:
        raise BackupError(f"the ref's name is too long for a store: {ref}")
    return f"{REPOS}/{folder}/refs/{name}"


def ref_names(repos: Iterable[SavedRepo]) -> list[str]:
    """Return the names of the refs of repos in a store: the only names in it that others choose.

    Raises:
        BackupError: a ref's name is too long.
    """
    return [_ref_path(repo.folder, ref) for repo in repos for ref in repo.refs]


def revisions_of(repo: SavedRepo) -> list[RevisionManifest]:
    """Return the manifests of the revisions of a repo that is to be saved (pure).

    Raises:
        BackupError: a ref's name is too long.
    """
    ref_names([repo])
    stored = {
        name: StoredFile(blob.size, blob.hash, None if name == blob.hash else name)
        for name, blob in repo.blobs.items()
    }
    return [
        RevisionManifest(
            repo.type,
            repo.id,
            commit,
            {file: stored[name] for file, name in links.items()},
            repo.trees.get(commit),
        )
        for commit, links in repo.snapshots.items()
    ]


def union(manifests: Sequence[RevisionManifest], refs: Mapping[str, str]) -> SavedRepo:
    """Return a repo with the files of all its manifests (pure).

    Args:
        manifests: the repo's manifests, at least one.
        refs: the repo's refs.

    Raises:
        BackupError: two manifests contradict each other.
    """
    blobs: dict[str, SavedBlob] = {}
    snapshots: dict[str, dict[str, str]] = {}
    trees: dict[str, dict[str, TreeFile]] = {}
    for manifest in manifests:
        links = snapshots.setdefault(manifest.commit, {})
        where = f"{manifest.id}@{manifest.commit[:12]}"
        for file, stored in manifest.files.items():
            name = stored.blob or stored.hash
            _agree(blobs, name, SavedBlob(stored.size, stored.hash), f"{where}: {file}")
            _agree(links, file, name, f"{where}: {file}")
        if manifest.tree is not None:
            _agree(trees, manifest.commit, manifest.tree, f"{where}: the listing")
    return SavedRepo(
        manifests[0].type,
        manifests[0].id,
        dict(sorted(blobs.items())),
        {commit: dict(sorted(snapshots[commit].items())) for commit in sorted(snapshots)},
        dict(refs),
        {commit: trees[commit] for commit in sorted(trees)},
    )


def _agree(known: dict[str, Any], key: str, value: object, where: str) -> None:
    if known.setdefault(key, value) != value:
        raise BackupError(f"two machines saved different contents as {where}")


def new_manifests(
    known: Sequence[RevisionManifest], wanted: Sequence[RevisionManifest]
) -> list[RevisionManifest]:
    """Return the manifests that hold more than those of the store (pure).

    Raises:
        BackupError: one contradicts the store.
    """
    if wanted:
        commits = {manifest.commit for manifest in wanted}
        union([*(manifest for manifest in known if manifest.commit in commits), *wanted], {})
    return [
        manifest
        for manifest in wanted
        if not any(old.commit == manifest.commit and old.covers(manifest) for old in known)
    ]
