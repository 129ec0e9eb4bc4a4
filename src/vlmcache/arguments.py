"""What arguments in Python mean: names, paths, sizes, durations and counts."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
from collections.abc import Iterable
from typing import Any, TypeAlias

from vlmcache.errors import UsageError
from vlmcache.units import LARGEST, LONGEST, parse_duration, parse_size, parsed

Names: TypeAlias = "str | Iterable[str]"
"""One string, or several."""
Path: TypeAlias = "str | os.PathLike[str]"
Size: TypeAlias = "int | str"
"""Bytes, or a string with its unit."""
Duration: TypeAlias = "float | str"
"""Seconds, or a string with its unit."""


def as_list(names: Names) -> tuple[str, ...]:
    """Return the strings: one alone is a list of it."""
    return (names,) if isinstance(names, str) else tuple(names)


def as_names(models: Names | None) -> tuple[str, ...]:
    """Return the models that are named; none if that means all of them.

    Raises:
        UsageError: a list is empty: a program that found nothing does not mean everything.
    """
    if models is None:
        return ()
    names = as_list(models)
    if not names:
        raise UsageError("the list of models is empty", "to mean all of them, leave it out")
    return names


def as_path(path: Path | None) -> str | None:
    """Return a path as a string; `None` if it is not given."""
    return None if path is None else os.fspath(path)


def as_bytes(name: str, value: Size | None) -> int | None:
    """Return a size in bytes; `None` if it is not given.

    Raises:
        UsageError: it is not a size, or a string without a unit.
    """
    if value is None or isinstance(value, str):
        return None if value is None else parsed(name, value, parse_size)
    size = _integer(name, value, "give an int of bytes, or a string such as '30GB'")
    if not 0 <= size <= LARGEST:
        raise UsageError(f"{name}: no disk has that size: {size}")
    return size


def as_rate(name: str, value: Size | None) -> int | None:
    """Return a rate in bytes per second; `None` if it is not given.

    Raises:
        UsageError: it is not a size per second, or 0.
    """
    rate = as_bytes(name, value.removesuffix("/s") if isinstance(value, str) else value)
    if rate == 0:
        raise UsageError(f"{name} must be more than 0")
    return rate


def as_seconds(name: str, value: object, units: tuple[str, str] = ("d", "h")) -> float | None:
    """Return a duration in seconds; `None` if it is not given.

    Raises:
        UsageError: it is not a duration, or a string without a unit.
    """
    if value is None or isinstance(value, str):
        parse = functools.partial(parse_duration, units=units)
        return None if value is None else parsed(name, value, parse)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST:
        hint = "give a number of seconds, or a string such as '30d'"
        raise UsageError(f"{name}: not a duration: {value!r}", hint)
    return float(value)


def as_count(name: str, value: int, most: int = LARGEST) -> int:
    """Return a count.

    Raises:
        UsageError: it is not a whole number from 1 to `most`.
    """
    count = _integer(name, value, "give an int")
    if not 1 <= count <= most:
        upper = "" if most == LARGEST else f" and at most {most}"
        raise UsageError(f"{name} must be at least 1{upper}")
    return count


def _integer(name: str, value: Any, hint: str) -> int:
    with contextlib.suppress(TypeError):
        if not isinstance(value, bool):
            return operator.index(value)
    raise UsageError(f"{name}: not a whole number: {value!r}", hint)
