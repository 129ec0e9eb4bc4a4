"""What a filesystem can do, tried before the first byte is written to it.

Each trial is made in an empty folder of its own, which is removed afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat as modes
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from vlmcache import late
from vlmcache.cache.case import folded
from vlmcache.cache.locks import flock
from vlmcache.cache.mounts import LOCAL, mount_of, nearest_folder
from vlmcache.change.tree import Tree, entry_names
from vlmcache.errors import CacheError
from vlmcache.units import short_text, size_text

_CANNOT = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""Why a filesystem refuses what it cannot do; any other error says nothing about that."""
_NO_SUCH_NAME = frozenset({errno.ENAMETOOLONG, errno.EILSEQ, errno.ENOENT})
"""Why a filesystem refuses the name of a new file in a folder that exists."""
_NO_LINKS_OF_WINDOWS = 1314
"""Windows's error if a user may not make links."""
_LARGE = 1 << 32
"""Bytes of the shortest file that is too long for FAT."""
_PLAIN = late.pattern(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
"""Names that every filesystem allows."""
_LONGEST_PATH = 4096
_SUFFIX = 80
"""Bytes by which the name of a temporary is longer than the file's."""
_HINT = "name a folder on another filesystem, such as ext4, xfs, btrfs or APFS"


class Abilities(NamedTuple):
    """What a filesystem can do; `None` if it could not be tried."""

    symlinks: bool | None = None
    hard_links: bool | None = None
    locks: bool | None = None
    case_sensitive: bool | None = None
    modes: bool | None = None
    """Whether a file keeps the mode that it is given."""
    large_files: bool | None = None
    """Whether a file can have 4 GiB and more, as far as the system says it without writing them."""


class Needs(NamedTuple):
    """What is about to be written to a filesystem."""

    names: Collection[str] = ()
    """Paths of files below the folder, with forward slashes; none if nothing is written."""
    largest: int = 0
    """Bytes of the longest file."""
    links: bool = False
    """Whether symbolic links are among them."""


def cannot(error: OSError) -> bool:
    """Return whether a refusal says that the filesystem does not have what was asked for."""
    windows = getattr(error, "winerror", None) == _NO_LINKS_OF_WINDOWS
    return windows or error.errno in _CANNOT


class _Trial:
    """An empty folder, in which things are tried."""

    def __init__(self, path: str, descriptor: int | None) -> None:
        self.path = path
        self.folder = descriptor

    def name(self, name: str) -> str:
        """Return a name in the folder, or its path if the system has no calls by descriptor."""
        return name if self.folder is not None else os.path.join(self.path, name)

    def make(self, name: str) -> int:
        """Make an empty file, and return its descriptor, which the caller closes."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        return os.open(self.name(name), flags, 0o600, dir_fd=self.folder)

    def holds(self, name: str) -> bool:
        """Return whether anything has a name."""
        with contextlib.suppress(OSError):
            os.stat(self.name(name), dir_fd=self.folder, follow_symlinks=False)
            return True
        return False

    def symlinks(self) -> bool | None:
        return _can(lambda: os.symlink("file", self.name("symlink"), dir_fd=self.folder))

    def hard_links(self) -> bool | None:
        here = self.folder
        names = self.name("file"), self.name("hard link")
        return _can(
            lambda: os.link(*names, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
        )

    def takes(self, name: str, other: str | None = None) -> bool:
        """Return whether a file can have a name, and not another one at the same time.

        A refusal that says nothing about the name counts as yes.
        """
        try:
            os.close(self.make(name))
        except OSError as error:
            return not cannot(error) and error.errno not in _NO_SUCH_NAME
        try:
            return self.holds(name) and not (other is not None and self.holds(other))
        finally:
            os.unlink(self.name(name), dir_fd=self.folder)


@contextlib.contextmanager
def _trial(tree: Tree, folder: str) -> Iterator[_Trial]:
    # Its name is a temporary's: in a store, what a run that was killed has left is known.
    path = os.path.join(folder, f".trial.{secrets.token_hex(4)}.tmp")
    tree = Tree(tree)
    tree.gives = False  # so that nobody else can enter it
    tree.make_folders(path, 0o700)
    try:
        with tree.folder(path) as descriptor:
            trial = _Trial(path, descriptor)
            try:
                yield trial
            finally:
                for name in entry_names(descriptor, path):
                    with contextlib.suppress(OSError):
                        os.unlink(trial.name(name), dir_fd=descriptor)
    finally:
        with contextlib.suppress(OSError):
            tree.rmdir(path)


@contextlib.contextmanager
def _file(tree: Tree, folder: str) -> Iterator[int]:
    """Yield the descriptor of an empty file: one without a name, if the system has such."""
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(tree.folder(folder))
            here = folder if opened is None else os.curdir
            descriptor = os.open(here, os.O_RDWR | os.O_TMPFILE, 0o600, dir_fd=opened)
        except (AttributeError, OSError):
            descriptor = stack.enter_context(_trial(tree, folder)).make("file")
        stack.callback(os.close, descriptor)
        yield descriptor


def _can(work: Callable[[], object]) -> bool | None:
    """Return whether something can be done; `None` if its failure says nothing about it."""
    try:
        work()
    except NotImplementedError:
        return False
    except OSError as error:
        return False if cannot(error) else None
    return True


def probe(tree: Tree, folder: str) -> Abilities:
    """Return what the filesystem of a folder can do.

    Args:
        tree: the cache.
        folder: of the cache; it exists.
    """
    with contextlib.suppress(OSError), _trial(tree, folder) as trial:
        descriptor = trial.make("file")
        try:
            return Abilities(
                symlinks=trial.symlinks(),
                hard_links=trial.hard_links(),
                locks=_can_lock(descriptor, folder),
                case_sensitive=not trial.holds("FILE"),
                modes=keeps_modes(tree, folder),
                large_files=_can(lambda: os.lseek(descriptor, _LARGE, os.SEEK_SET)),
            )
        finally:
            os.close(descriptor)
    return Abilities()


def _can_lock(descriptor: int, folder: str) -> bool:
    try:
        return flock(descriptor, folder) is True
    except OSError:
        return False


def keeps_modes(tree: Tree, folder: str) -> bool | None:
    """Return whether files in a folder keep their modes, which some systems accept and forget.

    `None` if that cannot be tried.
    """
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError), _file(tree, folder) as file:
            for mode in (0o640, 0o600):
                able = _can(partial(os.fchmod, file, mode))
                kept = modes.S_IMODE(os.fstat(file).st_mode) == mode
                if not (able and kept):
                    return None if able is None else False
            return True
    return None


def check_filesystem(folder: str, needs: Needs) -> None:
    """Make sure that a filesystem can hold what is about to be written, before any of it is.

    Args:
        folder: where, which need not exist.
        needs: what.

    Raises:
        CacheError: it cannot.
    """
    if not needs.names:
        return
    place = nearest_folder(folder)
    tree = Tree(place)
    if hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY:
        raise _refused(place, "is read-only", "name a folder that can be written")
    for words in refused_names(folder, needs.names).values():
        raise _refused(place, words)
    mount = mount_of(place)
    if needs.largest >= _LARGE and (mount is None or mount.type not in LOCAL):
        with contextlib.suppress(OSError), _file(tree, place) as file:
            if _can(lambda: os.lseek(file, needs.largest, os.SEEK_SET)) is False:
                longest = f"and the longest has {size_text(needs.largest)}"
                raise _refused(place, f"cannot hold files of {size_text(_LARGE)}, {longest}")
    if needs.links:
        # If nothing can be tried, what is wrong shows while it is written.
        with contextlib.suppress(OSError), _trial(tree, place) as trial:
            if trial.symlinks() is False:
                raise _refused(place, "has no symbolic links")


def refused_names(folder: str, names: Collection[str]) -> dict[str, str]:
    """Return the names that a filesystem refuses -> why: what to say after "the filesystem".

    Args:
        folder: where, which need not exist.
        names: paths of files below the folder, with forward slashes; of two names that it
            cannot tell apart, the second is refused.
    """
    refused = {
        name: f"has no room in a path for {short_text(name)}: it is too long"
        for name in names
        if len(os.fsencode(os.path.join(folder, name))) + _SUFFIX > _LONGEST_PATH
    }
    pairs = list(_alike(names))
    parts = {part for name in names for part in name.split("/")}
    odd = sorted(part for part in parts if not _PLAIN.fullmatch(part))
    if not (pairs or odd):
        return refused
    place = nearest_folder(folder)
    # If nothing can be tried, what is wrong shows while it is written.
    with contextlib.suppress(OSError), _trial(Tree(place), place) as trial:
        bad = {part for part in odd if not trial.takes(part)}
        for name in names if bad else ():
            for part in name.split("/"):
                if part in bad:
                    refused[name] = f"cannot hold a file named {short_text(part)}"
        for name, *paths in pairs:
            halves = zip(*(path.split("/") for path in paths), strict=True)
            first, second = next(half for half in halves if half[0] != half[1])
            if not trial.takes(first, second):
                both = f"{short_text(first)} and {short_text(second)}"
                refused[name] = f"cannot tell two names apart: {both}"
    return refused


def _alike(names: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the names that a filesystem may confuse with others, by case or by composition.

    With each come the two paths that it may confuse: one can be a folder of another file.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        whole = folded(name)
        above = [name[:end] for end, letter in enumerate(name) if letter == "/"]
        pairs = [(files.get(whole), name), (folders.get(whole), name)]
        pairs += ((files.get(folded(folder)), folder) for folder in above)
        same = next(((other, path) for other, path in pairs if other not in (None, path)), None)
        if same is not None:
            yield name, str(same[0]), same[1]
        else:
            files[whole] = name
            folders.update((folded(folder), folder) for folder in above)


def _refused(place: str, words: str, hint: str = _HINT) -> CacheError:
    mount = mount_of(place)
    kind = f" ({mount.type})" if mount is not None else ""
    return CacheError(f"the filesystem{kind} {words}: {place}", hint)


def check_renames(folder: str, names: Iterable[str]) -> None:
    """Make sure that folders can be renamed: an overlay refuses that for its lower layers.

    Args:
        folder: the folder that they are in.
        names: their names.

    Raises:
        CacheError: one cannot be.
    """
    mount = mount_of(folder)
    if mount is None or mount.type != "overlay":
        return
    tree = Tree(folder)
    with contextlib.suppress(OSError), _trial(tree, folder) as trial:
        # Nothing takes the place of a folder that is not empty, so nothing is renamed. Should
        # somebody empty it meanwhile, what was renamed comes back.
        os.close(trial.make("file"))
        for name in names:
            path = os.path.join(folder, name)
            try:
                tree.rename(path, trial.path)
                tree.rename(trial.path, path)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    raise CacheError(
                        f"what an overlay has from a lower layer cannot be moved away: {path}",
                        "move it where the layer is made; 'vlmcache backup FOLDER/' copies it",
                    ) from None
