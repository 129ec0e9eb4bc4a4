"""`vlmcache load-test`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, Context, Patterns, command

EXAMPLES = """Examples:

  vlmcache load-test --synthetic tiny
  vlmcache load-test qwen_vl_2b --precision bf16,int8 --save before.json
  vlmcache load-test qwen_vl_2b --compare before.json --plot loads.svg
  vlmcache load-test qwen_vl_2b --loader plain,readahead --cold
  vlmcache load-test --history"""


# Options that the command of a fleet has too.
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        metavar="LIST",
        help="Precision to load at: fp32, fp16, bf16, int8 or int4; by default the "
        "configured one, else the stored type. Repeat it or separate with commas.",
    ),
]
DeviceName = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="Load on this device: auto, cpu, cuda:0, xpu or mps."
    ),
]
Trials = Annotated[
    int, typer.Option("--trials", metavar="COUNT", help="Load this many times of each kind.")
]
OnlyCold = Annotated[
    bool | None,
    typer.Option(
        "--cold/--warm", help="Measure only cold loads, or only warm ones; by default both."
    ),
]
SyntheticModels = Annotated[
    list[str] | None,
    typer.Option(
        "--synthetic",
        metavar="NAME",
        help="Measure a model with random weights: tiny, got_ocr, qwen_vl_2b or qwen_vl_7b.",
    ),
]
TokenCount = Annotated[
    int,
    typer.Option("--tokens", metavar="COUNT", help="Generate this many tokens after each load."),
]
Loaders = Annotated[
    list[str] | None,
    typer.Option(
        "--loader",
        metavar="LIST",
        help="Loader to use: auto, plain, readahead, pinned, fastsafetensors or runai; by "
        "default the fastest known. Repeat it or separate with commas.",
    ),
]
AttentionName = Annotated[
    str | None,
    typer.Option(
        "--attention",
        metavar="NAME",
        help="Compute attention with this: sdpa, eager or flash_attention_2; by default what "
        "config.yaml or the model says.",
    ),
]
ColdLibraries = Annotated[
    bool,
    typer.Option(
        "--cold-libraries",
        help="Before a cold load, evict the libraries' files from memory too.",
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let Python code of the repo run.")
]


@command
def load_test(
    call: Call,
    models: Patterns = None,
    precision: Precisions = None,
    device: DeviceName = "auto",
    trials: Trials = 3,
    cold: OnlyCold = None,
    synthetic: SyntheticModels = None,
    tokens: TokenCount = 1,
    loader: Loaders = None,
    attention: AttentionName = None,
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
        typer.Option("--plot", metavar="FILE", help="Draw the loads to this file, .svg or .png."),
    ] = None,
    cold_libraries: ColdLibraries = False,
    history: Annotated[
        bool, typer.Option("--history", help="Show earlier results and measure nothing.")
    ] = False,
    context: Context = None,
    trust_remote_code: TrustRemoteCode = False,
) -> Answer:
    """Measure how fast models load, cold and warm.

    Each load runs in a fresh process, until every weight is on the device.
    """
    from vlmcache.load import view
    from vlmcache.load.plot import check_plot, write_plot

    if plot and not history:
        check_plot(plot)
    with view.progress(silent=call.quiet or history) as call.cache.on_step:
        value = call.cache.load_test(
            models or None,
            precision=precision or (),
            device=device,
            trials=trials,
            cold=cold,
            synthetic=synthetic or (),
            tokens=tokens,
            loader=loader or (),
            attention=attention,
            save=save,
            compare=compare,
            history=history,
            trust_remote_code=trust_remote_code,
            context=context,
            cold_libraries=cold_libraries,
        )
    if plot and not history:
        value = write_plot(plot, value)
    return Answer(value)
