"""Where backups are kept: a folder, or what an address of fsspec leads to.

Whatever is written appears under its name when it is complete, and not before.
"""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from typing import IO, Protocol

from vlmcache.errors import VlmcacheError


class PlaceError(VlmcacheError):
    """The place of a backup cannot be reached, read or written."""

    code = "backup-place"


class Place(Protocol):
    """Files by their names, which are relative and have forward slashes."""

    shown: str
    """The place in words, without passwords."""
    workers: int
    """How many files are best read or written at once."""

    def names(self, folder: str) -> dict[str, int]:
        """Return name -> length in bytes of all files below a folder, temporaries left out."""

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a small file's content, `None` if there is none.

        Raises:
            BackupError: it is longer than the limit in bytes.
        """

    def reading(self, name: str, size: int) -> AbstractContextManager[IO[bytes]]:
        """Open a file of a known length, in which one can seek."""

    def writing(self, name: str, size: int) -> AbstractContextManager[IO[bytes]]:
        """Open a new file of about a length, which appears when the block ends without an error."""

    def is_empty(self) -> bool:
        """Return whether nothing is there but temporaries."""

    def tidy(self) -> None:
        """Remove what writers that were killed long ago have left."""


def local_path(place: str) -> str | None:
    """Return the path that a place is on this machine, `None` for any other address."""
    protocol, separator, rest = place.partition("://")
    if not separator:
        return place
    return rest if protocol in ("file", "local") else None


def is_store(place: str) -> bool:
    """Return whether a place is a store, and not a file with one tar stream.

    A folder that exists, a path that ends like a folder's, and an address that does not end in
    `.tar` are.
    """
    path = local_path(place)
    if path is None:
        return not place.endswith(".tar")
    return path.endswith(("/", os.sep)) or os.path.isdir(path)


def write_small(place: Place, name: str, content: bytes) -> None:
    """Write a small file.

    Raises:
        PlaceError: the place cannot be written.
        SpaceError: its disk is full.
    """
    with place.writing(name, len(content)) as stream:
        stream.write(content)


def split(address: str) -> tuple[str, str]:
    """Return the folder that a file's address begins with, and the file's name in it."""
    protocol, _, path = address.partition("://")
    folder, _, name = path.rpartition("/")
    return f"{protocol}://{folder}", name


def without_password(address: str) -> str:
    """Return an address without the password that may be in it."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1@", address)
