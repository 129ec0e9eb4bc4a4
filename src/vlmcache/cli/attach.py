"""`vlmcache attach`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command

EXAMPLES = """Examples:

  vlmcache attach /srv/models --dry-run
  vlmcache attach /srv/models
  vlmcache attach"""


@command
def attach(
    call: Call,
    base: Annotated[
        str | None,
        typer.Argument(
            metavar="BASE",
            help="The cache to put beneath this one; by default the base of your config.yaml.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,  # noqa: ARG001 - nothing is asked, and scripts may give it all the same
) -> Answer:
    """Put a read-only cache, such as an admin's, beneath this one.

    All its models can then be loaded from this cache and take no room here: blobs are links into
    the base, which is never changed. Run it again to link what the base has got since.
    """
    return Answer(call.acting().attach(base, dry_run=dry_run), {})
