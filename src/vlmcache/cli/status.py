"""`vlmcache status`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, Context, Patterns, command

EXAMPLES = """Examples:

  vlmcache status
  vlmcache status qwen_vl_2b --check && python serve.py
  vlmcache status --all --sort size --filter 'size>1GB'
  vlmcache status --json | jq '.models[] | select(.state != "cached") | .key'"""


@command
def status(
    call: Call,
    models: Patterns = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with code 4 unless every model is cached.")
    ] = False,
    outdated: Annotated[
        bool, typer.Option("--outdated", help="Ask the hub whether newer revisions exist.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="List all other repos of the cache too.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="COUNT",
            show_default=False,
            help="Show at most this many rows of a table; by default 20, with --all every row.",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Sort the rows by name, size, state, type or used; by default as config.yaml "
            "lists them.",
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="TEST",
            help="Show only rows that pass: 'size>1GB', 'used>30d', 'state=partial'.",
        ),
    ] = None,
    context: Context = None,
) -> Answer:
    """Show models, their sizes, free space and what to do next.

    Nothing is changed. Only --outdated uses the network.
    """
    # Asking takes a while, and what there is to say about it belongs on stderr.
    cache = call.acting() if outdated else call.cache
    value = cache.status(
        models or None,
        check=check,
        outdated=outdated,
        sort=sort,
        filter=filters or (),
        context=context,
    )
    from vlmcache.commands.status.filters import ROWS, TableOptions
    from vlmcache.commands.status.steps import Advice

    words = [*(models or ()), "--all", *(("--sort", sort) if sort else ())]
    for test in filters or ():
        words += ["--filter", test]
    listing = TableOptions(
        every,
        limit or (None if every else ROWS),
        sort,
        filtered=bool(filters),
        named=bool(models),
        outdated=outdated,
        more=Advice(cache.session).command("status", *words),
    )
    return Answer(value, {"listing": listing}, value.all_ids if every else None)
