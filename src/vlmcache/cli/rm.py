"""`vlmcache rm`."""

import contextlib
import sys
from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Trash, Yes, command
from vlmcache.cli.picker import chooser
from vlmcache.errors import UsageError
from vlmcache.show.text import printable
from vlmcache.units import counted

EXAMPLES = """Examples:

  vlmcache rm
  vlmcache rm qwen_vl_2b --dry-run
  vlmcache rm Qwen/Qwen2-VL-2B-Instruct@v1.0
  vlmcache rm org/model-GGUF:Q4_K_M
  vlmcache rm org/model --include '*.bin'
  vlmcache rm got_ocr datasets/owner/name --yes
  vlmcache rm 'org/*' --dry-run
  vlmcache rm org/name --no-trash
  vlmcache rm ./models--owner--name.bak"""


# Options that the command of a fleet has too.
RemoveRevision = Annotated[
    str | None, typer.Option(metavar="REVISION", help="Remove only this branch, tag or commit.")
]
RemoveInclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Remove only files that match, such as '*.gguf'. Repeat it for more.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Remove even what a process uses.")]


@command
def rm(
    call: Call,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="A key of config.yaml or a repo id, with an optional @revision and :VARIANT; "
            "datasets/owner/name; a pattern of them, such as 'org/*'; or a path in the cache; "
            "without one, a list on the terminal to choose from.",
            show_default=False,
        ),
    ] = None,
    revision: RemoveRevision = None,
    include: RemoveInclude = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    force: Force = False,
    trash: Trash = None,
) -> Answer:
    """Remove models, single revisions, variants or files.

    Blobs that other files or revisions need stay. Nothing in use is removed. What you confirm on a
    terminal is kept for vlmcache.trash_days of config.yaml (by default 7), unless that would leave
    less than comfortable_free; 'vlmcache undo' restores it.
    """
    from vlmcache.cli.confirmation import can_ask
    from vlmcache.config import matching_names

    if not models and (revision is not None or include):
        option = "--include" if include else "--revision"
        raise UsageError(f"{option} needs a MODEL", "'vlmcache status --all' lists what is cached")
    if not models:
        call.cache.select = chooser(
            json=call.json,
            yes=yes,
            missing="no MODEL is named",
            hint="name one to remove, such as owner/name; 'vlmcache status --all' lists them, "
            "and on a terminal 'vlmcache rm' offers them",
        )
        return Answer(call.acting(yes=False).remove(dry_run=dry_run, force=force, trash=trash))
    if trash is None and not can_ask(json=call.json):
        trash = False

    cache = call.acting(yes=yes)
    names = matching_names(cache.session, models)
    if names != tuple(models) and not call.json and not call.quiet:
        # A plan of many may be shortened; what a pattern means must not be. If nobody reads stderr,
        # that is no reason to stop.
        with contextlib.suppress(BrokenPipeError):
            print(f"matched: {counted(len(names), 'name')}", file=sys.stderr)
            for name in names:
                print(f"  {printable(name)}", file=sys.stderr)
    return Answer(
        cache.remove(
            names,
            revision=revision,
            include=include or (),
            dry_run=dry_run,
            force=force,
            trash=trash,
        )
    )
