"""What every command takes, and what every command gives back."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from vlmcache import log
from vlmcache.cli.register import COMMANDS
from vlmcache.errors import ExitCode, UsageError
from vlmcache.show.text import printable, warn

# Help must not wait for what only commands need.
if TYPE_CHECKING:
    from vlmcache.api import Cache
    from vlmcache.report import Report


Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="A key of config.yaml, a repo id or its address on the hub, with an optional "
        "@revision.",
        show_default=False,
    ),
]
Patterns = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="A key of config.yaml, a repo id or its address on the hub, with an optional "
        "@revision; or a pattern of them, such as 'org/*'.",
        show_default=False,
    ),
]
"""MODEL of a command that can work on all that a pattern matches."""
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="Read this config.yaml; by default the first one found."
    ),
]
CacheDir = Annotated[
    str | None,
    typer.Option(
        "--cache-dir",
        metavar="FOLDER",
        help="Work on this hub cache; by default the one that the environment names.",
    ),
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
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to every question.")]
Trash = Annotated[
    bool | None,
    typer.Option(
        "--trash/--no-trash",
        help="Keep what is removed in the trash, from which 'vlmcache undo' restores it; or free "
        "its bytes at once. The default keeps only what you confirm for 'rm'.",
        show_default=False,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="TOKENS",
        help="Add the key-value cache of a context of this many tokens to the memory;"
        " by default none.",
    ),
]

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Join this Ray cluster: auto, HOST:PORT or ray://HOST:PORT; by default the one that "
        "RAY_ADDRESS names, else the one that this machine is part of.",
    ),
]
Nodes = Annotated[
    list[str] | None,
    typer.Option(
        "--nodes",
        metavar="NODES",
        help="Work on these nodes: names, addresses, labels KEY=VALUE, patterns or ranges such as "
        "'gpu[1-4]'; by default all. Repeat it or separate with commas.",
        show_default=False,
    ),
]


def refuse_without(option: str, *, dry_run: bool, yes: bool) -> None:
    """Refuse options that would make a command that only reads look like one that acts.

    Raises:
        UsageError: `--dry-run` or `--yes` was given, and not the option that they belong to.
    """
    if dry_run or yes:
        given = "--dry-run" if dry_run else "--yes"
        raise UsageError(f"{given} belongs to {option}: without it nothing is changed")


class Call(NamedTuple):
    """What a command works on, and how the user wants to be answered."""

    cache: Cache
    json: bool
    quiet: bool
    verbose: bool
    warnings: tuple[str, ...] = ()
    """Mistakes in config.yaml, which every command shows."""

    def acting(self, *, yes: bool = True, word: str | None = None) -> Cache:
        """Return the cache, which shows its progress on stderr and asks there before it acts.

        Args:
            yes: whether `--yes` has answered, or nothing is asked.
            word: what has to be typed; `y` or `yes` if not given.
        """
        from vlmcache.show import progress

        self.cache.progress = progress.on_stderr(quiet=self.quiet)
        if not yes:
            from vlmcache.cli.confirmation import agreement, confirmation

            self.cache.confirm = confirmation(word, json=self.json, verbose=self.verbose)
            self.cache.agree = agreement(json=self.json)
        return self.cache


class Answer(NamedTuple):
    """What a command gives back to be shown; the decorator adds `command` and `call`."""

    value: Report
    shown: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of the view, in addition to `verbose`."""
    ids: Sequence[str] | None = None
    """The lines of `--quiet`; the report's own if not given."""
    code: ExitCode = ExitCode.DONE
    """The exit code of a report without a problem."""
    command: str = ""
    call: Any = None

    @property
    def exit_code(self) -> ExitCode:
        """The exit status of the process."""
        problem = self.value.problem
        return self.code if problem is None else problem.exit_code


def command(function: Callable[..., Answer | None]) -> Callable[..., Answer | None]:
    """Make a command of a function: add the common options, open the cache, start the log.

    The function is given a `Call` if it has a parameter `call`, and returns an `Answer`, or nothing
    if it has printed everything itself.
    """
    name = function.__name__.replace("_", "-")
    own = dict(inspect.signature(function).parameters)
    takes_call = own.pop("call", None) is not None
    common: dict[str, tuple[Any, Any]] = {}
    # `init` writes the file that others read.
    writes_config = "config" in own
    if takes_call:
        common |= {} if writes_config else {"config": (ConfigFile, None)}
        common |= {"cache_dir": (CacheDir, None)}
    common["json"] = (JsonLines if COMMANDS[name].lines else Json), False
    common |= {"quiet": (Quiet, False), "verbose": (Verbose, 0)}

    def run(**given: Any) -> Answer | None:
        verbosity = given.pop("verbose")
        log.configure(verbosity, printable)
        cache: Any = None
        if takes_call:
            config = None if writes_config else given.pop("config")
            cache = _open_cache(config, given.pop("cache_dir"), configured=not writes_config)
        warnings = cache.session.config.unknown if takes_call else ()
        call = Call(cache, given.pop("json"), given.pop("quiet"), bool(verbosity), warnings)
        lines = bool(COMMANDS[name].lines)
        if lines:
            warn(warnings)
        try:
            with _shown_scan(call, lines=lines):
                answer = function(call, **given) if takes_call else function(**given)
        except BaseException as error:
            if not lines:
                error.__dict__["warnings"] = warnings
            raise
        return None if answer is None else answer._replace(command=name, call=call)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=keyword) for parameter in own.values()]
    parameters += [
        inspect.Parameter(option, keyword, default=default, annotation=kind)
        for option, (kind, default) in common.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    run.__doc__ = function.__doc__
    return run


def _shown_scan(call: Call, *, lines: bool) -> AbstractContextManager[None]:
    """Return what shows a long scan on a terminal; nothing for a command that shows lines."""
    if lines or call.quiet or not sys.stderr.isatty():
        return nullcontext()
    from vlmcache.show import progress

    return progress.scan_line(sys.stderr)


def _open_cache(config: str | None, cache_dir: str | None, *, configured: bool) -> Cache:
    """Return the cache that a command works on; its messages name options as they are typed."""
    from vlmcache.api import Cache
    from vlmcache.config import open_session

    kind = Cache
    if os.environ.get("VLMCACHE_REHEARSAL"):
        from vlmcache.rehearsal import Rehearsal

        kind = Rehearsal
    cache = kind(session=open_session(config, cache_dir, configured=configured))
    cache.named = _option
    return cache


def _option(argument: str) -> str:
    return "--" + argument.replace("_", "-")
