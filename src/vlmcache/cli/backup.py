"""`vlmcache backup`."""

from __future__ import annotations

import sys
from typing import Annotated

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
    open_session,
)
from vlmcache.errors import UsageError

EXAMPLES = """Examples:

  vlmcache backup models.tar
  vlmcache backup s3://bucket/qwen.tar qwen_vl_2b
  vlmcache backup /mnt/store/
  vlmcache backup s3://bucket/store qwen_vl_2b
  vlmcache backup - qwen_vl_2b | ssh other vlmcache restore -"""


def backup(
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DEST",
            help="A folder or an address for a store; a file or an address ending in .tar for one "
            "tar stream; - for stdout.",
        ),
    ],
    models: Models = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read what the store has, and mend what is damaged there."),
    ] = False,
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Answer:
    """Save models, every byte checked on the way.

    To a store, which several machines can share, only what it lacks is written. A tar stream has a
    manifest with all hashes in front; any tar can list it.
    """
    from vlmcache.commands.backup import backup as backup_command
    from vlmcache.commands.backup import values
    from vlmcache.show import progress

    session = open_session(config, cache_dir)
    streamed = destination == values.STREAM
    if streamed and (json or quiet):
        raise UsageError("the backup itself goes to stdout: no --json and no -q beside it")
    if streamed and sys.stdout.isatty():
        raise UsageError("a terminal cannot keep a backup", "name a file, or pipe it on")
    value = backup_command.backup(
        session.config,
        session.cache,
        destination,
        models or (),
        progress.watcher(quiet=quiet),
        verify=verify,
    )

    def show() -> None:
        from vlmcache.commands.backup import view

        view.show_backup(value, stream=sys.stderr if streamed else sys.stdout)

    error = values.incomplete(value)
    return Answer(
        "backup",
        value,
        Output(json, quiet, verbose),
        show,
        lambda: list(value.repos),
        error,
    )
