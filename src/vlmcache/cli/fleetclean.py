"""`vlmcache fleet clean`."""

from typing import Annotated

import typer

from vlmcache.cli.fleet import fleet_of
from vlmcache.cli.options import Address, Answer, Call, DryRun, Nodes, Trash, Yes, command

EXAMPLES = """Examples:

  vlmcache fleet clean --dry-run
  vlmcache fleet clean --free 100GB --nodes 'gpu[1-4]'
  vlmcache fleet clean --older-than 30d --keep org/name --yes"""


@command
def fleet_clean(
    call: Call,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Configured models that --older-than, --max-size and --free may evict too.",
            show_default=False,
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE", help="Evict models that were not used for this long, for example 30d."
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Evict the least recently used models until the cache is no larger than this, "
            "for example 50GB.",
        ),
    ] = None,
    free: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Evict the least recently used models until the disk has this much free, "
            "for example 30GB.",
        ),
    ] = None,
    duplicates: Annotated[
        bool,
        typer.Option(
            "--duplicates", help="Remove second weight formats of models that load without them."
        ),
    ] = False,
    partials: Annotated[
        bool,
        typer.Option(
            "--partials", help="Remove unfinished downloads that nobody has written to for an hour."
        ),
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Remove nothing of this model. Repeat it for more."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Remove everything in the cache; asks for the word 'all'.")
    ] = False,
    xet: Annotated[bool, typer.Option("--xet", help="Empty the cache of Xet chunks too.")] = False,
    modules: Annotated[
        bool, typer.Option("--modules", help="Empty the cache of remote code too.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    trash: Trash = None,
    address: Address = None,
    nodes: Nodes = None,
) -> Answer:
    """Remove from each node what nobody needs there, and what was not used for a while.

    What that is, each node decides by its own cache and config.yaml, as 'vlmcache help clean' says;
    sizes and ages count for each. One plan for all nodes, and one question.
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
