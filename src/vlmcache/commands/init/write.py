"""Writing a config.yaml: it is put in its place complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator

from vlmcache.cache.reading import FOLDER, read_bytes
from vlmcache.change.place import full_words, is_full
from vlmcache.change.tree import Tree, write_all
from vlmcache.commands.init.values import ConfigExistsError, ConfigWriteError
from vlmcache.environment import FILE_LIMIT
from vlmcache.errors import SpaceError, VlmcacheError, reason_of
from vlmcache.paths import real_path

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What filesystems without hard links answer."""


def check_absent(path: str) -> None:
    """Make sure that nothing has the name of a new file: no file, folder or broken link either.

    Raises:
        ConfigExistsError: something has.
    """
    if not os.path.lexists(path):
        return
    what = "exists already"
    if os.path.isdir(path):
        what = "is a folder"
    elif os.path.islink(path) and not os.path.exists(path):
        what = "is a link to something that does not exist"
    raise ConfigExistsError(
        f"{path} {what}: nothing was written",
        "'vlmcache pull --add MODEL' adds a model to a file; --config names another place",
    )


def create(path: str, content: bytes) -> None:
    """Write a new file; whatever has its name by then is never replaced.

    Raises:
        ConfigExistsError: something has its name.
        SpaceError: the disk is full.
        ConfigWriteError: the system refuses for another reason.
    """
    with _explained(path):
        tree = Tree(os.path.dirname(path))
        tree.make_folders(tree.root)
        with _written(tree, path, content) as temporary:
            try:
                tree.link(temporary, path)
            except FileExistsError:
                check_absent(path)
                raise
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                _create_directly(tree, path, content)
        tree.changed(path, None)


def change(path: str, changed: Callable[[bytes | None], bytes]) -> None:
    """Change a file, or make it; one of several that do this at a time waits for the others.

    Args:
        path: the file; of a link, what it leads to is changed.
        changed: returns the new content; it is called with the old one, or `None`.

    Raises:
        SpaceError: the disk is full.
        ConfigWriteError: the system refuses for another reason.
    """
    with _explained(path):
        real = real_path(path)
        tree = Tree(os.path.dirname(real))
        tree.make_folders(tree.root)
        with _alone(tree.root):
            if not os.path.lexists(path):
                create(path, changed(None))
                return
            status = os.stat(real)
            content = changed(read_bytes(real, FILE_LIMIT))
            with tree.replacing(real) as descriptor:
                write_all(descriptor, content)
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


@contextlib.contextmanager
def _written(tree: Tree, path: str, content: bytes) -> Iterator[str]:
    """Yield the path of a temporary file with the content on the disk."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    descriptor = tree.create(temporary)
    try:
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        tree.discard(temporary)


def _create_directly(tree: Tree, path: str, content: bytes) -> None:
    """Write a new file in its place, where no complete file can be put there without hard links."""
    try:
        descriptor = tree.create(path)
    except FileExistsError:
        check_absent(path)
        raise
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    except BaseException:
        tree.discard(path)
        raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Hold a folder's lock, if the system has one."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, FOLDER)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn the system's refusal into an error that says what it means to a user."""
    try:
        yield
    except OSError as error:
        raise _failure(error, path) from error


def _failure(error: OSError, path: str) -> VlmcacheError:
    if is_full(error):
        return SpaceError(full_words(path, error), "'vlmcache status' shows what makes room")
    place = error.filename if isinstance(error.filename, str) else ""
    where = f": {place}" if place and os.path.dirname(path).startswith(place) else ""
    return ConfigWriteError(
        f"{path} cannot be written: {reason_of(error)}{where}",
        "name a file elsewhere with --config",
    )
