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
    Yes,
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
        bool, typer.Option("--overwrite", help="Replace refs that differ here with the backup's.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,  # noqa: ARG001 - nothing is asked, and scripts may give it all the same
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Answer:
    """Restore a backup, every byte checked before it counts.

    What the cache has already is skipped: after an interruption, run it again. Nothing is asked.
    """
    from vlmcache.commands.backup import restore as backup_restore
    from vlmcache.commands.backup import values
    from vlmcache.show import progress

    session = open_session(config, cache_dir)
    value = backup_restore.restore(
        session,
        source,
        models or (),
        values.RestoreOptions(overwrite, dry_run),
        progress.on_stderr(quiet=quiet),
    )

    def show() -> None:
        from vlmcache.commands.backup import view

        view.show_restore(value, verbose=verbose)

    return Answer(
        "restore",
        value,
        Output(json, quiet, verbose),
        show,
        lambda: value.ids,
        value.problem,
    )
