"""Links into a base: made, recorded, and forgotten. Nothing is ever changed in a base."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.base_record import FORMAT, BaseAt, BaseRecord, base_record_path
from vlmcache.cache.mounts import drive_of
from vlmcache.cache.scan_repo import scan_repo
from vlmcache.cache.state import Lent, TreeFile
from vlmcache.cache.tree import CacheTree, StaleError, base_record, trusted_owners
from vlmcache.change import place
from vlmcache.change.abilities import cannot
from vlmcache.change.locks import Lock
from vlmcache.change.moved_note import write_note
from vlmcache.change.tree import Tree
from vlmcache.errors import CacheError


def base_at(folder: str) -> BaseAt:
    """Return a base as it is recorded now."""
    return BaseAt(folder, drive_of(folder))


def record_bases(
    tree: Tree, folder: str, bases: Iterable[BaseAt], refs: Mapping[str, str] | None = None
) -> None:
    """Record that blobs of a repo are links into bases, before they are.

    Args:
        tree: the cache.
        folder: the name of the repo's folder.
        bases: are added to what is recorded.
        refs: what `attach` has written of the repo's refs; as recorded if not given.

    Raises:
        CacheError: another user's record is there, and does not name them.
        OSError: the system refuses.
    """
    owned = base_record(tree, folder)
    known = {base.folder: base for base in owned.record.bases} if owned is not None else {}
    wanted = known | {base.folder: base for base in bases}
    before = owned.record.refs if owned is not None else {}
    if owned is not None and wanted == known and refs in (None, before):
        return
    if owned is not None and owned.owner not in trusted_owners():
        if wanted.keys() <= known.keys():
            return
        raise CacheError(
            f"another user's record is in the cache: {base_record_path(tree.root, folder)}",
            "attach as that user",
        )
    _write(tree, folder, tuple(wanted.values()), before if refs is None else refs)


def _write(tree: Tree, folder: str, bases: tuple[BaseAt, ...], refs: Mapping[str, str]) -> None:
    path = base_record_path(tree.root, folder)
    tree.make_folders(os.path.dirname(path))
    # Who owns a record decides what it is worth: root's stays root's.
    own = Tree(tree)
    own.gives = False
    write_note(own, path, BaseRecord(FORMAT, bases, dict(refs)))


def forget_bases(tree: Tree, folder: str, bases: Iterable[str]) -> None:
    """Let a record forget bases into which no blob of the repo leads by now.

    Raises:
        OSError: the system refuses.
    """
    owned = base_record(tree, folder)
    if owned is None:
        return
    repo = scan_repo(tree.root, folder)
    used = {blob.base for blob in repo.blobs.values()} if repo is not None else set()
    stay = tuple(
        base for base in owned.record.bases if base.folder in used or base.folder not in set(bases)
    )
    if stay == owned.record.bases:
        return
    if stay and owned.owner in trusted_owners():
        _write(tree, folder, stay, owned.record.refs)
    elif not stay:
        with contextlib.suppress(FileNotFoundError):
            tree.unlink(base_record_path(tree.root, folder))


def place_blob_link(tree: Tree, path: str, lent: Lent) -> bool:
    """Let a blob be a link into a base, whose record is there; the caller holds the blob's lock.

    Args:
        tree: the cache.
        path: the blob's place; a link that leads nowhere, or a damaged file, is replaced.
        lent: what the base has.

    Returns:
        False if the base has something else there by now.

    Raises:
        OSError: the system refuses.
    """
    if not _has(lent):
        return False
    place.put_link(tree, lent.path, path, os.path.dirname(path))
    return True


def _has(lent: Lent) -> bool:
    """Return whether a base still has what was seen in it."""
    try:
        descriptor = CacheTree(lent.base).open_content(lent.path)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return (status.st_dev, status.st_ino, status.st_size) == (lent.device, lent.inode, lent.size)


class ListingOf(NamedTuple):
    """The hub's listing of a commit, as a base has it."""

    files: Mapping[str, TreeFile]
    complete: bool
    """Whether the base's snapshot holds all of it."""


class RepoLinks(NamedTuple):
    """What `attach` adds to one repo. A repo that a base has alone is made."""

    folder: str
    """The name of its folder, here and there."""
    base: BaseAt
    blobs: Mapping[str, Lent]
    """Blob -> where the base has it."""
    files: Mapping[str, Mapping[str, str]]
    """Commit -> file -> blob, of the links in snapshots."""
    listings: Mapping[str, ListingOf] = {}
    absent: Mapping[str, tuple[str, ...]] = {}
    """Commit -> names that the hub is known not to have."""
    refs: Mapping[str, str] = {}
    """Ref -> the commit that it is to name."""
    recorded: Mapping[str, str] = {}
    """Ref -> commit, of all refs that the base decides."""

    @property
    def places(self) -> dict[str, list[tuple[str, str]]]:
        """Blob -> commit and file of its links in snapshots."""
        found: dict[str, list[tuple[str, str]]] = {etag: [] for etag in self.blobs}
        for commit, files in self.files.items():
            for file, etag in files.items():
                found.setdefault(etag, []).append((commit, file))
        return found


def attach_repo(cache: Tree, links: RepoLinks) -> list[str]:
    """Make the links of one repo: the record first, then blobs and snapshots, the refs last.

    Returns:
        What was left alone, since the base or the cache changed after it was planned.

    Raises:
        CacheError: the repo is a link to another place, or links cannot be made here.
        OSError: the system refuses.
    """
    folder = os.path.join(cache.root, links.folder)
    if os.path.islink(folder):
        raise StaleError(errno.ELOOP, "a link is in the place of the repo's folder", folder)
    place.prepare_repo(cache, folder)
    cache.make_folders(layout.blob_path(folder, ""))
    record_bases(cache, links.folder, [links.base])
    for commit, listing in links.listings.items():
        place.write_tree(cache, folder, commit, listing.files, complete=False)
    stale: list[str] = []
    # Each blob with its links in snapshots: an interruption leaves one at most that has lost them.
    for etag, places in links.places.items():
        path = layout.blob_path(folder, etag)
        lent = links.blobs.get(etag)
        if lent is not None and not _link_blob(cache, links.folder, path, lent):
            stale.append(path)
            continue
        stale += (
            layout.file_path(layout.snapshot_path(folder, commit), file)
            for commit, file in places
            if not _link_file(cache, folder, commit, file, etag)
        )
    for commit, names in links.absent.items():
        for name in names:
            place.note_absent(cache, folder, commit, name)
    for commit, listing in links.listings.items():
        if listing.complete and not stale:
            place.write_tree(cache, folder, commit, listing.files, complete=True)
    if not stale:
        for ref, commit in links.refs.items():
            place.write_ref(cache, layout.ref_path(folder, ref), commit)
        record_bases(cache, links.folder, [links.base], links.recorded)
    owned = base_record(cache, links.folder)
    others = {base.folder for base in owned.record.bases} if owned is not None else set()
    if others - {links.base.folder}:
        # Such as the same base, before it was mounted elsewhere.
        forget_bases(cache, links.folder, others - {links.base.folder})
    return stale


def _link_blob(cache: Tree, folder: str, path: str, lent: Lent) -> bool:
    """Link one blob; content that is here by now is left, and as good."""
    if os.path.isfile(path) and place.file_size(path) == lent.size:
        return True
    if not os.path.lexists(path):
        try:
            return place_blob_link(cache, path, lent)
        except OSError as error:
            if cannot(error):
                raise CacheError(
                    f"this filesystem has no links: {path}", "use a cache on another filesystem"
                ) from error
            raise
    lock = Lock(cache, layout.lock_path(cache.root, folder, os.path.basename(path)))
    cache.make_folders(os.path.dirname(lock.path))
    lock.take()
    try:
        if not os.path.islink(path):
            return False  # somebody's download, which is theirs to finish
        return place_blob_link(cache, path, lent)
    finally:
        lock.release()


def _link_file(cache: Tree, folder: str, commit: str, file: str, etag: str) -> bool:
    """Link a blob into a snapshot; a file that somebody put there meanwhile is left alone."""
    path = layout.file_path(layout.snapshot_path(folder, commit), file)
    try:
        taken = cache.exists(path)
    except OSError:
        taken = False
    if taken:
        try:
            cache.readlink(path)
        except OSError:
            return False
    return place.place_link(cache, folder, commit, file, etag)
