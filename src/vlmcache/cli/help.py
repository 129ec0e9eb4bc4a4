"""`vlmcache help`."""

from typing import Annotated

import typer

EXAMPLES = """Examples:

  vlmcache help pull
  vlmcache help exit-codes"""


def help(  # noqa: A001
    topic: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help="The command to show the help of, or exit-codes.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the help of a command, or the exit codes."""
    from vlmcache.cli import pages
    from vlmcache.cli.main import app

    if topic == ["exit-codes"]:
        print(pages.exit_codes())
    else:
        app(
            [*(topic or ()), "--help"],
            standalone_mode=False,
            prog_name="vlmcache",
        )
