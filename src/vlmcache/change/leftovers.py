"""What a removal renames away first, where nothing finds it, and unlinks last.

It lies in `.vlmcache-leftovers/<unique>/<repo folder>/…` of the cache, so on the same filesystem.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import stat as modes

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes
from vlmcache.change.locks import HubLocks
from vlmcache.change.plan import Attempt, Expected, RemoveTree
from vlmcache.change.removal_tree import Emptying, RemovalTree
from vlmcache.change.tree import sync_folder


def _may_unlink(status: os.stat_result, folder: int) -> bool:
    """Return whether the system lets this user remove a folder, and not only what is in it.

    Args:
        status: of the folder.
        folder: the descriptor of the one above it.
    """
    above = os.fstat(folder)
    owners = (0, above.st_uid, status.st_uid)
    kept = above.st_mode & modes.S_ISVTX and os.geteuid() not in owners
    return not kept and os.access(".", os.W_OK | os.X_OK, dir_fd=folder)


class Leftovers:
    """The leftovers of one run."""

    def __init__(self, tree: RemovalTree) -> None:
        self.tree = tree
        self.folder = os.path.join(tree.root, layout.LEFTOVERS)
        self.token = secrets.token_hex(6)
        self.renamed: list[tuple[Attempt, str]] = []
        """What was renamed, in that order, and where it is now."""

    def set_aside(self, attempt: Attempt, expected: Expected | None, *, complete: bool) -> None:
        """Rename an entry into the leftovers, or remove it in place if that fails.

        Args:
            attempt: the action that removes the entry.
            expected: what is expected there.
            complete: whether it is a complete repo.

        Raises:
            StaleError: it is not what was expected.
            OSError: the system refuses.
        """
        path = attempt.action.path
        with self.tree.entry(path, expected) as entry:
            name, folder = entry.name, entry.folder
            is_folder = modes.S_ISDIR(entry.status.st_mode)
            if is_folder and folder is not None and os.path.ismount(path):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
            try:
                place = self._place_for(path, complete=complete)
                with self.tree.parent(place) as (new_name, new_folder):
                    os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)
                self._note(attempt, place, folder)
                return
            except FileNotFoundError:
                # It is an error only if the entry itself is gone, not the place for it.
                os.stat(name, dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                # A full, foreign or read-only place for the leftovers; unlinking may still do.
                if is_folder and folder is not None and not _may_unlink(entry.status, folder):
                    number = errno.EROFS if error.errno == errno.EROFS else errno.EACCES
                    raise OSError(number, os.strerror(number), path) from None
            Emptying(attempt).remove(entry)

    def exchange(self, attempt: Attempt, action: RemoveTree, locks: HubLocks) -> None:
        """Rename a repo's folder into the leftovers and the link into its place, or do neither.

        The hub's locks of the repo are held meanwhile, so that no download continues in the folder.

        Raises:
            InUseError: a lock is held.
            StaleError: the folder is not what was expected.
            OSError: the system refuses.
        """
        path = action.path
        with locks.all_held(self.tree.repo_folder(path)):
            place = self._place_for(path, complete=True)
            link = os.path.join(self.folder, f"link-{self.token}")
            with (
                self.tree.entry(path, action.expected) as entry,
                self.tree.parent(place) as (aside, aside_folder),
                self.tree.parent(link) as (link_name, leftovers),
            ):
                name, folder = entry.name, entry.folder
                if action.link is not None:
                    os.symlink(action.link, link_name, dir_fd=leftovers)
                try:
                    os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=aside_folder)
                    if action.link is not None:
                        try:
                            os.rename(link_name, name, src_dir_fd=leftovers, dst_dir_fd=folder)
                        except OSError:
                            os.rename(aside, name, src_dir_fd=aside_folder, dst_dir_fd=folder)
                            raise
                except OSError:
                    if action.link is not None:
                        with contextlib.suppress(OSError):
                            os.unlink(link_name, dir_fd=leftovers)
                    raise
                self._note(attempt, place, folder)
                if action.link is not None:
                    link_status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    attempt.freed -= allocated_bytes(link_status)

    def _note(self, attempt: Attempt, place: str, folder: int | None) -> None:
        """Make a rename lasting before anything that relies on it is unlinked."""
        self.renamed.append((attempt, place))
        log.debug("remove", "renamed '%s' to '%s'", attempt.action.path, place)
        if folder is not None:
            with contextlib.suppress(OSError):
                sync_folder(folder)

    def _place_for(self, path: str, *, complete: bool) -> str:
        """Return where to rename a path to, its folders made."""
        job = (layout.WHOLE_REPO if complete else "part-") + self.token
        parts = os.path.relpath(path, self.tree.root).split(os.sep)
        *folders, place = itertools.accumulate([self.folder, job, *parts], os.path.join)
        for folder in folders:
            self.tree.make_folder(folder, 0o700)
        return place

    def parts_of(self, place: str) -> list[str]:
        """Return the names below the repo's folder of what was renamed to a place."""
        return os.path.relpath(place, self.tree.root).split(os.sep)[3:]

    def remove_earlier(self, attempt: Attempt, path: str, expected: Expected | None) -> None:
        """Unlink what an interrupted run has left, and the folders above it if they are empty."""
        self.tree.remove_all(path, attempt, expected)
        job = os.path.dirname(path)
        if os.path.basename(os.path.dirname(job)) != layout.LEFTOVERS:
            return
        for folder in (job, os.path.dirname(job)):
            with contextlib.suppress(OSError), self.tree.entry(folder) as entry:
                entry.remove_folder(attempt)
