"""`vlmcache doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import Answer, command
from vlmcache.errors import ExitCode

if TYPE_CHECKING:
    from vlmcache.config import Session

EXAMPLES = """Examples:

  vlmcache doctor
  HF_HOME=/data/hf vlmcache doctor
  vlmcache doctor --shared vlm
  sudo vlmcache doctor --shared vlm --fix --cache-dir /srv/hub
  vlmcache doctor --json | jq '.findings[]'"""


@command
def doctor(
    session: Session,
    shared: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP", help="Check whether the users of this group can share the cache."
        ),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Correct the cache's permissions.")] = False,
) -> Answer:
    """Check paths, permissions, disk, versions, GPU.

    Shows each problem with its remedy. --shared shows what has to change before a group can share
    the cache; --fix changes it.
    """
    from vlmcache.commands.doctor import doctor as doctor_command

    value = doctor_command.diagnose(
        session,
        ask_torch=shared is None and not fix,
        shared=shared,
        fix=fix,
    )

    return Answer(value, code=ExitCode.DAMAGE if value.has_errors else ExitCode.DONE)
