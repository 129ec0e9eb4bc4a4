"""`vlmcache recall`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command

EXAMPLES = """Examples:

  vlmcache recall qwen_vl_7b
  vlmcache recall qwen_vl_7b --dry-run
  vlmcache recall 'org/*' datasets/owner/name"""


@command
def recall(
    call: Call,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Keys of config.yaml, repo ids or patterns such as 'org/*'.",
        ),
    ],
    dry_run: DryRun = False,
    yes: Yes = False,  # noqa: ARG001 - nothing is asked, and scripts may give it all the same
) -> Answer:
    """Bring models back from the archive drive.

    What 'vlmcache clean --to' or 'vlmcache move' has moved to another drive is copied back and
    hashed, replaces its link, and is then freed there. After an interruption, run it again. Nothing
    is asked.
    """
    return Answer(call.acting().recall(models, dry_run=dry_run))
