"""`vlmcache move`."""

from __future__ import annotations

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
    open_session,
)
from vlmcache.errors import UsageError

EXAMPLES = """Examples:

  vlmcache move /mnt/big/hub --dry-run
  vlmcache move /mnt/big/hub qwen_vl_7b
  vlmcache move /mnt/big/hub --no-link
  vlmcache move /mnt/big/hub --undo
  vlmcache move ~/.cache/huggingface/hub --cache-dir /mnt/big/hub --no-link"""


def move(
    destination: Annotated[
        str,
        typer.Argument(metavar="DEST", help="The folder to move to: a hub cache of its own."),
    ],
    models: Models = None,
    no_link: Annotated[
        bool, typer.Option("--no-link", help="Leave no links: HF_HUB_CACHE has to name DEST then.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take an unfinished move to DEST back.")
    ] = False,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Answer:
    """Move models to another drive: copied and hashed there, then switched.

    All models unless some are named. A link stays in the place of each, which every command and
    the hub's libraries follow. If it was interrupted, run it again.
    """
    from vlmcache import moving
    from vlmcache.show import progress

    if undo and (models or no_link):
        raise UsageError("--undo takes back all that is unfinished: no MODEL and no --no-link")
    session = open_session(config, cache_dir)
    if undo:
        value = moving.undo(session.cache, destination, dry_run=dry_run)
    else:
        value = moving.move(
            session.config,
            session.cache,
            destination,
            models or (),
            link=not no_link,
            dry_run=dry_run,
            watcher=progress.watcher(quiet=quiet),
        )
    error = moving.problem(value)

    def show() -> None:
        from vlmcache.show import move as view

        view.show(value, undone=undo, verbose=verbose)

    return Answer(
        "move",
        value,
        Output(json, quiet, verbose),
        show,
        lambda: moving.ids(value),
        error,
    )
