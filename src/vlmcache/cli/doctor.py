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
            metavar="GROUP", help="Check whether this group of users can share the cache."
        ),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Set the cache's permissions right.")] = False,
) -> Answer:
    """Check paths, permissions, disk, versions, GPU.

    Says what to do about what is off. --shared shows what has to change before a group can use the
    cache together; --fix changes it.
    """
    from vlmcache.commands.doctor import doctor as doctor_command
    from vlmcache.commands.doctor import sharing

    value = doctor_command.diagnose(
        session.environment,
        session.config,
        session.cache,
        ask_torch=shared is None and not fix,
        shared=shared,
        fix=fix,
    )
    return Answer(
        value,
        ids=[finding.code for finding in value.findings],
        error=sharing.problem(value.receipt),
        code=ExitCode.DAMAGE if value.has_errors else ExitCode.DONE,
    )
