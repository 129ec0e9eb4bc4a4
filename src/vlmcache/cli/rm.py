"""`vlmcache rm`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command

EXAMPLES = """Examples:

  vlmcache rm qwen_vl_2b --dry-run
  vlmcache rm Qwen/Qwen2-VL-2B-Instruct@v1.0
  vlmcache rm org/model-GGUF:Q4_K_M
  vlmcache rm org/model --include '*.bin'
  vlmcache rm got_ocr datasets/owner/name --yes
  vlmcache rm ./models--owner--name.bak"""


@command
def rm(
    call: Call,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="A key of config.yaml or a repo id, with an optional @revision and :VARIANT; "
            "datasets/owner/name; or a path in the cache.",
            show_default=False,
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Remove only this branch, tag or commit.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Remove only files that match, such as '*.gguf'. Repeat it for more.",
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    force: Annotated[
        bool, typer.Option("--force", help="Remove even what a process uses.")
    ] = False,
) -> Answer:
    """Remove models, single revisions, variants or files.

    Blobs that other files or revisions need stay. Nothing in use is removed.
    """
    cache = call.acting(yes=yes)
    return Answer(
        cache.remove(models, revision=revision, include=include or (), dry_run=dry_run, force=force)
    )
