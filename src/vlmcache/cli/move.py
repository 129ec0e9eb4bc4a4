"""`vlmcache move`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import Answer, DryRun, Models, Yes, command
from vlmcache.errors import UsageError

if TYPE_CHECKING:
    from vlmcache.cli.options import Output
    from vlmcache.config import Session

EXAMPLES = """Examples:

  vlmcache move /mnt/big/hub --dry-run
  vlmcache move /mnt/big/hub qwen_vl_7b
  vlmcache move /mnt/big/hub --no-link
  vlmcache move /mnt/big/hub --undo
  vlmcache move --relink /media/big/hub
  vlmcache move ~/.cache/huggingface/hub --cache-dir /mnt/big/hub --no-link"""


@command
def move(
    session: Session,
    output: Output,
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
        bool, typer.Option("--undo", help="Take back an unfinished move to DEST.")
    ] = False,
    relink: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Rewrite links that lead nowhere to DIR, where their drive is mounted now.",
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> Answer:
    """Move models to another drive: copied and hashed there, then switched.

    Moves all models unless some are named. A link stays in the place of each, which every command
    and the hub's libraries follow. After an interruption, run it again. Only --relink asks first.
    """
    from vlmcache.cli.confirmation import can_ask, is_agreed
    from vlmcache.commands.move import move as move_command
    from vlmcache.commands.move import values
    from vlmcache.commands.remove.values import UnconfirmedError
    from vlmcache.show import progress

    if relink is not None and (destination is not None or models or no_link or undo):
        raise UsageError("--relink rewrites links and moves nothing: name only DIR")
    if relink is None and destination is None:
        raise UsageError("Missing argument 'DEST'", "see 'vlmcache move --help'")
    if undo and (models or no_link):
        raise UsageError("--undo takes back all that is unfinished: give no MODEL and no --no-link")

    def ask(planned: values.MoveReport) -> bool:
        from vlmcache.commands.move import view

        count = len(planned.repos)
        noun = "link" if count == 1 else "links"
        if not can_ask(output):
            raise UnconfirmedError(
                f"{count} {noun} would be rewritten: no terminal to ask on",
                "--dry-run shows them, --yes rewrites them",
            )
        view.show(planned, relinked=True, stream=sys.stderr)
        return is_agreed(f"Rewrite {count} {noun}?")

    if relink is not None:
        confirm = None if yes else ask
        value = move_command.relink(session, relink, dry_run=dry_run, confirm=confirm)
    elif undo:
        value = move_command.undo(session, destination or "", dry_run=dry_run)
    else:
        value = move_command.move(
            session,
            destination or "",
            models or (),
            values.MoveOptions(link=not no_link, dry_run=dry_run),
            progress.on_stderr(quiet=output.quiet),
        )

    return Answer(value, {"undone": undo, "relinked": relink is not None})
