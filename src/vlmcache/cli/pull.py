"""`vlmcache pull`."""

from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.confirmation import can_ask
from vlmcache.cli.options import Answer, Call, Models, Yes, command
from vlmcache.errors import UsageError

if TYPE_CHECKING:
    from vlmcache.commands.pull.values import PullReport

EXAMPLES = """Examples:

  vlmcache pull qwen_vl_2b
  vlmcache pull Qwen/Qwen2-VL-2B-Instruct@main --dry-run
  vlmcache pull Qwen/Qwen2-VL-2B-Instruct --add
  vlmcache pull --all --limit-rate 20MB
  vlmcache pull qwen_vl_7b --make-room
  vlmcache pull qwen_vl_2b --from /mnt/usb/hub
  vlmcache pull org/model-GGUF:Q4_K_M
  vlmcache pull org/model --include '*.onnx'
  vlmcache pull datasets/org/pages"""


# Options that the command of a fleet has too.
PullRevision = Annotated[
    str | None,
    typer.Option(
        metavar="REVISION",
        help="Pull this branch, tag or commit; by default the configured one.",
    ),
]
PullInclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Pull only files that match, of all formats, such as '*.gguf'. Repeat it for more.",
    ),
]
PullExclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Leave out files that match, such as '*.bin'. Repeat it for more.",
    ),
]
AllFiles = Annotated[
    bool, typer.Option("--all-files", help="Pull all files, second weight formats too.")
]
PullDryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")]


@command
def pull(
    call: Call,
    models: Models = None,
    every: Annotated[bool, typer.Option("--all", help="Pull every configured model.")] = False,
    revision: PullRevision = None,
    include: PullInclude = None,
    exclude: PullExclude = None,
    all_files: AllFiles = False,
    dry_run: PullDryRun = False,
    max_workers: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT", min=1, max=64, help="Fetch this many files at a time; 8 by default."
        ),
    ] = None,
    limit_rate: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Limit the bytes per second of all files together, for example to 10MB.",
        ),
    ] = None,
    max_wait: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Wait at most this long for a busy hub that says when to come back, and for "
            "another process that downloads the same file, for example 30m; by default 10m for "
            "the hub, and for the other process as long as its download grows.",
        ),
    ] = None,
    make_room: Annotated[
        bool,
        typer.Option("--make-room", help="Propose what to evict if the disk is too full."),
    ] = False,
    add: Annotated[
        bool,
        typer.Option("--add", help="Add the models that are then complete to your config.yaml."),
    ] = False,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Look here before the hub: the address of a 'vlmcache serve', another hub cache, "
            "a backup, a tar or an Ollama store; by default the sources of your own config.yaml. "
            "Repeat it for more.",
        ),
    ] = None,
    yes: Yes = False,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="Use this token; by default that of HF_TOKEN or of 'hf auth login'.",
        ),
    ] = None,
) -> Answer:
    """Download what is missing of models, and only that.

    Every byte is checked. An interrupted download continues where it stopped.
    """
    from vlmcache.cli import picker

    names = models or (None if every else _picked(call, offers_backup=bool(sources)))
    call.cache.choose = picker.variant if can_ask(json=call.json) else None
    return Answer(
        call.acting(yes=yes).pull(
            names,
            all=every,
            revision=revision,
            include=include or (),
            exclude=exclude or (),
            all_files=all_files,
            dry_run=dry_run,
            max_workers=max_workers,
            limit_rate=limit_rate,
            max_wait=max_wait,
            make_room=make_room,
            token=token,
            add=add,
            sources=sources or (),
        )
    )


def show(value: "PullReport", *, verbose: bool) -> None:
    """Print what a pull did, and what was removed to make room for it."""
    from vlmcache.commands.pull import view

    room = view.evicted(value)
    if room is not None:
        from vlmcache.commands.remove import view as remove_view

        remove_view.show(room, verbose=verbose)
    view.show(value, verbose=verbose)


def _picked(call: Call, *, offers_backup: bool) -> list[str]:
    """Return the models that a person picks on the terminal."""
    if not call.cache.session.config.listed:
        other = "restore' copies all that is in a backup"
        if not offers_backup:
            other = "init' writes a config.yaml"
        raise UsageError(
            "no MODEL is named, and none is configured",
            f"name one to pull, such as owner/name; 'vlmcache {other}",
        )
    if not can_ask(json=False):
        raise UsageError(
            "no MODEL is named", "name one, or use --all; 'vlmcache status' lists them"
        )
    from vlmcache.cli import picker
    from vlmcache.commands.pull import view

    status = call.cache.status()
    chosen = picker.pick(view.choices_of(status))
    if not chosen:
        raise UsageError("nothing chosen")
    return [status.models[number].key for number in chosen]
