"""`vlmcache verify`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Patterns, Yes, command, refuse_without

EXAMPLES = """Examples:

  vlmcache verify
  vlmcache verify qwen_vl_2b --max-age 0
  vlmcache verify --repair --dry-run
  vlmcache verify --json | jq '.damaged[] | {repo, path}'"""


# Options that the command of a fleet has too.
MaxAge = Annotated[
    str | None,
    typer.Option(
        metavar="AGE",
        help="Skip unchanged files that were verified within this time, 7d by default; "
        "0 reads all.",
    ),
]


@command
def verify(
    call: Call,
    models: Patterns = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch what is damaged or missing, and only that.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    max_age: MaxAge = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            min=1,
            max=256,
            help="Hash with this many threads; by default one per core.",
        ),
    ] = None,
) -> Answer:
    """Check every file against its hash, without the network.

    The exit code is 4 if anything is damaged or missing, unless --repair fixes it.
    """
    if repair:
        return Answer(
            call.acting().repair(models or None, dry_run=dry_run, max_age=max_age, workers=workers)
        )
    refuse_without("--repair", dry_run=dry_run, yes=yes)
    return Answer(call.acting().verify(models or None, max_age=max_age, workers=workers))
