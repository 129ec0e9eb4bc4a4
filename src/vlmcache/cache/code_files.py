"""Which Python files of a repo its configuration names, and what these import (pure).

The rules are those of transformers' `dynamic_module_utils.py`: `auto_map` names a module and a
class of the repo itself or, after `owner/name--`, of another; relative imports are followed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from vlmcache import late
from vlmcache.cache import layout

_IMPORT = late.pattern(
    rb"^[ \t]*from[ \t]+\.([\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]*)", re.MULTILINE
)
_MOST_STRINGS = 10_000


def own_classes(config: Any) -> Iterator[tuple[str | None, str, str]]:
    """Yield (other repo or `None`, file, class) of each class that an `auto_map` names."""
    auto_map = config.get("auto_map") if isinstance(config, dict) else None
    if not isinstance(auto_map, dict):
        return
    for value in auto_map.values():
        for reference in value if isinstance(value, list) else [value]:
            if isinstance(reference, str) and "." in reference:
                repo, separator, name = reference.rpartition("--")
                module, _, kind = name.rpartition(".")
                file = f"{module.replace('.', '/')}.py"
                if layout.file_name_problem(file) is None:
                    yield repo if separator else None, file, kind


def auto_classes(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the classes that an `auto_map` names, without entries that name none.

    Returns:
        transformers' auto class -> `file.Class` or `owner/name--file.Class`. Of a slow and a fast
        tokenizer, the fast one.
    """
    named = config.get("auto_map")
    return {
        auto: reference
        for auto, value in (named.items() if isinstance(named, dict) else ())
        for reference in (value if isinstance(value, list) else [value])
        if any(own_classes({"auto_map": {auto: reference}}))
    }


def config_strings(config: Any) -> set[str]:
    """Return the strings in a configuration, which may name files or folders."""
    strings: set[str] = set()
    pending = [config]
    while pending and len(strings) < _MOST_STRINGS:
        value = pending.pop()
        if isinstance(value, str):
            strings.add(value.strip("/"))
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return strings - {""}


def code_files(
    names: AbstractSet[str],
    roots: Mapping[str, AbstractSet[str]] | None,
    content: Callable[[str], bytes | None],
    listed: bool,
) -> tuple[set[str], bool]:
    """Return the files of code that loading runs, and whether that is all of them.

    Args:
        names: all files of the repo.
        roots: file -> classes that configurations name; `None` if these could not be read.
        content: returns the content of a file; `None` if it is not here.
        listed: whether the names are all files that can exist.
    """
    found: set[str] = set()
    sure = True
    pending = list(roots or ())
    while pending:
        name = pending.pop()
        if name in found or (listed and name not in names):
            continue
        found.add(name)
        code = content(name)
        classes = (roots or {}).get(name, ())
        if code is None or any(kind.encode() not in code for kind in classes):
            # A missing file may import more; without a listing that cannot be known.
            sure = sure and code is None and not listed
            continue
        pending += (file for file in _imported(name, code) if file in names or not listed)
    return found, sure and bool(found)


def _imported(name: str, code: bytes) -> Iterator[str]:
    folder = name.rpartition("/")[0]
    for module, imported in _IMPORT.findall(code):
        targets = [module] if module else re.findall(rb"(\w+)(?:\s+as\s+\w+)?", imported)
        for target in targets:
            path = target.decode().strip(".").replace(".", "/")
            if path:
                yield f"{folder}/{path}.py" if folder else f"{path}.py"
