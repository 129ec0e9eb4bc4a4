"""What every command takes, and what every command gives back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NamedTuple, overload

import typer

from vlmcache.errors import ExitCode, UsageError, VlmcacheError
from vlmcache.units import parse_duration, parse_size

# Help must not wait for what only commands need.
if TYPE_CHECKING:
    import msgspec

    from vlmcache.config import Session


def complete_model(incomplete: str) -> list[str]:
    """Return the keys of the configuration in force that begin so; none if it cannot be read."""
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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print one id a line.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show more.")]
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

    show prints the value for people; ids are the lines of `--quiet`. `error` tells of a value that
    is whole but not what was hoped for; without one, `code` is the exit code.
    """

    command: str
    value: msgspec.Struct
    output: Output
    show: Callable[[], None]
    ids: Callable[[], list[str]]
    error: VlmcacheError | None = None
    code: ExitCode = ExitCode.DONE

    @property
    def exit_code(self) -> ExitCode:
        """What the process answers to the shell."""
        return self.error.exit_code if self.error is not None else self.code


def open_session(config: str | None, cache_dir: str | None) -> Session:
    """Return what a command works on.

    Raises:
        ConfigError: the configuration or the `.env` cannot be read.
    """
    from vlmcache import config as settings

    return settings.open_session(config, cache_dir)
