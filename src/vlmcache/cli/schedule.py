"""`vlmcache schedule`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command

EXAMPLES = """Examples:

  vlmcache schedule 'clean --max-size 200GB' --every 1d
  vlmcache schedule verify --every 7d --dry-run
  vlmcache schedule 'status qwen_vl_2b --check' --every 1h --name serving
  vlmcache schedule --show
  vlmcache schedule --remove clean"""


@command
def schedule(
    call: Call,
    line: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help="The command to run, in quotes: clean, verify or status --check, with its "
            "options. With --remove, the name of the schedule.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            metavar="PERIOD",
            help="Run the command this often, for example 1d, 6h or 15m; there is no default.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name the schedule, to have several for one command; the default is the name of "
            "the command.",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show what is scheduled, and how it last ended.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the schedule of this name or command.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> Answer:
    """Run clean, verify or status --check on a timer.

    Shows and then writes a systemd timer, a line of the crontab or an agent of launchd, whichever
    this machine has. The command is checked now; later it runs without questions, with low
    priority, on the cache and the config.yaml that count now. The same name replaces a schedule.
    'vlmcache status' shows how it last ended.
    """
    if not yes and not dry_run:
        from vlmcache.cli.confirmation import standing_order

        call.cache.confirm = standing_order(json=call.json)
    words = None if not line else line[0] if len(line) == 1 else line
    return Answer(
        call.cache.schedule(
            words, every=every, name=name, show=show, remove=remove, dry_run=dry_run
        )
    )
