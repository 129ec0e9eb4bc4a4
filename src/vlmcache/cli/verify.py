"""`vlmcache verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import Answer, DryRun, Models, Yes, command, duration_option
from vlmcache.errors import UsageError, VlmcacheError

if TYPE_CHECKING:
    from vlmcache.cli.options import Output
    from vlmcache.config import Session

EXAMPLES = """Examples:

  vlmcache verify
  vlmcache verify qwen_vl_2b --max-age 0
  vlmcache verify --repair --dry-run
  vlmcache verify --json | jq '.damaged[] | {repo, path}'"""


@command
def verify(
    session: Session,
    output: Output,
    models: Models = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch what is bad or lacks, and only that.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    max_age: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Skip what was verified since and has not changed; 7d. 0 reads everything.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="COUNT", min=1, max=256, help="Threads; one a core.")
    ] = None,
) -> Answer:
    """Check every file against its hash, without the network.

    Exits with 4 if anything is damaged or missing, unless --repair mends it.
    """
    from vlmcache.commands.verify import values
    from vlmcache.commands.verify import verify as verify_command
    from vlmcache.show import progress

    if (dry_run or yes) and not repair:
        option = "--dry-run" if dry_run else "--yes"
        raise UsageError(f"{option} belongs to --repair: without it nothing is changed")

    age = duration_option("--max-age", max_age)
    age = verify_command.MAX_AGE if age is None else age
    place = session.environment, session.config, session.cache, models or ()
    watcher = progress.watcher(quiet=output.quiet)
    error: VlmcacheError | None
    if repair:
        from vlmcache.commands.verify import repair as verify_repair

        value, error = verify_repair.repair(
            *place, max_age=age, workers=workers, dry_run=dry_run, watcher=watcher
        )
    else:
        value = verify_command.verify(*place, max_age=age, workers=workers, watcher=watcher)
        error = values.problem(value)
    return Answer(value, ids=values.ids(value), error=error)
