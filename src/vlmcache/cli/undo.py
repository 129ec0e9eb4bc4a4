"""`vlmcache undo`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command

EXAMPLES = """Examples:

  vlmcache undo
  vlmcache undo --dry-run
  vlmcache undo 3f9a12c4"""


@command
def undo(
    call: Call,
    removal: Annotated[
        str | None,
        typer.Argument(
            metavar="ID",
            help="The removal, as 'vlmcache trash' lists it; by default the last one.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> Answer:
    """Restore what rm or clean has put into the trash.

    Everything returns to its place as it was, with its times. What has come back in the meantime
    stays; if something else has one of the names, nothing is changed. Nothing is asked.
    """
    return Answer(call.acting(yes=yes).undo(removal, dry_run=dry_run))
