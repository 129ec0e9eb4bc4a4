"""`vlmcache watch`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import command, duration_option, size_option
from vlmcache.errors import UsageError

if TYPE_CHECKING:
    from vlmcache.cli.options import Output
    from vlmcache.config import Session

EXAMPLES = """Examples:

  vlmcache watch
  vlmcache watch --once
  vlmcache watch --json | jq -r 'select(.kind == "downloaded") | .repo'
  vlmcache watch --min-free 20GB --exit-on-low || vlmcache clean --free 50GB
  vlmcache watch --metrics /var/lib/node_exporter/vlmcache.prom"""


@command
def watch(
    session: Session,
    output: Output,
    interval: Annotated[
        str,
        typer.Option(metavar="TIME", help="Longest time between two checks, 0.1s to 1d."),
    ] = "5s",
    once: Annotated[bool, typer.Option("--once", help="Check once and stop.")] = False,
    min_free: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Warn if less than this is free, such as 20GB (default: min_free in config.yaml).",
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
            help="Answer GET /metrics on this port; only this machine's, unless ADDRESS is given.",
        ),
    ] = None,
) -> None:
    """Watch models, downloads and free space live.

    On a terminal a full screen (q ends it), elsewhere plain lines as things happen. Nothing is
    changed, and no network is used.
    """
    import msgspec

    from vlmcache.commands.status import recommend, steps
    from vlmcache.commands.status import status as status_command
    from vlmcache.commands.watch import metrics, view
    from vlmcache.commands.watch import watch as watch_command

    seconds = duration_option("--interval", interval, ("s", "m"))
    if not 0.1 <= seconds <= 86400:
        raise UsageError("--interval must be 0.1s to 1d")
    if min_free is not None:
        bound = size_option("--min-free", min_free)
        limits = msgspec.structs.replace(session.config.limits, min_free=bound)
        config_with_bound = msgspec.structs.replace(session.config, limits=limits)
        session = session._replace(config=config_with_bound)
    with contextlib.ExitStack() as stack:
        exposition = metrics.Exposition()
        note = None
        if listen is not None:
            address = metrics.parse_address(listen)
            note = stack.enter_context(metrics.endpoint(exposition, *address))
        screen = view.output(
            json=output.json, quiet=output.quiet, once=once, verbose=output.verbose, note=note
        )
        stack.enter_context(screen)
        file = metrics.MetricsFile(metrics_file, seconds) if metrics_file is not None else None
        checks = watch_command.watch(session, interval=seconds, wait=screen.wait, notify=not once)
        stack.enter_context(contextlib.closing(checks))
        for check in checks:
            text = exposition.update(check)
            screen.show(check)
            if file is not None:
                screen.warn(file.update(text))
            low = check.snapshot.problem
            if low is not None and exit_on_low:
                advised = status_command.status(session).recommendations
                low.hint = recommend.what_frees(advised, steps.Advice(session))
                raise low
            if once:
                break
