"""Which users the modes of folders let in."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Collection, Iterable

_ACL = "system.posix_acl_access"


class Reach:
    """Who can reach some files, as far as the modes of the folders above them say.

    Root counts like any other user: what is closed to all others is private.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = paths
        self._known: dict[tuple[int, frozenset[int] | None], bool] = {}

    def lets_in(self, user: int, groups: frozenset[int] | None) -> bool:
        """Return whether a user may enter every folder on the way; the answer is kept.

        Args:
            user: the user's number.
            groups: the numbers of the user's groups; if not given, the user may be in any.
        """
        if (user, groups) not in self._known:
            self._known[user, groups] = self._enters(user, groups)
        return self._known[user, groups]

    def _enters(self, user: int, groups: frozenset[int] | None) -> bool:
        try:
            folder = os.path.commonpath(list(self._paths))
            while not os.path.isdir(folder):
                folder = os.path.dirname(folder)
        except (OSError, ValueError):
            return True
        while True:
            if not _may_enter(folder, user, groups):
                return False
            if folder == os.path.dirname(folder):
                return True
            folder = os.path.dirname(folder)


def _may_enter(folder: str, user: int, groups: Collection[int] | None) -> bool:
    try:
        status = os.stat(folder)
    except OSError:
        return True
    if status.st_uid == user:
        return bool(status.st_mode & modes.S_IXUSR)
    if groups is None or _has_acl(folder):
        return bool(status.st_mode & (modes.S_IXGRP | modes.S_IXOTH))
    return bool(status.st_mode & (modes.S_IXGRP if status.st_gid in groups else modes.S_IXOTH))


def _has_acl(folder: str) -> bool:
    """Return whether more users and groups have rights than the mode shows (acl(5))."""
    try:
        return bool(os.getxattr(folder, _ACL))
    except (OSError, AttributeError):
        return False
