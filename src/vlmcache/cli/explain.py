"""`vlmcache explain`."""

from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import Answer, command

if TYPE_CHECKING:
    from vlmcache.codes import Explanation

EXAMPLES = """Examples:

  vlmcache explain stale-partial
  vlmcache explain no-space --json"""


@command
def explain(
    code: Annotated[
        str, typer.Argument(metavar="CODE", help="A code that a finding or an error carries.")
    ],
) -> Answer:
    """Explain the code of a finding or an error.

    Prints what it means and what to do about it.
    """
    from vlmcache import codes

    return Answer(codes.explain(code))


def show(value: "Explanation") -> None:
    """Print what a code means and what to do."""
    print(f"{value.code}\n{value.meaning}\n{value.remedy}")
