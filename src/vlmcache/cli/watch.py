"""`vlmcache watch`."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from vlmcache.cli.options import (
    CacheDir,
    ConfigFile,
    Quiet,
    Verbose,
    duration_option,
    open_session,
    size_option,
)
from vlmcache.errors import ExitCode, UsageError

EXAMPLES = """Examples:

  vlmcache watch
  vlmcache watch --once
  vlmcache watch --json | jq -r 'select(.kind == "downloaded") | .repo'
  vlmcache watch --min-free 20GB --exit-on-low || vlmcache clean --free 50GB
  vlmcache watch --metrics /var/lib/node_exporter/vlmcache.prom"""


def watch(
    interval: Annotated[
        str,
        typer.Option(metavar="TIME", help="Longest time between two looks, 0.1s to 1d."),
    ] = "5s",
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    min_free: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Free space to warn below; config.yaml's by default."),
    ] = None,
    exit_on_low: Annotated[
        bool, typer.Option("--exit-on-low", help="Exit with 9 when less than that is free.")
    ] = False,
    metrics_file: Annotated[
        str | None,
        typer.Option("--metrics", metavar="FILE", help="Keep a file of Prometheus metrics."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Answer GET /metrics; on the loopback unless an address is given.",
        ),
    ] = None,
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> ExitCode:
    """See models, downloads and room live.

    On a terminal a full screen (q ends it), elsewhere plain lines as things happen. Nothing is
    changed, and no network is touched.
    """
    import msgspec

    from vlmcache.commands.status import recommend
    from vlmcache.commands.status import status as status_command
    from vlmcache.commands.watch import metrics, values, view
    from vlmcache.commands.watch import watch as watch_command

    session = open_session(config, cache_dir)
    settings = session.config
    seconds = duration_option("--interval", interval, ("s", "m"))
    if not 0.1 <= seconds <= 86400:
        raise UsageError("--interval must be 0.1s to 1d")
    if min_free is not None:
        bound = size_option("--min-free", min_free)
        limits = msgspec.structs.replace(settings.limits, min_free=bound)
        settings = msgspec.structs.replace(settings, limits=limits)
    with contextlib.ExitStack() as stack:
        exposition = metrics.Exposition()
        note = None
        if listen is not None:
            address = metrics.parse_address(listen)
            note = stack.enter_context(metrics.Endpoint(exposition, *address)).url
        output = view.output(json=json, quiet=quiet, once=once, verbose=verbose, note=note)
        stack.enter_context(output)
        file = metrics.File(metrics_file, seconds) if metrics_file is not None else None
        looks = watch_command.watch(
            settings, session.cache, interval=seconds, wait=output.wait, notify=not once
        )
        stack.enter_context(contextlib.closing(looks))
        for look in looks:
            text = exposition.update(look)
            output.show(look)
            if file is not None:
                output.warn(file.update(text))
            low = values.low_space(look.snapshot)
            if low is not None and exit_on_low:
                status = status_command.status(
                    settings, session.cache, environment=session.environment
                )
                advised = recommend.Advice(settings, session.cache)
                hint = recommend.what_frees(status.recommendations, advised)
                raise values.low_space(look.snapshot, hint) or low
            if once:
                break
    return ExitCode.DONE
