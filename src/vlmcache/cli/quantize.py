"""`vlmcache quantize`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlmcache.cli.options import command, complete_model

if TYPE_CHECKING:
    from vlmcache.cli.options import Output
    from vlmcache.config import Session
    from vlmcache.load.quantized import Quantization

EXAMPLES = """Examples:

  vlmcache quantize qwen_vl_2b --precision int8
  vlmcache quantize qwen_vl_7b --precision int4 --dry-run
  vlmcache quantize qwen_vl_2b --precision int8 --remove"""


@command
def quantize(
    session: Session,
    output: Output,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A key of config.yaml or a repo id, with an optional @revision.",
            autocompletion=complete_model,
        ),
    ],
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="NAME", help="Precision of the copy: int8 or int4."),
    ] = "int8",
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="NAME", help="Quantize on this device: auto, cpu, cuda:0 or xpu."
        ),
    ] = "auto",
    remove: Annotated[bool, typer.Option("--remove", help="Remove the copy instead.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and stop.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code of the repo run.")
    ] = False,
) -> Quantization:
    """Keep a quantized copy, so that later loads are fast.

    Later int8 and int4 loads neither read the full weights nor quantize again.
    """
    from vlmcache.load import quantized, view
    from vlmcache.load.options import parse_one_precision

    wanted = parse_one_precision(precision)
    if remove:
        value = quantized.remove_quantized(session, model, wanted, dry_run=dry_run)
    else:
        with view.progress(silent=output.json or output.quiet) as on_step:
            on_step(f"quantizing {model}")
            value = quantized.quantize(
                session,
                model,
                wanted,
                device=device,
                dry_run=dry_run,
                trust_remote_code=trust_remote_code,
            )
    return value
