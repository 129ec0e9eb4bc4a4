"""`vlmcache fleet rm`."""

from typing import Annotated

import typer

from vlmcache.cli.fleet import fleet_of
from vlmcache.cli.options import Address, Answer, Call, DryRun, Nodes, Trash, Yes, command
from vlmcache.cli.rm import (
    Force,
    RemoveInclude,
    RemoveRevision,
)

EXAMPLES = """Examples:

  vlmcache fleet rm qwen_vl_2b --dry-run
  vlmcache fleet rm 'org/*' --nodes 'gpu[1-4]'
  vlmcache fleet rm org/model@v1.0 --yes --no-trash"""


@command
def fleet_rm(
    call: Call,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="A key of config.yaml or a repo id, with an optional @revision and :VARIANT; "
            "datasets/owner/name; a pattern of them, such as 'org/*'; or a path in a node's cache.",
            show_default=False,
        ),
    ],
    revision: RemoveRevision = None,
    include: RemoveInclude = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    force: Force = False,
    trash: Trash = None,
    address: Address = None,
    nodes: Nodes = None,
) -> Answer:
    """Remove models, single revisions, variants or files from the nodes that have them.

    One plan for all nodes, and one question. What has changed on a node since the plan is left
    alone. What you confirm on a terminal is kept in the trash of each node, as 'vlmcache help rm'
    says; 'vlmcache undo' there restores it.
    """
    from vlmcache.cli.confirmation import can_ask

    fleet = fleet_of(call, address, nodes, yes=yes)
    if trash is None and not can_ask(json=call.json):
        trash = False
    return Answer(
        fleet.remove(
            models,
            revision=revision,
            include=include or (),
            dry_run=dry_run,
            force=force,
            trash=trash,
        )
    )
