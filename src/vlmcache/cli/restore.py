"""`vlmcache restore`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Models, Yes, command

EXAMPLES = """Examples:

  vlmcache restore models.tar
  vlmcache restore models.tar --dry-run
  vlmcache restore s3://bucket/store qwen_vl_2b
  ssh other vlmcache backup - | vlmcache restore -"""


@command
def restore(
    call: Call,
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
) -> Answer:
    """Restore a backup, every byte checked before it counts.

    What the cache already has is skipped: after an interruption, run it again. Nothing is asked.
    """
    cache = call.acting()
    return Answer(cache.restore(source, models or None, overwrite=overwrite, dry_run=dry_run))
