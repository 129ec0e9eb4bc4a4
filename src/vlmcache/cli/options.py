"""What every command takes, and what every command gives back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints, overload

import typer

from vlmcache import log
from vlmcache.cli.register import COMMANDS
from vlmcache.errors import ExitCode, UsageError, VlmcacheError
from vlmcache.units import parse_duration, parse_size

# Help must not wait for what only commands need.
if TYPE_CHECKING:
    import msgspec

    from vlmcache.config import Session


def complete_model(incomplete: str) -> list[str]:
    """Return the keys of the configuration that begin so; none if it cannot be read."""
    from vlmcache.config import load_config, read_environment

    try:
        config = load_config(None, read_environment())
    except VlmcacheError:
        return []
    return [key for key in config.models if key.startswith(incomplete)]


Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="A key of config.yaml or a repo id, with an optional @revision.",
        autocompletion=complete_model,
        show_default=False,
    ),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="The config.yaml to use.")
]
CacheDir = Annotated[
    str | None, typer.Option("--cache-dir", metavar="FOLDER", help="The hub cache to work on.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
JsonLines = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line, as things happen.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print one id per line.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="Show more, and log decisions on stderr; -vv logs every step.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@overload
def size_option(name: str, text: str) -> int: ...
@overload
def size_option(name: str, text: str | None) -> int | None: ...
def size_option(name: str, text: str | None) -> int | None:
    """Return the bytes that an option's value means.

    Raises:
        UsageError: it is not a size, or has no unit.
    """
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


@overload
def duration_option(name: str, text: str, units: tuple[str, str] = ...) -> float: ...
@overload
def duration_option(name: str, text: str | None, units: tuple[str, str] = ...) -> float | None: ...
def duration_option(
    name: str, text: str | None, units: tuple[str, str] = ("d", "h")
) -> float | None:
    """Return the seconds that an option's value means.

    Raises:
        UsageError: it is not a duration, or has no unit.
    """
    try:
        return None if text is None else parse_duration(text, units)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


class Output(NamedTuple):
    """How the user wants to be answered."""

    json: bool
    quiet: bool
    verbose: bool


class Answer(NamedTuple):
    """What a command gives back to be shown.

    A command function leaves `command` and `output` to the decorator, and the rest too where the
    value is a report, which says it itself.
    """

    value: msgspec.Struct
    shown: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of the view, in addition to `verbose`."""
    ids: Sequence[str] | None = None
    """The lines of `--quiet`; the report's own if not given."""
    error: VlmcacheError | None = None
    """Why the value is complete but not what was hoped for."""
    code: ExitCode = ExitCode.DONE
    """The exit code without an error."""
    command: str = ""
    output: Output = Output(json=False, quiet=False, verbose=False)

    @property
    def exit_code(self) -> ExitCode:
        """What the process answers to the shell."""
        return self.error.exit_code if self.error is not None else self.code


def command(function: Callable[..., Any]) -> Callable[..., Answer | None]:
    """Make a command of a function: add the common options, open the session, start the log.

    The function is given what its parameters ask for by the names `session` and `output`, and
    returns a report, an `Answer`, or nothing where it has printed all itself.
    """
    name = function.__name__.replace("_", "-")
    own = dict(inspect.signature(function).parameters)
    needs_session = own.pop("session", None) is not None
    own.pop("output", None)
    common: dict[str, tuple[Any, Any]] = {}
    if needs_session:
        common |= {"config": (ConfigFile, None), "cache_dir": (CacheDir, None)}
    common["json"] = (JsonLines if COMMANDS[name].lines else Json), False
    common |= {"quiet": (Quiet, False), "verbose": (Verbose, 0)}
    types = SimpleNamespace(__annotations__={one: own[one].annotation for one in own})
    hints = get_type_hints(types, function.__globals__, include_extras=True)

    def run(**given: Any) -> Answer | None:
        verbosity = given.pop("verbose")
        output = Output(given.pop("json"), given.pop("quiet"), bool(verbosity))
        log.configure(verbosity, _printable)
        if needs_session:
            given["session"] = open_session(given.pop("config"), given.pop("cache_dir"))
        if takes_output:
            given["output"] = output
        return _answer(function(**given), name, output)

    takes_output = "output" in function.__annotations__
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        parameter.replace(annotation=hints[one], kind=keyword) for one, parameter in own.items()
    ]
    parameters += [
        inspect.Parameter(one, keyword, default=default, annotation=kind)
        for one, (kind, default) in common.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    run.__doc__ = function.__doc__
    return run


def _answer(value: Any, name: str, output: Output) -> Answer | None:
    """Return what a command function has returned, completed."""
    if value is None:
        return None
    from vlmcache.report import Report

    answer = value if isinstance(value, Answer) else Answer(value)
    if isinstance(answer.value, Report):
        error = answer.error or answer.value.problem
        ids = answer.value.ids if answer.ids is None else answer.ids
        answer = answer._replace(ids=ids, error=error)
    return answer._replace(command=name, output=output)


def _printable(text: str) -> str:
    from vlmcache.show.text import printable

    return printable(text)


def open_session(config: str | None, cache_dir: str | None) -> Session:
    """Return what a command works on.

    Raises:
        ConfigError: the configuration or the `.env` cannot be read.
    """
    from vlmcache import config as settings

    return settings.open_session(config, cache_dir)
