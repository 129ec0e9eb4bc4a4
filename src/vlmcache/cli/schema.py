"""`vlmcache schema`."""

from typing import Annotated

import typer

EXAMPLES = """Examples:

  vlmcache schema status
  vlmcache schema status > status.schema.json"""


def schema(
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help="The command whose --json is described.")
    ],
) -> None:
    """Print the JSON Schema of a command's --json."""
    import json

    from vlmcache.cli.register import document_type, stream_types
    from vlmcache.show.document import schema_of, schema_of_stream

    lines = stream_types(command)
    schema = (
        schema_of_stream(command, lines) if lines else schema_of(command, document_type(command))
    )
    print(json.dumps(schema, indent=2))
