"""`vlmcache load-test`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import Models, command

if TYPE_CHECKING:
    from vlmcache.cli.options import Output
    from vlmcache.config import Session
    from vlmcache.load.report import LoadReport

EXAMPLES = """Examples:

  vlmcache load-test --synthetic tiny
  vlmcache load-test qwen_vl_2b --precision bf16,int8 --save before.json
  vlmcache load-test qwen_vl_2b --compare before.json --plot loads.svg
  vlmcache load-test qwen_vl_2b --loader plain,readahead --cold
  vlmcache load-test --history"""


@command
def load_test(
    session: Session,
    output: Output,
    models: Models = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="LIST",
            help="Precision to load at: fp32, fp16, bf16, int8 or int4. Repeat it or separate with "
            "commas.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="NAME", help="Load on this device: auto, cpu, cuda:0, xpu or mps."
        ),
    ] = "auto",
    trials: Annotated[
        int, typer.Option("--trials", metavar="COUNT", help="Load so many times of each kind.")
    ] = 3,
    cold: Annotated[
        bool | None,
        typer.Option("--cold/--warm", help="Measure only cold loads, or only warm ones."),
    ] = None,
    synthetic: Annotated[
        list[str] | None,
        typer.Option(
            "--synthetic",
            metavar="NAME",
            help="Measure a model with random weights: tiny, got_ocr, qwen_vl_2b or qwen_vl_7b.",
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option("--tokens", metavar="COUNT", help="Generate so many tokens after each load."),
    ] = 1,
    loader: Annotated[
        list[str] | None,
        typer.Option(
            "--loader",
            metavar="LIST",
            help="Loader to use: auto, plain, readahead, fastsafetensors or runai. Repeat it or "
            "separate with commas.",
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="FILE", help="Write the report to this file as JSON."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="OLD.json", help="Compare with a report that --save wrote."
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Draw the loads to this file, .png or .svg."),
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Show earlier results and measure nothing.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code of the repo run.")
    ] = False,
) -> LoadReport:
    """Measure how fast models load, cold and warm.

    Each load runs in a fresh process, until every weight is on the device.
    """
    from vlmcache.load import bench, saved, view
    from vlmcache.load.options import LoadTestOptions, parse_loaders, parse_precisions

    if history:
        value = saved.history(session, models or ())
    else:
        options = LoadTestOptions(
            parse_precisions(precision or ()),
            device,
            trials,
            cold,
            tokens,
            parse_loaders(loader or ()),
            trust_remote_code,
            tuple(synthetic or ()),
        )
        earlier = saved.read_report(compare) if compare else None
        saved.check_targets(save, plot)
        if plot:
            view.check_plot(plot)
        with view.progress(silent=output.json or output.quiet) as on_step:
            value = bench.load_test(session, models or (), options, on_step)
        value = saved.compared(value, earlier)
        if save:
            saved.save_report(save, value)
        if plot:
            view.plot(plot, value)
    return value
