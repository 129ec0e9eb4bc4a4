"""`vlmcache warm`."""

from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, DryRun, Yes, command

EXAMPLES = """Examples:

  vlmcache warm qwen_vl_2b
  vlmcache warm qwen_vl_7b --dry-run
  vlmcache warm org/model@v1.0 org/gguf-model:Q4_K_M
  vlmcache warm qwen_vl_7b && vllm serve Qwen/Qwen2-VL-7B-Instruct"""


@command
def warm(
    call: Call,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Keys of config.yaml or repo ids, with an optional @revision and :VARIANT.",
        ),
    ],
    dry_run: DryRun = False,
    yes: Yes = False,  # noqa: ARG001 - nothing is asked, and scripts may give it all the same
) -> Answer:
    """Read weights into memory ahead of a server's start.

    The kernel keeps them there as long as nothing else needs the memory. Only as much is read as
    fits into free memory, in the order of the models; the exit code is 3 if that is not all.
    """
    return Answer(call.acting().warm(models, dry_run=dry_run))
