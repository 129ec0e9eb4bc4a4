"""`vlmcache backup`."""

import sys
from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Patterns, Yes, command
from vlmcache.errors import UsageError

EXAMPLES = """Examples:

  vlmcache backup models.tar
  vlmcache backup models.tar --dry-run
  vlmcache backup models.tar.gz qwen_vl_2b
  vlmcache backup s3://bucket/qwen.tar qwen_vl_2b
  vlmcache backup /mnt/store/
  vlmcache backup s3://bucket/store qwen_vl_2b
  vlmcache backup - qwen_vl_2b | ssh other vlmcache restore -"""


@command
def backup(
    call: Call,
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DEST",
            help="The place to save to: a folder or an address for a store; a file or an address "
            "ending in .tar for one tar stream, in .tar.gz or .tar.zst for a compressed one; "
            "- for stdout.",
        ),
    ],
    models: Patterns = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read what is in the store already, and write damaged contents again."
        ),
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,  # noqa: ARG001 - nothing is asked, and scripts may give it all the same
) -> Answer:
    """Save models, every byte checked on the way.

    Only what is missing is written to a store, which several machines can share. A tar stream
    begins with a manifest of all hashes; any tar can list it. Nothing is asked.
    """
    streamed = destination == "-"
    if streamed and (call.json or call.quiet):
        raise UsageError("--json and -q cannot be used with -: the backup is written to stdout")
    if streamed and sys.stdout.isatty():
        raise UsageError("a terminal cannot keep a backup", "name a file, or pipe it to a program")
    value = call.acting().backup(destination, models or None, verify=verify, dry_run=dry_run)
    return Answer(value, {"stream": sys.stderr if streamed else sys.stdout})
