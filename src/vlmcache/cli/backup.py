"""`vlmcache backup`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import Answer, Models, command
from vlmcache.errors import UsageError

if TYPE_CHECKING:
    from vlmcache.cli.options import Output
    from vlmcache.config import Session

EXAMPLES = """Examples:

  vlmcache backup models.tar
  vlmcache backup s3://bucket/qwen.tar qwen_vl_2b
  vlmcache backup /mnt/store/
  vlmcache backup s3://bucket/store qwen_vl_2b
  vlmcache backup - qwen_vl_2b | ssh other vlmcache restore -"""


@command
def backup(
    session: Session,
    output: Output,
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DEST",
            help="A folder or an address for a store; a file or an address ending in .tar for one "
            "tar stream; - for stdout.",
        ),
    ],
    models: Models = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read what the store has, and mend what is damaged there."),
    ] = False,
) -> Answer:
    """Save models, every byte checked on the way.

    To a store, which several machines can share, only what it lacks is written. A tar stream has a
    manifest with all hashes in front; any tar can list it.
    """
    from vlmcache.commands.backup import backup as backup_command
    from vlmcache.commands.backup import values
    from vlmcache.show import progress

    streamed = destination == values.STREAM
    if streamed and (output.json or output.quiet):
        raise UsageError("the backup itself goes to stdout: no --json and no -q beside it")
    if streamed and sys.stdout.isatty():
        raise UsageError("a terminal cannot keep a backup", "name a file, or pipe it on")
    value = backup_command.backup(
        session.config,
        session.cache,
        destination,
        models or (),
        progress.watcher(quiet=output.quiet),
        verify=verify,
    )
    shown = {"stream": sys.stderr if streamed else sys.stdout}
    return Answer(value, shown, list(value.repos), values.incomplete(value))
