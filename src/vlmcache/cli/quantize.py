"""`vlmcache quantize`."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmcache.cli.options import (
    Answer,
    CacheDir,
    ConfigFile,
    Json,
    Output,
    Quiet,
    Verbose,
    complete_model,
    open_session,
)

EXAMPLES = """Examples:

  vlmcache quantize qwen_vl_2b --precision int8
  vlmcache quantize qwen_vl_7b --precision int4 --dry-run
  vlmcache quantize qwen_vl_2b --precision int8 --remove"""


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A key of config.yaml or a repo id, with an optional @revision.",
            autocompletion=complete_model,
        ),
    ],
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", help="int8 or int4.")
    ] = "int8",
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda:0, xpu.")
    ] = "auto",
    remove: Annotated[bool, typer.Option("--remove", help="Remove the copy instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code of the repo run.")
    ] = False,
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Answer:
    """Keep a quantised copy, so that later loads are quick.

    Later int8 and int4 loads neither read the full weights nor quantise again.
    """
    from vlmcache.load import quantized, view
    from vlmcache.load.wishes import parse_one_precision

    session = open_session(config, cache_dir)
    wanted = parse_one_precision(precision)
    if remove:
        value = quantized.discard(
            session.environment, session.config, model, wanted, dry_run=dry_run
        )
    else:
        with view.progress(silent=json or quiet) as tell:
            tell(f"quantising {model}")
            value = quantized.quantize(
                *session,
                model,
                wanted,
                device=device,
                dry_run=dry_run,
                trust_remote_code=trust_remote_code,
            )
    return Answer(
        "quantize",
        value,
        Output(json, quiet, verbose),
        lambda: view.show_quantization(value),
        lambda: [value.path],
    )
