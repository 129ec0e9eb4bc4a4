"""`vlmcache detach`."""

import sys
from typing import Annotated, Any

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command
from vlmcache.cli.register import view_of

EXAMPLES = """Examples:

  vlmcache detach /srv/models --dry-run
  vlmcache detach /srv/models"""


@command
def detach(
    call: Call,
    base: Annotated[
        str | None,
        typer.Argument(
            metavar="BASE",
            help="The base, as it was attached; by default the only one.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> Answer:
    """Remove the links into a base, and models that consist of such links.

    What was downloaded into this cache stays, and so does the base, which need not be mounted.
    """

    def ask(planned: Any) -> bool:
        from vlmcache.cli.confirmation import is_agreed, require_terminal
        from vlmcache.units import counted

        models = counted(len(planned.repos), "model")
        require_terminal(
            call.json,
            f"{models} would be detached",
            "--dry-run shows them, --yes detaches them",
        )
        view_of("detach")(planned, detached=True, stream=sys.stderr)
        return is_agreed(f"Detach {models}?")

    cache = call.acting()
    cache.confirm = None if yes else ask
    return Answer(cache.detach(base, dry_run=dry_run), {"detached": True})
