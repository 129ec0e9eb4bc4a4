"""`vlmcache fleet pull`."""

from typing import Annotated

import typer

from vlmcache.cli.fleet import fleet_of
from vlmcache.cli.options import Address, Answer, Call, Nodes, Yes, command
from vlmcache.cli.pull import (
    AllFiles,
    PullDryRun,
    PullExclude,
    PullInclude,
    PullRevision,
)

EXAMPLES = """Examples:

  vlmcache fleet pull qwen_vl_2b
  vlmcache fleet pull Qwen/Qwen2-VL-2B-Instruct@main --dry-run
  vlmcache fleet pull qwen_vl_7b --nodes 'gpu[1-4]' --address ray://head:10001"""


@command
def fleet_pull(
    call: Call,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="A key of config.yaml or a repo id, with an optional @revision and :VARIANT; "
            "datasets/owner/name.",
            show_default=False,
        ),
    ],
    revision: PullRevision = None,
    include: PullInclude = None,
    exclude: PullExclude = None,
    all_files: AllFiles = False,
    limit_rate: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Limit the bytes per second of each transfer on a node, for example to 100MB; "
            "unlimited by default.",
        ),
    ] = None,
    dry_run: PullDryRun = False,
    yes: Yes = False,
    address: Address = None,
    nodes: Nodes = None,
) -> Answer:
    """Download models once, and let the nodes pass them on to each other.

    The hub sends one copy, however many nodes there are, and each node checks every byte. The same
    command continues what was interrupted.
    """
    from vlmcache.cli import picker
    from vlmcache.cli.confirmation import can_ask

    cache = call.acting(yes=yes)
    fleet = fleet_of(call, address, nodes)
    fleet.agree = cache.agree
    fleet.choose = picker.variant if can_ask(json=call.json) else None
    return Answer(
        fleet.pull(
            models,
            revision=revision,
            include=include or (),
            exclude=exclude or (),
            all_files=all_files,
            limit_rate=limit_rate,
            dry_run=dry_run,
        )
    )
