"""`vlmcache explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Json, Output, Quiet

EXAMPLES = """Examples:

  vlmcache explain stale-partial
  vlmcache explain no-space --json"""


def explain(
    code: Annotated[
        str, typer.Argument(metavar="CODE", help="A code that a finding or an error carries.")
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Explain a finding's or an error's code.

    Prints what the code means and what to do about it.
    """
    from vlmcache import codes

    value = codes.explain(code)
    return Answer(
        "explain",
        value,
        Output(json, quiet, verbose=False),
        lambda: print(f"{value.code}\n{value.meaning}\n{value.remedy}"),
        lambda: value.ids,
    )
