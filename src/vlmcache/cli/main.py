"""The Typer app, and the one place where an outcome becomes output and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, TypeAlias

import typer

import vlmcache
from vlmcache.cli.light import LightCommand, LightGroup
from vlmcache.cli.options import Answer
from vlmcache.cli.register import (
    ALIASES,
    COMMANDS,
    FAMILIES,
    command_in,
    first_words,
    members,
    view_of,
    words_of,
)
from vlmcache.errors import ExitCode, UsageError, VlmcacheError, in_words, reason_of
from vlmcache.show.text import printable, warn, warn_of_missing_locks
from vlmcache.units import did_you_mean

if TYPE_CHECKING:
    from vlmcache.report import Report

_HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="vlmcache",
    context_settings=_HELP_OPTIONS,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


OnEnd: TypeAlias = "Callable[[ExitCode, Report | None, VlmcacheError | None], object]"
"""Is called with how a command ends, before that is shown."""


class Interrupted(BaseException):
    """Ctrl-C arrived. Not KeyboardInterrupt, since Typer ends silently on that one."""


class Terminated(BaseException):
    """SIGTERM arrived; unwinds like Ctrl-C, so that everything is left in order."""

    exit_code = ExitCode.TERMINATED


def _print_version(value: bool) -> None:
    if value:
        print(f"vlmcache {vlmcache.__version__}")
        raise typer.Exit


def _install_completion(value: bool) -> None:
    if value:
        from vlmcache.cli import shells

        shell = shells.current_shell()
        print(f"installed completion for {shell}: {printable(shells.install(shell))}")
        print("it works in terminals that are opened from now on")
        raise typer.Exit


def _show_completion(value: bool) -> None:
    if value:
        from vlmcache.cli import shells

        print(shells.SHELLS[shells.current_shell()].script, end="")
        raise typer.Exit


class _Commands(LightGroup):
    """The commands; the module of each is imported only when it is run or asked about."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Return the names in the order of the help."""
        return list(first_words())

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of the command that the first word means, the command, and the rest."""
        word = ALIASES.get(args[0], args[0])
        meant: Any = super().resolve_command(ctx, [word, *args[1:]])
        if word != args[0]:
            meant[1].called = args
        # A command of two words is shown as two words, however it was typed.
        return (" ".join(words_of(word)), *meant[1:])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Return a command, its module imported now.

        Raises:
            UsageError: no command has that name.
        """
        return _family(cmd_name) if cmd_name in FAMILIES else command_called(cmd_name)


class _Members(_Commands):
    """The commands of a family, by their second words."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Return the names in the order of the help."""
        return list(members(self.name or ""))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Return a command, its module imported now.

        Raises:
            UsageError: no command has that name.
        """
        return command_called(f"{self.name}-{cmd_name}")


def _family(name: str) -> Any:
    """Return the group of commands that have this first word."""
    module = importlib.import_module(f"vlmcache.cli.{name}")

    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    group = typer.Typer(
        name=name, add_completion=False, rich_markup_mode=None, context_settings=_HELP_OPTIONS
    )
    group.callback(
        cls=_Members, invoke_without_command=True, help=module.HELP, epilog=module.EXAMPLES
    )(show_help)
    return typer.main.get_command(group)


def command_called(name: str) -> Any:
    """Return a command, its module imported now.

    Raises:
        UsageError: no command has that name.
    """
    if name not in COMMANDS:
        from vlmcache.cli.synonyms import suggestion  # only for mistakes

        words = words_of(name)
        see = " ".join(("vlmcache", *words[:-1], "--help"))
        hint = suggestion(" ".join(words)) or f"see '{see}'"
        raise UsageError(f"no such command: {' '.join(words)}", hint)
    module = importlib.import_module(f"vlmcache.cli.{name.replace('-', '')}")
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(
        name,
        cls=LightCommand,
        epilog=module.EXAMPLES,
        context_settings=_HELP_OPTIONS,
    )(getattr(module, name.replace("-", "_")))
    return typer.main.get_command(single)


@app.callback(cls=_Commands, invoke_without_command=True)
def vlmcache_callback(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and stop.", callback=_print_version, is_eager=True
        ),
    ] = False,
    _install: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            help="Install completion for the current shell: bash, zsh or fish.",
            callback=_install_completion,
            is_eager=True,
        ),
    ] = False,
    _show: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            help="Show the script that completion needs, and stop.",
            callback=_show_completion,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Manage the Hugging Face model cache, and measure how fast its models load."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--"]:
        # `hf extensions exec vlmcache -- --help` passes the dashes on.
        del given[0]
    _prepare_streams()
    signal.signal(signal.SIGTERM, _raise_terminated)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _raise_interrupted)
    code = _run_scheduled(given) if os.environ.get("VLMCACHE_SCHEDULED") else _run(given)
    problem = _flush(sys.stdout)
    # A reader that closed the pipe had enough; any other failure has lost part of the answer.
    if problem is not None and not isinstance(problem, BrokenPipeError) and not code:
        _print_error(_failure(problem))
        code = ExitCode.FAILED
    _flush(sys.stderr)
    sys.exit(int(code))


def _flush(stream: TextIO) -> OSError | None:
    """Write out a stream, and return why that cannot be done."""
    try:
        stream.flush()
    except OSError as problem:
        # Otherwise Python would try and fail once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return problem
    return None


def _prepare_streams() -> None:
    """Make output possible: a stream may be closed, or have an encoding of its own."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by the shell's `>&-`: what is printed there is dropped.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        else:
            # What the terminal's encoding does not have is escaped, and never a reason to fail.
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Anything can be typed; an answer that means nothing is asked for again.
        sys.stdin.reconfigure(errors="replace")


def _raise_interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _run_scheduled(arguments: list[str]) -> int:
    """Run a command for a timer, and record how it ended."""
    from vlmcache import scheduled
    from vlmcache.environment import Environment, own_home

    # The timer names the folder; it is for the command to report what is wrong with a `.env`.
    environment = Environment(dict(os.environ), frozenset(), os.sep)
    turn = scheduled.take_turn(own_home(environment)[0], arguments)
    if turn is None:
        return _run(arguments)
    if turn.waits:
        print(turn.waits)
        return ExitCode.DONE
    turn.begin()
    return _run(arguments, turn.end)


def _run(arguments: list[str], on_end: OnEnd = lambda *_: None) -> int:
    try:
        outcome = app(arguments, standalone_mode=False, prog_name="vlmcache")
        if isinstance(outcome, Answer):
            if outcome.exit_code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
                _ignore_signals()
            on_end(outcome.exit_code, outcome.value, outcome.value.problem)
            with contextlib.suppress(BrokenPipeError):
                _show(outcome)
            return outcome.exit_code
        return outcome if isinstance(outcome, int) else ExitCode.DONE
    except (KeyboardInterrupt, Interrupted, Terminated, SystemExit, Exception) as error:
        # Typer makes SystemExit of a broken pipe that it sees itself.
        if isinstance(error, BrokenPipeError | SystemExit) and not _has_report(arguments):
            return ExitCode.DONE
        _ignore_signals()
        failure = _failure(error, arguments)
        warnings = getattr(error, "warnings", ())
    on_end(failure.exit_code, None, failure)
    try:
        _show_failure(arguments, failure, warnings)
    except OSError as problem:
        # The reader has closed it, or the disk to which it is written is full.
        if not isinstance(problem, BrokenPipeError):
            _print_error(_failure(problem))
    return failure.exit_code


def _has_report(arguments: Sequence[str]) -> bool:
    """Return whether a command answers with a report: a pipe that broke before has cut its work."""
    command = COMMANDS.get(command_in(arguments) or "")
    return command is not None and bool(command.value) and not {"-h", "--help"} & {*arguments}


def _ignore_signals() -> None:
    """Let a second, impatient Ctrl-C neither lose what is kept nor print a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _show(answer: Answer) -> None:
    problem = answer.value.problem
    if answer.call.json:
        from vlmcache.show.document import document, write

        warnings = answer.call.warnings
        write(document(answer.command, answer.value, answer.exit_code, problem, warnings=warnings))
        return
    if answer.call.quiet:
        for line in answer.value.ids if answer.ids is None else answer.ids:
            print(printable(line))
        warn(answer.call.warnings)
    else:
        view = view_of(answer.command)
        shown = dict(answer.shown)
        if "verbose" in inspect.signature(view).parameters:
            shown["verbose"] = answer.call.verbose
        view(answer.value, **shown)
        if answer.command != "doctor":  # which has a finding of its own for it
            warn_of_missing_locks()
        if answer.command not in ("doctor", "status"):
            warn(answer.call.warnings)
    if problem is not None:
        sys.stdout.flush()
        _print_error(problem)


def _show_failure(
    arguments: list[str], failure: VlmcacheError, warnings: Sequence[str] = ()
) -> None:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in options:
        from vlmcache.show.document import document, write

        command = command_in(options) or "vlmcache"
        line = command in COMMANDS and bool(COMMANDS[command].lines)
        write(document(command, None, failure.exit_code, failure, line=line, warnings=warnings))
    else:
        warn(warnings)
        _print_error(failure)


def _print_error(error: VlmcacheError) -> None:
    print(f"error: {printable(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {printable(error.hint)}", file=sys.stderr)


class _TerminatedError(VlmcacheError):
    code = "terminated"
    exit_code = ExitCode.TERMINATED


class _InternalError(VlmcacheError):
    code = "internal"


def _with_summary(
    message: str, hint: str | None = None, summary: str = ""
) -> tuple[str, str | None]:
    """Return message and hint of a command that a signal ended; see `progress.continued_by`."""
    return f"{message}: {summary}" if summary else message, hint


_WORDS_OF_TYPER = {
    "Input should be a valid integer, unable to parse string as an integer": "not a whole number",
    "Input should be a valid number, unable to parse string as a number": "not a number",
}


def _failure(error: BaseException, arguments: Sequence[str] = ()) -> VlmcacheError:
    """Return any failure as one that can be shown. This is the only place that maps them.

    Args:
        error: what happened.
        arguments: what was typed, which names the command.
    """
    if isinstance(error, VlmcacheError):
        return error
    if isinstance(error, KeyboardInterrupt | typer.Abort | Interrupted):
        from vlmcache.cli.confirmation import _InterruptedError

        return _InterruptedError(*_with_summary("interrupted", *error.args))
    if isinstance(error, Terminated):
        return _TerminatedError(*_with_summary("terminated", *error.args))
    if isinstance(error, BrokenPipeError | SystemExit):
        return VlmcacheError("the output was closed before the work was done", "run it again")
    if os.environ.get("VLMCACHE_DEBUG"):
        raise error
    # Typer's errors of usage carry their own words; their classes are private to Typer.
    words = getattr(error, "format_message", None)
    if callable(words):
        context = getattr(error, "ctx", None)
        named = command_in(arguments)
        path = " ".join(("vlmcache", *(words_of(named) if named else ())))
        at_fault = getattr(context, "command_path", path)
        # `vlmcache -q status`, as other programs have it.
        too_early = at_fault != path and hasattr(error, "option_name")
        path = path if too_early else at_fault
        close = sorted(getattr(error, "possibilities", None) or ())
        if close:
            # A suggestion belongs in the hint.
            error.possibilities = None  # type: ignore[attr-defined]
        message = " ".join(words().split()).rstrip(".")
        for theirs, ours in _WORDS_OF_TYPER.items():
            message = message.replace(theirs, ours)
        see = f"see '{path} --help'"
        if too_early:
            see = f"options follow the command: {see}"
        # `--verify` is not `--overwrite`: an option may do something that cannot be taken back.
        meant = did_you_mean(str(getattr(error, "option_name", "")), close, 1, least=0.7)
        return UsageError(message[:1].lower() + message[1:], f"{meant} {see}" if meant else see)
    if isinstance(error, OSError):
        return _InternalError(
            reason_of(error) if error.filename is None else in_words(error, str(error.filename)),
            "'vlmcache doctor' may show why",
        )
    return _InternalError(
        f"internal error: {type(error).__name__}: {reason_of(error)}",
        "VLMCACHE_DEBUG=1 shows where; please report it",
    )
