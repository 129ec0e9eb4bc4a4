"""The values that describe a cache as it was at one instant.

Sizes are bytes and instants are nanoseconds since the epoch (as `os.stat` gives them). `size` is
the length of the content; `allocated` is what the entry occupies on its disk, as `du` counts it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, TypeAlias, TypeVar

import msgspec

from vlmcache.cache import layout

ByteClass = Literal[
    "referenced", "detached", "orphan", "partial", "shared", "metadata", "foreign", "trash"
]
Severity = Literal["error", "warning", "info"]
State = Literal["cached", "partial", "missing", "damaged", "away"]
RevisionKey: TypeAlias = tuple[str, str, str]
"""(repo type, repo id, commit), as the journal and the trash name a revision."""
FileKind = Literal["link", "copy", "stub", "outside", "dangling", "loop", "unreadable", "gone"]
"""A stub is a file in place of a link: empty, or with the link's target as its text.

What is gone was in a base that does not have it now, or is not mounted.
"""

FileMark = tuple[int, int, int, int]
"""Device, inode, size and mtime in ns of a file, by which it is known again if it is unchanged."""

UNREADABLE = "unreadable-folder"
"""The code of the finding that it is not known what a folder holds."""


class ByClass(msgspec.Struct, frozen=True):
    """Allocated bytes of a folder, every one of them in exactly one class.

    referenced: blobs of revisions that a ref names. detached: blobs only of other revisions.
    The revisions of a repo without refs whose download is unfinished count as named.
    A blob whose link was lost counts as if it were linked: the listing of the commit names it.
    orphan: blobs that nothing needs, and leftovers of removals. partial: unfinished downloads
    and temporaries. shared: the cache-wide blob store. metadata: folders, links, refs, trees,
    locks, manifests. foreign: whatever is not the hub's. trash: what `rm` keeps in the folder.
    """

    referenced: int = 0
    detached: int = 0
    orphan: int = 0
    partial: int = 0
    shared: int = 0
    metadata: int = 0
    foreign: int = 0
    trash: int = 0

    @property
    def total(self) -> int:
        """The sum of all classes: what `du` reports."""
        return sum(msgspec.structs.astuple(self))


class Finding(msgspec.Struct, frozen=True):
    """Something worth knowing about a place in the cache.

    Errors mean that something cannot be loaded; warnings that something is wasted or odd.
    """

    code: str
    severity: Severity
    repo: str | None
    path: str
    detail: str
    remedy: str | None = None


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """What `lstat` reports of an entry: enough to see later whether it is still the same.

    allocated: of a folder whose content is of no interest, with all below it.
    """

    inode: int
    mtime_ns: int
    size: int
    allocated: int


class Blob(Stamp, frozen=True, gc=False):
    """An entry of a repo's `blobs/`: a file, or a link into the shared store."""

    name: str
    device: int
    links: int
    atime_ns: int
    shared: str | None = None
    """Hash of the shared blob that this entry links to."""
    present: bool = True
    """False if the entry is a link to nothing."""
    linked: bool = False
    """Whether the entry is a link; allocated, inode and mtime_ns are then those of the link."""
    allocated_there: int = 0
    """Bytes of the shared blob that it links to, if repo and store are on another drive."""
    damaged: bool = False
    """Whether `verify` found that its content is not what its name says."""
    base: str | None = None
    """The folder of the base that it links into: its content does not belong to this cache."""
    target: FileMark | None = None
    """The file that a link into a base leads to."""


class File(Stamp, frozen=True, gc=False):
    """A file of a snapshot. `name` is its path in the repo, with forward slashes.

    blob: the blob of the repo that it leads to; of a broken link or a stub, the one that it meant.
    """

    name: str
    kind: FileKind
    blob: str | None
    device: int
    links: int
    atime_ns: int
    damaged: bool = False
    """Whether `verify` found that its content is not what the Hub listed."""


class TreeFile(msgspec.Struct, frozen=True, gc=False):
    """What the Hub lists for one file at one commit."""

    size: int
    blob_id: str
    lfs_sha256: str | None = None
    lfs_size: int | None = None
    xet_hash: str | None = None

    @property
    def etag(self) -> str:
        """The name of the file's blob: sha256 for LFS and Xet files, git blob sha1 for others."""
        return self.lfs_sha256 or self.blob_id

    @property
    def content_size(self) -> int:
        """Length in bytes of the file itself, not of its LFS pointer."""
        return self.size if self.lfs_size is None else self.lfs_size


class Revision(msgspec.Struct, frozen=True):
    """One snapshot of a repo. `path` is the snapshot's folder."""

    commit: str
    path: str
    refs: tuple[str, ...]
    files: tuple[File, ...]
    mtime_ns: int
    tree: dict[str, TreeFile] | None = None
    """The Hub's listing at this commit, if the cache holds it."""
    linked: bool = False
    """Whether the snapshot's folder is itself a link, which is never followed."""
    entry: Stamp | None = None
    """The snapshot's folder or link itself; allocated includes its folders, not its files."""

    @property
    def here(self) -> Revision:
        """The snapshot without what is gone from a base."""
        files = tuple(file for file in self.files if file.kind != "gone")
        return self if len(files) == len(self.files) else msgspec.structs.replace(self, files=files)

    def files_of(self, kind: FileKind) -> Iterator[File]:
        """Yield its files of a kind."""
        return (file for file in self.files if file.kind == kind)

    def file_path(self, name: str) -> str:
        """Return the path of one of its files, by the file's name in the repo."""
        return layout.file_path(self.path, name)


class Partial(Stamp, frozen=True, gc=False):
    """An unfinished download. `name` is the file's name in `blobs/`."""

    name: str
    etag: str
    path: str
    locked: bool
    """Whether some process holds the hub's lock of the blob."""
    device: int = 0
    client: str | None = None
    """The other program that alone writes it; `None` for the hub's and ours."""
    damaged: bool = False
    """Whether it is known not to be a beginning of the blob."""


class Stray(Stamp, frozen=True, gc=False):
    """An entry that is not part of the layout, or a temporary that was left behind."""

    path: str
    folder: bool
    leftover: bool = False
    """Whether the hub's libraries or vlmcache itself left it behind."""
    device: int = 0


class Leftover(msgspec.Struct, frozen=True):
    """What an interrupted removal has taken out of one repo and not yet unlinked.

    Its folder below `.vlmcache-leftovers/` mirrors the repo's, and so shows what was to be
    removed: refs (name -> commit), snapshots (commits), the blobs that these link to, and
    shared blobs.
    """

    path: str
    repo_folder: str
    whole: bool
    """Whether it was the complete repo."""
    refs: dict[str, str]
    commits: tuple[str, ...]
    blobs: tuple[str, ...]
    shared: tuple[str, ...]
    entry: Stamp


class LockFolder(msgspec.Struct, frozen=True):
    """The hub's locks of one repo: `.locks/<repo folder>/<etag>.lock`, held or not."""

    path: str
    entry: Stamp
    files: dict[str, Stamp]
    """File name -> its stamp."""
    other: int = 0
    """Entries that are not lock files."""


class Drive(msgspec.Struct, frozen=True):
    """A mounted filesystem, by what identifies it."""

    mount_point: str
    type: str
    """As the system names it: `ext4`, `nfs4`."""
    source: str
    """The device or address that it was mounted from."""
    uuid: str | None = None
    """`None` if it has none, as in memory and on a network."""


class Away(msgspec.Struct, frozen=True):
    """Where a repo is whose link leads to a drive that is not mounted."""

    destination: str
    """The folder to which `move` took it, as its link says."""
    drive: Drive | None = None
    """`None` if the move did not record it."""
    found_at: str | None = None
    """Where that folder is now, if the same filesystem is mounted elsewhere."""
    base: bool = False
    """Whether this is a base to which `attach` has linked, and not a place of moved repos."""


class Repo(msgspec.Struct, frozen=True):
    """A repo's folder and everything in it."""

    id: str
    type: str
    folder: str
    path: str
    refs: dict[str, str]
    """Ref name -> commit, for every ref that names one."""
    revisions: tuple[Revision, ...]
    blobs: dict[str, Blob]
    partials: tuple[Partial, ...]
    strays: tuple[Stray, ...]
    by_class: ByClass
    findings: tuple[Finding, ...]
    linked_to: str | None = None
    """Where the folder is, if it is a link to another place."""
    moved_to: str | None = None
    """The destination's folder, if `vlmcache move` left the link."""
    moved_at: tuple[int, int] | None = None
    """Device and inode of that folder when the note of the move was read in it."""
    away: Away | None = None
    """Where it is, if `vlmcache move` left the link and that drive is not mounted."""
    record: Stamp | None = None
    """The file in which `vlmcache move` recorded where a linked repo went, or noted where this one
    came from."""
    base_record: Stamp | None = None
    """The file in which `vlmcache attach` recorded the bases that its blobs lead into."""
    bases: tuple[str, ...] = ()
    """The folders of these bases."""
    base_refs: dict[str, str] = msgspec.field(default_factory=dict)
    """Ref -> the commit that it named in a base when `attach` wrote it here."""
    entry: Stamp | None = None
    """The folder, or the link, itself."""
    ref_files: dict[str, Stamp] = msgspec.field(default_factory=dict)
    """Ref name -> its file, even if it names no commit."""
    ref_folders: dict[str, Stamp] = msgspec.field(default_factory=dict)
    """Folder below `refs/` -> its stamp: `refs/pr` of the ref `refs/pr/1`."""
    tree_files: dict[str, Stamp] = msgspec.field(default_factory=dict)
    """Commit -> the file of the Hub's listing."""
    own_trees: frozenset[str] = frozenset()
    """Commits whose listing has a name that the client does not read."""
    no_exist: dict[str, Stamp] = msgspec.field(default_factory=dict)
    """Commit -> the folder of names that the Hub is known not to have."""
    trees: dict[str, dict[str, TreeFile]] = msgspec.field(default_factory=dict)
    """Commit -> the Hub's listing, even if there is no snapshot of it."""

    @property
    def size_on_disk(self) -> int:
        """What `du` reports for the folder, or for the folder that the link leads to."""
        return self.by_class.total

    @property
    def home(self) -> str:
        """Where the folder really is: elsewhere, if the repo was moved."""
        return self.linked_to or self.path

    def blob_path(self, name: str) -> str:
        """Return the path of a blob, below the repo's place in the cache."""
        return layout.blob_path(self.path, name)

    def ref_path(self, ref: str) -> str:
        """Return the path of a ref, below the repo's place in the cache."""
        return layout.ref_path(self.path, ref)

    def tree_path(self, commit: str) -> str:
        """Return the path of the Hub's listing of a commit, below the repo's place in the cache."""
        return layout.tree_path(self.path, commit, own=commit in self.own_trees)

    def no_exist_path(self, commit: str) -> str:
        """Return the path of the folder of names that the Hub does not have at a commit."""
        return os.path.join(self.path, layout.NO_EXIST, commit)

    @property
    def attached_to(self) -> tuple[str, ...]:
        """The folders of the bases that blobs of it are links into."""
        return tuple(sorted({blob.base for blob in self.blobs.values() if blob.base is not None}))

    @property
    def size(self) -> int:
        """Length of all blobs, shared ones included, and of copied files."""
        sizes = [blob.size for blob in self.blobs.values()]
        for revision in self.revisions:
            sizes += [
                file.size for file in revision.files if file.kind == "copy" and file.links == 1
            ]
        return sum(sizes)

    def blob_users(self) -> dict[str, set[tuple[str, str]]]:
        """Return blob name -> (commit, file name) of all links to it, symbolic or hard."""
        inodes = {
            (blob.device, blob.inode): blob.name for blob in self.blobs.values() if blob.links > 1
        }
        users: dict[str, set[tuple[str, str]]] = {name: set() for name in self.blobs}
        for revision in self.revisions:
            for file in revision.files:
                name = file.blob
                if name is None and file.links > 1:
                    name = inodes.get((file.device, file.inode))
                if name is not None and name in users:
                    users[name].add((revision.commit, file.name))
        return users

    def holds(self, listed: TreeFile) -> bool:
        """Return whether a listed file's content is here, linked or not, by its size."""
        blob = self.blobs.get(listed.etag)
        sound = blob is not None and blob.present and not blob.damaged
        return sound and blob is not None and blob.size == listed.content_size

    def lost_names(self, commit: str) -> set[str]:
        """Return the files of a commit's listing whose content is here without any link to it.

        There are none if a folder could not be read: then the links are not known.
        """
        tree = self.trees.get(commit, {})
        revision = self.revision(commit)
        linked = {file.name for file in revision.files} if revision is not None else set()
        present = [name for name in tree if name not in linked and self.holds(tree[name])]
        if not present or any(finding.code == UNREADABLE for finding in self.findings):
            return set()
        users = self.blob_users()
        return {name for name in present if not users[tree[name].etag]}

    def revision(self, commit: str) -> Revision | None:
        """Return the snapshot of a commit, or `None`."""
        return next((revision for revision in self.revisions if revision.commit == commit), None)


class SharedBlob(Stamp, frozen=True, gc=False):
    """A file of the cache-wide blob store."""

    hash: str
    path: str
    device: int
    links: int
    manifest: bool
    """Whether the manifest of its references exists."""
    users: tuple[str, ...] = ()
    """Repo blobs that link to it, as `<repo folder>/blobs/<etag>`."""
    manifest_allocated: int = 0
    damaged: bool = False
    """Whether `verify` found that its content is not what a repo expects."""


class Lent(msgspec.Struct, frozen=True, gc=False):
    """Content that a base has, and that a blob of a cache may link to."""

    base: str
    """The folder of the base."""
    path: str
    """The file in the base: a blob of the same repo, or one of its shared store."""
    device: int
    inode: int
    size: int
    mtime_ns: int


class CacheState(msgspec.Struct, frozen=True):
    """A complete cache folder at one instant."""

    dir: str
    exists: bool
    repos: tuple[Repo, ...]
    shared: dict[str, SharedBlob]
    shared_marked: bool
    strays: tuple[Stray, ...]
    by_class: ByClass
    findings: tuple[Finding, ...]
    scanned_at: float
    """Seconds since the epoch."""
    locks: dict[str, LockFolder] = msgspec.field(default_factory=dict)
    """Repo folder -> its locks, even if the repo is gone."""
    leftovers: tuple[Leftover, ...] = ()
    outside: dict[str, str] = msgspec.field(default_factory=dict)
    """Path that a link of a repo leads to or through, outside that repo -> the repo's folder."""
    lent: dict[tuple[str, str], Lent] = msgspec.field(default_factory=dict)
    """(Repo folder, blob), or ("", Xet hash) of a shared store -> where a base has the content.

    It is filled only if the bases were read."""
    trashed: dict[tuple[str, str], int] = msgspec.field(default_factory=dict)
    """(Repo folder, blob) -> its length in the trash, from which a pull takes it back.

    It is filled only if the trash was read."""

    @property
    def size_on_disk(self) -> int:
        """What `du` reports for the folder."""
        return self.by_class.total

    def all_findings(self) -> Iterator[Finding]:
        """Yield the findings of the cache itself, then those of each repo."""
        yield from self.findings
        for repo in self.repos:
            yield from repo.findings

    def with_damage(self, damaged: Collection[FileMark]) -> CacheState:
        """Return the cache with those files marked that were found damaged and are unchanged.

        Args:
            damaged: the files that `verify` found damaged.
        """
        if not damaged:
            return self
        shared = {name: _marked(blob, damaged) for name, blob in self.shared.items()}
        repos = tuple(_with_damage(repo, shared, damaged) for repo in self.repos)
        return msgspec.structs.replace(self, shared=shared, repos=repos)

    def shares(self, repo: Repo | None, listed: TreeFile) -> bool:
        """Return whether the shared store has a listed file's content, for a repo to link to."""
        if not self.shared_marked or (repo is not None and repo.linked_to is not None):
            return False
        shared = self.shared.get(listed.xet_hash or "")
        sound = shared is not None and not shared.damaged
        return sound and shared is not None and shared.size == listed.content_size

    def lends(self, folder: str, listed: TreeFile) -> Lent | None:
        """Return where a base has a listed file's content, for a repo to link to."""
        repo = self.repo_in(folder) if self.lent else None
        if not self.lent or (repo is not None and repo.linked_to is not None):
            return None
        lent = self.lent.get((folder, listed.etag))
        if lent is None and listed.xet_hash:
            lent = self.lent.get(("", listed.xet_hash))
        return lent if lent is not None and lent.size == listed.content_size else None

    def takes_back(self, folder: str, listed: TreeFile) -> bool:
        """Return whether a pull takes a listed file's content back from the trash."""
        return self.trashed.get((folder, listed.etag)) == listed.content_size

    def repo_in(self, folder: str | None) -> Repo | None:
        """Return the repo with a folder's name, or `None`."""
        return next((repo for repo in self.repos if repo.folder == folder), None)

    def repo(self, name: str, kind: str | None = None) -> Repo | None:
        """Return the only repo that a name can mean, or `None`; see `repos_called`."""
        repos = self.repos_called(name, kind)
        return repos[0] if len(repos) == 1 else None

    def repos_called(self, name: str, kind: str | None = None) -> tuple[Repo, ...]:
        """Return the repo of a name, or else all that differ from it by case only, as on the Hub.

        Args:
            name: what is typed for it, such as `datasets/owner/name`; its id if a type is given.
            kind: its type.
        """
        kind, repo_id = layout.split_name(name) if kind is None else (kind, name)
        folded = repo_id.casefold()
        alike = [repo for repo in self.repos if repo.type == kind and repo.id.casefold() == folded]
        return tuple([repo for repo in alike if repo.id == repo_id] or alike)


_Content = TypeVar("_Content", Blob, File, Partial, SharedBlob)


def _marked(content: _Content, damaged: Collection[FileMark]) -> _Content:
    """Return a file, marked if it is one of those that were found damaged."""
    mark = (content.device, content.inode, content.size, content.mtime_ns)
    if isinstance(content, Blob):
        mark = content.target or mark
    if mark not in damaged:
        return content
    return msgspec.structs.replace(content, damaged=True)


def _with_damage(
    repo: Repo, shared: Mapping[str, SharedBlob], damaged: Collection[FileMark]
) -> Repo:
    """Return a repo with its damaged files marked; the same object if there are none."""
    blobs = {name: _marked(blob, damaged) for name, blob in repo.blobs.items()}
    for name, blob in repo.blobs.items():
        content = shared.get(blob.shared or "")
        if content is not None and content.damaged:
            blobs[name] = msgspec.structs.replace(blob, damaged=True)
    bad = {name for name, blob in blobs.items() if blob.damaged}
    partials = tuple(_marked(partial, damaged) for partial in repo.partials)
    revisions = []
    any_damaged = bool(bad) or any(partial.damaged for partial in partials)
    for revision in repo.revisions:
        files = tuple(
            msgspec.structs.replace(file, damaged=True)
            if file.blob in bad
            else _marked(file, damaged)
            for file in revision.files
        )
        any_damaged = any_damaged or any(file.damaged for file in files)
        revisions.append(msgspec.structs.replace(revision, files=files))
    if not any_damaged:
        return repo
    return msgspec.structs.replace(repo, blobs=blobs, revisions=tuple(revisions), partials=partials)
