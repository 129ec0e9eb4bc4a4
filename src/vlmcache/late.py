"""Patterns and modules that are made at their first use: they take time, and few are needed.

A command imports a hundred modules at its start, and uses a fifth of the patterns in them.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any, AnyStr, cast


class _Late:
    """Stands for a value that is made when one of its attributes is first asked for.

    Args:
        make: makes the value.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @functools.cached_property
    def _made(self) -> Any:
        return self._make()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._made, name)
        # Next time the attribute is found without this method.
        setattr(self, name, value)
        return value


def pattern(text: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """Return a pattern that is compiled at its first use.

    It has the methods of a pattern; the functions of `re` do not take it in place of one.
    """
    return cast("re.Pattern[AnyStr]", _Late(functools.partial(re.compile, text, flags)))


def module(name: str) -> Any:
    """Return a module that is imported at its first use."""
    return _Late(functools.partial(importlib.import_module, name))
