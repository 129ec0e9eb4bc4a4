"""What one repo's folder holds."""

from __future__ import annotations

import errno
import os
import stat as modes
import time
from collections.abc import Collection, Iterable

import msgspec

from vlmcache import units
from vlmcache.cache import formats, layout
from vlmcache.cache.entries import (
    REF_LIMIT,
    TREE_LIMIT,
    Listed,
    Notes,
    Tally,
    add_below,
    add_stray,
    allocated_bytes,
    entry_of,
    is_left_behind,
    is_stale,
    read_entries,
    read_link,
    read_links,
)
from vlmcache.cache.moved import destination_of, find_away, record_path
from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.cache.state import (
    Blob,
    ByteClass,
    Entry,
    File,
    FileKind,
    Partial,
    Repo,
    Revision,
    SharedBlob,
    TreeFile,
)
from vlmcache.cache.usage import lock_held

_NEVER_EMPTY = (".json", ".safetensors", ".gguf", ".bin")
"""Endings of a model's files that make no sense without content."""
_LONGEST_STUB = 512
_IN_THE_WAY = "a folder in the place of a file of the model"
"""Bytes beyond which no file is taken for the text of a link."""


class _TreeDocument(msgspec.Struct):
    format_version: int
    files: dict[str, TreeFile]


_TREE_DECODER = msgspec.json.Decoder(_TreeDocument)


def _record_of(cache_dir: str, folder: str) -> Entry | None:
    """Return the file that records where a repo went, whoever wrote it; `None` if there is none."""
    try:
        stat = os.lstat(record_path(cache_dir, folder))
    except OSError:
        return None
    return entry_of(stat) if modes.S_ISREG(stat.st_mode) else None


class RepoScan:
    """The scan of one repo's folder; `run` returns the `Repo`."""

    def __init__(
        self,
        path: str,
        folder: str,
        kind: str,
        repo_id: str,
        cache_dir: str,
        shared: dict[str, SharedBlob],
        linked_to: str | None,
    ) -> None:
        self.path = path
        self.folder = folder
        self.kind = kind
        self.id = repo_id
        self.locks = os.path.join(cache_dir, layout.LOCKS, folder)
        self.shared = shared
        self.linked_to = linked_to
        linked = linked_to is not None
        self.moved_to = destination_of(cache_dir, folder) if linked else None
        self.away = find_away(cache_dir, folder) if linked and not os.path.isdir(path) else None
        self.record = _record_of(cache_dir, folder) if linked else None
        self.tally = Tally()
        self.notes = Notes(repo_id)
        self.blobs: dict[str, Blob] = {}
        self.linked_blobs: set[str] = set()
        self.unknown: dict[str, Listed] = {}
        """Entries of `blobs/` that count as blobs only if something says that they are."""
        self.partials: list[Partial] = []
        self.refs: dict[str, str] = {}
        self.trees: dict[str, dict[str, TreeFile]] = {}
        self.entry: Entry | None = None
        self.ref_files: dict[str, Entry] = {}
        self.ref_folders: dict[str, Entry] = {}
        self.tree_files: dict[str, Entry] = {}
        self.no_exist: dict[str, Entry] = {}
        self.pull: str | None = None
        if layout.is_repo_id(repo_id):
            self.pull = units.of_other_type(kind, repo_id)
        self.repair = self.pull
        if kind == "model" and self.pull is not None:
            self.pull = units.command("pull", repo_id)
            self.repair = units.command("verify", repo_id, "--repair")

    def run(self, now: float) -> Repo:
        """Read the repo's folder and return what it holds."""
        folders: dict[str, os.DirEntry[str]] = {}
        for entry, stat in read_entries(self.path, self.notes):
            name = entry.name
            if name in (layout.BLOBS, layout.SNAPSHOTS, layout.REFS, layout.TREES, layout.NO_EXIST):
                if modes.S_ISDIR(stat.st_mode):
                    self.tally.add("metadata", stat)
                    folders[name] = entry
                else:
                    add_stray(
                        entry, stat, self.tally, self.notes, detail="a folder belongs in its place"
                    )
            else:
                add_stray(entry, stat, self.tally, self.notes)
        if layout.BLOBS in folders:
            self._read_blobs(folders[layout.BLOBS].path)
        if layout.REFS in folders:
            self._read_refs(folders[layout.REFS].path)
        if layout.TREES in folders:
            self._read_trees(folders[layout.TREES].path)
        if layout.NO_EXIST in folders:
            self._read_no_exist(folders[layout.NO_EXIST].path)
        if layout.SNAPSHOTS in folders:
            revisions = self._read_snapshots(folders[layout.SNAPSHOTS].path)
        else:
            revisions = []
            if self.notes.could_read(self.path):
                self.notes.error(
                    "missing-snapshots",
                    self.path,
                    "the repo has no snapshots folder: nothing of it can be loaded",
                    self._remedy(*self.refs.values()),
                )
        self._check_refs(revisions)
        self._check_sizes(revisions)
        self._classify_blobs(revisions)
        self._judge_partials(now)
        return self._repo(revisions)

    def _remedy(self, *commits: str, name: str | None = None) -> str | None:
        """Return what brings commits, or one file of a commit, back.

        A repair, which needs no network, where the content is here and only links are not; or where
        the hub does not list the file, so that no download could bring it.
        """
        for commit in commits:
            tree = self.trees.get(commit, {})
            names = formats.wanted(tree) if name is None else {name}
            if names and tree and all(one not in tree or self._holds(tree[one]) for one in names):
                return self.repair
        return self.pull

    def _holds(self, listed: TreeFile) -> bool:
        blob = self.blobs.get(listed.etag)
        return blob is not None and blob.present and blob.size == listed.content_size

    def nothing(self) -> Repo:
        """A repo whose folder is a link to a place that is not there."""
        return self._repo([])

    def _repo(self, revisions: list[Revision]) -> Repo:
        return Repo(
            id=self.id,
            type=self.kind,
            folder=self.folder,
            path=self.path,
            refs=self.refs,
            revisions=tuple(revisions),
            blobs=self.blobs,
            partials=tuple(self.partials),
            strays=tuple(self.notes.strays),
            by_class=self.tally.by_class(),
            findings=tuple(self.notes.findings),
            linked_to=self.linked_to,
            moved_to=self.moved_to,
            away=self.away,
            record=self.record,
            entry=self.entry,
            ref_files=self.ref_files,
            ref_folders=self.ref_folders,
            tree_files=self.tree_files,
            no_exist=self.no_exist,
            trees=self.trees,
        )

    def _read_no_exist(self, path: str) -> None:
        for entry, stat in read_entries(path, self.notes):
            self.tally.add("metadata", stat)
            if modes.S_ISDIR(stat.st_mode):
                below, _ = add_below(entry.path, "metadata", self.tally, self.notes)
                self.no_exist[entry.name] = entry_of(stat, below)

    def _read_blobs(self, path: str) -> None:
        for entry, stat in read_entries(path, self.notes):
            name, mode = entry.name, stat.st_mode
            # Nearly every blob's name is a hash and nothing more, which needs no closer look.
            plain = name.isalnum()
            if modes.S_ISLNK(mode):
                self._read_linked_blob(entry, stat)
            elif not modes.S_ISREG(mode):
                add_stray(entry, stat, self.tally, self.notes)
            elif not plain and (etag := layout.partial_etag(name)) is not None:
                self._read_partial(entry, stat, etag)
            elif not plain and layout.is_temporary(name):
                add_stray(entry, stat, self.tally, self.notes)
            elif not plain and layout.is_blob_lock(name):
                self.tally.add("metadata", stat)
            else:
                if not layout.is_etag(name):
                    self.unknown[name] = entry, stat
                self.blobs[name] = Blob(
                    name,
                    stat.st_size,
                    allocated_bytes(stat),
                    stat.st_ino,
                    stat.st_dev,
                    stat.st_nlink,
                    stat.st_mtime_ns,
                    stat.st_atime_ns,
                )

    def _read_partial(self, entry: os.DirEntry[str], stat: os.stat_result, etag: str) -> None:
        self.partials.append(
            Partial(
                entry.name,
                etag,
                entry.path,
                stat.st_size,
                self.tally.add("partial", stat),
                stat.st_ino,
                stat.st_mtime_ns,
                any(
                    lock_held(os.path.join(folder, etag + layout.LOCK_SUFFIX))
                    for folder in (self.locks, os.path.dirname(entry.path))
                ),
                stat.st_dev,
                layout.partial_client(entry.name),
            )
        )

    def _read_linked_blob(self, entry: os.DirEntry[str], stat: os.stat_result) -> None:
        """A blob that is a link: into the shared store, or to anywhere."""
        if layout.is_temporary(entry.name):
            add_stray(entry, stat, self.tally, self.notes)
            return
        if not layout.is_etag(entry.name):
            self.unknown[entry.name] = entry, stat
        self.tally.add("metadata", stat)
        self.linked_blobs.add(entry.name)
        shared_hash = layout.shared_hash_of(read_link(entry.path))
        size, atime, present = 0, stat.st_atime_ns, False
        outside, there = shared_hash is None, 0
        if shared_hash is not None and shared_hash in self.shared:
            size, present = self.shared[shared_hash].size, True
        try:
            target = os.stat(entry.path)
        except OSError:
            present = False
        else:
            size, atime = target.st_size, target.st_atime_ns
            present = modes.S_ISREG(target.st_mode)
            if shared_hash is not None and self.linked_to is not None:
                # A repo that lies elsewhere has its store beside it there, and not here.
                ours = self.shared.get(shared_hash)
                if ours is None or os.path.realpath(ours.path) != os.path.realpath(entry.path):
                    shared_hash, there = None, allocated_bytes(target)
        self.blobs[entry.name] = Blob(
            entry.name,
            size,
            allocated_bytes(stat),
            stat.st_ino,
            stat.st_dev,
            stat.st_nlink,
            stat.st_mtime_ns,
            atime,
            shared_hash,
            present,
            linked=True,
            allocated_there=there,
        )
        if not present:
            detail = "the blob is a link to nothing that has content"
            self.notes.error("missing-blob", entry.path, detail, self.pull)
        elif outside:
            self.notes.warning("outside-link", entry.path, "the blob is a link out of the cache")

    def _read_refs(self, path: str) -> None:
        pending = [(path, "")]
        while pending:
            folder, prefix = pending.pop()
            for entry, stat in read_entries(folder, self.notes):
                name = prefix + entry.name
                if is_left_behind(entry.name, stat) or entry.name in layout.DESKTOP_FILES:
                    add_stray(entry, stat, self.tally, self.notes)
                    continue
                self.tally.add("metadata", stat)
                if modes.S_ISDIR(stat.st_mode):
                    pending.append((entry.path, name + "/"))
                    self.ref_folders[name] = entry_of(stat)
                    self._check_ref_folder(entry.path, name)
                else:
                    self.ref_files[name] = entry_of(stat)
                    self._read_ref(entry.path, name)

    def _check_ref_folder(self, path: str, name: str) -> None:
        """An empty folder where a branch is expected; below `refs/refs` the hub leaves such."""
        if "/" not in name and name != layout.REFS and not read_entries(path, self.notes):
            self.notes.error("malformed-ref", path, "a folder is in the ref's place", self.pull)

    def _read_ref(self, path: str, name: str) -> None:
        try:
            content = read_bytes(path, REF_LIMIT).decode()
        except (OSError, UnicodeDecodeError) as error:
            self.notes.error("unreadable-ref", path, f"the ref cannot be read: {error}", self.pull)
            return
        commit = content.strip()
        if not layout.is_commit_folder(commit):
            self.notes.error("malformed-ref", path, "the ref does not hold a commit", self.pull)
            return
        if commit != content:
            self.notes.error(
                "malformed-ref",
                path,
                "the ref has white space around its commit: offline loading does not find it",
                self.pull,
            )
        self.refs[name] = commit

    def _read_trees(self, path: str) -> None:
        for entry, stat in read_entries(path, self.notes):
            if not modes.S_ISREG(stat.st_mode) or not entry.name.endswith(".json"):
                add_stray(entry, stat, self.tally, self.notes)
                continue
            self.tally.add("metadata", stat)
            commit = entry.name.removesuffix(".json")
            self.tree_files[commit] = entry_of(stat)
            try:
                document = _TREE_DECODER.decode(read_bytes(entry.path, TREE_LIMIT))
            except PermissionError as error:
                # The hub's library lets only its own user read a listing.
                detail = f"this user may not read the listing: {error.strerror}"
                self.notes.info("unreadable-file", entry.path, detail, units.command("doctor"))
                continue
            except (OSError, *JSON_ERRORS) as error:
                self.notes.warning(
                    "unreadable-tree", entry.path, f"the listing cannot be read: {error}", self.pull
                )
                continue
            if document.format_version == 1 and document.files:
                self.trees[commit] = document.files

    def _read_snapshots(self, path: str) -> list[Revision]:
        revisions = []
        for entry, stat in read_entries(path, self.notes):
            if modes.S_ISLNK(stat.st_mode):
                self.tally.add("metadata", stat)
                self.notes.error(
                    "outside-link",
                    entry.path,
                    "the snapshot is a link to another folder; it is not followed",
                )
                refs = self._refs_of(entry.name)
                revisions.append(
                    Revision(
                        entry.name,
                        entry.path,
                        refs,
                        (),
                        stat.st_mtime_ns,
                        linked=True,
                        entry=entry_of(stat),
                    )
                )
            elif modes.S_ISDIR(stat.st_mode):
                self.tally.add("metadata", stat)
                revisions.append(self._read_snapshot(entry, stat))
            else:
                add_stray(entry, stat, self.tally, self.notes)
        return revisions

    def _read_snapshot(self, snapshot: os.DirEntry[str], stat: os.stat_result) -> Revision:
        commit = snapshot.name
        files: list[File] = []
        folders = 0
        pending = [(snapshot.path, "", "../../" + layout.BLOBS + "/")]
        blobs, add = self.blobs, self.tally.add
        while pending:
            folder, prefix, to_blobs = pending.pop()
            skip = len(to_blobs)
            entries = read_entries(folder, self.notes)
            targets = read_links(folder, entries)
            for entry, status in entries:
                mode = status.st_mode
                if modes.S_ISDIR(mode) and self._is_in_the_way(commit, prefix + entry.name, entry):
                    remedy = units.command("rm", entry.path)
                    add_stray(
                        entry,
                        status,
                        self.tally,
                        self.notes,
                        leftover=False,
                        detail=_IN_THE_WAY,
                        remedy=remedy,
                    )
                elif modes.S_ISDIR(mode):
                    folders += self.tally.add("metadata", status)
                    pending.append((entry.path, f"{prefix}{entry.name}/", "../" + to_blobs))
                elif modes.S_ISLNK(mode):
                    allocated = add("metadata", status)
                    name = entry.name
                    target = targets[name]
                    blob = blobs.get(target[skip:]) if target.startswith(to_blobs) else None
                    if blob is not None and blob.present:
                        # As `_file` does it; this line is run for nearly every entry of a cache.
                        files.append(
                            File(
                                prefix + name,
                                "link",
                                blob.name,
                                blob.size,
                                allocated,
                                status.st_ino,
                                status.st_dev,
                                status.st_nlink,
                                status.st_mtime_ns,
                                status.st_atime_ns,
                            )
                        )
                    else:
                        odd = self._odd_link(commit, prefix + entry.name, entry.path, status)
                        files.append(odd)
                elif modes.S_ISREG(mode) and entry.name not in layout.DESKTOP_FILES:
                    files.append(self._regular_file(commit, prefix + entry.name, entry, status))
                else:
                    add_stray(entry, status, self.tally, self.notes)
        if not files and self.notes.could_read(snapshot.path):
            self.notes.error(
                "empty-snapshot",
                snapshot.path,
                "the snapshot holds no files",
                self._remedy(commit),
            )
        copies = sum(file.kind == "copy" for file in files)
        if copies:
            self.notes.info(
                "copied-files",
                snapshot.path,
                f"{copies} files are copies in place of links: revisions cannot share them",
            )
        return Revision(
            commit,
            snapshot.path,
            self._refs_of(commit),
            tuple(files),
            stat.st_mtime_ns,
            self.trees.get(commit),
            entry=entry_of(stat, folders),
        )

    def _is_in_the_way(self, commit: str, name: str, entry: os.DirEntry[str]) -> bool:
        """Return whether a folder that is not empty is where the listing has a file."""
        if name not in self.trees.get(commit, {}):
            return False
        try:
            with os.scandir(entry.path) as inside:
                return next(inside, None) is not None
        except OSError:
            return True

    def _refs_of(self, commit: str) -> tuple[str, ...]:
        return tuple(sorted(ref for ref, named in self.refs.items() if named == commit))

    def _regular_file(
        self, commit: str, name: str, entry: os.DirEntry[str], stat: os.stat_result
    ) -> File:
        """A file of a snapshot that is no link: its content, or what was left of its link."""
        listed = self.trees.get(commit, {}).get(name)
        blob, detail = None, f"{name} is an empty file in place of its link"
        if stat.st_size:
            blob = self._blob_of_text(entry.path, name.count("/"), stat)
            detail = f"{name} holds the text of its link in place of being the link"
        elif listed is not None:
            blob = listed.etag if listed.content_size and self._holds(listed) else None
        if blob is None and (stat.st_size or listed is not None or not self._is_never_empty(name)):
            return _file(name, "copy", stat, None, stat.st_size)
        here = blob in self.blobs
        self.tally.add("metadata", stat)
        self.notes.error("lost-link", entry.path, detail, self.repair if here else self.pull)
        return _file(name, "stub", stat, blob if here else None)

    def _is_never_empty(self, name: str) -> bool:
        return self.kind == "model" and name.endswith(_NEVER_EMPTY)

    def _blob_of_text(self, path: str, depth: int, stat: os.stat_result) -> str | None:
        """Return the blob that a file's content means, if that is the text of a link to one."""
        lengths = {len(layout.link_target("", depth)) + digits for digits in (40, 64)}
        if stat.st_size not in lengths or stat.st_size > _LONGEST_STUB:
            return None
        try:
            return layout.blob_of_text(read_bytes(path, _LONGEST_STUB), depth)
        except OSError:
            return None

    def _odd_link(self, commit: str, name: str, path: str, stat: os.stat_result) -> File:
        """A snapshot's link that is not the one that the hub writes to a blob that is there."""
        remedy = self._remedy(commit, name=name)
        # A link to the cache's old place says which blob it means.
        meant = self.blobs.get(read_link(path).replace("\\", "/").rpartition("/")[2])
        held = meant.name if meant is not None and meant.present else None
        if held is not None:
            remedy = self.repair
        try:
            target = os.stat(path)
        except FileNotFoundError:
            detail = f"the blob it links to is missing ({name})"
            if held is not None:
                detail = f"the link leads to another place than the blob's ({name})"
            self.notes.error("dangling-link", path, detail, remedy)
            return _file(name, "dangling", stat, held)
        except OSError as error:
            if error.errno == errno.ELOOP:
                self.notes.error("link-loop", path, f"the link leads in a circle ({name})", remedy)
                return _file(name, "loop", stat)
            detail = f"the link cannot be followed ({name}): {error.strerror or error}"
            self.notes.error("unreadable-file", path, detail, units.command("doctor"))
            return _file(name, "unreadable", stat)
        real = os.path.realpath(path)
        blob = self.blobs.get(os.path.basename(real))
        if blob is not None and (blob.device, blob.inode) == (target.st_dev, target.st_ino):
            return _file(name, "link", stat, blob.name, blob.size)
        if f"{os.path.realpath(os.path.dirname(path))}{os.sep}".startswith(real + os.sep):
            detail = f"the link leads back into itself ({name})"
            self.notes.error("link-loop", path, detail, remedy)
            return _file(name, "loop", stat)
        self.notes.error("outside-link", path, f"the link leads out of the repo, to {real}", remedy)
        return _file(name, "outside", stat, held)

    def _check_refs(self, revisions: Iterable[Revision]) -> None:
        if not self.notes.could_read(os.path.join(self.path, layout.SNAPSHOTS)):
            return
        commits = {revision.commit for revision in revisions}
        for ref, commit in sorted(self.refs.items()):
            if commit not in commits:
                path = os.path.join(self.path, layout.REFS, *ref.split("/"))
                self.notes.error(
                    "ref-to-missing-commit",
                    path,
                    f"{ref} names commit {commit}, which has no snapshot",
                    self._remedy(commit),
                )

    def _check_sizes(self, revisions: Iterable[Revision]) -> None:
        """Compare what is there with what the listing says, and find blobs that lost all bytes."""
        told: set[str] = set()
        for revision in revisions:
            tree = revision.tree
            for file in revision.files:
                if tree is None and file.size:
                    continue
                if file.kind not in ("link", "copy") or (file.blob and file.blob in told):
                    continue
                listed = tree.get(file.name) if tree is not None else None
                if listed is not None and _is_another_file(revision, file, listed):
                    self.notes.error(
                        "wrong-link",
                        os.path.join(revision.path, *file.name.split("/")),
                        f"{file.name} is a link to the content of another file",
                        self._remedy(revision.commit, name=file.name),
                    )
                    continue
                if file.size and (listed is None or listed.content_size == file.size):
                    continue
                if file.blob is None:
                    path = os.path.join(revision.path, *file.name.split("/"))
                    remedy = self._remedy(revision.commit, name=file.name)
                else:
                    path = os.path.join(self.path, layout.BLOBS, file.blob)
                    remedy = self.pull
                if listed is not None and listed.content_size != file.size:
                    short = file.size < listed.content_size
                    self.notes.error(
                        "truncated-blob" if short else "oversized-blob",
                        path,
                        f"{file.name} has {file.size} of {listed.content_size} bytes",
                        remedy,
                    )
                elif file.size == 0 and file.blob is not None and listed is None:
                    if file.blob in layout.EMPTY_HASHES:
                        continue
                    self.notes.error("empty-blob", path, f"{file.name} is empty", self.pull)
                else:
                    continue
                if file.blob is not None:
                    told.add(file.blob)

    def _classify_blobs(self, revisions: Iterable[Revision]) -> None:
        """Give each blob's bytes to a class, by who links to it."""
        named: set[str] = set()
        linked: set[str] = set()
        # Where a snapshot could not be read, what it links to is not known.
        all_read = self.notes.could_read(self.path)
        inodes: dict[tuple[int, int], ByteClass] = {}
        for revision in revisions:
            kind: ByteClass = "referenced" if revision.refs else "detached"
            names = named if revision.refs else linked
            for file in revision.files:
                if file.kind == "copy":
                    if file.links == 1:
                        self.tally.bytes[kind] += file.allocated
                    elif inodes.get((file.device, file.inode)) != "referenced":
                        inodes[file.device, file.inode] = kind
                elif file.blob is not None:
                    names.add(file.blob)
        listed: dict[str, str] | None = None
        loose: set[str] = set()
        for blob in list(self.blobs.values()):
            if blob.name in named:
                kind = "referenced"
            elif inodes and (blob.device, blob.inode) in inodes:
                kind = inodes[blob.device, blob.inode]
            elif blob.name in linked:
                kind = "detached"
            else:
                listed = self._listed_blobs(revisions) if listed is None else listed
                if blob.name in listed:
                    loose.add(blob.name)
                    kind = "referenced" if listed[blob.name] in self.refs.values() else "detached"
                elif blob.name in self.unknown and all_read:
                    self._disown(blob)
                    continue
                else:
                    kind = "orphan"
                if kind == "orphan" and all_read and blob.present:
                    self.notes.warning(
                        "orphan-blob",
                        os.path.join(self.path, layout.BLOBS, blob.name),
                        "no snapshot links to this blob",
                        units.command("clean"),
                    )
            if blob.name in self.linked_blobs:
                continue  # The link is counted already, as metadata; its target lies elsewhere.
            if blob.links == 1:
                self.tally.bytes[kind] += blob.allocated
            else:
                self.tally.add_linked(kind, blob.allocated, blob.device, blob.inode)
        for revision in revisions if inodes else ():
            for file in revision.files:
                if file.kind == "copy" and file.links > 1:
                    kind = inodes[file.device, file.inode]
                    self.tally.add_linked(kind, file.allocated, file.device, file.inode)

        if loose and all_read:
            self._find_lost_links(revisions, loose)

    def _listed_blobs(self, revisions: Iterable[Revision]) -> dict[str, str]:
        """Return blob -> commit, by the listings of snapshots and of commits that a ref names."""
        commits = [revision.commit for revision in revisions if not revision.refs]
        commits += self.refs.values()
        return {
            listed.etag: commit
            for commit in commits
            for listed in self.trees.get(commit, {}).values()
        }

    def _disown(self, blob: Blob) -> None:
        """Count as foreign what is in `blobs/` and of which nothing says that it is a blob."""
        entry, stat = self.unknown[blob.name]
        del self.blobs[blob.name]
        if blob.name in self.linked_blobs:
            self.linked_blobs.remove(blob.name)
            self.tally.bytes["metadata"] -= blob.allocated
            told = self.notes.findings
            self.notes.findings = [finding for finding in told if finding.path != entry.path]
        add_stray(entry, stat, self.tally, self.notes, leftover=False)

    def _find_lost_links(self, revisions: Iterable[Revision], loose: Collection[str]) -> None:
        """Tell of content that a snapshot's listing names, and that nothing links to."""
        for revision in revisions:
            there = {file.name for file in revision.files}
            lost = [
                name
                for name, listed in (revision.tree or {}).items()
                if listed.etag in loose and name not in there and self._holds(listed)
            ]
            if lost and there:
                more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
                detail = (
                    f"the content is here, and its link is missing: {', '.join(lost[:3])}{more}"
                )
                self.notes.warning("lost-link", revision.path, detail, self.repair)

    def _judge_partials(self, now: float) -> None:
        for partial in self.partials:
            client = partial.client
            by = "" if client is None else f" of {client}"
            if is_stale(partial, now):
                remedy = self.pull or units.command("clean")
                if client is not None:
                    remove = units.command("clean", "--partials")
                    remedy = f"let {client} download it again, or remove it: {remove}"
                self.notes.warning(
                    "stale-partial",
                    partial.path,
                    f"a download{by} of {partial.size} bytes was left unfinished",
                    remedy,
                )
            else:
                self.notes.info("live-partial", partial.path, f"a download{by} is in progress")


def _file(
    name: str, kind: FileKind, stat: os.stat_result, blob: str | None = None, size: int = 0
) -> File:
    return File(
        name,
        kind,
        blob,
        size,
        allocated_bytes(stat),
        stat.st_ino,
        stat.st_dev,
        stat.st_nlink,
        stat.st_mtime_ns,
        stat.st_atime_ns,
    )


def _is_another_file(revision: Revision, file: File, listed: TreeFile) -> bool:
    """Whether a link leads to a good blob, but to that of another file of the revision."""
    if file.blob is None or file.blob == listed.etag or file.size == listed.content_size:
        return False
    return any(other.etag == file.blob for other in (revision.tree or {}).values())


def scan_repo(cache_dir: str, folder: str, *, now: float | None = None) -> Repo | None:
    """Return one repo as it is now, by its folder's name; `None` if it is not there.

    Its blobs are not joined with the shared store: whether these are present is told by the disk.
    """
    parsed = layout.parse_repo_folder(folder)
    path = os.path.join(cache_dir, folder)
    if parsed is None or not os.path.lexists(path):
        return None
    stat = os.lstat(path)
    kind, repo_id = parsed
    linked_to = os.path.realpath(path) if modes.S_ISLNK(stat.st_mode) else None
    repo_scan = RepoScan(path, folder, kind, repo_id, cache_dir, {}, linked_to)
    repo_scan.entry = entry_of(stat)
    if linked_to is not None and not os.path.isdir(path):
        return repo_scan.nothing()
    return repo_scan.run(time.time() if now is None else now)
