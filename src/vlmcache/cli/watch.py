"""`vlmcache watch`."""

import contextlib
from typing import Annotated

import typer

from vlmcache.cli.options import Call, command

EXAMPLES = """Examples:

  vlmcache watch
  vlmcache watch --once
  vlmcache watch --json | jq -r 'select(.kind == "downloaded") | .repo'
  vlmcache watch --min-free 20GB --exit-on-low || vlmcache clean --free 50GB
  vlmcache watch --metrics /var/lib/node_exporter/vlmcache.prom"""


@command
def watch(
    call: Call,
    interval: Annotated[
        str,
        typer.Option(metavar="TIME", help="Check at least this often, 0.1s to 1d."),
    ] = "5s",
    once: Annotated[bool, typer.Option("--once", help="Check once and stop.")] = False,
    min_free: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Warn if less than this is free, for example 20GB; by default "
            "min_free of config.yaml.",
        ),
    ] = None,
    exit_on_low: Annotated[
        bool, typer.Option("--exit-on-low", help="Exit with code 9 once less than that is free.")
    ] = False,
    metrics_file: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="FILE",
            help="Write Prometheus metrics to this file and keep it up to date.",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Answer GET /metrics on this port, only to this machine unless ADDRESS is given.",
        ),
    ] = None,
) -> None:
    """Watch models, downloads and free space live.

    Shows a full screen on a terminal (q ends it), elsewhere plain lines as things happen. Nothing
    is changed, and no network is used.
    """
    from vlmcache.addresses import parse_address
    from vlmcache.api import watched
    from vlmcache.commands.status import recommend, steps
    from vlmcache.commands.watch import metrics, view
    from vlmcache.commands.watch import watch as watch_command

    call.cache.session, seconds = watched(call.cache, interval, min_free)
    with contextlib.ExitStack() as stack:
        exposition = metrics.Exposition()
        note = None
        if listen is not None:
            address = parse_address(listen)
            note = stack.enter_context(metrics.endpoint(exposition, *address))
        screen = view.output(
            json=call.json, quiet=call.quiet, once=once, verbose=call.verbose, note=note
        )
        stack.enter_context(screen)
        file = metrics.MetricsFile(metrics_file, seconds) if metrics_file is not None else None
        checks = watch_command.watch(
            call.cache.session, interval=seconds, wait=screen.wait, notify=not once
        )
        stack.enter_context(contextlib.closing(checks))
        for check in checks:
            text = exposition.update(check)
            screen.show(check)
            if file is not None:
                screen.warn(file.update(text))
            low = check.snapshot.problem
            if low is not None and exit_on_low:
                advised = call.cache.status().recommendations
                low.hint = recommend.what_frees(advised, steps.Advice(call.cache.session))
                raise low
            if once:
                break
