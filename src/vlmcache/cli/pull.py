"""`vlmcache pull`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import (
    Answer,
    CacheDir,
    ConfigFile,
    Json,
    Models,
    Output,
    Quiet,
    Verbose,
    Yes,
    open_session,
    size_option,
)
from vlmcache.errors import UsageError

if TYPE_CHECKING:
    from vlmcache.config import Session

EXAMPLES = """Examples:

  vlmcache pull qwen_vl_2b
  vlmcache pull Qwen/Qwen2-VL-2B-Instruct@main --dry-run
  vlmcache pull --all --limit-rate 20MB
  vlmcache pull qwen_vl_7b --make-room
  vlmcache pull org/model --include '*.gguf'"""


def pull(
    models: Models = None,
    every: Annotated[bool, typer.Option("--all", help="Pull every configured model.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="A branch, tag or commit.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only files that match, of all formats."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="No files that match.")
    ] = None,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Second weight formats too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan; write nothing.")
    ] = False,
    max_workers: Annotated[
        int | None, typer.Option(metavar="COUNT", min=1, max=64, help="Files at a time; 8.")
    ] = None,
    limit_rate: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bytes a second in all: 10MB.")
    ] = None,
    make_room: Annotated[
        bool,
        typer.Option("--make-room", help="If the disk is too full, propose what to evict."),
    ] = False,
    yes: Yes = False,
    token: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="In place of HF_TOKEN and of 'hf auth login'."),
    ] = None,
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Answer:
    """Download what is missing of models, and only that.

    Every byte is checked; a download that was cut goes on where it stopped.
    """
    from vlmcache.cli.confirmation import confirmation
    from vlmcache.commands.pull import pull as pull_command
    from vlmcache.commands.pull import values
    from vlmcache.commands.pull.plan import Selection
    from vlmcache.show import progress

    session = open_session(config, cache_dir)
    output = Output(json, quiet, verbose)
    options = values.Options(
        Selection(tuple(include or ()), tuple(exclude or ()), all_files),
        dry_run,
        max_workers or values.WORKERS,
        _rate(limit_rate),
        token,
        make_room,
        confirmation(output, yes=yes),
    )
    names = _with_revision(_names(session, models or [], every=every), revision)
    run = pull_command.run_pull(
        session.config,
        session.cache,
        session.environment,
        names,
        options,
        progress.watcher(quiet=quiet),
    )

    def show() -> None:
        from vlmcache.commands.pull import view

        room = view.evicted(run.value)
        if room is not None:
            from vlmcache.commands.remove import view as remove_view

            remove_view.show(room, verbose=verbose)

        view.show(run.value, verbose=verbose)

    return Answer(
        "pull",
        run.value,
        output,
        show,
        lambda: [model.repo for model in run.value.models if model.state != "failed"],
        run.error,
    )


def _rate(text: str | None) -> int | None:
    rate = size_option("--limit-rate", text.removesuffix("/s") if text is not None else None)
    if rate == 0:
        raise UsageError("--limit-rate must be more than nothing")
    return rate


def _names(session: Session, models: list[str], *, every: bool) -> list[str]:
    if every and models:
        raise UsageError("name models, or say --all: not both")
    if every:
        from vlmcache.config import cached_models, names_of_all

        return names_of_all(session.config, cached_models(session.cache))
    if models:
        return models
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "no MODEL is named", "name one, or say --all; 'vlmcache status' lists them"
        )
    from vlmcache.cli import picker
    from vlmcache.commands.pull import view
    from vlmcache.commands.status import status as status_command

    status = status_command.status(session.config, session.cache)
    return picker.chosen(view.ask_which(status), status.models)


def _with_revision(names: list[str], revision: str | None) -> list[str]:
    if revision is None:
        return names
    if any("@" in name for name in names):
        raise UsageError("a revision is given twice: by @ and by --revision")
    return [f"{name}@{revision}" for name in names]
