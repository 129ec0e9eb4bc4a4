"""What hf_xet and the libraries that run remote code keep next to the hub cache, by its layout.

hf_xet makes `logs/xet_….log` and a folder for each endpoint (`http___127_0_0_1-fPS9ESocpm7VXpc6`)
that holds `chunk-cache`, `shard-cache` and `staging`. transformers, datasets, evaluate and
diffusers make packages `<library>_modules`: an empty `__init__.py` in each folder, Python files in
the folders below (named for a repo, its commit, or a hash of local code) and nothing else. The
locks of `datasets` end with `.lock`, its records of where code came from with `.json`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from vlmcache import late

_ENDPOINT = late.pattern(r"[0-9A-Za-z_]{1,16}-[0-9A-Za-z_-]{16}")
_IN_ENDPOINT = frozenset(
    f"{first}{mark}{second}"
    for first, second in (("chunk", "cache"), ("shard", "cache"), ("shard", "session"))
    for mark in "-_"
) | {"staging"}
_LOG = late.pattern(r"xet_.*\.log")
_PACKAGES = frozenset(
    f"{library}_modules" for library in ("transformers", "datasets", "evaluate", "diffusers")
)
_COMPILED = late.pattern(r".+\.pyc")
_COMPILED_ALONE = late.pattern(r"__init__\..*\.pyc")
_CODE = late.pattern(r".+\.(py|json|lock)")
LIBRARIES = {"xet": "hf_xet", "modules": "remote code"}


def library_entries(name: str, folder: str) -> tuple[list[str], list[str]]:
    """Return the names in a side cache's folder: the library's own, and others (all links are).

    Args:
        name: `xet` or `modules`.
        folder: the side cache; if it cannot be listed, both are empty.
    """
    is_own = _is_xet if name == "xet" else _is_code
    own: list[str] = []
    others: list[str] = []
    top: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if name == "modules" and (
                    _is_empty_module(entry) or _is_compiled(entry, _COMPILED_ALONE)
                ):
                    top.append(entry.name)
                else:
                    (own if is_own(entry) else others).append(entry.name)
    except OSError:
        return [], []
    # Next to what somebody else wrote, these may belong to their package.
    (others or own).extend(top)
    return sorted(own), sorted(others)


def _is_xet(entry: os.DirEntry[str]) -> bool:
    if entry.name == "logs":
        return _holds_only(entry, lambda inner: _is_file_called(inner, _LOG))
    return _ENDPOINT.fullmatch(entry.name) is not None and _holds_only(
        entry, lambda inner: inner.is_dir(follow_symlinks=False) and inner.name in _IN_ENDPOINT
    )


def _is_code(entry: os.DirEntry[str]) -> bool:
    return (
        entry.name in _PACKAGES
        and os.path.isfile(os.path.join(entry.path, "__init__.py"))
        and _is_package(entry, top=True)
    )


def _is_package(entry: os.DirEntry[str], *, top: bool = False) -> bool:
    """Return whether a folder holds only what makes remote code importable."""
    return _holds_only(entry, lambda inner: _is_of_package(inner, top=top))


def _is_of_package(entry: os.DirEntry[str], *, top: bool) -> bool:
    if entry.name == "__pycache__":
        return _is_compiled(entry, _COMPILED)
    if not entry.is_file(follow_symlinks=False):
        return _is_package(entry)
    return (entry.name == "__init__.py" or not top) and _CODE.fullmatch(entry.name) is not None


def _is_empty_module(entry: os.DirEntry[str]) -> bool:
    return (
        entry.name == "__init__.py"
        and entry.is_file(follow_symlinks=False)
        and entry.stat(follow_symlinks=False).st_size == 0
    )


def _is_compiled(entry: os.DirEntry[str], names: re.Pattern[str]) -> bool:
    return entry.name == "__pycache__" and _holds_only(
        entry, lambda inner: _is_file_called(inner, names)
    )


def _is_file_called(entry: os.DirEntry[str], names: re.Pattern[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and names.fullmatch(entry.name) is not None


def _holds_only(entry: os.DirEntry[str], is_known: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Return whether an entry is a folder that can be read and holds nothing unknown."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    try:
        with os.scandir(entry.path) as entries:
            return all(map(is_known, entries))
    except OSError:
        return False
