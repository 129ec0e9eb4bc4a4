"""What hf_xet and the libraries of remote code keep next to the hub cache, by its layout.

hf_xet makes `logs/xet_….log` and a folder for each endpoint (`http___127_0_0_1-fPS9ESocpm7VXpc6`)
with `chunk-cache`, `shard-cache` and `staging` in it. transformers, datasets, evaluate and
diffusers make packages `<library>_modules`, each with an `__init__.py`, next to an empty one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

_ENDPOINT = re.compile(r"[0-9A-Za-z_]{1,16}-[0-9A-Za-z_-]{16}")
_IN_ENDPOINT = frozenset(
    f"{first}{mark}{second}"
    for first, second in (("chunk", "cache"), ("shard", "cache"), ("shard", "session"))
    for mark in "-_"
) | {"staging"}
_LOG = re.compile(r"xet_.*\.log")
_PACKAGES = frozenset(
    f"{library}_modules" for library in ("transformers", "datasets", "evaluate", "diffusers")
)
_COMPILED = re.compile(r"__init__\..*\.pyc")
LIBRARIES = {"xet": "hf_xet", "modules": "remote code"}


def library_entries(name: str, folder: str) -> tuple[list[str], list[str]]:
    """Return the names in a side cache's folder: the library's own, and others. Links are others.

    Args:
        name: `xet` or `modules`.
        folder: the side cache; one that cannot be listed has neither.
    """
    is_own = _is_xet if name == "xet" else _is_code
    own: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (own if is_own(entry) else others).append(entry.name)
    except OSError:
        return [], []
    return sorted(own), sorted(others)


def _is_xet(entry: os.DirEntry[str]) -> bool:
    if entry.name == "logs":
        return _holds_only(
            entry, lambda inner: inner.is_file(follow_symlinks=False), _LOG.fullmatch
        )
    return _ENDPOINT.fullmatch(entry.name) is not None and _holds_only(
        entry, lambda inner: inner.is_dir(follow_symlinks=False), _IN_ENDPOINT.__contains__
    )


def _is_code(entry: os.DirEntry[str]) -> bool:
    if entry.name == "__init__.py":
        return (
            entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size == 0
        )
    if entry.name == "__pycache__":
        return _holds_only(
            entry, lambda inner: inner.is_file(follow_symlinks=False), _COMPILED.fullmatch
        )
    package = entry.name in _PACKAGES and entry.is_dir(follow_symlinks=False)
    return package and os.path.isfile(os.path.join(entry.path, "__init__.py"))


def _holds_only(
    entry: os.DirEntry[str],
    kind: Callable[[os.DirEntry[str]], bool],
    known: Callable[[str], object],
) -> bool:
    if not entry.is_dir(follow_symlinks=False):
        return False
    try:
        with os.scandir(entry.path) as entries:
            return all(kind(inner) and known(inner.name) for inner in entries)
    except OSError:
        return False
