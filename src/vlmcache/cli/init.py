"""`vlmcache init`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command

EXAMPLES = """Examples:

  vlmcache init
  vlmcache init --dry-run
  vlmcache init --config models.yaml"""


@command
def init(
    call: Call,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Write this file; by default config.yaml in your configuration folder.",
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,  # noqa: ARG001 - nothing is asked, and scripts may give it all the same
) -> Answer:
    """Write a config.yaml that names the models in the cache.

    With an empty cache it names three models to start from. A file that exists is never
    overwritten. Nothing is asked.
    """
    return Answer(call.cache.init(config, dry_run=dry_run))
