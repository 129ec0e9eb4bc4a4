"""Changes below a root, by the descriptors of its folders; links among them are never followed.

What root makes in somebody's cache belongs to that cache: it gets its owner, group and modes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
import sys
import uuid
from collections.abc import Callable, Iterator

from vlmcache import log
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.reading import FOLDER
from vlmcache.cache.tree import CacheTree, is_root, name_path, stale

WAIT_SECONDS = 10.0
"""Seconds that a command waits for locks that others hold, all of them together."""
_OPEN_FILES = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else -1
MOST_OPEN = max(1, _OPEN_FILES // 4) if _OPEN_FILES > 0 else 1000
"""Files to have open at once for one purpose, of those that the process may have open."""
_ROUNDS = 100
"""How often a file is opened that others keep replacing."""
_CHANGING = (
    os.O_RDWR
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
_NEW = _CHANGING | os.O_CREAT | os.O_EXCL
HAS_HANDLES = hasattr(os, "O_PATH") and os.path.isdir("/proc/self/fd")
_READING = os.O_PATH if HAS_HANDLES else os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
_HANDLE = _READING | getattr(os, "O_NOFOLLOW", 0)
"""How something is opened only to change its owner, mode and times, readable or not."""
_SHARED_MODE = 0o775
"""The bits of a cache's mode that what root makes in it gets: others do not write."""
_LIKE_MODE = _SHARED_MODE | modes.S_ISGID


class Tree(CacheTree):
    """A cache, or a place to which models were moved, as it is added to and changed.

    Args:
        root: the folder, or a tree that has it open.
        patience: seconds that may be spent on waiting for locks, all of them together.
    """

    gives = True
    """Whether what root makes is the cache's at once."""

    def __init__(self, root: str | CacheTree, *, patience: float | None = None) -> None:
        super().__init__(root)
        self.patience = WAIT_SECONDS if patience is None else patience

    def make_folders(self, path: str, mode: int = 0o777, like: CacheTree | None = None) -> None:
        """Make a folder and those above it, as far as they are not there.

        Args:
            path: the folder.
            mode: of what is made, before the umask.
            like: the cache whose owner, group and mode it gets if root makes it.

        Raises:
            StaleError: a link or something else is in the place of one.
            OSError: the system refuses.
        """
        if "top" not in vars(self) and not os.path.isdir(self.root):
            Tree(nearest_folder(self.root)).make_folders(self.root)
        for place in _missing_folders(self, path):
            with self.parent(place) as (name, folder):
                try:
                    os.mkdir(name, mode, dir_fd=folder)
                except FileExistsError:
                    if not _is_folder(self, place):
                        raise
                else:
                    give(self, name, folder, mode, like)
                    self.changed(place, folder)

    def create(self, path: str, mode: int = 0o666) -> int:
        """Make a file and return its descriptor, which the caller closes.

        Raises:
            FileExistsError: something is there.
            OSError: the system refuses.
        """
        with self.parent(path) as (name, folder):
            descriptor = os.open(name, _NEW, mode, dir_fd=folder)
            give(self, descriptor, folder, mode)
            return descriptor

    def edit(self, path: str) -> int:
        """Open a regular file to change it and return its descriptor, which the caller closes.

        Raises:
            StaleError: it is not a regular file, or has a second name, which may be anywhere.
            OSError: the system refuses.
        """
        with self.parent(path) as (name, folder):
            try:
                descriptor = os.open(name, _CHANGING, dir_fd=folder)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                    raise stale(path) from None
                raise
        status = os.fstat(descriptor)
        if not modes.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(descriptor)
            raise stale(path)
        return descriptor

    def edit_or_create(self, path: str, mode: int = 0o666) -> int:
        """Open a regular file to change it, a new one if there is none.

        Raises:
            StaleError: it is not a regular file, or has a second name, which may be anywhere.
            OSError: the system refuses.
        """
        for _ in range(_ROUNDS):
            with contextlib.suppress(FileNotFoundError):
                return self.edit(path)
            with contextlib.suppress(FileExistsError):
                return self.create(path, mode)
        raise stale(path)

    @contextlib.contextmanager
    def replacing(
        self, path: str, mode: int = 0o666, *, temporary: str | None = None
    ) -> Iterator[int]:
        """Yield the descriptor of a new file, which takes a path's place once the block ends well.

        Its bytes are on the disk by then: readers see the old file or the new one.

        Args:
            path: where; whatever has that name is replaced.
            mode: of the new file, before the umask.
            temporary: the path under which it is written, in the same folder; what has that name is
                removed. A unique one if not given.

        Raises:
            OSError: the system refuses; what was at the path is untouched.
        """
        begun = temporary or f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        if temporary is not None:
            self.discard(temporary)
        descriptor = self.create(begun, mode)
        try:
            try:
                yield descriptor
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.rename(begun, path)
        except BaseException:
            self.discard(begun)
            raise

    def write(
        self, path: str, content: bytes, mode: int = 0o666, *, temporary: str | None = None
    ) -> None:
        """Put a small file in its place; see `replacing`.

        Raises:
            OSError: the system refuses; what was at the path is untouched.
        """
        with self.replacing(path, mode, temporary=temporary) as descriptor:
            write_all(descriptor, content)

    def rename(self, path: str, place: str) -> None:
        """Rename an entry; what was at its new place is replaced, and the change on the disk.

        Raises:
            OSError: the system refuses.
        """
        with self.parent(path) as (name, folder), self.parent(place) as (new_name, new_folder):
            os.replace(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)
            log.debug("place", "renamed '%s' to '%s'", path, place)
            self.changed(place, new_folder)

    def symlink(self, target: str, path: str) -> None:
        """Make a link.

        Raises:
            FileExistsError: something is there.
            OSError: the system refuses.
        """
        with self.parent(path) as (name, folder):
            os.symlink(target, name, dir_fd=folder)
            give(self, name, folder, None)
            self.changed(path, folder)

    def changed(self, path: str, folder: int | None) -> None:
        """Bring an entry that was made or renamed to the disk.

        Args:
            path: the entry.
            folder: the descriptor of its folder; `None` if the system has no such calls.

        Raises:
            OSError: the system refuses.
        """
        sync_folder(os.path.dirname(path) if folder is None else folder)

    def link(self, path: str, place: str, source: CacheTree | None = None) -> None:
        """Give a file a second name.

        Args:
            path: the file.
            place: its second name.
            source: the tree that it is in, if not in this one.

        Raises:
            FileExistsError: something is there.
            OSError: the system refuses.
        """
        tree = source or self
        with tree.parent(path) as (name, folder), self.parent(place) as (new_name, new_folder):
            os.link(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder, follow_symlinks=False)

    def put(self, path: str, temporary: str, make: Callable[[str], object]) -> None:
        """Make an entry under another name of the same filesystem, and rename it to its place.

        Args:
            path: the place; whatever is at it is replaced.
            temporary: the other name.
            make: makes an entry at the path that it is given.

        Raises:
            OSError: the system refuses; what was at the path is untouched.
        """
        try:
            make(temporary)
            self.rename(temporary, path)
        except BaseException:
            self.discard(temporary)
            raise

    def chmod(self, path: str, mode: int) -> None:
        """Set the mode of a file or folder.

        Raises:
            OSError: the system refuses, or it is a link.
        """
        with self.handle(path) as entry:
            os.chmod(entry, mode)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder.

        Raises:
            OSError: the system refuses, or it is not an empty folder.
        """
        with self.parent(path) as (name, folder):
            os.rmdir(name, dir_fd=folder)

    def unlink(self, path: str) -> None:
        """Remove a file or link.

        Raises:
            OSError: the system refuses.
        """
        with self.parent(path) as (name, folder):
            os.unlink(name, dir_fd=folder)

    def discard(self, path: str) -> None:
        """Remove a temporary file or link, as far as the system lets."""
        with contextlib.suppress(OSError):
            self.unlink(path)

    @contextlib.contextmanager
    def handle(self, path: str) -> Iterator[int | str]:
        """Yield what `os.chmod`, `os.chown` and `os.utime` take for the very entry at a path.

        Raises:
            OSError: the system refuses.
        """
        with self.parent(path) as (name, folder):
            descriptor = os.open(name, _HANDLE, dir_fd=folder)
        try:
            yield changeable(descriptor)
        except OSError as error:
            name_path(error, path)
            raise
        finally:
            os.close(descriptor)


def give(
    tree: Tree, made: str | int, folder: int | None, mode: int | None, like: CacheTree | None = None
) -> None:
    """Give what root has just made the cache's owner and group, and no more than the cache's mode.

    Args:
        tree: the cache.
        made: the descriptor of a file, or the name of a folder or link.
        folder: the descriptor of the folder that it is in.
        mode: what was asked for; `None` for a link.
        like: another cache, of which it gets the group and all of the mode too.
    """
    if folder is None or not tree.gives or not is_root():
        return
    top = os.fstat(tree.top)
    if like is not None and (shown := os.fstat(like.top)).st_uid + shown.st_gid != 0:
        top = shown
    else:
        like = None
    if (top.st_uid, top.st_gid) == (0, 0):
        return
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        # A network drive may take root for nobody; then what was made is nobody's.
        kind = modes.S_IFREG
        if isinstance(made, str):
            kind = modes.S_IFLNK if mode is None else modes.S_IFDIR
            made = os.open(made, _HANDLE, dir_fd=folder)
            stack.callback(os.close, made)
        status = os.fstat(made)
        if status.st_uid != 0 or modes.S_IFMT(status.st_mode) != kind:
            return  # Something else has taken its place by now.
        group = top.st_gid if like or status.st_gid == os.getegid() else -1
        os.chown(changeable(made), top.st_uid, group)
        if like is not None:
            os.chmod(changeable(made), modes.S_IMODE(top.st_mode) & _LIKE_MODE)
        elif mode is not None:
            mode &= modes.S_IMODE(top.st_mode) & _SHARED_MODE
            os.chmod(changeable(made), mode | status.st_mode & modes.S_ISGID)


def changeable(descriptor: int) -> int | str:
    """Return what `os.chmod` and the like take for an open file, folder or link.

    Linux changes what was opened as a handle only by a path that leads to the descriptor.
    """
    return f"/proc/self/fd/{descriptor}" if HAS_HANDLES else descriptor


def _missing_folders(tree: Tree, path: str) -> list[str]:
    """Return a folder and those above it that are not there, the uppermost first.

    It looks from below: each look enters all folders from the root, and usually most are there.
    """
    missing: list[str] = []
    path = os.path.join(tree.root, os.path.relpath(path, tree.root))
    while path != tree.root and not _is_folder(tree, path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing[::-1]


def _is_folder(tree: Tree, path: str) -> bool:
    """Return whether a folder is at a path; StaleError if something else is."""
    try:
        with tree.parent(path) as (name, folder):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not modes.S_ISDIR(status.st_mode):
        raise stale(path)
    return True


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of the data; on a disk that is nearly full, one call writes only a part of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: str | int) -> None:
    """Bring the entries of a folder, or of an open one, to the disk, if the system can do it."""
    if sys.platform == "win32":
        return
    descriptor = folder if isinstance(folder, int) else os.open(folder, FOLDER)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network filesystems cannot sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        if descriptor != folder:
            os.close(descriptor)


def entry_names(descriptor: int | None, path: str) -> list[str]:
    """Return the names in a folder, by its descriptor if there is one."""
    return os.listdir(path if descriptor is None else descriptor)
