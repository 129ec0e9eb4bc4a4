"""`vlmcache trash`."""

import sys
from typing import Annotated, Any

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command, refuse_without
from vlmcache.show.text import printable
from vlmcache.units import and_more, counted, size_text

EXAMPLES = """Examples:

  vlmcache trash
  vlmcache trash --json
  vlmcache trash --empty --yes"""


@command
def trash(
    call: Call,
    empty: Annotated[
        bool, typer.Option("--empty", help="Remove everything in the trash for good.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> Answer:
    """List what is in the trash, with its size and the time left, or empty the trash.

    The next command that changes the cache removes what is older than vlmcache.trash_days of
    config.yaml. A pull, move or restore that needs the room empties it, the oldest first.
    """

    def ask(report: Any) -> bool:
        from vlmcache.cli.confirmation import is_agreed, require_terminal
        from vlmcache.errors import require_consent

        count, size = counted(len(report.removals), "removal"), size_text(report.frees)
        require_terminal(
            call.json,
            f"{count} would be removed for good, freeing {size}",
            "--dry-run shows them, --yes removes them",
        )
        for removal in report.removals:
            names = ", ".join(removal.names[:3]) + and_more(len(removal.names) - 3)
            line = f"  {removal.id}  {names}  {size_text(removal.frees)}"
            print(printable(line), file=sys.stderr)
        require_consent(is_agreed, f"Remove {count} for good, freeing {size}?", "was removed")
        return True

    if not empty:
        refuse_without("--empty", dry_run=dry_run, yes=yes)
    cache = call.acting()
    cache.confirm = None if yes or not empty else ask
    return Answer(cache.trash(empty=empty, dry_run=dry_run))
