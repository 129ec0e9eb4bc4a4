"""Commands whose parameters are taken as they are wherever that is right.

Typer 0.29 sends every parameter that is no flag through a pydantic adapter, whose import alone
takes as long as a complete `vlmcache status`. A string for a string needs no adapter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import typer.core


class LightCommand(typer.core.TyperCommand):
    """A command that leaves to Typer only the values that need converting."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, the one for help included."""
        return _lightened(super().get_params(ctx))


class LightGroup(typer.core.TyperGroup):
    """The same for the options that stand before the command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, the ones for help and completion included."""
        return _lightened(super().get_params(ctx))


def _lightened(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if not isinstance(parameter.process_value, functools.partial):
            process = functools.partial(_process, parameter, parameter.process_value)
            parameter.process_value = process
        if parameter.param_type_name == "argument":
            # The help would show Python's name of the type beside MODEL.
            parameter.display_type_rich = _nothing
    return parameters


def _nothing(ctx: Any) -> None:
    """Say nothing of a type."""


def _process(
    parameter: Any, convert: Callable[[Any, Any], Any], context: typer.Context, value: Any
) -> Any:
    """Return the value itself if it has its parameter's type, else what Typer makes of it."""
    wanted = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    several = parameter.multiple or parameter.nargs == -1
    if wanted is None or parameter.required:
        return convert(context, value)
    if value is None:
        value = () if several else None
    elif wanted == list[str] and several and all(isinstance(item, str) for item in value):
        value = list(value)
    elif type(value) is not wanted:
        return convert(context, value)
    return value if parameter.callback is None else parameter.callback(context, parameter, value)
