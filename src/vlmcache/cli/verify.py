"""`vlmcache verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmcache.cli.options import (
    Answer,
    CacheDir,
    ConfigFile,
    DryRun,
    Json,
    Models,
    Output,
    Quiet,
    Verbose,
    Yes,
    duration_option,
    open_session,
)
from vlmcache.errors import UsageError, VlmcacheError

EXAMPLES = """Examples:

  vlmcache verify
  vlmcache verify qwen_vl_2b --max-age 0
  vlmcache verify --repair --dry-run
  vlmcache verify --json | jq '.damaged[] | {repo, path}'"""


def verify(
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
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
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

    session = open_session(config, cache_dir)
    age = duration_option("--max-age", max_age)
    age = verify_command.MAX_AGE if age is None else age
    place = session.environment, session.config, session.cache, models or ()
    watcher = progress.watcher(quiet=quiet)
    error: VlmcacheError | None
    if repair:
        from vlmcache.commands.verify import repair as verify_repair

        value, error = verify_repair.repair(
            *place, max_age=age, workers=workers, dry_run=dry_run, watcher=watcher
        )
    else:
        value = verify_command.verify(*place, max_age=age, workers=workers, watcher=watcher)
        error = values.problem(value)

    def show() -> None:
        from vlmcache.commands.verify import view

        view.show(value, verbose=verbose)

    return Answer(
        "verify",
        value,
        Output(json, quiet, verbose),
        show,
        lambda: values.ids(value),
        error,
    )
