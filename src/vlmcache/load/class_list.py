"""transformers' list of its own classes, kept from one process to the next.

At each import transformers reads all files of its models twice, to find which classes they define.
The list is kept in vlmcache's own folder and given to it instead, as long as the installed version
and the folders of its models are unchanged. If anything is odd, transformers searches as usual.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from vlmcache.cache.owners import is_anothers
from vlmcache.paths import real_path

FILE = "transformers-classes.json"
_MODULE = "transformers.utils.import_utils"
_FUNCTION = "create_import_structure_from_path"
_LONGEST = 8_000_000


@contextlib.contextmanager
def kept(home: str | None) -> Iterator[None]:
    """Spare transformers the search if it is imported for the first time inside.

    Args:
        home: vlmcache's own folder; without one, transformers searches as usual.
    """
    key = None if home is None or "transformers" in sys.modules else _key()
    if home is None or key is None:
        yield
        return
    finder = _Finder(os.path.join(home, FILE), key)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.end()


def _key() -> list[str] | None:
    """Return what the list depends on; `None` for an installation that can change at any time."""
    if not hasattr(os, "geteuid"):
        # The owner of the kept file could not be checked.
        return None
    with contextlib.suppress(OSError, ImportError, ValueError):
        spec = importlib.util.find_spec("transformers")
        (package,) = list(spec.submodule_search_locations or ()) if spec is not None else []
        # An editable installation has its metadata elsewhere.
        (version,) = (
            name
            for name in os.listdir(os.path.dirname(package))
            if name.startswith("transformers-") and name.endswith(".dist-info")
        )
        models = os.path.join(package, "models")
        with os.scandir(models) as entries:
            times = sorted((entry.name, entry.stat().st_mtime_ns) for entry in entries)
        return [version, models, str(zlib.crc32(repr(times).encode()))]
    return None


class _Finder:
    """Finds one module as usual, and replaces one of its functions once it is executed."""

    def __init__(self, path: str, key: list[str]) -> None:
        self._path, self._key = path, key
        self._models = real_path(key[1])
        self._changed: tuple[ModuleType, Callable[[Any], Any]] | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader: Any = None if spec is None else spec.loader
        if isinstance(loader, importlib.machinery.SourceFileLoader):
            execute = loader.exec_module

            def then_change(module: ModuleType) -> None:
                execute(module)
                self._change(module)

            loader.exec_module = then_change  # type: ignore[method-assign]
        return spec

    def _change(self, module: ModuleType) -> None:
        search = getattr(module, _FUNCTION, None)
        if search is None:
            return

        def look_up(path: Any) -> Any:
            folder = os.path.dirname(path) if os.path.isfile(path) else path
            if real_path(folder) != self._models:
                return search(path)
            classes = _read(self._path, self._key)
            if classes is None:
                classes = search(path)
                _write(self._path, self._key, classes)
            return classes

        setattr(module, _FUNCTION, look_up)
        self._changed = module, search

    def end(self) -> None:
        """Give the module its function back."""
        if self._changed is not None:
            setattr(self._changed[0], _FUNCTION, self._changed[1])


def _read(path: str, key: list[str]) -> dict[Any, Any] | None:
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            plain = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o022
            if not plain or status.st_uid != os.geteuid() or status.st_size > _LONGEST:
                return None
            kept_key, content = json.load(file)
        return _unpacked(content) if kept_key == key else None
    return None


def _write(path: str, key: list[str], classes: dict[Any, Any]) -> None:
    home = os.path.dirname(path)
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        content = _packed(classes)
        if _unpacked(content) != classes or is_anothers(home):
            return
        os.makedirs(home, exist_ok=True)
        # Its mode is 0600, as `_read` requires.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{FILE}-", dir=home)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump([key, content], file)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def _packed(classes: dict[Any, Any]) -> list[Any]:
    """Return a folder's classes for JSON: pairs of folder and content, or of needs and files."""
    return [
        [key, _packed(value)]
        if isinstance(key, str)
        else [sorted(key), [[name, sorted(defined)] for name, defined in value.items()]]
        for key, value in classes.items()
    ]


def _unpacked(content: list[Any]) -> dict[Any, Any]:
    classes: dict[Any, Any] = {}
    for key, value in content:
        if isinstance(key, str):
            classes[_name(key)] = _unpacked(value)
        else:
            needs = frozenset(map(str, key))
            classes[needs] = {_name(name): {*map(_name, defined)} for name, defined in value}
    return classes


def _name(name: str) -> str:
    """Return a name of a module or a class, if it is one and no path.

    Raises:
        ValueError: it is not.
    """
    if not name.isidentifier():
        raise ValueError(name)
    return name
