"""`vlmcache quantize`."""

from typing import Annotated

import typer

from vlmcache.cli.loadtest import TrustRemoteCode
from vlmcache.cli.options import Answer, Call, DryRun, Yes, command

EXAMPLES = """Examples:

  vlmcache quantize qwen_vl_2b --precision int8
  vlmcache quantize qwen_vl_7b --precision int4 --dry-run
  vlmcache quantize qwen_vl_2b --precision int8 --remove"""


@command
def quantize(
    call: Call,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A key of config.yaml or a repo id, with an optional @revision.",
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
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the copy instead of making it.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,  # noqa: ARG001 - nothing is asked, and scripts may give it all the same
    trust_remote_code: TrustRemoteCode = False,
) -> Answer:
    """Keep a quantized copy, so that later loads are fast.

    Later int8 and int4 loads neither read the full weights nor quantize again.
    """
    return Answer(
        call.acting().quantize(
            model,
            precision=precision,
            device=device,
            remove=remove,
            dry_run=dry_run,
            trust_remote_code=trust_remote_code,
        )
    )
