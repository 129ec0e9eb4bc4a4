"""`vlmcache verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import DryRun, Models, Yes, command, duration_option
from vlmcache.errors import UsageError

if TYPE_CHECKING:
    from vlmcache.cli.options import Output
    from vlmcache.commands.verify.values import Verification
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
        bool, typer.Option("--repair", help="Fetch what is damaged or missing, and only that.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    max_age: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Skip files verified since and unchanged: 7d by default; 0 reads everything.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            min=1,
            max=256,
            help="Hash with this many threads; by default one per core.",
        ),
    ] = None,
) -> Verification:
    """Check every file against its hash, without the network.

    Exits with 4 if anything is damaged or missing, unless --repair fixes it.
    """
    from vlmcache.commands.verify import values
    from vlmcache.show import progress

    if (dry_run or yes) and not repair:
        option = "--dry-run" if dry_run else "--yes"
        raise UsageError(f"{option} belongs to --repair: without it nothing is changed")

    age = duration_option("--max-age", max_age)
    options = values.VerifyOptions(values.MAX_AGE if age is None else age, workers, dry_run)
    shown = progress.on_stderr(quiet=output.quiet)
    report: Verification
    if repair:
        from vlmcache.commands.verify import repair as repair_command

        report = repair_command.repair(session, models or (), options, shown)
    else:
        from vlmcache.commands.verify import verify as verify_command

        report = verify_command.verify(session, models or (), options, shown)

    return report
