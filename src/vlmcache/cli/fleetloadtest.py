"""`vlmcache fleet load-test`."""

from typing import Annotated

import typer

from vlmcache.cli.fleet import fleet_of
from vlmcache.cli.options import Address, Answer, Call, Context, Nodes, Patterns, command

EXAMPLES = """Examples:

  vlmcache fleet load-test qwen_vl_2b
  vlmcache fleet load-test qwen_vl_2b --precision bf16,int8 --nodes 'gpu[1-4]'
  vlmcache fleet load-test --synthetic tiny --json"""


@command
def fleet_load_test(
    call: Call,
    models: Patterns = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="LIST",
            help="Precision to load at: fp32, fp16, bf16, int8 or int4; by default the "
            "configured one, else the stored type. Repeat it or separate with commas.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="NAME", help="Load on this device: auto, cpu, cuda:0, xpu or mps."
        ),
    ] = "auto",
    trials: Annotated[
        int, typer.Option("--trials", metavar="COUNT", help="Load this many times of each kind.")
    ] = 3,
    cold: Annotated[
        bool | None,
        typer.Option(
            "--cold/--warm", help="Measure only cold loads, or only warm ones; by default both."
        ),
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
        typer.Option(
            "--tokens", metavar="COUNT", help="Generate this many tokens after each load."
        ),
    ] = 1,
    loader: Annotated[
        list[str] | None,
        typer.Option(
            "--loader",
            metavar="LIST",
            help="Loader to use: auto, plain, readahead, pinned, fastsafetensors or runai; by "
            "default the fastest known. Repeat it or separate with commas.",
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention",
            metavar="NAME",
            help="Compute attention with this: sdpa, eager or flash_attention_2; by default what "
            "config.yaml or the model says.",
        ),
    ] = None,
    cold_libraries: Annotated[
        bool,
        typer.Option(
            "--cold-libraries",
            help="Before a cold load, evict the libraries' files from memory too.",
        ),
    ] = False,
    context: Context = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code of the repo run.")
    ] = False,
    address: Address = None,
    nodes: Nodes = None,
) -> Answer:
    """Measure on each node how fast models load, all at the same time; slow nodes are named.

    Each load runs in a fresh process on its node, until every weight is on the device.
    """
    fleet = fleet_of(call, address, nodes)
    return Answer(
        fleet.load_test(
            models or None,
            precision=precision or (),
            device=device,
            trials=trials,
            cold=cold,
            synthetic=synthetic or (),
            tokens=tokens,
            loader=loader or (),
            attention=attention,
            trust_remote_code=trust_remote_code,
            context=context,
            cold_libraries=cold_libraries,
        )
    )
