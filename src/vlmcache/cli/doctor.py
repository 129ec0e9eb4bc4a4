"""`vlmcache doctor`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command, refuse_without
from vlmcache.errors import ExitCode

EXAMPLES = """Examples:

  vlmcache doctor
  HF_HOME=/data/hf vlmcache doctor
  vlmcache doctor --fix --dry-run
  vlmcache doctor --shared vlm
  sudo vlmcache doctor --shared vlm --fix --cache-dir /srv/hub
  vlmcache doctor --json | jq '.findings[]'"""


@command
def doctor(
    call: Call,
    shared: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP", help="Check whether the users of this group can share the cache."
        ),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Correct the cache's permissions.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> Answer:
    """Check paths, permissions, disk, versions, GPU.

    Shows each problem with its remedy. --shared shows what must change before a group can share the
    cache; --fix changes it.
    """
    if not fix:
        refuse_without("--fix", dry_run=dry_run, yes=yes)
    value = call.cache.doctor(shared=shared, fix=fix, dry_run=dry_run)
    return Answer(value, code=ExitCode.DAMAGE if value.has_errors else ExitCode.DONE)
