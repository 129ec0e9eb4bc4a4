"""`vlmcache move`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vlmcache.cli.options import (
    Answer,
    CacheDir,
    ConfigFile,
    DryRun,
    Json,
    Models,
    Output,
    Quiet,
    Verbose,
    Yes,
    open_session,
)
from vlmcache.errors import UsageError

EXAMPLES = """Examples:

  vlmcache move /mnt/big/hub --dry-run
  vlmcache move /mnt/big/hub qwen_vl_7b
  vlmcache move /mnt/big/hub --no-link
  vlmcache move /mnt/big/hub --undo
  vlmcache move --relink /media/big/hub
  vlmcache move ~/.cache/huggingface/hub --cache-dir /mnt/big/hub --no-link"""


def move(
    destination: Annotated[
        str | None,
        typer.Argument(
            metavar="DEST",
            help="The folder to move to: a hub cache of its own.",
            show_default=False,
        ),
    ] = None,
    models: Models = None,
    no_link: Annotated[
        bool, typer.Option("--no-link", help="Leave no links: HF_HUB_CACHE has to name DEST then.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take an unfinished move to DEST back.")
    ] = False,
    relink: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Let links that lead nowhere lead to DIR, where their drive is mounted now.",
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Answer:
    """Move models to another drive: copied and hashed there, then switched.

    All models unless some are named. A link stays in the place of each, which every command and
    the hub's libraries follow. If it was interrupted, run it again. Only --relink asks.
    """
    from vlmcache.cli.confirmation import can_ask, is_agreed
    from vlmcache.commands.move import move as move_command
    from vlmcache.commands.move import values
    from vlmcache.commands.remove.values import UnconfirmedError
    from vlmcache.show import progress

    output = Output(json, quiet, verbose)
    if relink is not None and (destination is not None or models or no_link or undo):
        raise UsageError("--relink rewrites links and moves nothing: only DIR can be named")
    if relink is None and destination is None:
        raise UsageError("Missing argument 'DEST'", "see 'vlmcache move --help'")
    if undo and (models or no_link):
        raise UsageError("--undo takes back all that is unfinished: no MODEL and no --no-link")
    session = open_session(config, cache_dir)

    def ask(planned: values.Moved) -> bool:
        from vlmcache.commands.move import view

        count = len(planned.repos)
        noun = "link" if count == 1 else "links"
        if not can_ask(output):
            raise UnconfirmedError(
                f"{count} {noun} would be rewritten: no terminal to ask on",
                "--dry-run shows them, --yes rewrites them",
            )
        view.show(planned, relinked=True, stream=sys.stderr)
        return is_agreed(f"Rewrite {count} {noun}?")

    if relink is not None:
        confirm = None if yes else ask
        value = move_command.relink(session.cache, relink, dry_run=dry_run, confirm=confirm)
    elif undo:
        value = move_command.undo(session.cache, destination or "", dry_run=dry_run)
    else:
        value = move_command.move(
            session.config,
            session.cache,
            destination or "",
            models or (),
            link=not no_link,
            dry_run=dry_run,
            watcher=progress.watcher(quiet=quiet),
        )
    error = values.problem(value)

    def show() -> None:
        from vlmcache.commands.move import view

        view.show(value, undone=undo, relinked=relink is not None, verbose=verbose)

    return Answer(
        "move",
        value,
        output,
        show,
        lambda: values.ids(value),
        error,
    )
