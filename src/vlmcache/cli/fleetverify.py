"""`vlmcache fleet verify`."""

from typing import Annotated

import typer

from vlmcache.cli.fleet import fleet_of
from vlmcache.cli.options import Address, Answer, Call, Nodes, Patterns, command
from vlmcache.cli.verify import (
    MaxAge,
)

EXAMPLES = """Examples:

  vlmcache fleet verify
  vlmcache fleet verify qwen_vl_2b --max-age 0 --nodes gpu3
  vlmcache fleet verify --json | jq '.nodes[] | select(.damaged != []) | .node'"""


@command
def fleet_verify(
    call: Call,
    models: Patterns = None,
    max_age: MaxAge = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            min=1,
            max=256,
            help="Hash with this many threads on each node; by default one per core.",
        ),
    ] = None,
    address: Address = None,
    nodes: Nodes = None,
) -> Answer:
    """Check every file on each node against its hash, without the network.

    The exit code is 4 if anything is damaged or missing on a node, else 3 if some nodes could not
    be checked. Nothing is changed.
    """
    fleet = fleet_of(call, address, nodes)
    return Answer(fleet.verify(models or None, max_age=max_age, workers=workers))
