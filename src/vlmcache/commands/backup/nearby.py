"""What was meant by a path at which there is no backup, for the hint."""

from __future__ import annotations

import contextlib
import itertools
import os

from vlmcache.cache import layout
from vlmcache.commands.backup.compression import is_stream_name
from vlmcache.commands.backup.values import MARKER
from vlmcache.paths import real_path
from vlmcache.units import did_you_mean, shell_words

_ENTRIES = 1000
"""The most names of a folder that are read."""
_DRIVE = "is its drive mounted?"


def backups_near(path: str, *, for_cache: str | None = None) -> str | None:
    """Return the question whether something in the same place was meant.

    Args:
        path: what was named: a folder that is not a backup, or a path at which there is nothing.
        for_cache: the cache to be filled, if any other cache would do, too.
    """
    path = os.path.abspath(path)
    exists = os.path.isdir(path)
    folder = path if exists else os.path.dirname(path)
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in itertools.islice(entries, _ENTRIES))
    except OSError:
        return _DRIVE
    places = {name: os.path.join(folder, name) for name in names}
    if exists:
        meant = [
            place
            for place in places.values()
            if _is_backup(place) or (for_cache is not None and _is_cache(place, for_cache))
        ][:3]
        return f"did you mean {' or '.join(map(shell_words, meant))}?" if meant else None
    shown = {shell_words(name): shell_words(place) for name, place in places.items()}
    question = did_you_mean(os.path.basename(path), shown, 1)
    for name, place in shown.items():
        if question == f"did you mean {name}?":
            return f"did you mean {place}?"
    return None if names else _DRIVE


def holds_repos(folder: str) -> bool:
    """Return whether a folder holds repos, as a hub cache does."""
    if not os.path.isdir(folder):
        return False
    with os.scandir(folder) as entries:
        return any(layout.parse_repo_folder(entry.name) is not None for entry in entries)


def _is_backup(path: str) -> bool:
    if os.path.isfile(path):
        return is_stream_name(path)
    return os.path.isfile(os.path.join(path, MARKER))


def _is_cache(path: str, but: str) -> bool:
    # What this user may not read is not suggested.
    with contextlib.suppress(OSError):
        return real_path(path) != real_path(but) and holds_repos(path)
    return False
