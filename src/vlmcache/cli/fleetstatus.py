"""`vlmcache fleet status`."""

from typing import Annotated

import typer

from vlmcache.cli.fleet import fleet_of
from vlmcache.cli.options import Address, Answer, Call, Nodes, Patterns, command

EXAMPLES = """Examples:

  vlmcache fleet status
  vlmcache fleet status qwen_vl_2b --check --nodes 'gpu[1-4]'
  vlmcache fleet status --json | jq '.nodes[] | {node, free, error}'"""


@command
def fleet_status(
    call: Call,
    models: Patterns = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit with code 4 unless every node has the same commit of every model, cached.",
        ),
    ] = False,
    address: Address = None,
    nodes: Nodes = None,
) -> Answer:
    """Show what each node has of models, and its free space.

    Without MODEL: what any node has configured, else what is in any of the caches. Nothing is
    changed.
    """
    return Answer(fleet_of(call, address, nodes).status(models or None, check=check))
