"""`vlmcache restore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import DryRun, Models, Yes, command

if TYPE_CHECKING:
    from vlmcache.cli.options import Output
    from vlmcache.commands.backup.values import Restored
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
        bool, typer.Option("--overwrite", help="Replace refs that differ here with the backup's.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,  # noqa: ARG001 - nothing is asked, and scripts may give it all the same
) -> Restored:
    """Restore a backup, every byte checked before it counts.

    What the cache has already is skipped: after an interruption, run it again. Nothing is asked.
    """
    from vlmcache.commands.backup import restore as backup_restore
    from vlmcache.commands.backup import values
    from vlmcache.show import progress

    return backup_restore.restore(
        session,
        source,
        models or (),
        values.RestoreOptions(overwrite, dry_run),
        progress.on_stderr(quiet=output.quiet),
    )
