"""A cache read below its root, folder by folder through descriptors; links are never followed.

Whoever may write to a folder of a shared cache can replace what is in it by links at any moment.
From the descriptor of a folder that was entered, no name leads anywhere else.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat as modes
import weakref
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, TypeVar

from vlmcache.cache import layout
from vlmcache.cache.base_record import LIMIT, BaseRecord, base_record_path, decode
from vlmcache.cache.reading import FOLDER, JSON_ERRORS, open_quietly, read_bytes
from vlmcache.paths import real_path

BY_DESCRIPTOR = os.open in os.supports_dir_fd and os.unlink in os.supports_dir_fd
"""Whether the system opens and changes what a folder's descriptor holds; Windows does not."""
_OTHER = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.ENXIO})
"""Errors that mean that a link, a socket or the like is where a folder or file should be."""
_HANDLES = "/proc/self/fd/"
_PASSING = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)
"""How a folder is opened only to be passed through: this user need not be able to list it."""

_Tree = TypeVar("_Tree", bound="CacheTree")


class StaleError(OSError):
    """Something else is there than was expected."""


def stale(path: str) -> StaleError:
    """Return the refusal of a path on which a folder is not a folder, or a file not a file."""
    return StaleError(errno.ELOOP, "something else is in the place of a folder or file", path)


class OwnedRecord(NamedTuple):
    """The record of a repo's bases, and the user who owns it."""

    record: BaseRecord
    owner: int


class CacheTree:
    """A cache, or a place to which models were moved.

    Args:
        root: the folder, which is opened once, so that replacing it later changes nothing. Or a
            tree, whose open folder this one shares.
    """

    def __init__(self, root: str | CacheTree) -> None:
        self._opened = root if isinstance(root, CacheTree) else None
        self.root: str = root.root if isinstance(root, CacheTree) else os.path.abspath(root)
        self._homes: dict[str, Any] = {}

    @functools.cached_property
    def top(self) -> int:
        """The descriptor of the root."""
        if self._opened is not None:
            return self._opened.top
        descriptor = os.open(self.root, FOLDER)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def check_real(self) -> None:
        """Make sure that no link has led to the root, whose path is a real one.

        Raises:
            StaleError: a part of the path is a link. Not on systems that do not show it.
        """
        try:
            place = os.readlink(f"/proc/self/fd/{self.top}") if BY_DESCRIPTOR else self.root
        except FileNotFoundError:
            return
        if place != self.root:
            raise stale(self.root)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the root."""
        status = os.stat(self.top if BY_DESCRIPTOR else self.root)
        return status.st_dev, status.st_ino

    @contextlib.contextmanager
    def parent(self, path: str) -> Iterator[tuple[str, int | None]]:
        """Yield a path's last name and its folder, entered from the root without following links.

        If the system has no such calls, the folder is `None` and the name is the complete path.

        Raises:
            StaleError: a link or something else is in the place of a folder.
            OSError: the system refuses; the error names the complete path.
        """
        inside = path == self.root or path.startswith(os.path.join(self.root, ""))
        # A path outside the root is an entry of a side cache.
        root = self.root if inside else os.path.dirname(path)
        *folders, name = os.path.relpath(path, root).split(os.sep)
        if os.pardir in (*folders, name):
            raise stale(path)
        if not BY_DESCRIPTOR:
            for count in range(len(folders)):
                if os.path.islink(os.path.join(root, *folders[: count + 1])):
                    raise stale(path)
            yield path, None
            return
        descriptor = os.dup(self.top) if inside else enter(root, None, path)
        try:
            for part in folders:
                below = enter(part, descriptor, path)
                os.close(descriptor)
                descriptor = below
            yield name, descriptor
        except OSError as error:
            name_path(error, path, name)
            raise
        finally:
            os.close(descriptor)

    def home(self: _Tree, path: str) -> tuple[_Tree, str]:
        """Return the tree that a path is really in, and its path there: a repo may be a link.

        Whoever made the link has to be trusted, or to own what it leads to: nobody can make this
        user read another user's models.

        Raises:
            StaleError: it leads to what belongs to another user, or not to a folder.
            OSError: it leads to nothing that can be reached.
        """
        folder, _, rest = os.path.relpath(path, self.root).partition(os.sep)
        link = os.path.join(self.root, folder)
        try:
            target = self.readlink(link) if rest else None
        except OSError:
            target = None
        if target is None:
            return self, path
        place = real_path(os.path.join(self.root, target))
        if place not in self._homes:
            home = type(self)(os.path.dirname(place))
            status, made = home.stat(place), self.stat(link)
            trusted = made.st_uid in trusted_owners(status.st_uid)
            if not modes.S_ISDIR(status.st_mode) or not trusted:
                raise stale(link)
            self._homes[place] = home
        return self._homes[place], os.path.join(place, rest)

    @contextlib.contextmanager
    def _reached(self, path: str) -> Iterator[tuple[str, int | None]]:
        tree, path = self.home(path)
        with tree.parent(path) as found:
            yield found

    def stat(self, path: str) -> os.stat_result:
        """Return the status of what is at a path, of a link and not of what it leads to.

        Raises:
            OSError: it does not exist or cannot be reached.
        """
        with self._reached(path) as (name, folder):
            return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def exists(self, path: str) -> bool:
        """Return whether anything is at a path, even a link that leads nowhere.

        Raises:
            OSError: it cannot be reached.
        """
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def folder(self, path: str) -> Iterator[int | None]:
        """Yield the descriptor of a folder; `None` if the system has no such calls.

        Raises:
            OSError: it cannot be read, or is not a folder.
        """
        with self._reached(path) as (name, parent):
            descriptor = None if parent is None else enter(name, parent, path)
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, sorted.

        Raises:
            OSError: it cannot be read, or is not a folder.
        """
        with self.folder(path) as descriptor:
            return sorted(os.listdir(path if descriptor is None else descriptor))

    def links(self, path: str) -> dict[str, str]:
        """Return name -> target of the links in a folder.

        Raises:
            OSError: it cannot be read, or is not a folder.
        """
        with self.folder(path) as descriptor:
            place = path if descriptor is None else descriptor
            with os.scandir(place) as entries:
                names = [entry.name for entry in entries if entry.is_symlink()]
            base = path if descriptor is None else ""
            return {
                name: os.readlink(os.path.join(base, name), dir_fd=descriptor) for name in names
            }

    def readlink(self, path: str) -> str:
        """Return what a link leads to.

        Raises:
            OSError: it cannot be read, or is not a link.
        """
        with self._reached(path) as (name, folder):
            return os.readlink(name, dir_fd=folder)

    def open(self, path: str, expected: tuple[int, int] | None = None) -> int:
        """Open a regular file for reading and return its descriptor, which the caller closes.

        Args:
            path: the file, not a link.
            expected: its device and inode, if it has to be the file that was seen before.

        Raises:
            StaleError: it is another file, or not a regular one.
            OSError: the system refuses.
        """
        with self._reached(path) as (name, folder):
            descriptor = _open(name, folder, path)
        status = os.fstat(descriptor)
        if expected not in (None, (status.st_dev, status.st_ino)):
            os.close(descriptor)
            raise StaleError(errno.ESTALE, "another file is in its place by now", path)
        return descriptor

    def open_content(self, path: str) -> int:
        """Open a blob; one that is a link is read in the store of shared blobs next to its repo.

        Or in a base, if a record of ours says that its link leads there.

        Raises:
            StaleError: it is neither a file nor such a link.
            OSError: the system refuses.
        """
        tree, path = self.home(path)
        try:
            return tree.open(path)
        except StaleError:
            place = _shared_place(tree, path)
            if place is not None:
                return tree.open(place)
        return open_in_base(tree, path)

    def read(self, path: str, limit: int, owners: Collection[int] | None = None) -> bytes:
        """Return the content of a regular file.

        Args:
            path: the file.
            limit: the most bytes that make sense for it.
            owners: the users who may own it; anybody if not given.

        Raises:
            OSError: it cannot be read, is longer than `limit`, or belongs to another user.
        """
        return read_bytes(self.open(path), limit, owners=owners)

    def is_contested(self, path: str) -> bool:
        """Return whether others could swap a part of a path while root uses it.

        Then libraries, which open files by their paths alone, must not be given the path.
        """
        if not is_root():
            return False
        place, parts = self.root, os.path.relpath(path, self.root).split(os.sep)
        for part in ["", *parts]:
            place = os.path.join(place, part) if part else place
            with contextlib.suppress(FileNotFoundError):
                status = self.stat(place)
                if status.st_uid != 0 or status.st_mode & 0o022:
                    return True
        return False


def tree_at(kind: type[_Tree], root: str, descriptor: int) -> _Tree:
    """Return a tree whose root is open already; its descriptor is closed with the tree."""
    tree = kind(root)
    vars(tree)["top"] = descriptor
    weakref.finalize(tree, os.close, descriptor)
    return tree


def _shared_place(tree: CacheTree, path: str) -> str | None:
    """Return the path of the shared blob that a repo's blob links to; `None` if it does not."""
    with contextlib.suppress(OSError):
        shared = layout.shared_hash_of(tree.readlink(path))
        return layout.shared_blob_path(tree.root, shared) if shared else None
    return None


def base_record(tree: CacheTree, folder: str) -> OwnedRecord | None:
    """Return the record of a repo's bases; `None` if there is no valid one.

    Args:
        tree: the cache.
        folder: the name of the repo's folder.
    """
    try:
        descriptor = tree.open(base_record_path(tree.root, folder))
        owner = os.fstat(descriptor).st_uid
        return OwnedRecord(decode(read_bytes(descriptor, LIMIT)), owner)
    except (OSError, *JSON_ERRORS):
        return None


def open_in_base(tree: CacheTree, path: str) -> int:
    """Open the content of a blob that is a link into a base.

    Another user's record leads only to what they own or what everybody may read: nobody is made to
    read, and pass on, what the user who made the record may not read.

    Args:
        tree: the cache.
        path: the blob.

    Raises:
        StaleError: no record names the base that it leads into, or it leads to what is closed.
        OSError: the system refuses.
    """
    folder = os.path.relpath(path, tree.root).split(os.sep)[0]
    try:
        target = tree.readlink(path)
    except OSError:
        raise stale(path) from None
    owned = base_record(tree, folder)
    base = owned and owned.record.base_of(target, folder, os.path.basename(path))
    if owned is None or base is None:
        raise stale(path)
    there, place = CacheTree(base.folder).home(target)
    place = _shared_place(there, place) or place
    with there.parent(place) as (name, above):
        descriptor = _open(name, above, place)
        status = os.fstat(descriptor)
        trusted = owned.owner in trusted_owners(status.st_uid)
        if not trusted and not (status.st_mode & modes.S_IROTH and _is_open(above)):
            os.close(descriptor)
            raise stale(place)
    return descriptor


def _open(name: str, folder: int | None, path: str) -> int:
    """Open a regular file in a folder that was entered.

    Raises:
        StaleError: it is not a regular file.
        OSError: the system refuses.
    """
    try:
        return open_quietly(name, folder=folder, follow=False)
    except OSError as error:
        if error.errno not in (None, *_OTHER):
            raise
        raise stale(path) from None


def _is_open(folder: int | None) -> bool:
    """Return whether every user may enter an open folder and all folders above it."""
    if folder is None:
        return False
    here = os.dup(folder)
    try:
        while True:
            status = os.fstat(here)
            above = os.open(os.pardir, _PASSING, dir_fd=here)
            os.close(here)
            here = above
            if not status.st_mode & modes.S_IXOTH:
                return False
            if os.path.samestat(status, os.fstat(here)):
                return True
    finally:
        os.close(here)


def name_path(error: OSError, path: str, name: str = "") -> None:
    """Let an error name the complete path, if it names only an entry of an open folder.

    Args:
        error: the error.
        path: the path.
        name: its name in the folder; of a link that is made, the error's second name.
    """
    named = error.filename
    complete = isinstance(named, str) and os.path.isabs(named) and not named.startswith(_HANDLES)
    if named is not None and (not complete or (name and error.filename2 == name)):
        error.filename = path


def is_root() -> bool:
    """Return whether this process is root, whose new files do not belong to the cache's owner."""
    return BY_DESCRIPTOR and os.geteuid() == 0


def trusted_owners(*others: int) -> set[int]:
    """Return the users whose links and records count: root, this user, and the others given."""
    return {0, getattr(os, "geteuid", int)(), *others}


def identity_of(folder: str) -> tuple[int, int] | None:
    """Return the device and inode of the folder that a path leads to; `None` if there is none."""
    try:
        return CacheTree(folder).identity
    except FileNotFoundError:
        return None


def enter(name: str, parent: int | None, path: str) -> int:
    """Open a folder on the way to a path.

    Raises:
        StaleError: it is a link, or not a folder.
        OSError: the system refuses.
    """
    try:
        return os.open(name, FOLDER | getattr(os, "O_NOFOLLOW", 0), dir_fd=parent)
    except OSError as error:
        if error.errno in _OTHER:
            raise stale(path) from None
        raise
