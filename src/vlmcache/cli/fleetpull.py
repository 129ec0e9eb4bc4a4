"""`vlmcache fleet pull`."""

from typing import Annotated

import typer

from vlmcache.cli.fleet import fleet_of
from vlmcache.cli.options import Address, Answer, Call, Nodes, Yes, command

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
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION",
            help="Pull this branch, tag or commit; by default the configured one.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Pull only files that match, of all formats, such as '*.gguf'. "
            "Repeat it for more.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave out files that match, such as '*.bin'. Repeat it for more.",
        ),
    ] = None,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Pull all files, second weight formats too.")
    ] = False,
    limit_rate: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Limit the bytes per second of each transfer on a node, for example to 100MB; "
            "unlimited by default.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and write nothing.")
    ] = False,
    yes: Yes = False,
    address: Address = None,
    nodes: Nodes = None,
) -> Answer:
    """Download models once, and let the nodes pass them on to each other.

    The hub sends one copy, whatever the number of nodes, and every byte is checked on each. What
    was interrupted continues with the same command.
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
