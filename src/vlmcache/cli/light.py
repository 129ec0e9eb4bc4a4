"""Commands that take their parameters as they are typed, wherever that is right.

Typer 0.29 sends every parameter that is no flag through a pydantic adapter, whose import alone
takes as long as a complete `vlmcache status`. A string for a string needs no adapter.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import typer.core

from vlmcache.cli import pages
from vlmcache.cli.register import FAMILIES, REMOVING, words_of
from vlmcache.errors import UsageError
from vlmcache.units import command


class LightCommand(typer.core.TyperCommand):
    """A command that leaves to Typer only the values that need converting."""

    called: Sequence[str] = ()
    """The alias by which it was called and what was typed after it; empty if called by its name."""

    def invoke(self, ctx: Any) -> Any:
        """Run it.

        Raises:
            UsageError: `--yes` was given to a command that removes, under another name: in other
                tools that name may remove less, or something else.
        """
        words = words_of(self.name or "")
        if self.called and self.name in REMOVING and ctx.params.get("yes"):
            raise UsageError(
                f"'{self.called[0]}' is another name for '{words[-1]}': --yes needs that one",
                f"type {command(*words, *self.called[1:])}",
            )
        return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page of help."""
        usage = " ".join([ctx.command_path, *self.collect_usage_pieces(ctx)])
        # Typer puts required arguments in braces.
        usage = usage.replace("{", "").replace("}", "")
        arguments, options = _records(self, ctx)
        text, examples = inspect.cleandoc(self.help or ""), self.epilog or ""
        formatter.write(pages.command(text, usage, arguments, options, examples) + "\n")

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, the one for help included."""
        return _lightened(super().get_params(ctx))


class LightGroup(typer.core.TyperGroup):
    """The same for the options that stand before the command."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page of help."""
        text, options = inspect.cleandoc(self.help or ""), _records(self, ctx)[1]
        if self.name in FAMILIES:
            page = pages.family(text, self.name or "", options, self.epilog or "")
        else:
            page = pages.root(text, options)
        formatter.write(page + "\n")

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, the ones for help and completion included."""
        return _lightened(super().get_params(ctx))


def _records(shown: Any, context: Any) -> tuple[pages.Rows, pages.Rows]:
    """Return what the help shows of arguments and of options: how they are typed, what they do."""
    records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for parameter in shown.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            records[parameter.param_type_name].append(record)
    return records["argument"], records["option"]


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
