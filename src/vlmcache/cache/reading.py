"""Small reads that leave access times alone, since these show when a model was last used."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection
from typing import Any

import msgspec

from vlmcache import late

json = late.module("json")

JSON_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What msgspec raises for bytes that are not JSON, are nested too deeply, or are not UTF-8."""

_ESCAPES = late.pattern(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL)
"""Escapes in JSON; the group is half of a surrogate pair, which stands for an undecodable byte."""

FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
"""How a folder is opened: a pipe that has replaced it meanwhile is refused, not waited for."""
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_ATIME = getattr(os, "O_NOATIME", 0)


def json_value(content: bytes, kind: Any) -> Any:
    """Return the value of JSON whose strings need not be valid Unicode: git allows any file name.

    Raises:
        MsgspecError, RecursionError: it is not JSON, or not of that kind.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except JSON_ERRORS:
        valid = content.decode(json.detect_encoding(content), "replace").encode()
        valid = _ESCAPES.sub(lambda found: rb"\ufffd" if found[1] else found[0], valid)
        if valid == content:
            raise
    return msgspec.json.decode(valid, type=kind)


def parse_json(content: bytes) -> Any:
    """Return the value of JSON, in which `NaN` and `Infinity` are allowed as in Python.

    Raises:
        MsgspecError, RecursionError, UnicodeDecodeError: it is not JSON.
    """
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        try:
            return json.loads(content.decode())
        except ValueError as error:
            # Python's message names line and column; content that is not UTF-8 ends here too.
            raise msgspec.DecodeError(str(error)) from None


def open_quietly(path: str, *, follow: bool = True, folder: int | None = None) -> int:
    """Open a regular file for reading, without changing its access time if that is allowed.

    Args:
        path: the file.
        follow: whether it may be a link.
        folder: the descriptor of the folder that the path is relative to.

    Returns:
        A file descriptor, which the caller closes.

    Raises:
        OSError: it cannot be opened, or is not a regular file (a pipe would block the reader).
    """
    # Merely opening a pipe disturbs its reader, and opening a device can make it act.
    _refuse_other(os.stat(path, dir_fd=folder, follow_symlinks=follow).st_mode, path)
    flags = _FLAGS if follow else _FLAGS | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags | _NO_ATIME, dir_fd=folder)
    except PermissionError:
        # Only the file's owner may use O_NOATIME.
        descriptor = os.open(path, flags, dir_fd=folder)
    try:
        _refuse_other(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_other(mode: int, path: str) -> None:
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "a link, which is not followed", path)
    if not stat.S_ISREG(mode):
        raise OSError(f"not a regular file: {path}")


def read_bytes(
    path: str | int, limit: int, *, owners: Collection[int] | None = None, follow: bool = True
) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file, or its descriptor, which is closed.
        limit: the most bytes that make sense for it.
        owners: the users who may own it; anybody if not given.
        follow: whether it may be a link; never if owners are given.

    Raises:
        OSError: it cannot be read, is longer than `limit`, is a link, or belongs to another user.
    """
    opened = path if isinstance(path, int) else open_quietly(path, follow=follow and owners is None)
    with open(opened, "rb") as file:
        if owners is not None and os.fstat(file.fileno()).st_uid not in owners:
            raise PermissionError(f"it belongs to another user: {path}")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"longer than the {limit} bytes that make sense here: {path}")
    return content
