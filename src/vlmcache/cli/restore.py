"""`vlmcache restore`."""

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

EXAMPLES = """Examples:

  vlmcache restore models.tar
  vlmcache restore models.tar --dry-run
  vlmcache restore s3://bucket/store qwen_vl_2b
  ssh other vlmcache backup - | vlmcache restore -"""


def restore(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="The store, file or address to read, or - for stdin."),
    ],
    models: Models = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Refs that differ here become the backup's.")
    ] = False,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Answer:
    """Bring a backup back, every byte checked before it counts.

    What is there already is skipped, so that a restore that was cut goes on.
    """
    from vlmcache.commands.backup import restore as backup_restore
    from vlmcache.commands.backup import values
    from vlmcache.show import progress

    session = open_session(config, cache_dir)
    value = backup_restore.restore(
        session.config,
        session.cache,
        source,
        models or (),
        overwrite=overwrite,
        dry_run=dry_run,
        watcher=progress.watcher(quiet=quiet),
    )
    error = values.problem(value)

    def show() -> None:
        from vlmcache.commands.backup import view

        view.show_restore(value, verbose=verbose)

    return Answer(
        "restore",
        value,
        Output(json, quiet, verbose),
        show,
        lambda: list(value.repos),
        error,
    )
