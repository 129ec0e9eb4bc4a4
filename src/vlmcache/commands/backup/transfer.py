"""What `backup` and `restore` have in common: progress, names, hints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from vlmcache.commands.backup.contents import SavedRepo
from vlmcache.progress import Watcher

_LONG = 16 << 20
"""Length in bytes from which on a file's progress is told."""

MAKE_ROOM = "'vlmcache status' shows what makes room"


@contextlib.contextmanager
def telling(
    watcher: Watcher, label: str, sizes: Mapping[str, int], names: Mapping[str, str]
) -> Iterator[Callable[[str, int], None]]:
    """Let a watcher be told of the long files; the others are over before anyone looks.

    names are what people know them by.
    """
    long = {path: names.get(path, path) for path, size in sizes.items() if size >= _LONG}

    def moved(path: str, position: int) -> None:
        if path in long:
            watcher.moved(label, long[path], position)

    watcher.started(label, {long[path]: sizes[path] for path in long}, 0)
    try:
        yield moved
    finally:
        watcher.ended(label)


def names_of(repo: SavedRepo, path: Callable[[str], str]) -> dict[str, str]:
    """Return path of each blob -> a file that has its content, if that tells it from the others."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for files in repo.snapshots.values():
        for file, name in files.items():
            words = f"{repo.id}: {file}"
            if path(name) not in found and words not in taken:
                found[path(name)] = words
                taken.add(words)
    return found
