"""`vlmcache restore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import Answer, DryRun, Models, command

if TYPE_CHECKING:
    from vlmcache.cli.options import Output
    from vlmcache.config import Session

EXAMPLES = """Examples:

  vlmcache restore models.tar
  vlmcache restore models.tar --dry-run
  vlmcache restore s3://bucket/store qwen_vl_2b
  ssh other vlmcache backup - | vlmcache restore -"""


@command
def restore(
    session: Session,
    output: Output,
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="The store, file or address to read, or - for stdin."),
    ],
    models: Models = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Refs that differ here become the backup's.")
    ] = False,
    dry_run: DryRun = False,
) -> Answer:
    """Bring a backup back, every byte checked before it counts.

    What is there already is skipped, so that a restore that was cut goes on.
    """
    from vlmcache.commands.backup import restore as backup_restore
    from vlmcache.commands.backup import values
    from vlmcache.show import progress

    value = backup_restore.restore(
        session.config,
        session.cache,
        source,
        models or (),
        overwrite=overwrite,
        dry_run=dry_run,
        watcher=progress.watcher(quiet=output.quiet),
    )
    return Answer(value, ids=list(value.repos), error=values.problem(value))
