"""What has been read of one repo's folder so far, and the `Repo` that it becomes."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Mapping

from vlmcache import units
from vlmcache.cache import formats, layout
from vlmcache.cache.entries import Listed, Notes, entry_of
from vlmcache.cache.moved import destination_of, find_away, record_path
from vlmcache.cache.state import Blob, Partial, Repo, Revision, SharedBlob, Stamp, TreeFile


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
        self.linked_to = os.path.realpath(self.path) if linked else None
        self.is_there = not linked or os.path.isdir(self.path)
        """False if the folder is a link to a place that does not exist."""
        self.moved_to = destination_of(cache_dir, folder) if linked else None
        self.away = None if self.is_there else find_away(cache_dir, folder)
        self.record = _stamp_of(record_path(cache_dir, folder)) if linked else None
        self.entry = entry_of(stat)
        self.notes = Notes(self.id)
        self.blobs: dict[str, Blob] = {}
        self.linked_blobs: set[str] = set()
        self.unknown: dict[str, Listed] = {}
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
        self.pull: str | None = None
        if layout.is_repo_id(self.id):
            self.pull = units.of_other_type(self.kind, self.id)
        self.repair = self.pull
        if self.kind == "model" and self.pull is not None:
            self.pull = units.command("pull", self.id)
            self.repair = units.command("verify", self.id, "--repair")

    def remedy(self, *commits: str, name: str | None = None) -> str | None:
        """Return what brings commits, or one file of a commit, back.

        A repair, which needs no network, where the content is here and only links are not; or where
        the hub does not list the file, so that no download could bring it.
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
            moved_to=self.moved_to,
            away=self.away,
            record=self.record,
            entry=self.entry,
            ref_files=self.ref_files,
            ref_folders=self.ref_folders,
            tree_files=self.tree_files,
            own_trees=frozenset(self.own_trees),
            no_exist=self.no_exist,
            trees=self.trees,
        )


def _stamp_of(path: str) -> Stamp | None:
    """Return what a stat says of a file; `None` if there is none."""
    try:
        stat = os.lstat(path)
    except OSError:
        return None
    return entry_of(stat) if modes.S_ISREG(stat.st_mode) else None
