"""Small reads that leave no trace: access times tell when a model was used, so looking must not."""

from __future__ import annotations

import os
import stat

import msgspec

JSON_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What msgspec raises for bytes that are no JSON, nested too deeply, or no UTF-8."""

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_ATIME = getattr(os, "O_NOATIME", 0)


def open_quietly(path: str) -> int:
    """Open a regular file for reading, without changing its access time where that is allowed.

    Returns:
        A file descriptor, which the caller closes.

    Raises:
        OSError: it cannot be opened, or is no regular file (a pipe would block the reader).
    """
    try:
        descriptor = os.open(path, _FLAGS | _NO_ATIME)
    except PermissionError:
        # O_NOATIME is allowed to the owner of the file only.
        descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"not a regular file: {path}")
    return descriptor


def read_bytes(path: str, limit: int) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file; links are followed.
        limit: the most bytes that make sense for it.

    Raises:
        OSError: it cannot be read, or is longer than `limit`.
    """
    with open(open_quietly(path), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"longer than the {limit} bytes that make sense here: {path}")
    return content
