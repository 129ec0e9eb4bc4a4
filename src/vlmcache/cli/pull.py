"""`vlmcache pull`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import Models, Yes, command, size_option
from vlmcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vlmcache.cli.options import Output
    from vlmcache.commands.pull.values import PlannedModel, PullReport
    from vlmcache.config import Session

EXAMPLES = """Examples:

  vlmcache pull qwen_vl_2b
  vlmcache pull Qwen/Qwen2-VL-2B-Instruct@main --dry-run
  vlmcache pull --all --limit-rate 20MB
  vlmcache pull qwen_vl_7b --make-room
  vlmcache pull org/model-GGUF:Q4_K_M
  vlmcache pull org/model --include '*.onnx'"""


@command
def pull(
    session: Session,
    output: Output,
    models: Models = None,
    every: Annotated[bool, typer.Option("--all", help="Pull every configured model.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION", help="Branch, tag or commit to pull; by default the configured one."
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Only files that match, of all formats: '*.gguf'. Can be repeated.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Leave out files that match: '*.bin'. Can be repeated."
        ),
    ] = None,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Pull all files, second weight formats too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and write nothing.")
    ] = False,
    max_workers: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT", min=1, max=64, help="Fetch this many files at a time; 8 by default."
        ),
    ] = None,
    limit_rate: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Limit the bytes per second of all files together: 10MB."
        ),
    ] = None,
    make_room: Annotated[
        bool,
        typer.Option("--make-room", help="If the disk is too full, propose what to evict."),
    ] = False,
    yes: Yes = False,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="Use this token instead of HF_TOKEN or 'hf auth login'.",
        ),
    ] = None,
) -> PullReport:
    """Download what is missing of models, and only that.

    Every byte is checked. An interrupted download continues where it stopped.
    """
    from vlmcache.cli import picker
    from vlmcache.cli.confirmation import can_ask, confirmation
    from vlmcache.commands.pull import pull as pull_command
    from vlmcache.commands.pull import values
    from vlmcache.commands.pull.plan import FileSelection
    from vlmcache.show import progress

    options = values.PullOptions(
        FileSelection(tuple(include or ()), tuple(exclude or ()), all_files),
        dry_run,
        max_workers or values.WORKERS,
        _rate(limit_rate),
        token,
        make_room,
        confirmation(output, yes=yes),
        None if yes else _agreement(output),
        picker.variant if can_ask(output) else None,
    )
    names = _with_revision(_names(session, models or [], every=every), revision)
    return pull_command.pull(session, names, options, progress.on_stderr(quiet=output.quiet))


def _agreement(output: Output) -> Callable[[Sequence[PlannedModel]], bool]:
    """Return what asks whether other repos that models need are to be fetched too."""

    def ask(others: Sequence[PlannedModel]) -> bool:
        from vlmcache.cli.confirmation import can_ask, is_agreed
        from vlmcache.commands.pull.values import in_words
        from vlmcache.commands.remove.values import UnconfirmedError

        text = in_words(others)
        if not can_ask(output):
            raise UnconfirmedError(
                f"{text}: there is no terminal to ask on",
                "--dry-run shows what would be fetched, --yes fetches it",
            )
        return is_agreed(f"{text}. Fetch that too?")

    return ask


def show(value: PullReport, *, verbose: bool) -> None:
    """Print what a pull did, and what was removed to make room for it."""
    from vlmcache.commands.pull import view

    room = view.evicted(value)
    if room is not None:
        from vlmcache.commands.remove import view as remove_view

        remove_view.show(room, verbose=verbose)
    view.show(value, verbose=verbose)


def _rate(text: str | None) -> int | None:
    rate = size_option("--limit-rate", text.removesuffix("/s") if text is not None else None)
    if rate == 0:
        raise UsageError("--limit-rate must be more than 0")
    return rate


def _names(session: Session, models: list[str], *, every: bool) -> list[str]:
    if every and models:
        raise UsageError("name models or use --all, not both")
    if every:
        from vlmcache.config import cached_models, names_of_all

        return names_of_all(session.config, cached_models(session.cache))
    if models:
        return models
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "no MODEL is named", "name one, or use --all; 'vlmcache status' lists them"
        )
    from vlmcache.cli import picker
    from vlmcache.commands.pull import view
    from vlmcache.commands.status import status as status_command

    status = status_command.status(session)
    return picker.chosen(view.ask_which(status), status.models)


def _with_revision(names: list[str], revision: str | None) -> list[str]:
    if revision is None:
        return names
    if any("@" in name for name in names):
        raise UsageError("a revision is given twice: with @ and with --revision")
    from vlmcache.config_file import split_variant

    parts = [split_variant(name) for name in names]
    return [f"{name}@{revision}" + (f":{variant}" if variant else "") for name, variant in parts]
