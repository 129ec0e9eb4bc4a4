"""`vlmcache rm`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command, complete_model

EXAMPLES = """Examples:

  vlmcache rm qwen_vl_2b --dry-run
  vlmcache rm Qwen/Qwen2-VL-2B-Instruct@v1.0
  vlmcache rm got_ocr datasets/owner/name --yes
  vlmcache rm ./models--owner--name.bak"""


@command
def rm(
    call: Call,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="A key of config.yaml or a repo id, with an optional @revision; "
            "datasets/owner/name; or a path in the cache.",
            autocompletion=complete_model,
            show_default=False,
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Remove only this branch, tag or commit.")
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    force: Annotated[
        bool, typer.Option("--force", help="Remove even what a process uses.")
    ] = False,
) -> Answer:
    """Remove models or single revisions.

    Blobs that other revisions need stay. Nothing in use is removed.
    """
    cache = call.acting(yes=yes)
    return Answer(cache.remove(models, revision=revision, dry_run=dry_run, force=force))
