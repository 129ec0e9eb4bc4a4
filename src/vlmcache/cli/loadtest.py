"""`vlmcache load-test`."""

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

  vlmcache load-test --synthetic tiny
  vlmcache load-test qwen_vl_2b --precision bf16,int8 --save before.json
  vlmcache load-test qwen_vl_2b --compare before.json --plot loads.svg
  vlmcache load-test qwen_vl_2b --loader plain,readahead --cold
  vlmcache load-test --history"""


def load_test(
    models: Models = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="LIST", help="fp32, fp16, bf16, int8, int4."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda:0, xpu, mps.")
    ] = "auto",
    trials: Annotated[
        int, typer.Option("--trials", metavar="COUNT", help="Loads of each kind.")
    ] = 3,
    cold: Annotated[
        bool | None, typer.Option("--cold/--warm", help="Only cold loads, or only warm ones.")
    ] = None,
    synthetic: Annotated[
        list[str] | None,
        typer.Option(
            "--synthetic", metavar="NAME", help="Random weights: tiny, got_ocr, qwen_vl_2b, …_7b."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="COUNT", help="Tokens to generate after it.")
    ] = 1,
    loader: Annotated[
        list[str] | None,
        typer.Option(
            "--loader", metavar="LIST", help="auto, plain, readahead, fastsafetensors, runai."
        ),
    ] = None,
    save: Annotated[
        str | None, typer.Option("--save", metavar="FILE", help="Write the report as JSON.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="OLD.json", help="Judge against a saved one.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png or .svg.")
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="Show earlier results only.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code of the repo run.")
    ] = False,
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Answer:
    """Measure how fast models load, cold and warm.

    Each load runs in a fresh process, until every weight is on the device.
    """
    from vlmcache.load import bench, saved, view
    from vlmcache.load.wishes import parse_wishes

    session = open_session(config, cache_dir)
    if history:
        value = bench.history(session.environment, session.config, models or ())
    else:
        wishes = parse_wishes(
            precision or (), device, trials, cold, tokens, loader or (), trust_remote_code
        )
        earlier = saved.read_report(compare) if compare else None
        saved.check_targets(save, plot)
        if plot:
            view.check_plot(plot)
        with view.progress(silent=json or quiet) as tell:
            value = bench.load_test(*session, models or (), wishes, synthetic or (), tell)
        value = saved.compared(value, earlier)
        if save:
            saved.save_report(save, value)
        if plot:
            view.plot(plot, value)
    error = bench.failure(value)
    return Answer(
        "load-test",
        value,
        Output(json, quiet, verbose),
        lambda: view.show(value, verbose=verbose),
        lambda: bench.ids(value),
        error,
    )
