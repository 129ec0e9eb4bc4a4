"""What the commands of `vlmcache fleet` have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vlmcache.units import counted

if TYPE_CHECKING:
    from vlmcache.cli.options import Call
    from vlmcache.commands.fleet.fleet import FleetCache
    from vlmcache.commands.fleet.values import FleetRemoval

HELP = """Do on the nodes of a Ray cluster what vlmcache does on one machine.

Each node works on its own hub cache, with its own environment and config.yaml, and answers through
a short-lived actor that reserves no CPU and no GPU."""

EXAMPLES = """Examples:

  vlmcache fleet status
  vlmcache fleet status qwen_vl_2b --check --nodes 'gpu[1-4]'
  vlmcache fleet rm org/old-model --dry-run
  vlmcache fleet load-test qwen_vl_2b --address ray://head:10001"""


def fleet_of(
    call: Call,
    address: str | None,
    nodes: Sequence[str] | None,
    *,
    yes: bool = True,
    word: str | None = None,
) -> FleetCache:
    """Return the nodes' caches, which show their progress on stderr and ask there before they act.

    Args:
        call: what the command was given.
        address: the cluster's.
        nodes: those that are wanted.
        yes: whether `--yes` has answered, or nothing is asked.
        word: what has to be typed; `y` or `yes` if not given.
    """
    from vlmcache.show import progress

    fleet = call.cache.fleet(address, nodes or ())
    fleet.progress = progress.on_stderr(quiet=call.quiet)
    fleet.progress.noun = "node"
    if not yes:
        fleet.confirm = _confirmation(word, json=call.json, verbose=call.verbose)
    return fleet


def _confirmation(word: str | None, *, json: bool, verbose: bool) -> Callable[[Any], bool]:
    """Return the function that shows what would be removed where, and asks whether it may be."""

    def ask(removal: FleetRemoval) -> bool:
        from vlmcache.cli.confirmation import is_agreed, require_terminal
        from vlmcache.commands.fleet import view

        items = counted(sum(len(node.models) for node in removal.nodes), "item")
        nodes = counted(sum(bool(node.models) for node in removal.nodes), "node")
        size = view.frees_words(removal)
        require_terminal(
            json,
            f"{items} on {nodes} would be removed, freeing {size}",
            "--dry-run shows them, --yes removes them",
        )
        view.show_removal_plan(removal, stream=sys.stderr, verbose=verbose)
        return is_agreed(f"Remove {items} on {nodes}, freeing {size}?", word)

    return ask
