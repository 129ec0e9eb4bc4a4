"""`vlmcache move`."""

import sys
from typing import Annotated, Any

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Models, Yes, command
from vlmcache.cli.register import view_of
from vlmcache.errors import UsageError
from vlmcache.units import counted

EXAMPLES = """Examples:

  vlmcache move /mnt/big/hub --dry-run
  vlmcache move /mnt/big/hub qwen_vl_7b
  vlmcache move /mnt/big/hub --no-link
  vlmcache move /mnt/big/hub --undo
  vlmcache move --relink /media/big/hub
  vlmcache move ~/.cache/huggingface/hub --cache-dir /mnt/big/hub --no-link"""


@command
def move(
    call: Call,
    destination: Annotated[
        str | None,
        typer.Argument(
            metavar="DEST",
            help="The folder to move to; it becomes a hub cache of its own.",
            show_default=False,
        ),
    ] = None,
    models: Models = None,
    no_link: Annotated[
        bool,
        typer.Option(
            "--no-link",
            help="Leave no links; programs find the models only if HF_HUB_CACHE names DEST.",
        ),
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Roll back an unfinished move to DEST.")
    ] = False,
    relink: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Point links that lead nowhere to DIR, where their drive is mounted now.",
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> Answer:
    """Move models to another drive: copied and hashed there, then switched.

    Moves all models unless some are named. Each is replaced by a link, which every command and the
    hub's libraries follow. After an interruption, run it again. Only --relink asks first.
    """
    if relink is None and destination is None:
        raise UsageError("missing argument 'DEST'", "see 'vlmcache move --help'")

    def ask(planned: Any) -> bool:
        from vlmcache.cli.confirmation import is_agreed, require_terminal

        links = counted(len(planned.repos), "link")
        require_terminal(
            call.json,
            f"{links} would be rewritten",
            "--dry-run shows them, --yes rewrites them",
        )
        view_of("move")(planned, relinked=True, stream=sys.stderr)
        return is_agreed(f"Rewrite {links}?")

    cache = call.acting()
    cache.confirm = None if yes else ask
    value = cache.move(
        destination,
        models or None,
        no_link=no_link,
        undo=undo,
        relink=relink,
        dry_run=dry_run,
    )
    return Answer(value, {"undone": undo, "relinked": relink is not None})
