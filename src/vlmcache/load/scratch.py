"""Folders in vlmcache's own folder in which this process makes something, and room for it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator

from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.owners import is_anothers
from vlmcache.errors import SpaceError
from vlmcache.units import size_text

MAKING = ".making-"
"""Beginning of the folders' names; the process's number follows."""
_in_use: set[str] = set()
"""The folders in which this process is making something."""


def check_space(folder: str, what: str, size: int, min_free: int) -> None:
    """Make sure that something can be made below a folder, which need not exist.

    Args:
        folder: the folder.
        what: what is to be made, in words.
        size: its estimated bytes.
        min_free: bytes that have to stay free.

    Raises:
        SpaceError: less would stay free.
    """
    free = shutil.disk_usage(nearest_folder(folder)).free
    if free - size < min_free:
        raise SpaceError(
            f"the {what} takes about {size_text(size)}, and {folder} has {size_text(free)} free,"
            f" of which {size_text(min_free)} must stay free",
            "make room on that disk, or name another folder with VLMCACHE_HOME",
        )


def refuse_anothers(folder: str) -> None:
    """Make sure that root does not write into another user's folder.

    Raises:
        PermissionError: it would.
    """
    if is_anothers(folder):
        reason = "root writes nothing in another user's folder: name root's own with VLMCACHE_HOME"
        raise PermissionError(errno.EACCES, reason, folder)


@contextlib.contextmanager
def new_folder(root: str) -> Iterator[str]:
    """Yield a new folder for what this process makes; at the end it is removed unless renamed.

    Folders that were left behind by processes that have ended are removed.

    Raises:
        OSError: it cannot be made.
    """
    import psutil

    refuse_anothers(root)
    os.makedirs(root, exist_ok=True)
    for name in os.listdir(root):
        path = os.path.join(root, name)
        number, _, _ = name.removeprefix(MAKING).partition("-")
        if not name.startswith(MAKING) or not number.isdigit() or path in _in_use:
            continue
        # In containers, processes that follow each other often have the same number.
        if int(number) == os.getpid() or not psutil.pid_exists(int(number)):
            shutil.rmtree(path, ignore_errors=True)
    making = os.path.join(root, f"{MAKING}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    _in_use.add(making)
    try:
        os.makedirs(making)
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)
        _in_use.discard(making)
