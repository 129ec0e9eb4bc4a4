"""`vlmcache clean`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Trash, Yes, command
from vlmcache.cli.picker import chooser

EXAMPLES = """Examples:

  vlmcache clean --dry-run
  vlmcache clean -i
  vlmcache clean --older-than 30d --keep org/name --yes
  vlmcache clean --free 30GB
  vlmcache clean --max-size 50GB qwen_vl_7b
  vlmcache clean --max-size 200GB --to /mnt/hdd/hub
  vlmcache clean --duplicates --xet"""


# Options that the command of a fleet has too.
EvictedModels = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="Configured models that --older-than, --max-size and --free may evict too.",
        show_default=False,
    ),
]
OlderThan = Annotated[
    str | None,
    typer.Option(
        metavar="AGE", help="Evict models that were not used for this long, for example 30d."
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Evict the least recently used models until the cache is no larger than this, "
        "for example 50GB.",
    ),
]
FreeTarget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Evict the least recently used models until the disk has this much free, "
        "for example 30GB.",
    ),
]
Duplicates = Annotated[
    bool,
    typer.Option(
        "--duplicates", help="Remove second weight formats of models that load without them."
    ),
]
Partials = Annotated[
    bool,
    typer.Option(
        "--partials", help="Remove unfinished downloads that nobody has written to for an hour."
    ),
]
KeptModels = Annotated[
    list[str] | None,
    typer.Option(metavar="MODEL", help="Remove nothing of this model. Repeat it for more."),
]
Everything = Annotated[
    bool, typer.Option("--all", help="Remove everything in the cache; asks for the word 'all'.")
]
XetCache = Annotated[bool, typer.Option("--xet", help="Empty the cache of Xet chunks too.")]
CodeCache = Annotated[bool, typer.Option("--modules", help="Empty the cache of remote code too.")]


@command
def clean(
    call: Call,
    models: EvictedModels = None,
    older_than: OlderThan = None,
    max_size: MaxSize = None,
    free: FreeTarget = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Move models to this folder on another drive instead of deleting them; links "
            "stay. The default is vlmcache.archive of your config.yaml.",
            show_default=False,
        ),
    ] = None,
    duplicates: Duplicates = False,
    partials: Partials = False,
    keep: KeptModels = None,
    every: Everything = False,
    xet: XetCache = False,
    modules: CodeCache = False,
    trash: Trash = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="List old revisions, unfinished downloads, second formats and unused models, and "
            "remove only what you choose.",
        ),
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> Answer:
    """Remove what nobody needs, and what was not used for a while.

    Without options: revisions that a newer complete one replaced and that were not used for 30
    days; blobs that nothing links to; downloads that nobody continued for 30 days, or whose file is
    complete elsewhere; leftovers of interrupted runs; and then, if vlmcache.max_size is configured,
    the least recently used models. No waste is removed that is younger than an hour or part of a
    damaged repo. To reach a size or an age that you ask for, any model can be removed that is not
    configured and not in use, even a new, damaged or incomplete one. Everything is freed at once
    unless --trash is given.

    With --to, or with vlmcache.archive in your config.yaml, such models are moved instead of
    deleted, configured ones last; 'vlmcache recall' brings one back.
    """
    if interactive:
        call.cache.select = chooser(
            json=call.json,
            yes=yes,
            missing="-i lists what to choose from, and there is no terminal for it",
            hint="type 'vlmcache clean --dry-run' to see what would be removed without it",
        )
    cache = call.acting(yes=yes, word="all" if every else None)
    return Answer(
        cache.clean(
            models or (),
            older_than=older_than,
            max_size=max_size,
            free=free,
            to=to,
            duplicates=duplicates,
            partials=partials,
            keep=keep or (),
            all=every,
            xet=xet,
            modules=modules,
            trash=trash,
            interactive=interactive,
            dry_run=dry_run,
        )
    )
