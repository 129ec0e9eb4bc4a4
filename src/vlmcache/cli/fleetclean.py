"""`vlmcache fleet clean`."""

from vlmcache.cli.clean import (
    CodeCache,
    Duplicates,
    Everything,
    EvictedModels,
    FreeTarget,
    KeptModels,
    MaxSize,
    OlderThan,
    Partials,
    XetCache,
)
from vlmcache.cli.fleet import fleet_of
from vlmcache.cli.options import Address, Answer, Call, DryRun, Nodes, Trash, Yes, command

EXAMPLES = """Examples:

  vlmcache fleet clean --dry-run
  vlmcache fleet clean --free 100GB --nodes 'gpu[1-4]'
  vlmcache fleet clean --older-than 30d --keep org/name --yes"""


@command
def fleet_clean(
    call: Call,
    models: EvictedModels = None,
    older_than: OlderThan = None,
    max_size: MaxSize = None,
    free: FreeTarget = None,
    duplicates: Duplicates = False,
    partials: Partials = False,
    keep: KeptModels = None,
    every: Everything = False,
    xet: XetCache = False,
    modules: CodeCache = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    trash: Trash = None,
    address: Address = None,
    nodes: Nodes = None,
) -> Answer:
    """Remove from each node what nobody needs there, and what was not used for a while.

    Each node decides by its own cache and config.yaml, as 'vlmcache help clean' says; sizes and
    ages apply to each. One plan for all nodes, and one question.
    """
    fleet = fleet_of(call, address, nodes, yes=yes, word="all" if every else None)
    return Answer(
        fleet.clean(
            models or (),
            older_than=older_than,
            max_size=max_size,
            free=free,
            duplicates=duplicates,
            partials=partials,
            keep=keep or (),
            all=every,
            xet=xet,
            modules=modules,
            dry_run=dry_run,
            trash=trash,
        )
    )
