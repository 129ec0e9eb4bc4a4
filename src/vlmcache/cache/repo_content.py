"""The content of one repo's folder as it was read, what is wrong with it, and its `Repo`."""

from __future__ import annotations

import functools
import os
import stat as modes
from collections.abc import Collection, Mapping

from vlmcache import units
from vlmcache.cache import formats, layout
from vlmcache.cache.base import RepoBases, base_away
from vlmcache.cache.base_record import BaseAt, base_record_path
from vlmcache.cache.entries import Notes, add_stray, entry_of, is_stale
from vlmcache.cache.moved import (
    DRIVE_AWAY,
    away_remedy,
    away_words,
    destination_of,
    find_away,
    move_record_path,
    note_path,
)
from vlmcache.cache.state import (
    Blob,
    ByteClass,
    File,
    Partial,
    Repo,
    Revision,
    SharedBlob,
    Stamp,
    TreeFile,
)
from vlmcache.paths import real_path


class RepoContent:
    """The content of a repo's folder, filled while it is read.

    Args:
        cache_dir: the cache's folder.
        folder: the name of the repo's folder in it.
        stat: of the folder, or of the link in its place.
        shared: the cache's shared blobs.

    Raises:
        ValueError: the name is not that of a repo's folder.
    """

    def __init__(
        self, cache_dir: str, folder: str, stat: os.stat_result, shared: Mapping[str, SharedBlob]
    ) -> None:
        parsed = layout.parse_repo_folder(folder)
        if parsed is None:
            raise ValueError(f"not the name of a repo's folder: {folder!r}")
        self.kind, self.id = parsed
        self.cache_dir = cache_dir
        self.folder = folder
        self.path = os.path.join(cache_dir, folder)
        self.shared = shared
        linked = modes.S_ISLNK(stat.st_mode)
        self.linked_to = real_path(self.path) if linked else None
        self.exists = not linked or os.path.isdir(self.path)
        """False if the folder is a link to a place that does not exist."""
        self.moved = destination_of(cache_dir, folder) if linked else None
        self.away = None if self.exists else find_away(cache_dir, folder)
        self.record = _stamp_of((move_record_path if linked else note_path)(cache_dir, folder))
        self.base_record = None if linked else _stamp_of(base_record_path(cache_dir, folder))
        self.gone: dict[str, BaseAt] = {}
        """Blob -> the base that it was in, if it is not there now."""
        self.entry = entry_of(stat)
        self.notes = Notes(self.id)
        self.blobs: dict[str, Blob] = {}
        self.linked_blobs: set[str] = set()
        self.unknown: dict[str, os.stat_result] = {}
        """Entries of `blobs/` that count as blobs only if something says that they are."""
        self.partials: list[Partial] = []
        self.refs: dict[str, str] = {}
        self.trees: dict[str, dict[str, TreeFile]] = {}
        self.revisions: list[Revision] = []
        self.ref_files: dict[str, Stamp] = {}
        self.ref_folders: dict[str, Stamp] = {}
        self.tree_files: dict[str, Stamp] = {}
        self.own_trees: set[str] = set()
        self.no_exist: dict[str, Stamp] = {}

    @functools.cached_property
    def bases(self) -> RepoBases | None:
        """What is recorded about its bases; `None` if nothing is."""
        return RepoBases(self.cache_dir, self.folder) if self.base_record is not None else None

    @functools.cached_property
    def pull(self) -> str | None:
        """The command that downloads what is missing; `None` if the Hub has no such names."""
        return self._command("pull")

    @functools.cached_property
    def repair(self) -> str | None:
        """The command that repairs the repo with what is here, as far as possible."""
        return self._command("verify", "--repair")

    def _command(self, name: str, *options: str) -> str | None:
        if not layout.is_repo_id(self.id):
            return None
        return units.command(name, layout.typed_name(self.kind, self.id), *options)

    def remedy(self, *commits: str, name: str | None = None) -> str | None:
        """Return the command that restores commits, or one file of a commit.

        It is a repair, which needs no network, if the content is here and only links are missing,
        or if the Hub does not list the file, so that it cannot be downloaded.
        """
        for commit in commits:
            tree = self.trees.get(commit, {})
            names = formats.wanted(tree) if name is None else {name}
            if names and tree and all(file not in tree or self.holds(tree[file]) for file in names):
                return self.repair
        return self.pull

    def holds(self, listed: TreeFile) -> bool:
        """Return whether a listed file's content is here, as far as a stat can say."""
        blob = self.blobs.get(listed.etag)
        return blob is not None and blob.present and blob.size == listed.content_size

    def refs_of(self, commit: str) -> tuple[str, ...]:
        """Return the refs that name a commit."""
        return tuple(sorted(ref for ref, named in self.refs.items() if named == commit))

    def repo(self) -> Repo:
        """Return the value."""
        recorded = self.bases.record if self.bases is not None else None
        return Repo(
            id=self.id,
            type=self.kind,
            folder=self.folder,
            path=self.path,
            refs=self.refs,
            revisions=tuple(self.revisions),
            blobs=self.blobs,
            partials=tuple(self.partials),
            strays=tuple(self.notes.strays),
            by_class=self.notes.tally.by_class(),
            findings=tuple(self.notes.findings),
            linked_to=self.linked_to,
            moved_to=self.moved.destination if self.moved is not None else None,
            moved_at=self.moved.identity if self.moved is not None else None,
            away=self.away,
            record=self.record,
            base_record=self.base_record,
            bases=tuple(base.folder for base in recorded.bases) if recorded is not None else (),
            base_refs=recorded.refs if recorded is not None else {},
            entry=self.entry,
            ref_files=self.ref_files,
            ref_folders=self.ref_folders,
            tree_files=self.tree_files,
            own_trees=frozenset(self.own_trees),
            no_exist=self.no_exist,
            trees=self.trees,
        )


def _stamp_of(path: str) -> Stamp | None:
    """Return the stamp of a file; `None` if it does not exist."""
    try:
        stat = os.lstat(path)
    except OSError:
        return None
    return entry_of(stat) if modes.S_ISREG(stat.st_mode) else None


def check_repo(content: RepoContent, now: float) -> None:
    """Compare the parts of a repo with each other, and assign the bytes of its blobs to classes.

    Args:
        content: the content of its folder; findings and counts are added to its notes.
        now: seconds since the epoch, against which partial downloads are judged.
    """
    _check_bases(content)
    _check_refs(content)
    _check_sizes(content)
    _classify_blobs(content)
    _check_partials(content, now)


def _check_bases(content: RepoContent) -> None:
    """Report files that snapshots link to and a base does not have, or that it is not mounted."""
    used = {file.blob for revision in content.revisions for file in revision.files}
    for folder, base in {base.folder: base for base in content.gone.values()}.items():
        away = base_away(base, content.cache_dir, content.folder)
        names = [name for name, was_in in content.gone.items() if was_in == base and name in used]
        if names and away is not None:
            content.away = away
            content.notes.warning(DRIVE_AWAY, content.path, away_words(away), away_remedy(away))
        elif names:
            content.notes.warning(
                "not-in-base",
                content.path,
                f"the base does not have {units.counted(len(names), 'file')} that the repo links "
                f"to: {folder}",
                content.pull,
            )


def _check_refs(content: RepoContent) -> None:
    if not content.notes.could_read(os.path.join(content.path, layout.SNAPSHOTS)):
        return
    commits = {revision.commit for revision in content.revisions}
    for ref, commit in sorted(content.refs.items()):
        if commit not in commits:
            path = layout.ref_path(content.path, ref)
            content.notes.error(
                "ref-to-missing-commit",
                path,
                f"{ref} names commit {commit}, which has no snapshot",
                content.remedy(commit),
            )


def _check_sizes(content: RepoContent) -> None:
    """Compare the lengths of files with the listing, and find blobs that lost all their bytes."""
    reported: set[str] = set()
    for revision in content.revisions:
        tree = revision.tree
        # Without a listing, only empty files are suspicious.
        files = revision.files if tree is not None else [f for f in revision.files if not f.size]
        for file in files:
            if file.kind not in ("link", "copy") or (file.blob and file.blob in reported):
                continue
            listed = tree.get(file.name) if tree is not None else None
            if listed is not None and _is_another_file(revision, file, listed):
                content.notes.error(
                    "wrong-link",
                    revision.file_path(file.name),
                    f"{file.name} is a link to the content of another file",
                    content.remedy(revision.commit, name=file.name),
                )
                continue
            if file.size and (listed is None or listed.content_size == file.size):
                continue
            path, remedy = (
                (revision.file_path(file.name), content.remedy(revision.commit, name=file.name))
                if file.blob is None
                else (layout.blob_path(content.path, file.blob), content.pull)
            )
            if listed is not None and listed.content_size != file.size:
                short = file.size < listed.content_size
                content.notes.error(
                    "truncated-blob" if short else "oversized-blob",
                    path,
                    f"{file.name} has {file.size} {'of' if short else 'instead of'} "
                    f"{listed.content_size} bytes",
                    remedy,
                )
            elif listed is None and file.blob and file.blob not in layout.EMPTY_HASHES:
                content.notes.error("empty-blob", path, f"{file.name} is empty", content.pull)
            else:
                continue
            if file.blob is not None:
                reported.add(file.blob)


def _is_current(content: RepoContent, revision: Revision) -> bool:
    # A first download writes its ref last: until then, nothing here is older than anything.
    is_begun = bool(content.partials) and not content.refs
    return is_begun or bool(revision.refs)


def _classify_blobs(content: RepoContent) -> None:
    """Assign the bytes of each blob to a class, by the revisions that link to it."""
    named: set[str] = set()
    linked: set[str] = set()
    # If a snapshot could not be read, it is not known what it links to.
    all_read = content.notes.could_read(content.path)
    inodes: dict[tuple[int, int], ByteClass] = {}
    for revision in content.revisions:
        kind: ByteClass = "referenced" if _is_current(content, revision) else "detached"
        names = named if kind == "referenced" else linked
        # Copies have no blob.
        names.update([file.blob for file in revision.files if file.blob is not None])
        for file in revision.files_of("copy"):
            if file.links == 1:
                content.notes.tally.bytes[kind] += file.allocated
            elif inodes.get((file.device, file.inode)) != "referenced":
                inodes[file.device, file.inode] = kind
    listed: dict[str, str] | None = None
    loose: set[str] = set()
    referenced, at_links = 0, content.linked_blobs
    for name, blob in list(content.blobs.items()):
        if name in named:
            if blob.links == 1 and name not in at_links:
                referenced += blob.allocated
                continue
            kind = "referenced"
        elif inodes and (blob.device, blob.inode) in inodes:
            kind = inodes[blob.device, blob.inode]
        elif blob.name in linked:
            kind = "detached"
        else:
            listed = _listed_blobs(content) if listed is None else listed
            if blob.name in listed:
                loose.add(blob.name)
                kind = "referenced" if listed[blob.name] in content.refs.values() else "detached"
            elif blob.name in content.unknown and all_read:
                _disown(content, blob)
                continue
            else:
                kind = "orphan"
            if kind == "orphan" and all_read and blob.present:
                content.notes.warning(
                    "orphan-blob",
                    layout.blob_path(content.path, blob.name),
                    "no snapshot links to this blob",
                    units.command("clean"),
                )
        if blob.name in content.linked_blobs:
            continue  # The link is already counted as metadata; its target is elsewhere.
        if blob.links == 1:
            content.notes.tally.bytes[kind] += blob.allocated
        else:
            content.notes.tally.add_linked(kind, blob.allocated, blob.device, blob.inode)
    content.notes.tally.bytes["referenced"] += referenced
    for revision in content.revisions if inodes else ():
        for file in revision.files:
            if file.kind == "copy" and file.links > 1:
                kind = inodes[file.device, file.inode]
                content.notes.tally.add_linked(kind, file.allocated, file.device, file.inode)

    if loose and all_read:
        _find_lost_links(content, loose)


def _listed_blobs(content: RepoContent) -> dict[str, str]:
    """Return blob -> commit, by the listings of snapshots and of the commits of refs."""
    commits = [revision.commit for revision in content.revisions if not revision.refs]
    commits += content.refs.values()
    return {
        listed.etag: commit
        for commit in commits
        for listed in content.trees.get(commit, {}).values()
    }


def _disown(content: RepoContent, blob: Blob) -> None:
    """Count an entry of `blobs/` as foreign, since nothing shows that it is a blob."""
    path = layout.blob_path(content.path, blob.name)
    del content.blobs[blob.name]
    if blob.name in content.linked_blobs:
        content.linked_blobs.remove(blob.name)
        content.notes.tally.bytes["metadata"] -= blob.allocated
        content.notes.findings = [
            finding for finding in content.notes.findings if finding.path != path
        ]
    add_stray(path, content.unknown[blob.name], content.notes, leftover=False)


def _find_lost_links(content: RepoContent, loose: Collection[str]) -> None:
    """Report content that a snapshot's listing names and nothing links to."""
    for revision in content.revisions:
        linked = {file.name for file in revision.files}
        lost = [
            name
            for name, listed in (revision.tree or {}).items()
            if listed.etag in loose and name not in linked and content.holds(listed)
        ]
        if lost and linked:
            more = units.and_more(len(lost) - 3)
            detail = f"the content is here, but its link is missing: {', '.join(lost[:3])}{more}"
            content.notes.warning("lost-link", revision.path, detail, content.repair)


def _check_partials(content: RepoContent, now: float) -> None:
    for partial in content.partials:
        client = partial.client
        by = "" if client is None else f" of {client}"
        if is_stale(partial, now):
            remedy = content.pull or units.command("clean")
            if client is not None:
                remove = units.command("clean", "--partials")
                remedy = f"let {client} download it again, or remove it: {remove}"
            content.notes.warning(
                "stale-partial",
                partial.path,
                f"a download{by} of {partial.size} bytes was left unfinished",
                remedy,
            )
        else:
            content.notes.info("live-partial", partial.path, f"a download{by} is in progress")


def _is_another_file(revision: Revision, file: File, listed: TreeFile) -> bool:
    """Return whether a link leads to a good blob, but to that of another file."""
    if file.blob is None or file.blob == listed.etag or file.size == listed.content_size:
        return False
    return any(other.etag == file.blob for other in (revision.tree or {}).values())
