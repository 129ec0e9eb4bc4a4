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
            help="The cache to put beneath this one; if not given, the one of your config.yaml.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,  # noqa: ARG001 - nothing is asked, and scripts may give it all the same
) -> Answer:
    """Put a read-only cache, such as an admin's, beneath this one.

    All its models can be loaded from this cache then, and take no room here: blobs are links into
    the base, which is never changed. What the base gets later is linked when you run this again.
    """
    return Answer(call.acting().attach(base, dry_run=dry_run), {})
