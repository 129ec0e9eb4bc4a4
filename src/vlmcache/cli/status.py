"""`vlmcache status`."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmcache.cli.options import (
    Answer,
    CacheDir,
    ConfigFile,
    Json,
    Models,
    Output,
    Quiet,
    Verbose,
    open_session,
)

EXAMPLES = """Examples:

  vlmcache status
  vlmcache status qwen_vl_2b --check && python serve.py
  vlmcache status --all --sort size --filter 'size>1GB'
  vlmcache status --json | jq '.models[] | select(.state != "cached") | .key'"""


def status(
    models: Models = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 4 unless every model is cached.")
    ] = False,
    outdated: Annotated[
        bool, typer.Option("--outdated", help="Ask the hub for newer revisions.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="List the rest of the cache too.")] = False,
    sort: Annotated[
        str | None, typer.Option(metavar="FIELD", help="name, size, state or used.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="TEST", help="'size>1GB', 'used>30d', 'state=partial'."),
    ] = None,
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Answer:
    """Show models, bytes, room and what to do next.

    Nothing is changed, and no network is touched but by --outdated.
    """
    from vlmcache.commands.status import status as status_command

    session = open_session(config, cache_dir)
    value = status_command.status(
        session.config, session.cache, models or (), environment=session.environment
    )
    if outdated:
        from vlmcache.commands.status import outdated as status_outdated

        value = status_outdated.with_updates(
            value, session.config, session.cache, session.environment
        )
    error = status_command.not_cached(value) if check else None
    value = status_command.select_rows(value, filters or (), sort)

    def show() -> None:
        from vlmcache.commands.status import view

        view.show(value, every=every, verbose=verbose)

    return Answer(
        "status",
        value,
        Output(json, quiet, verbose),
        show,
        lambda: status_command.ids(value, every=every),
        error,
    )
