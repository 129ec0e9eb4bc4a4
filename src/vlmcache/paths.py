"""Real paths, in folders that others change meanwhile."""

from __future__ import annotations

import os

_ROUNDS = 5


def real_path(path: str) -> str:
    """Return a path without its links, as `os.path.realpath` does; what is not there stays.

    That function reads a link that it has just seen, and raises the system's error if somebody
    has replaced or removed it in between. This one looks again.

    Args:
        path: an absolute or relative path, which need not exist.

    Returns:
        An absolute path; with its links if they change each time.
    """
    for _ in range(_ROUNDS):
        try:
            return os.path.realpath(path)  # noqa: TID251
        except OSError:
            continue
    return os.path.abspath(path)
