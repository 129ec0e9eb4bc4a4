"""A store: contents by their hashes, and what each revision is made of, shared by many machines.

    vlmcache-store.json                             that it is one, and of which form
    blobs/<hh>/<hash>                               contents; hh are the first two letters
    repos/<folder>/<commit>/<sha256 of it>.json     files of a revision that some machine had
    repos/<folder>/refs/<ref>                       a commit; the ref's name percent-encoded

Nothing but a ref ever changes, and nothing is removed. A revision is the union of its manifests, so
that two machines that save different files of it at the same time need not know of each other.
Contents come first, then manifests, then refs: what is cut leaves waste, and never a lie.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import quote, unquote

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.hashing import BLOCK, new_hash
from vlmcache.cache.reading import JSON_ERRORS, open_quietly
from vlmcache.cache.state import TreeFile
from vlmcache.commands.backup.contents import SavedBlob, SavedRepo, Wishes, problem_of
from vlmcache.commands.backup.places import Place, write
from vlmcache.commands.backup.values import BackupError
from vlmcache.errors import UsageError
from vlmcache.progress import Pace
from vlmcache.threads import each

MARKER = "vlmcache-store.json"
FORMAT = "vlmcache.store/1"
BLOBS = "blobs"
REPOS = "repos"
_MARKER_LIMIT = 10_000
_MANIFEST_LIMIT = 64_000_000
_REF_LIMIT = 100
_LONGEST_NAME = 240
"""Bytes of a file's name that every filesystem takes, a temporary's ending included."""
_SMALL = 8
"""How many small things are asked for at once where that helps."""
_BLOB = re.compile(r"blobs/([0-9a-f]{2})/([0-9a-f]{40}|[0-9a-f]{64})")
_MANIFEST = re.compile(r"repos/([^/]+)/([0-9a-f]{40})/([0-9a-f]{64})\.json")
_REF = re.compile(r"repos/([^/]+)/refs/([^/]+)")

_K = TypeVar("_K")
_V = TypeVar("_V")


class StoredFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file of a revision. blob is its blob's name in a cache where that is not the hash."""

    size: int
    hash: str
    blob: str | None = None


class RevisionManifest(msgspec.Struct, frozen=True):
    """What one machine had of a revision, and the Hub's listing of it if it had that."""

    type: str
    id: str
    commit: str
    files: dict[str, StoredFile]
    tree: dict[str, TreeFile] | None

    def encode(self) -> bytes:
        """Return the bytes that are kept, the same for the same revision on every machine."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1)

    def covers(self, other: RevisionManifest) -> bool:
        """Return whether all that another one says is said here."""
        same_tree = other.tree is None or other.tree == self.tree
        return same_tree and other.files.items() <= self.files.items()


class _Marker(msgspec.Struct):
    format: str


class Upload(NamedTuple):
    """A content to be saved, and the file that has it."""

    blob: SavedBlob
    source: str


def blob_name(blob_hash: str) -> str:
    """Return where the content with a hash is kept."""
    return f"{BLOBS}/{blob_hash[:2]}/{blob_hash}"


class Store:
    """A store in some place.

    Args:
        place: where it is.
        pace: stops the work.
    """

    def __init__(self, place: Place, pace: Pace) -> None:
        self.place = place
        self.pace = pace

    def check(self) -> None:
        """Make sure that there is a store.

        Raises:
            UsageError: there is none.
            BackupError: it is one of another form.
        """
        if not self._is_marked():
            raise UsageError(f"no store of vlmcache: {self.place.shown}", f"it lacks its {MARKER}")

    def create(self) -> None:
        """Make sure that there is a store, and make one where nothing is.

        Raises:
            UsageError: something else is there.
            BackupError: it is a store of another form.
        """
        if self._is_marked():
            self.place.tidy()
            return
        # Another machine may have made it just now.
        if not self.place.is_empty() and not self._is_marked():
            raise UsageError(
                f"neither a store nor empty: {self.place.shown}", "name a new folder in it"
            )
        write(self.place, MARKER, msgspec.json.encode(_Marker(FORMAT)) + b"\n")

    def _is_marked(self) -> bool:
        content = self.place.read(MARKER, _MARKER_LIMIT)
        if content is None:
            return False
        try:
            form = msgspec.json.decode(content, type=_Marker).format
        except JSON_ERRORS as error:
            raise BackupError(f"not a store's {MARKER}: {self.place.shown}: {error}") from error
        if form != FORMAT:
            raise BackupError(f"a store of another form: {form}", "a newer vlmcache may know it")
        return True

    # What is there.

    def blobs(self) -> dict[str, int]:
        """Return hash -> length in bytes of all contents."""
        found = {}
        for name, size in self.place.names(BLOBS).items():
            match = _BLOB.fullmatch(name)
            if match is not None and match[2].startswith(match[1]):
                found[match[2]] = size
        return found

    def folders(self) -> list[str]:
        """Return the folders of the repos of which something is there."""
        matches = (_MANIFEST.fullmatch(name) for name in self.place.names(REPOS))
        return sorted({match[1] for match in matches if match is not None})

    def refs(self, folders: Collection[str]) -> dict[str, dict[str, str]]:
        """Return folder -> ref -> commit.

        Raises:
            BackupError: a ref could not be one.
        """
        names: dict[str, tuple[str, str]] = {}
        for name in self.place.names(REPOS):
            match = _REF.fullmatch(name)
            if match is not None and match[1] in folders:
                names[name] = match[1], unquote(match[2], errors="replace")
        found: dict[str, dict[str, str]] = {folder: {} for folder in folders}

        def read(name: str) -> None:
            content = self.place.read(name, _REF_LIMIT) or b""
            folder, ref = names[name]
            commit = content.decode("ascii", "replace").strip()
            if not layout.is_revision(ref) or layout.COMMIT.fullmatch(commit) is None:
                raise BackupError(f"the store is damaged: no ref: {self.place.shown}: {name}")
            found[folder][ref] = commit

        self._each(names, read)
        return {folder: dict(sorted(refs.items())) for folder, refs in found.items()}

    def manifests(self, folders: Collection[str]) -> dict[str, list[RevisionManifest]]:
        """Return folder -> what is known of its revisions, whoever saved it.

        Raises:
            BackupError: one is not what its own name and its folder's say.
        """
        names = {}
        for name, size in self.place.names(REPOS).items():
            match = _MANIFEST.fullmatch(name)
            if match is not None and match[1] in folders:
                names[name] = match
                if size > _MANIFEST_LIMIT:
                    raise BackupError(f"too long to make sense: {self.place.shown}: {name}")
        found: dict[str, RevisionManifest] = {}

        def read(name: str) -> None:
            folder, commit, digest = names[name].groups()
            content = self.place.read(name, _MANIFEST_LIMIT) or b""
            try:
                if hashlib.sha256(content).hexdigest() != digest:
                    raise ValueError("not what its hash says")
                manifest = msgspec.json.decode(content, type=RevisionManifest)
                home = layout.repo_folder(manifest.type, manifest.id)
                if (home, manifest.commit) != (folder, commit):
                    raise ValueError("of another revision")
            except (*JSON_ERRORS, ValueError) as error:
                raise BackupError(
                    f"the store is damaged: {self.place.shown}: {name}: {error}",
                    "other models can be restored by name",
                ) from error
            found[name] = manifest

        self._each(names, read)
        grouped: dict[str, list[RevisionManifest]] = {folder: [] for folder in folders}
        for name in sorted(found):
            grouped[names[name][1]].append(found[name])
        return grouped

    def _each(self, names: Iterable[str], work: Callable[[str], None]) -> None:
        count = 1 if self.place.workers == 1 else _SMALL
        each(names, work, count, self.pace)

    def repos(self, wishes: Wishes) -> list[SavedRepo]:
        """Return what is there of some repos.

        Args:
            wishes: the repos, by their folders.

        Raises:
            BackupError: it must not be restored.
        """
        # Refs first: whatever they name was there before them.
        refs = self.refs(list(wishes))
        manifests = self.manifests(list(wishes))
        found = []
        for folder in wishes:
            repo = union(manifests[folder], refs[folder])
            problem = problem_of(repo)
            if problem is not None:
                raise BackupError(
                    f"the store must not be restored: {problem}",
                    "other models can be restored by name",
                )
            found.append(repo)
        return found

    # What is added.

    def save(self, uploads: Sequence[Upload], moved: Callable[[str, int], None]) -> None:
        """Save contents, each hashed on its way.

        Args:
            uploads: the contents.
            moved: is told the sources and how many of their bytes are there.

        Raises:
            BackupError: a file is not what its hash says; nothing is there under that hash.
            OSError: a file cannot be read.
            PlaceError: the place cannot be written.
        """
        longest_first = sorted(uploads, key=lambda upload: -upload.blob.size)
        each(longest_first, lambda one: self._save(one, moved), self.place.workers, self.pace)

    def _save(self, upload: Upload, moved: Callable[[str, int], None]) -> None:
        digest = new_hash(upload.blob.hash, upload.blob.size)
        position = 0
        with (
            open(open_quietly(upload.source), "rb", buffering=0) as file,
            self.place.writing(blob_name(upload.blob.hash), upload.blob.size) as stream,
        ):
            while position <= upload.blob.size and (block := file.read(BLOCK)):
                self.pace.sleep(0)
                digest.update(block)
                stream.write(block)
                position += len(block)
                moved(upload.source, position)
            if position != upload.blob.size or digest.hexdigest() != upload.blob.hash:
                raise _damaged(upload.source)

    def is_right(self, blob: SavedBlob, moved: Callable[[int], None]) -> bool:
        """Return whether a content that is there is what its hash says: all of it is read.

        Raises:
            PlaceError: it cannot be reached.
        """
        digest = new_hash(blob.hash, blob.size)
        position = 0
        with self.place.reading(blob_name(blob.hash), blob.size) as stream:
            while block := stream.read(BLOCK):
                self.pace.sleep(0)
                digest.update(block)
                position += len(block)
                moved(position)
        return position == blob.size and digest.hexdigest() == blob.hash

    def describe(self, manifests: Iterable[RevisionManifest]) -> None:
        """Keep manifests, whose contents are all there.

        Raises:
            PlaceError: the place cannot be written.
        """
        names = {}
        for manifest in manifests:
            content = manifest.encode()
            folder = layout.repo_folder(manifest.type, manifest.id)
            digest = hashlib.sha256(content).hexdigest()
            names[f"{REPOS}/{folder}/{manifest.commit}/{digest}.json"] = content
        self._each(names, lambda name: write(self.place, name, names[name]))

    def write_ref(self, folder: str, ref: str, commit: str) -> None:
        """Let a ref name a commit, whose manifests are there.

        Raises:
            PlaceError: the place cannot be written.
        """
        write(self.place, f"{REPOS}/{folder}/refs/{_ref_name(ref)}", commit.encode() + b"\n")


def _ref_name(ref: str) -> str:
    name = quote(ref, safe="")
    if len(name) > _LONGEST_NAME:
        raise BackupError(f"the ref's name is too long for a store: {ref}")
    return name


def _damaged(path: str) -> BackupError:
    return BackupError(
        f"damaged, so the backup is not whole: {path}", "'vlmcache verify --repair' mends it"
    )


def revisions_of(repo: SavedRepo) -> list[RevisionManifest]:
    """Return the manifests of what is to be saved of a repo (pure).

    Raises:
        BackupError: a ref's name cannot be kept.
    """
    for ref in repo.refs:
        _ref_name(ref)
    found = []
    for commit, links in repo.snapshots.items():
        files = {}
        for name, blob_name in links.items():
            blob = repo.blobs[blob_name]
            foreign = None if blob_name == blob.hash else blob_name
            files[name] = StoredFile(blob.size, blob.hash, foreign)
        found.append(RevisionManifest(repo.type, repo.id, commit, files, repo.trees.get(commit)))
    return found


def union(manifests: Sequence[RevisionManifest], refs: Mapping[str, str]) -> SavedRepo:
    """Return one repo as all of its manifests together say it is (pure).

    Raises:
        BackupError: two of them contradict each other.
    """
    blobs: dict[str, SavedBlob] = {}
    snapshots: dict[str, dict[str, str]] = {}
    trees: dict[str, dict[str, TreeFile]] = {}
    repo_id = manifests[0].id
    for manifest in manifests:
        links = snapshots.setdefault(manifest.commit, {})
        for file, stored in manifest.files.items():
            name = stored.blob or stored.hash
            where = f"{repo_id}@{manifest.commit[:12]}: {file}"
            _agree(blobs, name, SavedBlob(stored.size, stored.hash), where)
            _agree(links, file, name, where)
        if manifest.tree is not None:
            where = f"{repo_id}@{manifest.commit[:12]}: the listing"
            _agree(trees, manifest.commit, manifest.tree, where)
    return SavedRepo(
        manifests[0].type,
        repo_id,
        dict(sorted(blobs.items())),
        {commit: dict(sorted(snapshots[commit].items())) for commit in sorted(snapshots)},
        dict(refs),
        {commit: trees[commit] for commit in sorted(trees)},
    )


def _agree(known: dict[_K, _V], key: _K, value: _V, where: str) -> None:
    if known.setdefault(key, value) != value:
        raise BackupError(f"two machines saved different things as {where}")


def new_manifests(
    known: Sequence[RevisionManifest], wanted: Sequence[RevisionManifest]
) -> list[RevisionManifest]:
    """Return the manifests that say more than those that are there (pure).

    Raises:
        BackupError: one contradicts what is there.
    """
    commits = {manifest.commit for manifest in wanted}
    if wanted:
        union([*(one for one in known if one.commit in commits), *wanted], {})
    return [
        manifest
        for manifest in wanted
        if not any(one.commit == manifest.commit and one.covers(manifest) for one in known)
    ]
